"""What a store of soft targets costs: on disk, to read, to write, and in a training step.

    python -m benchmarks.store [--json] [--rounds 9] [PART …]

Parts, each with its parity check before any clock starts:

- `read`: 1,000,000 rows of top-16, in order and at random (in batches of 4096 and of 128 ids).
- `memory`: resident bytes of a process that reads every row in order and 100,000 at random, 1e5 and 1e7 items.
- `label`: items/s of `label` over those of the fastest plain loop of a `tf.function` over the same array, and
  over `model.predict`; the paper's MNIST teacher, 784-1200-1200-10, batch 256.
- `train`: an epoch of the 784-800-800-10 student, batch 128: its own `fit` on labels (Keras's array pipeline, and our
  pipeline without the join); from the store of one teacher, of ten merged, of ten as members; beside its teacher.
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
from pathlib import Path

import numpy as np

from benchmarks.rounds import interleave, machine, median_ratio

PARTS = ("read", "memory", "label", "train", "top_k")


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
        rows["log_normalizer"] = np.arange(start, stop)
        write_shard(path, manifest, index, rows)
    finish(path, manifest)
    return SoftTargetStore.open(path, verify=False)


def measure_read(num_rounds: int) -> dict:
    """Million rows a CPU second."""
    num_items = 1_000_000
    with tempfile.TemporaryDirectory() as folder:
        store = top_k_store(Path(folder) / "store", num_items)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        ids = np.random.default_rng(1).permutation(num_items)
        if not np.array_equal(store.read(ids)["log_normalizer"], ids.astype("float32")):
            raise SystemExit("parity failed: rows at random are not those that were written")

        def in_order() -> None:
            for _ in store.batches(4096):
                pass

        def at_random(batch_size: int, num_read: int) -> None:
            for start in range(0, num_read, batch_size):
                store.read(ids[start : start + batch_size])

        counts = {"in order": num_items, "random 4096": num_items, "random 128": 128_000}
        variants = {
            "in order": in_order,
            "random 4096": lambda: at_random(4096, num_items),
            "random 128": lambda: at_random(128, 128_000),
        }
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for _ in range(num_rounds):
            for name, run in variants.items():
                # One thread's work: the CPU's own clock leaves out what else this machine does.
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
        start = time.process_time()
        store.verify()
        verified = time.process_time() - start
    rates = {name: counts[name] / statistics.median(times) / 1e6 for name, times in seconds.items()}
    return {
        "bytes_an_item": size / num_items,
        "million_rows_a_cpu_second": rates,
        "verify_megabytes_a_cpu_second": size / verified / 1e6,
        "goals": {"bytes_an_item": "<= 70", "in order": ">= 5", "random": ">= 1"},
    }


READ_ALL = """
import os, sys, numpy as np
from keras_distill.targets.store import SoftTargetStore
def resident():
    fields = open("/proc/self/statm").read().split()
    return int(fields[1]) * os.sysconf("SC_PAGESIZE")
store = SoftTargetStore.open(sys.argv[1], verify=True, resident_bytes=64 << 20)
generator, most = np.random.default_rng(0), 0
before = resident()
for i, batch in enumerate(store.batches(4096)):
    if i % 16 == 0:
        most = max(most, resident())
