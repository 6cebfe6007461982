"""What sampled rows cost and what they are right to, beside the largest logits of as many bytes. For docs/store.md.

    python -m benchmarks.sampled [--write] [--json] [--only PART]

Parts; about five minutes of one core:

- `bias`: 1,024 targets of 32,000 classes, as a language model's: the classes' own frequencies, 1 / rank, times what
  the context says of them, and a few classes that it says much of. Each is drawn up to 32,768 times. How far the mean
  gradient of a student that knows nothing is from that of dense targets, and the squared error of one row; beside
  the largest logits of as many bytes, and as many independent draws from powers of the shares, weighed so that they
  are right in expectation.
- `student`: 64,000 items of 2,000 classes of such frequencies, labelled by a network of 64 units at T = 1; students
  of 32 units from dense targets, sampled rows and the largest logits of as many bytes under each policy, three epochs,
  three seeds. What is compared is the negative log-likelihood of fresh items under the teacher's own shares.
- `speed`: 200,000 rows of 32,000 classes read at random and in order; a step of a student of 32,000 classes.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import write_part
from benchmarks.rounds import machine, use_one_thread
from benchmarks.store import Claim, claim_of_ratio, timed

PARTS = ("bias", "student", "speed")
NUM_CLASSES, SAMPLE = 32_000, 12
SEEDS = 3


def largest_in(num_bytes: int) -> int:
    """How many of the largest logits fit into a row of so many bytes: a half and a 16-bit id each, and the tail."""
    return (num_bytes - 4) // 4


def bytes_of(kind: str, number: int) -> int:
    """Bytes of a row of `number` classes of 32,000."""
    from keras_distill.targets.manifest import Manifest

    settings: dict[str, Any] = {"top_k": number}
    if kind == "sampled":
        settings = {"sample": number, "sampling_temperature": 1.0, "sampling_seed": 0}
    return Manifest(kind=kind, num_items=1, num_classes=NUM_CLASSES, **settings).bytes_per_row


def like_a_language_model(num_rows: int, num_classes: int, seed: int = 0) -> np.ndarray:
    """Logits `(num_rows, num_classes)`, float32."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=1.5, size=(num_rows, num_classes)) - np.log(np.arange(num_classes) + 2.7)
    for row in logits:
        row[generator.integers(0, num_classes, 20)] += generator.exponential(4.0, 20)
    return logits.astype("float32")


