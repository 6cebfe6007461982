"""What a store of soft targets costs: on disk, to read, to write, in a training step. Makes the table of docs/store.md.

    python -m benchmarks.store [--write] [--json] [--rounds 9] [PART …]

Parts, each with its parity check before any clock starts:

- `read`: 1,000,000 rows of top-16, in order and at random (in batches of 4096 and of 128 ids), mapped and by position.
- `memory`: resident bytes of a process that reads every row in order and 100,000 at random, 1e5 to 1e7 items.
- `label`: items/s of `label` over those of the fastest plain loop of a `tf.function` over the same array, and
  over `model.predict`; the paper's MNIST teacher, 784-1200-1200-10, 60,000 items in batches of 256.
- `train`: an epoch of 100 steps of the 784-800-800-10 student, batch 128, on MNIST where it is at hand, else on random
  pixels: its own `fit` on labels (Keras's array pipeline, and a plain `tf.data` one); from the store of one teacher, of
  ten merged, of ten as members, of the five largest logits; beside its teacher, 784-1200-1200-10. What the join adds is
  also measured without training: the CPU's time in our pipeline less that in the plain one.
- `top_k`: a step of a student of 32,000 classes, k = 32: hard labels, dense soft targets, top-k under each policy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.page import write_part
from benchmarks.rounds import interleave, machine

PARTS = ("read", "memory", "label", "train", "top_k")
# Stores of more bytes than this are not mapped: less than the smallest one has.
RESIDENT_BYTES = 4 << 20


@dataclass(frozen=True)
class Clocks:
    """Seconds of each round of each variant, by the clock on the wall and by that of the CPU, all threads together."""

    wall: dict[str, list[float]]
    cpu: dict[str, list[float]]

    def fastest(self, name: str) -> float:
        """Seconds of the fastest round: what another program disturbs only adds to it."""
        return min(self.wall[name])

    def ratio(self, name: str, reference: str) -> dict[str, float]:
        """Of the fastest rounds on the wall, and of the medians of the CPU's clock."""
        cpu = {key: statistics.median(self.cpu[key]) for key in (name, reference)}
        return {"wall": self.fastest(name) / self.fastest(reference), "cpu": cpu[name] / cpu[reference]}


def timed(variants: dict[str, Callable[[], object]], num_rounds: int) -> Clocks:
    """Runs the variants by turns, once to warm up and `num_rounds` times more."""
    cpu: dict[str, list[float]] = {name: [] for name in variants}

    def watched(name: str) -> None:
        start = time.process_time()
        variants[name]()
        cpu[name].append(time.process_time() - start)

    wall = interleave({name: lambda name=name: watched(name) for name in variants}, num_rounds=num_rounds)
    return Clocks(wall, {name: times[1:] for name, times in cpu.items()})


def top_k_store(path: Path, num_items: int):
    """A store of random top-16 rows, 32,000 classes, and the rows of its last shard."""
    from keras_distill.targets.manifest import Manifest, rows_per_shard_for
    from keras_distill.targets.shards import create, finish, write_shard
    from keras_distill.targets.store import SoftTargetStore

    rows_per_shard = rows_per_shard_for(num_items, 68, 256)
    manifest = Manifest(kind="top_k", num_items=num_items, num_classes=32_000, top_k=16, rows_per_shard=rows_per_shard)
    manifest = create(path, manifest)
    generator = np.random.default_rng(0)
    for index in range(manifest.num_shards):
        start, stop = manifest.shard_rows(index)
        rows = np.zeros(stop - start, manifest.row_dtype)
        rows["top_k_logits"] = generator.random((1, 16)).astype("float16")
        rows["top_k_ids"] = generator.integers(0, 32_000, (1, 16))
        # An item's own id, so that a read can be checked.
        rows["log_tail"] = np.arange(start, stop)
        write_shard(path, manifest, index, rows)
    finish(path, manifest)
    return SoftTargetStore.open(path, verify=False)