for i in range(100_000 // 128):
    ids = generator.integers(0, len(store), 128)
    assert np.array_equal(store.read(ids)["log_normalizer"], ids.astype("float32"))
    if i % 16 == 0:
        most = max(most, resident())
print(before, most)
"""


def measure_memory(num_rounds: int) -> dict:
    """Resident megabytes, before and at most while reading, with 64 MiB of mapped pages allowed."""
    megabytes = {}
    with tempfile.TemporaryDirectory() as folder:
        for num_items in (100_000, 1_000_000, 10_000_000):
            path = Path(folder) / str(num_items)
            top_k_store(path, num_items)
            run = subprocess.run([sys.executable, "-c", READ_ALL, path], capture_output=True, text=True, check=True)
            before, most = (int(number) / 1e6 for number in run.stdout.split())
            megabytes[f"{num_items:,}"] = {"before": before, "most": most, "store": num_items * 68 / 1e6}
    return {"resident_megabytes": megabytes, "goals": {"most": "does not grow with the number of items"}}


def measure_label(num_rounds: int) -> dict:
    """Items a second."""
    import keras
    import tensorflow as tf

    from keras_distill.data.networks import mlp
    from keras_distill.targets.labelling import label

    x = np.random.default_rng(0).random((25_600, 28, 28, 1), dtype=np.float32)
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
        variants["predict"] = lambda: teacher.predict(x, batch_size=256, verbose=0)
        variants["label"] = stored
        seconds = interleave(variants, num_rounds=num_rounds)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    fastest = min(forwards, key=medians.get)
    return {
        "items_a_second": {name: len(x) / median for name, median in medians.items()},
        "parity_largest_difference": error,
        "label_over_fastest_loop": 1 / median_ratio(seconds, "label", fastest),
        "label_over_predict": 1 / median_ratio(seconds, "label", "predict"),
        "goals": {"label_over_fastest_loop": ">= 0.95", "label_over_predict": ">= 1.5"},
    }


def measure_train(num_rounds: int) -> dict:
    """Milliseconds a step of the student's training."""
    import keras

    import keras_distill as kd
    from keras_distill.data.networks import mlp
    from keras_distill.targets import attach, label
    from keras_distill.teachers import Ensemble

    num_steps, batch_size = 100, 128
    generator = np.random.default_rng(0)
    x = generator.random((batch_size * num_steps, 28, 28, 1), dtype=np.float32)
    y = generator.integers(0, 10, len(x))
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
        return model.fit(*data, epochs=1, shuffle=False, verbose=0, **settings).history["loss"][-1]

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
        labels_alone = joined["one"].map(lambda inputs, targets: (inputs, targets["labels"]))
        fresh = [distiller(None), distiller(teachers[0])]
        in_order = attach((x, y), one, batch_size=batch_size, shuffle=False)
        from_store = epoch(fresh[0], in_order)
        beside = epoch(fresh[1], in_order.map(lambda inputs, targets: (inputs, targets["labels"])))
        difference = abs(from_store - beside) / beside
        if difference > 1e-5:
            raise SystemExit(f"parity failed: {from_store} from the store, {beside} beside the teacher")
        plain, teacherless, with_teacher = compiled(lambda m: m), distiller(None), distiller(teachers[0])
        plain_joined = compiled(lambda m: m)
        variants = {"labels, arrays": lambda: epoch(plain, x, y, batch_size=batch_size)}
        variants["labels, our pipeline"] = lambda: epoch(plain_joined, labels_alone)
        models = {name: distiller(None) for name in joined}
        for name, batches in joined.items():
            variants[f"store, {name}"] = lambda model=models[name], batches=batches: epoch(model, batches)
        logits = one.read(np.arange(len(x)))
        in_memory = {"labels": y, "soft_targets": logits}
        variants["targets in memory"] = lambda: epoch(teacherless, x, in_memory, batch_size=batch_size)
        variants["beside the teacher"] = lambda: epoch(with_teacher, x, y, batch_size=batch_size)

        def join_alone() -> None:
            for _ in joined["one"]:
                pass

        variants["the pipeline alone"] = join_alone
        seconds = interleave(variants, num_rounds=num_rounds)
    return {
        "milliseconds_a_step": {name: 1e3 * statistics.median(times) / num_steps for name, times in seconds.items()},
        "parity_relative_difference": difference,
        "store_over_labels": median_ratio(seconds, "store, one", "labels, arrays"),
        "store_over_targets_in_memory": median_ratio(seconds, "store, one", "targets in memory"),
        "join_over_labels": median_ratio(seconds, "labels, our pipeline", "labels, arrays"),
        "ensemble_over_one": {
            name: median_ratio(seconds, f"store, {name}", "store, one") for name in ("merged", "members")
        },
        "beside_over_store": median_ratio(seconds, "beside the teacher", "store, one"),
        "goals": {"store_over_labels": "<= 1.05", "join": "<= 3 % of a step", "ensemble_over_one": "1"},
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
        seconds = interleave({n: step_of(loss, compiled) for n, loss in losses.items()}, num_rounds=num_rounds * 2)
        found[name] = {
            "milliseconds_a_step": {n: 1e3 * statistics.median(times) / 4 for n, times in seconds.items()},
            "over_hard": {n: median_ratio(seconds, n, "hard") for n in losses if n != "hard"},
        }
    return {**found, "goals": {"over_hard, uniform": "<= 1.05"}}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"PART must be one of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}")
    measures = {
        "read": measure_read,
        "memory": measure_memory,
        "label": measure_label,
        "train": measure_train,
        "top_k": measure_top_k,
    }
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    result = {"machine": machine(), "rounds": arguments.rounds, "load": os.getloadavg()[0]}
    for part in arguments.parts or PARTS:
        result[part] = measures[part](arguments.rounds)
        if not arguments.json:
            print(json.dumps({part: result[part]}, indent=1, ensure_ascii=False), flush=True)
    if arguments.json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    print(" ".join(f"{name} {value}" for name, value in result["machine"].items()))
    print(
        f"{arguments.rounds} interleaved rounds after one of warm-up; medians; load at the start {result['load']:.1f}"
    )


if __name__ == "__main__":
    main()