def softmax(logits: np.ndarray) -> np.ndarray:
    """In double precision."""
    powers = np.exp(logits.astype("float64") - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def measure_bias() -> dict:
    """Relative errors of the mean gradient, by the number of rows, and mean squared errors of a row."""
    from keras_distill.targets.sampling import draw, inclusion, rounded, systematic, uniforms

    num_targets, num_draws = 1024, 32_768
    k, powers = largest_in(bytes_of("sampled", SAMPLE)), (0.8, 1.0, 1.2)
    counted = [8, 256, 4096, num_draws]
    generator = np.random.default_rng(1)
    sums = {number: np.zeros(NUM_CLASSES) for number in counted}
    mean, of_largest = np.zeros(NUM_CLASSES), {"uniform": np.zeros(NUM_CLASSES), "renormalise": np.zeros(NUM_CLASSES)}
    squares = dict.fromkeys(["sampled", "uniform", "renormalise", *(f"p^{power}" for power in powers)], 0.0)
    factors = (1.2, 2.0)
    squares |= dict.fromkeys([f"{what} {factor}" for factor in factors for what in ("at", "target at")], 0.0)
    for start in range(0, num_targets, 64):
        logits = like_a_language_model(64, NUM_CLASSES, seed=start)
        ids = np.argsort(-logits, axis=-1)[:, :SAMPLE]
        shares, num_certain, line = inclusion(logits, ids, 1.0)
        targets = softmax(logits)
        for row in range(64):
            # One row of the store after another has a target anew: the numbers are those that `label` would draw by.
            rows = np.arange(num_draws) * num_targets + start + row
            numbers = uniforms(0, rows, 2)
            certain = int(num_certain[row])
            drawn = np.repeat(ids[row : row + 1], num_draws, axis=0)
            drawn[:, certain:] = systematic(line[row], SAMPLE - certain, numbers[:, :1])
            # `draw` puts the drawn classes in order of their logits, and rounds by that order.
            order = np.argsort(-logits[row][drawn], axis=-1, kind="stable")
            drawn = np.take_along_axis(drawn, order, axis=-1)
            counts = rounded(np.repeat(shares[row : row + 1], num_draws, axis=0), numbers[:, 1:])
            if start == row == 0:
                found = draw(np.repeat(logits[:1], 64, 0), np.repeat(ids[:1], 64, 0), numbers[:64], 1.0)
                if not (np.array_equal(found[0], drawn[:64]) and np.array_equal(found[1], counts[:64])):
                    raise SystemExit("parity failed: the draws are not those of label")
            for number in counted:
                taken = drawn[:number].ravel(), counts[:number].ravel() / 255.0
                sums[number] += np.bincount(*taken, minlength=NUM_CLASSES) / number
            target = targets[row]
            mean += target
            # |s − p|² = |s|² − 2 s·p + |p|², of rows with few entries.
            taken = counts[:128] / 255.0
            products = np.square(taken).sum(-1) - 2.0 * (taken * target[drawn[:128]]).sum(-1)
            squares["sampled"] += products.mean() + np.square(target).sum()
            for power in powers:
                # Of a draw from p^t, weighed by p over it: E[(p / q)²] is the first product.
                moment = np.power(target, 2.0 - power).sum() * np.power(target, power).sum()
                squares[f"p^{power}"] += (moment - np.square(target).sum()) / SAMPLE
            for factor in factors:
                # What rows that kept their logits too would give, weighed for another temperature.
                other = softmax(logits[row] / np.float32(factor))
                weights = other[drawn[:128]] / np.minimum(target[drawn[:128]] / shares[row, -1], 1.0)
                weights /= weights.sum(axis=-1, keepdims=True)
                products = np.square(weights).sum(-1) - 2.0 * (weights * other[drawn[:128]]).sum(-1)
                squares[f"at {factor}"] += products.mean() + np.square(other).sum()
                squares[f"target at {factor}"] += np.square(other).sum()
            kept = ids[row, :k]
            rest = 1.0 - target[kept].sum()
            for policy in of_largest:
                filled = np.full(NUM_CLASSES, rest / (NUM_CLASSES - k) if policy == "uniform" else 0.0)
                filled[kept] = target[kept] if policy == "uniform" else target[kept] / target[kept].sum()
                of_largest[policy] += filled
                squares[policy] += np.square(filled - target).sum()
    student = softmax(generator.normal(scale=0.1, size=NUM_CLASSES).astype("float32"))
    slope = np.linalg.norm(student - mean / num_targets)

    def error(total: np.ndarray) -> float:
        return float(np.linalg.norm(total - mean) / num_targets / slope)

    return {
        "bytes": bytes_of("sampled", SAMPLE),
        "largest": k,
        "relative_error_by_rows": {str(number * num_targets): error(total) for number, total in sums.items()},
        "relative_error_of_largest": {policy: error(total) for policy, total in of_largest.items()},
        "squared_error_of_a_row": {name: float(total / num_targets) for name, total in squares.items()},
    }


def measure_student() -> dict:
    """Nats: the negative log-likelihood of fresh items, by what the student was taught with."""
    import keras

    import keras_distill as kd
    from keras_distill.targets import attach, label

    num_classes, num_items = 2000, 64_000
    generator = np.random.default_rng(0)
    inputs = keras.Input((16,))
    hidden = keras.layers.Dense(64, "tanh", name="hidden")
    teacher = keras.Sequential([inputs, hidden, keras.layers.Dense(num_classes, name="logits")])
    hidden.set_weights([generator.normal(size=(16, 64)) * 0.4, np.zeros(64)])
    frequencies = -np.log(np.arange(num_classes) + 2.7)
    teacher.get_layer("logits").set_weights([generator.normal(size=(64, num_classes)) * 0.3, frequencies])
    x, fresh = (generator.normal(size=(number, 16)).astype("float32") for number in (num_items, 4000))
    targets = softmax(teacher.predict(fresh, verbose=0, batch_size=1000))
    k = largest_in(bytes_of("sampled", SAMPLE))
    kinds = {"dense": {}, "sampled": {"sample": SAMPLE}, "largest": {"top_k": k}}
    runs = {"dense": ("dense", "uniform"), "sampled": ("sampled", "uniform")}
    runs |= {f"largest, {tail}": ("largest", tail) for tail in ("uniform", "bucket", "renormalise")}
    found: dict[str, list[float]] = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        stores = {name: label(teacher, x, Path(folder) / name, **settings) for name, settings in kinds.items()}
        for seed in range(SEEDS):
            for name, (kind, tail) in runs.items():
                keras.utils.set_random_seed(seed)
                layers = [keras.Input((16,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(num_classes)]
                student = keras.Sequential(layers)
                loss = kd.losses.SoftTargets(1.0, tail=tail)
                distiller = kd.Distiller(None, student, loss, student_loss_weight=0.0)
                distiller.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, 1500)))
                batches = attach((x, None), stores[kind], batch_size=128, seed=seed)
                distiller.fit(batches, epochs=3, verbose=0, shuffle=False)
                shares = softmax(student.predict(fresh, verbose=0, batch_size=1000))
                found[name].append(float(-(targets * np.log(shares)).sum(axis=-1).mean()))
    return {
        "nats": found,
        "teacher": float(-(targets * np.log(targets)).sum(axis=-1).mean()),
        "largest": k,
        "share_of_largest": float(np.sort(targets, axis=-1)[:, -k:].sum(axis=-1).mean()),
    }