def measure_read(num_rounds: int) -> dict:
    """Million rows a CPU second."""
    from keras_distill.targets.store import SoftTargetStore

    num_items = 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        store = top_k_store(Path(folder) / "store", num_items)
        unmapped = SoftTargetStore.open(store.path, resident_bytes=RESIDENT_BYTES)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        ids = np.random.default_rng(1).permutation(num_items)
        for opened in (store, unmapped):
            if not np.array_equal(opened.read(ids)["log_tail"], ids.astype("float32")):
                raise SystemExit("parity failed: rows at random are not those that were written")

        def in_order(opened: SoftTargetStore) -> None:
            for _ in opened.batches(4096):
                pass

        def at_random(opened: SoftTargetStore, batch_size: int, num_read: int) -> None:
            for start in range(0, num_read, batch_size):
                opened.read(ids[start : start + batch_size])

        counts, variants = {}, {}
        for kind, opened in (("mapped", store), ("by position", unmapped)):
            counts |= {
                f"{kind}, in order": num_items,
                f"{kind}, random 4096": num_items,
                f"{kind}, random 128": 128_000,
            }
            variants |= {
                f"{kind}, in order": lambda opened=opened: in_order(opened),
                f"{kind}, random 4096": lambda opened=opened: at_random(opened, 4096, num_items),
                f"{kind}, random 128": lambda opened=opened: at_random(opened, 128, 128_000),
            }
        # One thread's work: the CPU's own clock leaves out what else this machine does.
        seconds = timed(variants, num_rounds).cpu
        start = time.process_time()
        store.verify()
        verified = time.process_time() - start
    rates = {name: counts[name] / statistics.median(times) / 1e6 for name, times in seconds.items()}
    return {
        "bytes_an_item": size / num_items,
        "million_rows_a_cpu_second": rates,
        "verify_megabytes_a_cpu_second": size / verified / 1e6,
    }


READ_ALL = """
import os, sys, numpy as np
from keras_distill.targets.store import SoftTargetStore
def resident():
    fields = open("/proc/self/statm").read().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")
store = SoftTargetStore.open(sys.argv[1], verify=True, resident_bytes=int(sys.argv[2]))
generator, most = np.random.default_rng(0), 0
before = resident()
for i, batch in enumerate(store.batches(4096)):
    if i % 16 == 0:
        most = max(most, resident())
for i in range(100_000 // 128):
    ids = generator.integers(0, len(store), 128)
    assert np.array_equal(store.read(ids)["log_tail"], ids.astype("float32"))
    if i % 16 == 0:
        most = max(most, resident())
print(before, most)
"""


