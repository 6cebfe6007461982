"""How often the verdict is right: ten situations trained for it, and thousands of pairs whose truth is drawn.

    python -m benchmarks.verdict [--json] [--write] [--seeds 20] [--draws 500]

The situations are those of tests/report: small nets in NumPy on Gaussian clouds. Right is a run that gets one of the
words that its situation deserves, and the reason that was built into it. A fresh test set of ten times the size is
asked as well: it denies a BETTER where it does not say BETTER itself. The pairs have wrong answers drawn from known
probabilities, so that false words can be counted: of equal models, and of a gain that is just worth having. About four
minutes on one core; `--write` makes docs/results/verdict.json and the tables of docs/verdict.md.
"""

import argparse
import json
import time
from collections import Counter

import numpy as np

from benchmarks.page import DOCS, table, write_part
from benchmarks.rounds import machine, use_one_thread

RESULTS = DOCS / "results" / "verdict.json"
# (examples, share that only the one or only the other has wrong, each)
EQUAL = ((40, 0.1), (300, 0.02), (300, 0.08), (2000, 0.01), (2000, 0.1))
# (seeds, how much a seed's error rate varies: standard deviation)
OVER_SEEDS = ((3, 0.0), (3, 0.01), (3, 0.04), (5, 0.02))
DENIED_LIMIT = 0.05


def situations(num_seeds: int) -> list[dict]:
    """Each situation, trained from `num_seeds` seeds."""
    from keras_distill.report.verdict import compare_models
    from tests.report.test_verdict import EXPECTED, situation, verdict_of

    rows = []
    for name, (words, reason) in EXPECTED.items():
        found, denied = [], []
        for seed in range(num_seeds):
            run = situation(name, seed)
            verdict = verdict_of(run)
            fresh = compare_models(run.fresh_labels, run.fresh_candidate, run.fresh_baseline)
            told = " ".join(verdict.reasons)
            found.append({"word": verdict.word, "is_right": verdict.word in words and reason in told})
            denied.append(verdict.word == "BETTER" and fresh.word != "BETTER")
        rows.append(
            {
                "situation": name,
                "deserves": sorted(words),
                "reason": reason,
                "num_seeds": num_seeds,
                "words": dict(Counter(each["word"] for each in found)),
                "right_of_first_five": sum(each["is_right"] for each in found[:5]),
                "right": sum(each["is_right"] for each in found),
                "better_denied": sum(denied),
            }
        )
    return rows


def words_of_equal_models(num_draws: int) -> list[dict]:
    """One training of each, of no difference: how often chance is called one, and how often the interval holds zero."""
    from keras_distill.report.verdict import compare_models
    from tests.report.test_verdict import draw_pair

    rows = []
    for num_items, share in EQUAL:
        generator = np.random.default_rng(num_items)
        found = [compare_models(*draw_pair(generator, num_items, share, share)) for _ in range(num_draws)]
        words = Counter(each.word for each in found)
        rows.append(
            {
                "num_items": num_items,
                "differing": 2 * share,
                "num_draws": num_draws,
                **{
                    word.lower().replace(" ", "_"): words[word] / num_draws for word in ("BETTER", "WORSE", "NO BETTER")
                },
                "covered": float(np.mean([each.errors.low <= 0.0 <= each.errors.high for each in found])),
            }
        )
    return rows


def words_of_a_gain_worth_having(num_draws: int) -> list[dict]:
    """A gain of just the margin: NO BETTER would deny it."""
    from keras_distill.report.verdict import compare_models
    from tests.report.test_verdict import draw_pair

    rows = []
    for num_items in (500, 2000, 10_000):
        generator = np.random.default_rng(num_items)
        # The baseline has 20 % wrong, the candidate a tenth of it less.
        shares = (0.02, 0.04, 0.16)
        words = Counter(compare_models(*draw_pair(generator, num_items, *shares)).word for _ in range(num_draws))
        rows.append(
            {
                "num_items": num_items,
                "num_draws": num_draws,
                "no_better": words["NO BETTER"] / num_draws,
                "better": words["BETTER"] / num_draws,
            }
        )
    return rows