def stores_of(folder: Path, num_items: int, num_largest: int) -> Iterator[tuple[str, Any]]:
    """Stores of random rows, sampled and of the largest logits."""
    from keras_distill.targets.manifest import Manifest, rows_per_shard_for
    from keras_distill.targets.shards import create, finish, write_shard
    from keras_distill.targets.store import SoftTargetStore

    generator = np.random.default_rng(0)
    sampling = {"sample": SAMPLE, "sampling_temperature": 1.0, "sampling_seed": 0}
    for kind, settings in (("sampled", sampling), ("top_k", {"top_k": num_largest})):
        manifest = Manifest(kind=kind, num_items=num_items, num_classes=NUM_CLASSES, **settings)
        per_shard = rows_per_shard_for(num_items, manifest.bytes_per_row, 256)
        settings |= {"rows_per_shard": per_shard}
        manifest = create(folder / kind, Manifest(kind=kind, num_items=num_items, num_classes=NUM_CLASSES, **settings))
        for index in range(manifest.num_shards):
            start, stop = manifest.shard_rows(index)
            rows = np.zeros(stop - start, manifest.row_dtype)
            ids = rows["sampled_ids" if kind == "sampled" else "top_k_ids"]
            ids[:] = generator.integers(0, NUM_CLASSES, ids.shape)
            # An item's own id, so that a read can be checked.
            rows["entropy" if kind == "sampled" else "log_tail"] = np.arange(start, stop)
            write_shard(folder / kind, manifest, index, rows)
        finish(folder / kind, manifest)
        yield kind, SoftTargetStore.open(folder / kind)