def measure_memory(num_rounds: int) -> dict:
    """Resident megabytes, before and at most while reading."""
    megabytes = {}
    with tempfile.TemporaryDirectory() as folder:
        for num_items in (100_000, 1_000_000, 10_000_000):
            path = Path(folder) / str(num_items)
            top_k_store(path, num_items)
            command = [sys.executable, "-c", READ_ALL, path, str(RESIDENT_BYTES)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            before, most = (int(number) / 1e6 for number in run.stdout.split())
            megabytes[f"{num_items:,}"] = {"before": before, "most": most, "store": num_items * 68 / 1e6}
    return {"resident_megabytes": megabytes}


def measure_label(num_rounds: int) -> dict:
    """Items a second."""
    import keras
    import tensorflow as tf

    from keras_distill.data.networks import mlp
    from keras_distill.targets.labelling import label

    x = np.random.default_rng(0).random((60_000, 28, 28, 1), dtype=np.float32)
    keras.utils.set_random_seed(0)
    teacher = mlp((28, 28, 1), 10, (1200, 1200))
    forwards = {
        name: tf.function(lambda inputs: teacher(inputs, training=False), jit_compile=compiled, reduce_retracing=True)
        for name, compiled in (("plain loop", False), ("plain loop, XLA", True))
    }

    def loop(forward) -> np.ndarray:
        return np.concatenate([forward(tf.constant(x[i : i + 256])).numpy() for i in range(0, len(x), 256)])

    with tempfile.TemporaryDirectory() as folder:
        names = iter(range(10**6))

        def stored():
            return label(teacher, x, Path(folder) / str(next(names)), dtype="float32")

        expected = loop(forwards["plain loop"])
        error = float(np.abs(stored().read(np.arange(len(x))) - expected).max())
        if error > 1e-4:
            raise SystemExit(f"parity failed: stored logits differ by {error:.1e} from the teacher's")
        variants = {name: lambda forward=forward: loop(forward) for name, forward in forwards.items()}
        variants["predict, batch 256"] = lambda: teacher.predict(x, batch_size=256, verbose=0)
        variants["predict, its own batch 32"] = lambda: teacher.predict(x, verbose=0)
        variants["label"] = stored
        clocks = timed(variants, num_rounds)
    fastest = min(forwards, key=clocks.fastest)
    return {
        "items_a_second": {name: len(x) / clocks.fastest(name) for name in variants},
        "parity_largest_difference": error,
        "fastest_loop": fastest,
        "over_label": {name: clocks.ratio(name, "label") for name in variants},
    }


def pixels(num_items: int) -> tuple[str, np.ndarray, np.ndarray]:
    """The name, inputs and labels of the data to train on."""
    from keras_distill import data

    try:
        split = data.load("mnist").train
    except (ImportError, OSError):
        generator = np.random.default_rng(0)
        inputs = generator.random((num_items, 28, 28, 1), dtype=np.float32)
        return "random pixels", inputs, generator.integers(0, 10, num_items)
    return "MNIST", split.inputs[:num_items], split.labels[:num_items]


def measure_train(num_rounds: int) -> dict:
    """Milliseconds a step of the student's training."""
    import keras
    import tensorflow as tf

    import keras_distill as kd
    from keras_distill.data.networks import mlp
    from keras_distill.targets import attach, label
    from keras_distill.teachers import Ensemble

    class Steps(keras.callbacks.Callback):
        """The loss of each step: Keras logs the mean of the epoch so far, so the metrics start anew at each."""

        def __init__(self):
            super().__init__()
            self.losses = []

        def on_train_batch_begin(self, batch, logs=None):
            self.model.reset_metrics()

        def on_train_batch_end(self, batch, logs=None):
            self.losses.append(logs["loss"])

    num_steps, batch_size = 100, 128
    data_name, x, y = pixels(batch_size * num_steps)
    keras.utils.set_random_seed(0)
    teachers = [mlp((28, 28, 1), 10, (1200, 1200), name=f"teacher_{number}") for number in range(10)]
    first = mlp((28, 28, 1), 10, (800, 800))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def compiled(model_of):
        twin = keras.models.clone_model(first)
        twin.set_weights(first.get_weights())
        model = model_of(twin)
        model.compile(keras.optimizers.Adam(1e-3), loss)
        return model

    def distiller(teacher):
        return compiled(lambda student: kd.Distiller(teacher, student, kd.losses.SoftTargets(4.0)))

    def epoch(model, *data, **settings):
        model.fit(*data, epochs=1, shuffle=False, verbose=0, **settings)

    def without_targets(batches):
        return batches.map(lambda inputs, targets: (inputs, targets["labels"]))

    def losses_of_steps(teacher, batches):
        steps = Steps()
        epoch(distiller(teacher), batches, callbacks=[steps])
        return np.array(steps.losses)

    with tempfile.TemporaryDirectory() as folder:
        ensemble = Ensemble(teachers)
        one = label(teachers[0], x, Path(folder) / "one", dtype="float32")
        merged = label(ensemble, x, Path(folder) / "merged", temperature=4.0, dtype="float32")
        members = label(ensemble, x, Path(folder) / "members", members=True)
        top_k = label(teachers[0], x, Path(folder) / "top", top_k=5)
        joined = {
            name: attach((x, y), store, batch_size=batch_size)
            for name, store in (("one", one), ("merged", merged), ("members", members), ("top 5", top_k))
        }
        in_order = attach((x, y), one, batch_size=batch_size, shuffle=False)
        beside = losses_of_steps(teachers[0], without_targets(in_order))
        difference = float(np.max(np.abs(losses_of_steps(None, in_order) / beside - 1)))
        if len(beside) != num_steps or difference > 1e-5:
            raise SystemExit(f"parity failed: a step's loss from the store and beside the teacher: {difference:.1e}")

        inputs, labels = tf.constant(x), tf.constant(y)
        plain = tf.data.Dataset.range(len(x)).shuffle(len(x)).batch(batch_size)
        plain = plain.map(lambda places: (tf.gather(inputs, places), tf.gather(labels, places)))
        plain = plain.prefetch(tf.data.AUTOTUNE)

        def gone_through(batches) -> float:
            """CPU milliseconds a step."""
            start = time.process_time()
            for _ in batches:
                pass
            return 1e3 * (time.process_time() - start) / num_steps

        pipelines = {"plain": [gone_through(plain)], "joined": [gone_through(joined["one"])]}
        for _ in range(2 * num_rounds):
            pipelines["plain"].append(gone_through(plain))
            pipelines["joined"].append(gone_through(joined["one"]))

        # One model for all variants of a kind: of two equal ones, one may lie better in memory and be a fifth faster.
        plain_model, teacherless, with_teacher = (
            compiled(lambda student: student),
            distiller(None),
            distiller(teachers[0]),
        )
        labels_of_joined = without_targets(joined["one"])
        variants = {
            "labels, arrays": lambda: epoch(plain_model, x, y, batch_size=batch_size),
            "labels, tf.data": lambda: epoch(plain_model, plain),
            "labels, our pipeline": lambda: epoch(plain_model, labels_of_joined),
        }
        for name, batches in joined.items():
            variants[f"store, {name}"] = lambda batches=batches: epoch(teacherless, batches)
        in_memory = {"labels": y, "soft_targets": one.read(np.arange(len(x)))}
        variants["targets in memory"] = lambda: epoch(teacherless, x, in_memory, batch_size=batch_size)
        variants["beside the teacher"] = lambda: epoch(with_teacher, x, y, batch_size=batch_size)
        clocks = timed(variants, num_rounds)
    milliseconds = {name: 1e3 * clocks.fastest(name) / num_steps for name in variants}
    pipeline = {name: statistics.median(times[1:]) for name, times in pipelines.items()}
    return {
        "data": data_name,
        "milliseconds_a_step": milliseconds,
        "pipeline_cpu_milliseconds_a_step": pipeline,
        "parity_largest_relative_difference_of_a_step": difference,
        "store_over_labels": clocks.ratio("store, one", "labels, arrays"),
        "store_over_labels_tf_data": clocks.ratio("store, one", "labels, tf.data"),
        "store_over_targets_in_memory": clocks.ratio("store, one", "targets in memory"),
        "joined_over_plain": clocks.ratio("labels, our pipeline", "labels, tf.data"),
        "join_cpu_share_of_a_step": (pipeline["joined"] - pipeline["plain"]) / milliseconds["labels, tf.data"],
        "ensemble_over_one": {name: clocks.ratio(f"store, {name}", "store, one") for name in ("merged", "members")},
        "beside_over_store": clocks.ratio("beside the teacher", "store, one"),
    }


def measure_top_k(num_rounds: int) -> dict:
    """Milliseconds a step: forward, loss, gradient and update, compiled by XLA and not."""
    import keras
    import tensorflow as tf

    from keras_distill.losses import soft_targets, top_k_soft_targets

    num_classes, k, batch_size, width = 32_000, 32, 64, 64
    generator = np.random.default_rng(0)
    x = tf.constant(generator.normal(size=(batch_size, width)).astype("float32"))
    y = tf.constant(generator.integers(0, num_classes, batch_size))
    dense = tf.constant(generator.normal(size=(batch_size, num_classes)).astype("float32"))
    top, ids = tf.math.top_k(dense, k)
    normalizer = tf.reduce_logsumexp(dense, axis=-1)

    # Parity: with the tail's own mean filled in, the dense loss is the uniform one.
    rest = tf.math.log((tf.exp(normalizer) - tf.reduce_sum(tf.exp(top), -1)) / (num_classes - k))
    rows = tf.repeat(tf.range(batch_size), k)
    filled = tf.tensor_scatter_nd_update(
        tf.tile(rest[:, None], [1, num_classes]), tf.stack([rows, tf.reshape(ids, [-1])], 1), tf.reshape(top, [-1])
    )
    student_logits = tf.constant(generator.normal(size=(batch_size, num_classes)).astype("float32"))
    expected = soft_targets(filled, student_logits, 4.0)
    error = float(tf.reduce_max(tf.abs(top_k_soft_targets(top, ids, normalizer, student_logits, 4.0) / expected - 1)))
    if error > 1e-3:
        raise SystemExit(f"parity failed: top-k and the filled dense loss differ by {error:.1e}")

    losses = {
        "hard": lambda logits: tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits),
        "dense": lambda logits: soft_targets(dense, logits, 4.0),
    }
    for tail in ("uniform", "bucket", "renormalise"):
        losses[tail] = lambda logits, tail=tail: top_k_soft_targets(top, ids, normalizer, logits, 4.0, tail=tail)

    def step_of(loss, compiled):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(num_classes)])
        optimizer = keras.optimizers.SGD(0.01)
        optimizer.build(model.trainable_variables)

        @tf.function(jit_compile=compiled)
        def step():
            with tf.GradientTape() as tape:
                value = tf.reduce_mean(loss(model(x, training=True)))
            gradients = tape.gradient(value, model.trainable_variables)
            optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
            return value

        def several() -> None:
            for _ in range(4):
                step().numpy()

        return several

    found = {"parity_largest_relative_difference": error}
    for name, compiled in (("as Keras compiles", True), ("without XLA", False)):
        clocks = timed({n: step_of(loss, compiled) for n, loss in losses.items()}, num_rounds * 2)
        found[name] = {
            "milliseconds_a_step": {n: 1e3 * clocks.fastest(n) / 4 for n in losses},
            "over_hard": {n: clocks.ratio(n, "hard") for n in losses if n != "hard"},
        }
    return found