def words_over_seeds(num_draws: int) -> list[dict]:
    """Several trainings of no difference, whose seeds are more or less lucky and whose examples are hard for both."""
    from keras_distill.report.verdict import compare_models
    from tests.report.test_verdict import answers

    rows = []
    num_items, rate = 300, 0.2
    for num_seeds, spread in OVER_SEEDS:
        generator = np.random.default_rng([num_seeds, int(1000 * spread)])
        words, covered, rate_covered, naive = Counter(), 0, 0, 0
        for _ in range(num_draws):
            labels = generator.integers(0, 2, num_items)
            # Beta: three in four of the variance of an answer lies in the example.
            hardness = generator.beta(rate / 3, (1 - rate) / 3, num_items)
            lucks = generator.normal(size=(2, num_seeds, 1)) * spread
            wrong = generator.random((2, num_seeds, num_items)) < np.clip(hardness + lucks, 0, 1)
            found = compare_models(labels, *(np.stack([answers(row, labels) for row in rows]) for rows in wrong))
            words[found.word] += 1
            covered += found.errors.low <= 0.0 <= found.errors.high
            if not spread:
                rate_covered += found.candidate.low <= rate <= found.candidate.high
            # Every answer an example of its own, as one must not.
            pooled = compare_models(
                np.tile(labels, num_seeds), *(np.concatenate([answers(row, labels) for row in rows]) for rows in wrong)
            )
            naive += pooled.word in ("BETTER", "WORSE")
        rows.append(
            {
                "num_seeds": num_seeds,
                "spread_of_seeds": spread,
                "num_draws": num_draws,
                "better": words["BETTER"] / num_draws,
                "worse": words["WORSE"] / num_draws,
                "covered": covered / num_draws,
                "rate_covered": rate_covered / num_draws if not spread else None,
                "better_or_worse_were_answers_pooled": naive / num_draws,
            }
        )
    return rows


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def page_part(result: dict) -> str:
    """The generated part of docs/verdict.md."""
    order = ("BETTER", "NO BETTER", "WORSE", "INCONCLUSIVE")
    rows = [
        [
            row["situation"],
            ", ".join(word for word in order if word in row["deserves"])
            + (f"; “{row['reason']}”" if row["reason"] else ""),
            ", ".join(f"{row['words'][word]} {word}" for word in order if word in row["words"]),
            f"{row['right_of_first_five']} of 5",
            f"{row['right']} of {row['num_seeds']}",
            str(row["better_denied"]),
        ]
        for row in result["situations"]
    ]
    num_runs = sum(row["num_seeds"] for row in result["situations"])
    denied = sum(row["better_denied"] for row in result["situations"])
    header = ["situation", "deserves", "words", "right, seeds 0 to 4", "right, all seeds", "BETTER denied"]
    lines = [
        table(header, rows),
        f"A fresh test set of ten times the size denies {denied} BETTER of {num_runs} runs "
        f"({percent(denied / num_runs)}; goal: at most 5 %).",
        "",
        "Equal models, one training each: how often chance is called a difference (allowed: 2.5 % each way).",
        "",
        table(
            ["examples", "answers that differ", "BETTER", "WORSE", "NO BETTER", "interval covers"],
            [
                [f"{row['num_items']:,}", percent(row["differing"])]
                + [percent(row[key]) for key in ("better", "worse", "no_better", "covered")]
                for row in result["equal_models"]
            ],
        ),
        "A gain that is just worth having, a tenth of 20 % errors: how often NO BETTER denies it (allowed: 5 %).",
        "",
        table(
            ["examples", "NO BETTER", "BETTER"],
            [
                [f"{row['num_items']:,}", percent(row["no_better"]), percent(row["better"])]
                for row in result["gain_worth_having"]
            ],
        ),
        "Equal models, several trainings each, 300 examples, 20 % errors; the last column counts every answer as an "
        "example of its own, as the verdict does not.",
        "",
        table(
            ["seeds", "spread of seeds", "BETTER", "WORSE", "interval covers", "of the rate", "differences, pooled"],
            [
                [str(row["num_seeds"]), f"{100 * row['spread_of_seeds']:.0f} points"]
                + [percent(row[key]) for key in ("better", "worse", "covered", "rate_covered")]
                + [percent(row["better_or_worse_were_answers_pooled"])]
                for row in result["over_seeds"]
            ],
        ),
    ]
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return "\n".join([*lines, f"{result['num_draws']:,} draws a row; {result['minutes']:.1f} minutes; {where}."])


def main() -> int:
    """Prints the result; 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="write docs/results/verdict.json and docs/verdict.md")
    parser.add_argument("--seeds", type=int, default=20, help="of each situation (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=500, help="of each row (default: %(default)s)")
    arguments = parser.parse_args()
    use_one_thread()
    began = time.monotonic()
    result = {
        "command": f"python -m benchmarks.verdict --write --seeds {arguments.seeds} --draws {arguments.draws}",
        "machine": machine(),
        "num_draws": arguments.draws,
        "situations": situations(arguments.seeds),
        "equal_models": words_of_equal_models(arguments.draws),
        "gain_worth_having": words_of_a_gain_worth_having(arguments.draws),
        "over_seeds": words_over_seeds(arguments.draws),
    }
    result["minutes"] = round((time.monotonic() - began) / 60, 2)
    print(json.dumps(result, indent=1) if arguments.json else page_part(result))
    if arguments.write:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
        write_part("verdict.md", "verdict", page_part(result))
    num_right = sum(row["right_of_first_five"] >= 4 for row in result["situations"])
    num_runs = sum(row["num_seeds"] for row in result["situations"])
    denied = sum(row["better_denied"] for row in result["situations"])
    return 0 if num_right >= 9 and denied <= DENIED_LIMIT * num_runs else 1


if __name__ == "__main__":
    raise SystemExit(main())