def measure_speed() -> dict:
    """CPU seconds of reads and of steps, sampled over the largest logits."""
    import keras
    import tensorflow as tf

    from keras_distill.losses import SoftTargets

    num_items, num_rounds, k = 200_000, 9, largest_in(bytes_of("sampled", SAMPLE))
    ids = np.random.default_rng(1).permutation(num_items)
    reads: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = dict(stores_of(Path(folder), num_items, k))
        sizes = {kind: sum(file.stat().st_size for file in store.path.rglob("*.*")) for kind, store in stores.items()}
        for kind, store in stores.items():
            field = "entropy" if kind == "sampled" else "log_tail"
            if not np.array_equal(store.read(ids)[field], ids.astype("float32")):
                raise SystemExit("parity failed: rows at random are not those that were written")

            def at_random(store=store, size=128, count=num_items // 4) -> None:
                for start in range(0, count, size):
                    store.read(ids[start : start + size])

            reads[f"{kind}, random 128"] = at_random
            reads[f"{kind}, random 4096"] = lambda read=at_random: read(size=4096, count=num_items)
            reads[f"{kind}, in order"] = lambda store=store: [None for _ in store.batches(4096)]
        clocks = timed(reads, num_rounds)
    found: dict[str, Any] = {"bytes_an_item": {kind: size / num_items for kind, size in sizes.items()}}
    for how in ("in order", "random 4096", "random 128"):
        found[f"read, {how}"] = clocks.ratio(f"sampled, {how}", f"top_k, {how}")
    # A step of 32,000 classes: forward, loss, gradient and update, as Keras compiles it.
    batch_size, width = 64, 64
    generator = np.random.default_rng(0)
    x = tf.constant(generator.normal(size=(batch_size, width)).astype("float32"))
    logits = like_a_language_model(batch_size, NUM_CLASSES)
    rows: dict[str, Any] = {"dense": tf.constant(logits)}
    kept = np.argsort(-logits, axis=-1)[:, :SAMPLE].astype("int32")
    shares = np.full((batch_size, SAMPLE), 1 / SAMPLE, "float32")
    sampled = {"sampled_shares": shares, "sampled_ids": kept, "entropy": np.zeros(batch_size, "float32")}
    largest = {"top_k_logits": np.take_along_axis(logits, kept, -1)[:, :k], "top_k_ids": kept[:, :k]}
    largest["log_tail"] = np.zeros(batch_size, "float32")
    rows |= {"sampled": keras.tree.map_structure(tf.constant, sampled)}
    rows |= {"top_k": keras.tree.map_structure(tf.constant, largest)}

    def step_of(kind: str) -> Callable[[], None]:
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(NUM_CLASSES)])
        optimizer, loss = keras.optimizers.SGD(0.01), SoftTargets(1.0)
        optimizer.build(model.trainable_variables)

        @tf.function(jit_compile=True)
        def step() -> tf.Tensor:
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(loss.per_example(rows[kind], model(x, training=True)))
            gradients = tape.gradient(value, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return value

        def several() -> None:
            for _ in range(4):
                step().numpy()

        return several

    clocks = timed({kind: step_of(kind) for kind in rows}, 2 * num_rounds)
    found["step over top_k"] = clocks.ratio("sampled", "top_k")
    found["step over dense"] = clocks.ratio("sampled", "dense")
    return found


def claims_of_bias(found: dict) -> list[Claim]:
    errors, squares = found["relative_error_by_rows"], found["squared_error_of_a_row"]
    fewer, most = list(errors)[:-1], list(errors)[-1]
    falls = ", ".join(f"{errors[number]:.1e} of {int(number):,}" for number in fewer)
    largest = found["relative_error_of_largest"]
    of_largest = "; ".join(f"{policy} {value:.0%}" for policy, value in largest.items())
    independent = ", ".join(f"{value:.3f} from {name}" for name, value in squares.items() if name.startswith("p^"))
    return [
        Claim(
            f"on disk, {SAMPLE} of {NUM_CLASSES:,} classes",
            "≤ 50 bytes an item",
            f"{found['bytes']}; as many hold {found['largest']} of the largest logits",
            found["bytes"] <= 50,
        ),
        Claim(
            f"mean gradient of {int(most):,} rows, off that of dense targets",
            "≤ 1e-3",
            f"{errors[most]:.1e} ({falls}: as one over the root of their number)",
            errors[most] <= 1e-3,
        ),
        Claim("… of the largest logits of as many bytes, however many rows", "–", of_largest, True),
        Claim(
            "squared error of one row's target",
            "–",
            f"{squares['sampled']:.3f}; of {SAMPLE} independent draws {independent}; of the largest logits "
            f"{squares['uniform']:.4f} (uniform), {squares['renormalise']:.3f} (renormalise)",
            True,
        ),
        Claim(
            "… at 1.2 and 2 times the temperature, by importance weights, if rows kept their logits too",
            "–",
            f"{squares['at 1.2']:.3f} and {squares['at 2.0']:.3f}, of targets of {squares['target at 1.2']:.3f} and "
            f"{squares['target at 2.0']:.3f}: why another temperature is refused",
            True,
        ),
    ]


def claims_of_student(found: dict) -> list[Claim]:
    nats = found["nats"]

    def over_dense(name: str) -> str:
        each = [value / dense - 1.0 for value, dense in zip(nats[name], nats["dense"], strict=True)]
        return f"{statistics.mean(each):+.2%} ({min(each):+.2%} to {max(each):+.2%})"

    worst = max(value / dense - 1.0 for value, dense in zip(nats["sampled"], nats["dense"], strict=True))
    policies = [name for name in nats if name.startswith("largest")]
    figures = "; ".join(f"{name.split(', ')[1]} {over_dense(name)}" for name in policies)
    least = min(statistics.mean(nats[name]) for name in policies)
    return [
        Claim(
            f"a student's negative log-likelihood over a dense-taught one's "
            f"({statistics.mean(nats['dense']):.3f} nats; the teacher's {found['teacher']:.3f}), {SEEDS} seeds",
            "≤ +1 %",
            over_dense("sampled"),
            worst <= 0.01,
        ),
        Claim(
            f"… of the {found['largest']} largest logits, as many bytes, {found['share_of_largest']:.0%} of the target",
            "more than sampled",
            figures,
            least > statistics.mean(nats["sampled"]),
        ),
    ]


def claims_of_speed(found: dict) -> list[Claim]:
    size = found["bytes_an_item"]["sampled"]
    rows = [
        (
            f"reading sampled rows ({size:.2f} bytes an item with headers) over top-k ones of as many bytes, in order",
            "in order",
        ),
        ("… at random, 4096 ids a read", "random 4096"),
        ("… at random, 128 ids a read", "random 128"),
    ]
    claims = [claim_of_ratio(what, "≤ 1.05", found[f"read, {how}"]) for what, how in rows]
    claims.append(
        claim_of_ratio("a step of 32,000 classes from them over one from top-k", "≤ 1.05", found["step over top_k"])
    )
    return [*claims, claim_of_ratio("… over one from dense targets", "–", found["step over dense"])]


def page_part(result: dict[str, Any]) -> str:
    """The generated part of docs/store.md, or what of it was measured."""
    claims_of = {"bias": claims_of_bias, "student": claims_of_student, "speed": claims_of_speed}
    rows = ["| what | goal | measured |", "|---|---|---|"]
    rows += [claim.row() for part in PARTS if part in result for claim in claims_of[part](result[part])]
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    return "\n".join([*rows, "", f"One thread. Load at the start {result['load']:.0f}; {where}."])


def main() -> None:
    """Prints the table, or the figures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, metavar="PART", help="measure one part")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put the table into docs/store.md; all parts")
    arguments = parser.parse_args()
    if arguments.write and arguments.only:
        parser.error("--write measures all parts: leave --only out")
    use_one_thread()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    measures = {"bias": measure_bias, "student": measure_student, "speed": measure_speed}
    result: dict[str, Any] = {"machine": machine(), "load": os.getloadavg()[0]}
    for part in [arguments.only] if arguments.only else PARTS:
        result[part] = measures[part]()
        if not arguments.json:
            print(json.dumps({part: result[part]}, indent=1, ensure_ascii=False), flush=True)
    print(json.dumps(result, indent=2, ensure_ascii=False) if arguments.json else page_part(result))
    if arguments.write:
        write_part("store.md", "sampled", page_part(result))


if __name__ == "__main__":
    main()