@dataclass(frozen=True)
class Claim:
    """A line of the page: what was measured, how it should come out, how it did."""

    what: str
    goal: str
    figure: str
    holds: bool

    def row(self) -> str:
        """The line in Markdown."""
        return f"| {self.what} | {self.goal} | {self.figure}{'' if self.holds else ' (**missed**)'} |"


def claims_of_read(found: dict) -> list[Claim]:
    size, rates = found["bytes_an_item"], found["million_rows_a_cpu_second"]
    claims = [Claim("on disk, top-16 of 32,000 classes", "≤ 70 bytes an item", f"{size:.2f}", size <= 70)]
    for what, goal in (("in order", 5), ("random 4096", 1), ("random 128", 1)):
        how = "in order" if what == "in order" else f"at random, {what.split()[1]} ids a read"
        rate = rates[f"mapped, {what}"]
        claims.append(Claim(f"1,000,000 items {how}", f"≥ {goal} M items/s", f"{rate:.1f} M items/s", rate >= goal))
    for what in ("in order", "random 4096", "random 128"):
        how = "in order" if what == "in order" else f"at random, {what.split()[1]} ids a read"
        rate = rates[f"by position, {what}"]
        claims.append(Claim(f"… {how}, of a store too large to map", "–", f"{rate:.1f} M items/s", True))
    return claims


