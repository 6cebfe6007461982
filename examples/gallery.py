"""The gallery: every example with its picture, its table, its command and its minutes.

`examples/results.py` writes `docs/gallery.md` and its pictures from the committed figures in `docs/results/`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.record import text_of

OPENING = """# Examples

Written by `make results` from the files in [docs/results/](results). Each example is a module of `examples/` that runs
by the command shown and leaves `results.json`; [the results](results.md) have all rows, with the goals. One needs a GPU
and is not here: `python -m examples.cifar100`, which first prints how long it will take. A bar in a picture is ± one
standard deviation over seeds.
"""


@dataclass(frozen=True)
class Entry:
    """What the gallery shows of an example.

    Attributes:
        title: of its section.
        says: what it does and what came of it, in a sentence or two.
        axis: what its picture compares, with the unit.
        rows: row in `results.json` → its name in picture and table.
    """

    title: str
    says: str
    axis: str
    rows: Mapping[str, str]


ENTRIES = {
    "mnist-paper": Entry(
        "The paper on MNIST",
        "Section 3 of the paper: a regularised teacher, a student on labels, the same distilled; temperatures, and "
        "transfer sets that lack classes.",
        "errors in 10,000 test digits",
        {
            "teacher, 2 × 1200, dropout, max-norm, jitter": "teacher",
            "student, 2 × 800, on labels": "student on labels",
            "student, 2 × 800, distilled at T = 20, digits that never moved": "distilled at T = 20",
            "student, 2 × 800, taught by the three teachers on jittered digits": "distilled from three teachers",
        },
    ),
    "speech": Entry(
        "Ten acoustic models in one",
        "Section 4: an ensemble of ten networks on spoken digits, and one network that keeps most of its gain.",
        "frames classified correctly, %",
        {
            "frame accuracy: one model": "one model",
            "frame accuracy: one model, on labels, as many steps and voices as the distilled one": "trained longer",
            "frame accuracy: ensemble of 10": "ensemble of 10",
            "frame accuracy: one model, distilled from the ensemble": "one model, distilled",
        },
    ),
    "soft-targets-regularise": Entry(
        "Three per cent of the data",
        "Section 6: with soft targets, 3 % of the frames are nearly as good as all of them.",
        "frames classified correctly, %",
        {
            "all frames, labels: the teacher": "all frames: the teacher",
            "3 % of the frames, labels": "3 % of the frames, labels",
            "3 % of the frames, soft targets": "3 % of the frames, soft targets",
            "3 % of the recordings, labels": "3 % of the recordings, labels",
            "3 % of the recordings, soft targets": "3 % of the recordings, soft targets",
        },
    ),
    "specialists": Entry(
        "Specialists on CIFAR-100",
        "Section 5: experts for groups of classes that are easily confused beat as much further training of the "
        "generalist; one network distilled from the merged model keeps little of it.",
        "test images classified correctly, %",
        {
            "generalist": "generalist",
            "control: trained on for as many steps as all specialists": "generalist, trained further",
            "generalist and specialists, merged": "merged with ten specialists",
            "one net, distilled from the merged": "one network, distilled from the merged",
        },
    ),
    "compress-and-ship": Entry(
        "From an ensemble to a phone",
        "MNIST with 1,000 labels: three ConvNets teach a separable student on all images; it ships in 24 kB.",
        "errors in 10,000 test digits",
        {
            "teacher: ensemble of 3 ConvNets": "teacher: three ConvNets",
            "separable student on labels": "student on labels",
            "the same student, distilled": "the same student, distilled",
        },
    ),
    "adult": Entry(
        "Boosted trees teach a network",
        "The Adult census: a network of one hidden layer, in 19 kB and 2 µs a row, comes within 0.2 points of its "
        "trees.",
        "test rows classified correctly, %",
        {
            "teacher: boosted trees": "teacher: boosted trees",
            "student on labels": "student on labels",
            "the same student, distilled": "the same student, distilled",
        },
    ),
    "compare-keras": Entry(
        "Beside keras.distillation",
        "One student, five ways. Keras's default loss takes the divergence of raw logits, and is worse here than no "
        "teacher.",
        "errors in 10,000 test digits",
        {
            "labels alone": "labels alone",
            "keras.distillation, LogitsDistillation()": "Keras, default",
            "keras.distillation, LogitsDistillation(loss=KLDivergence())": "Keras, KLDivergence()",
            "keras_distill, SoftTargets(3.0), student_loss_weight=0.5": "ours, the same settings",
            "keras_distill, at its default": "ours, default",
        },
    ),
    "banking77": Entry(
        "Ten labels a class, ten thousand sentences",
        "Banking77: a sentence encoder with 770 labels teaches a network that answers in 11 µs, tokeniser included.",
        "test sentences classified correctly, %",
        {
            "teacher: a head on MiniLM's features, 770 labels": "teacher: head on MiniLM, 770 labels",
            "logistic regression on tf-idf, the 770 labels": "tf-idf, 770 labels",
            "the small net on the 770 labels": "student on 770 labels",
            "the small net, distilled, no label": "the same student, distilled",
        },
    ),
}
DEMO = """
## The demo

A teacher, a small student on labels, and the same student distilled, on a tenth of MNIST's labelled images; then ONNX,
LiteRT and a report.

`keras-distill demo --dataset mnist`: {minutes:.1f} minutes on two cores; with `--dataset digits`, which needs no
download, three.

![Accuracy against latency of the demo's models]({picture})
"""


def page(folder: Path) -> str:
    """`docs/gallery.md`, of the committed figures in a folder."""
    demo = json.loads((folder / "demo-mnist.json").read_text())
    text = OPENING + DEMO.format(minutes=demo["seconds"]["total"] / 60, picture="front.svg")
    return text + "".join(section(name, results) for name, results in _committed(folder))


def section(name: str, results: Mapping[str, Any]) -> str:
    """One example of the gallery."""
    entry = ENTRIES[name]
    by_row = {row["row"]: row for row in results["rows"]}
    lines = [
        f"\n## {entry.title}\n",
        f"{entry.says}\n",
        f"`{results['command']}`: {results['cpu_minutes']:.0f} minutes of one core, {len(results['seeds'])} seeds.\n",
        f"![{entry.title}: {entry.axis}](gallery/{name}.svg)\n",
        f"| {entry.axis} | paper | here |",
        "|---|---:|---:|",
    ]
    for row, label in entry.rows.items():
        lines.append(f"| {label} | {by_row[row].get('paper') or '–'} | {text_of(by_row[row])} |")
    return "\n".join(lines) + "\n"


def pictures(folder: Path) -> dict[str, str]:
    """The pictures as SVG text, by their paths below `docs/`."""
    from keras_distill.cli import demo_report
    from keras_distill.report.drawing import on_paper
    from keras_distill.report.plots import figures_beside

    drawn = {"front.svg": demo_report.front(json.loads((folder / "demo-mnist.json").read_text()))}
    for name, results in _committed(folder):
        by_row = {row["row"]: row["ours"] for row in results["rows"]}
        figures = {label: (by_row[row]["mean"], by_row[row]["std"] or 0.0) for row, label in ENTRIES[name].rows.items()}
        drawn[f"gallery/{name}.svg"] = on_paper(figures_beside(figures, ENTRIES[name].axis))
    return drawn


def _committed(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    files = [(name, folder / f"{name}.json") for name in ENTRIES]
    return [(name, json.loads(file.read_text())) for name, file in files if file.is_file()]