def claims_of_memory(found: dict) -> list[Claim]:
    grown = {name: sizes["most"] - sizes["before"] for name, sizes in found["resident_megabytes"].items()}
    fewest, *_, most = grown
    return [
        Claim(
            f"resident memory that reading {most} items takes, `resident_bytes` {RESIDENT_BYTES >> 20} MiB",
            f"no more than with {fewest}",
            f"+{grown[most]:.1f} MB; +{grown[fewest]:.1f} MB",
            # A hundred times the items; a megabyte is what the allocator's own steps come to.
            grown[most] <= grown[fewest] + 1.0,
        )
    ]


def claim_of_ratio(what: str, goal: str, ratio: dict[str, float], clock: str = "cpu") -> Claim:
    """A ratio of processor and of elapsed time; the goal, `≤`, `≥` or `>` a number, is held against one of them."""
    names = {"cpu": "processor time", "wall": "elapsed time"}
    (other,) = set(ratio) - {clock}
    figure = f"{ratio[clock]:.2f} in {names[clock]}, {ratio[other]:.2f} in {names[other]}"
    relation, _, limit = goal.partition(" ")
    holds = {
        "≤": lambda: ratio[clock] <= float(limit),
        "≥": lambda: ratio[clock] >= float(limit),
        ">": lambda: ratio[clock] > float(limit),
        "–": lambda: True,
    }
    return Claim(what, goal, figure, holds[relation]())


def claims_of_label(found: dict) -> list[Claim]:
    over = found["over_label"]
    # The teacher may run on several cores at once, which is to be seen on the wall.
    rows = [
        ("items/s of `label` over those of the fastest plain `tf.function` loop", "≥ 0.95", found["fastest_loop"]),
        ("… over those of `model.predict(x)`, whose batches are of 32", "≥ 1.5", "predict, its own batch 32"),
        ("… over those of `model.predict(x, batch_size=256)`", "–", "predict, batch 256"),
    ]
    return [claim_of_ratio(what, goal, over[name], clock="wall") for what, goal, name in rows]


def claims_of_train(found: dict) -> list[Claim]:
    difference = found["parity_largest_relative_difference_of_a_step"]
    share, ensemble = found["join_cpu_share_of_a_step"], found["ensemble_over_one"]
    figure = f"differ by {difference:.0e} at most"
    rows = [
        ("a step beside the teacher over one from the store", "> 1", found["beside_over_store"]),
        ("a step from the store over the student's own `fit` on labels", "≤ 1.05", found["store_over_labels"]),
        ("… over its `fit` on labels from a plain `tf.data` pipeline", "–", found["store_over_labels_tf_data"]),
        ("a step from a store of ten teachers, merged at T = 4, over one teacher's", "≤ 1.05", ensemble["merged"]),
        ("… kept as members", "≤ 1.05", ensemble["members"]),
    ]
    return [
        Claim("a step's loss from the store and beside the teacher", "equal to 1e-5", figure, difference <= 1e-5),
        *(claim_of_ratio(*row) for row in rows),
        Claim("CPU time of the join, of a step's time", "≤ 3 %", f"{100 * share:.1f} %", share <= 0.03),
    ]


def claims_of_top_k(found: dict) -> list[Claim]:
    ratios = found["as Keras compiles"]["over_hard"]
    rows = [
        ("a step of 32,000 classes, top-32 and tail `uniform`, over the hard-label step", "≤ 1.05", ratios["uniform"]),
        ("… tail `bucket`", "≤ 1.05", ratios["bucket"]),
        ("… tail `renormalise`", "≤ 1.05", ratios["renormalise"]),
        ("… dense soft targets", "–", ratios["dense"]),
    ]
    return [claim_of_ratio(*row) for row in rows]


def page_part(result: dict[str, Any]) -> str:
    """The generated part of docs/store.md, or what of it was measured."""
    claims_of: dict[str, Callable[[dict], list[Claim]]] = {
        "read": claims_of_read,
        "memory": claims_of_memory,
        "label": claims_of_label,
        "train": claims_of_train,
        "top_k": claims_of_top_k,
    }
    rows = ["| what | goal | measured |", "|---|---|---|"]
    rows += [claim.row() for part in PARTS if part in result for claim in claims_of[part](result[part])]
    where = ", ".join(f"{name} {value}" for name, value in result["machine"].items())
    notes = (
        f"{result['rounds']} interleaved rounds after one of warm-up. Elapsed time is that of the fastest rounds; "
        "processor time is the median over the rounds, all threads together, and leaves out other work of the machine. "
        f"Load at the start {result['load']:.0f}; {where}."
    )
    if "train" in result:
        steps = result["train"]["milliseconds_a_step"]
        times = "; ".join(f"{name} {milliseconds:.1f}" for name, milliseconds in steps.items())
        notes += f" Milliseconds a step on {result['train']['data']}, fastest round: {times}."
    return "\n".join([*rows, "", notes])


def main() -> None:
    """Prints the table, or the figures, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--write", action="store_true", help="put the table into docs/store.md; all parts")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"PART must be one of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    if arguments.write and arguments.parts:
        parser.error("--write measures all parts: name none")
    measures = {
        "read": measure_read,
        "memory": measure_memory,
        "label": measure_label,
        "train": measure_train,
        "top_k": measure_top_k,
    }
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    result: dict[str, Any] = {"machine": machine(), "rounds": arguments.rounds, "load": os.getloadavg()[0]}
    for part in arguments.parts or PARTS:
        result[part] = measures[part](arguments.rounds)
        if not arguments.json:
            print(json.dumps({part: result[part]}, indent=1, ensure_ascii=False), flush=True)
    print(json.dumps(result, indent=2, ensure_ascii=False) if arguments.json else page_part(result))
    if arguments.write:
        write_part("store.md", "store", page_part(result))


if __name__ == "__main__":
    main()
