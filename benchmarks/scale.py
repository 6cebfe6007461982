"""What the engines cost, and what a hundred million items would: a cost model, checked here and carried there.

    python -m benchmarks.scale [--json FILE] [--write] [--rounds 3] [PART …]

Parts, each with its parity check:

- `tasks`: seconds until a worker is ready, and milliseconds that a task which does nothing takes, of each engine.
- `label`: items/s of one and of two local workers and of one of Ray's, one thread each, over the same tasks in a bare
  loop in this process: the paper's MNIST teacher (784-1200-1200-10) and a small convnet, 1,024 items a shard, timed
  while all workers are at work; the order turns from round to round. Parity: the stores' bytes.
- `store`: bytes an item on disk against the model's, dense and top-32 of 15,000 classes.
- `network`: bytes that a step of two JAX processes sends, against the model's 2·(n − 1)·4·parameters, over loopback.

`--write` puts the figures of all parts into docs/results/scale.json and the tables into docs/scale.md; `--check`
compares the two.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

# A worker has one thread; so has the loop that it is compared with. Read once, when TensorFlow starts.
os.environ["OMP_NUM_THREADS"] = os.environ["TF_NUM_INTRAOP_THREADS"] = os.environ["TF_NUM_INTEROP_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Ray's workers give way to every other process unless told not to; the local engine's do not.
os.environ.setdefault("RAY_worker_niceness", "0")

import numpy as np

from benchmarks.page import table, write_part
from benchmarks.rounds import machine

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "scale.md", ROOT / "docs" / "results" / "scale.json"
PARTS = ("tasks", "label", "store", "network")
SHARD = 1024

# The task that is planned: the paper's section 5, whose nets were of AlexNet's size.
ITEMS, CLASSES, TOP_K, SPECIALISTS, MEMBERS = 100_000_000, 15_000, 32, 61, 10
OPERATIONS_AN_ITEM = 1.4e9  # AlexNet, forward, 224 × 224: 0.7 G multiply-adds
PARAMETERS = 60_000_000
SPECIALIST_STEPS, BATCH = 100_000, 1024
CORES_A_MACHINE, BITS_A_SECOND = 64, 10e9


# The model. Each function's prediction has its measurement below.


def row_bytes(num_classes: int, top_k: int | None, number_bytes: int = 2, members: int = 1) -> int:
    """Bytes of an item's row on disk."""
    if top_k is None:
        return members * num_classes * number_bytes
    return top_k * (number_bytes + (2 if num_classes <= 65536 else 4)) + 4


def step_bytes(parameters: int, num_processes: int) -> float:
    """Bytes that all processes together send in a step: a ring sums float32 gradients in 2·(n − 1) parts of P / n."""
    return 2.0 * (num_processes - 1) * 4.0 * parameters


def label_seconds(items: float, operations_an_item: float, operations_a_second: float, cores: int) -> float:
    """Seconds of labelling: forward passes, shared out evenly."""
    return items * operations_an_item / (operations_a_second * cores)


def overhead(items_a_task: float, seconds_an_item: float, task_seconds: float) -> float:
    """The share of a worker's time that the engine takes."""
    return task_seconds / (items_a_task * seconds_an_item + task_seconds)


# Measurements.


def measure_tasks(num_rounds: int) -> dict:
    """Seconds to a ready worker, and milliseconds a task; medians."""
    from keras_distill.scale import Job, Processes, Ray

    engines = {"local": lambda: Processes(1)}
    if find_spec("ray"):
        engines["ray"] = lambda: Ray(1, address="local")
    found: dict = {}
    for name, make in engines.items():
        ready, each = [], []
        for _ in range(num_rounds):
            start, stamps = time.perf_counter(), []
            done = []
            for task, result in make().run(Job(_opened_nothing, ()), range(400)):
                stamps.append(time.perf_counter())
                done.append((task, result))
            if sorted(done) != [(task, -task) for task in range(400)]:
                raise SystemExit(f"parity failed: {name} lost or repeated a task")
            ready.append(stamps[0] - start)
            each.append(1e3 * (stamps[-1] - stamps[100]) / 299)
        found[name] = {"ready_seconds": statistics.median(ready), "task_ms": statistics.median(each)}
    return found


def measure_label(num_rounds: int) -> dict:
    """Items/s of a bare loop, of one worker and of two, and the ratios of each round; medians."""
    from keras_distill.data import networks

    teachers = {
        "mlp 784-1200-1200-10": (networks.mlp((784,), 10, (1200, 1200)), (784,), 64),
        "convnet 64-128 on 28 × 28": (networks.convnet((28, 28, 1), 10, (64, 128)), (28, 28, 1), 24),
    }
    found = {}
    for name, (teacher, shape, num_shards) in teachers.items():
        inputs = np.random.default_rng(0).random((SHARD * num_shards, *shape), np.float32)
        rounds = [_label_round(teacher, inputs, number) for number in range(num_rounds)]
        found[name] = {
            "operations_an_item": _operations(teacher),
            **{f"{who}_items_a_second": statistics.median(r[who] for r in rounds) for who in sorted(rounds[0])},
            **{
                f"{who}_overhead": statistics.median(1.0 - r[who] / r["loop"] for r in rounds)
                for who in ("one", "ray")
                if who in rounds[0]
            },
            "speedup": statistics.median(r["two"] / r["one"] for r in rounds),
        }
    return found


def _label_round(teacher, inputs, number: int) -> dict[str, float]:
    from keras_distill import targets
    from keras_distill.scale import Job, Processes, Ray
    from keras_distill.scale.serialization import serialize
    from keras_distill.targets.labelling import _open_labeller

    options = {"batch_size": 256, "rows_per_shard": SHARD, "dtype": "float16"}
    engines = {
        "one": lambda: Processes(1, threads_per_worker=1),
        "two": lambda: Processes(2, threads_per_worker=1),
        **({"ray": lambda: Ray(1, address="local")} if find_spec("ray") else {}),
    }
    names = ["loop", *engines]
    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = {}
        # An unfinished store of the right kind, for the bare loop and the workers to fill.
        for who in names[number % len(names) :] + names[: number % len(names)]:
            path = Path(folder) / who
            targets.label(teacher, inputs, path, process=0, num_processes=len(inputs) // SHARD, **options)
            manifest = targets.labelling.Manifest.from_json((path / "manifest.json").read_text(), path)
            job = (serialize(teacher), inputs, 256, None, path, manifest, (False, None, None, "float16", True))
            indices = range(1, manifest.num_shards)
            if who == "loop":
                work = _open_labeller(*job)
                work(1)
                start = time.perf_counter()
                for index in indices[1:]:
                    work(index)
                rates[who] = SHARD * (len(indices) - 1) / (time.perf_counter() - start)
            else:
                engine = engines[who]()
                stamps = [
                    (time.perf_counter(), pid) for _, pid in engine.run(Job(_opened_labeller_with_pid, job), indices)
                ]
                pids = [pid for _, pid in stamps]
                if len(set(pids)) != engine.num_workers:
                    raise SystemExit(f"only {len(set(pids))} of {engine.num_workers} workers took part")
                # From when each has done its first shard, as `tasks` counts the start, until one has no next one.
                first, last = max(pids.index(pid) for pid in set(pids)), len(stamps) - engine.num_workers
                if last - first < 4:
                    raise SystemExit(f"the workers were together at work for {last - first} shards: too few to time")
                rates[who] = SHARD * (last - first) / (stamps[last][0] - stamps[first][0])
            stores[who] = {file.name: file.read_bytes() for file in (path / "shards").iterdir()}
    if any(store != stores["loop"] for store in stores.values()):
        raise SystemExit("parity failed: the engine's shards are not those of the loop")
    return rates


def measure_store(num_rounds: int) -> dict:
    """Bytes an item of a store on disk, manifest and headers included, and what the model says."""
    from keras_distill import targets

    found = {}
    logits = np.random.default_rng(0).normal(size=(4096, CLASSES)).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        for name, top_k in (("top-32", TOP_K), ("dense", None)):
            path = Path(folder) / name
            store = targets.label(
                lambda rows: logits[rows[:, 0].astype(int)],
                np.arange(4096, dtype="float32")[:, None],
                path,
                top_k=top_k,
                teacher_fingerprint="random",
            )
            stored = store.read([7])
            expected = np.sort(logits[7])[::-1][:TOP_K] if top_k else logits[7]
            if not np.allclose((stored["top_k_logits"] if top_k else stored)[0], expected, atol=5e-3):
                raise SystemExit("parity failed: the store does not hold what was labelled")
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            found[name] = {"bytes_an_item": size / 4096, "model": row_bytes(CLASSES, top_k)}
    return found


def measure_network(num_rounds: int) -> dict:
    """Bytes over loopback that a step of two processes costs, and what the model says."""
    if not find_spec("jax"):
        return {}
    found = {}
    for width in (256, 512):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{listener.getsockname()[1]}"
        environment = os.environ | {"KERAS_BACKEND": "jax"}
        argv = [sys.executable, "-m", "benchmarks.scale", "--child", address, "--width", str(width)]
        children = [
            subprocess.Popen([*argv, "--process", str(i)], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for i in range(2)
        ]
        printed = [child.communicate(timeout=300)[0] for child in children]
        if any(child.returncode for child in children):
            raise SystemExit("a process of the network's measurement failed")
        first, second = (json.loads(text.splitlines()[-1]) for text in printed)
        if first["weights"] != second["weights"]:
            raise SystemExit("parity failed: the two processes hold different students")
        found[f"{first['parameters']:,} parameters"] = {
            "bytes_a_step": first["bytes_a_step"],
            "model": step_bytes(first["parameters"], 2),
        }
    return found


def child(address: str, process: int, width: int) -> None:
    """One of two processes: trains, and counts what passes over loopback in forty steps."""
    import keras

    from keras_distill import Distiller
    from keras_distill.data.networks import mlp
    from keras_distill.scale import distributed

    with distributed("data-parallel", coordinator=address, process=process, num_processes=2):
        keras.utils.set_random_seed(0)
        teacher, student = mlp((64,), 10, (32,)), mlp((64,), 10, (width, width))
        distiller = Distiller(teacher, student)
        distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        x, y = np.random.default_rng(process).random((64 * 40, 64), np.float32), np.arange(64 * 40) % 10
        distiller.fit(x[:128], y[:128], batch_size=64, shuffle=False, verbose=0)
        before = _loopback_bytes()
        distiller.fit(x, y, batch_size=64, shuffle=False, verbose=0)
        sent = (_loopback_bytes() - before) / 40
        total = float(sum(np.abs(weight).sum(dtype="float64") for weight in student.get_weights()))
    print(json.dumps({"bytes_a_step": sent, "parameters": student.count_params(), "weights": total}))


def _loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise SystemExit("this system does not count loopback's bytes")


def _opened_nothing():
    return lambda task: -task


def _opened_labeller_with_pid(*job):
    import os

    from keras_distill.targets.labelling import _open_labeller

    work = _open_labeller(*job)

    def labelled(index):
        work(index)
        return os.getpid()

    return labelled


def _operations(model) -> float:
    """Additions and multiplications of a forward pass, an item: two for each weight and place."""
    total = 0.0
    for layer in model.layers:
        if not layer.weights or layer.weights[0].ndim < 2:
            continue
        places = np.prod(layer.output.shape[1:-1], dtype=float) if len(layer.output.shape) > 2 else 1.0
        total += 2.0 * places * np.prod(layer.weights[0].shape, dtype=float)
    return total


# What the page says.


def projection(figures: dict) -> list[tuple[str, str]]:
    """The paper's task on machines of today, by the measured rates."""
    label = figures["label"]["convnet 64-128 on 28 × 28"]
    rate = label["operations_an_item"] * label["one_items_a_second"]
    hours = label_seconds(ITEMS, OPERATIONS_AN_ITEM, rate, CORES_A_MACHINE) / 3600
    of_specialist = SPECIALIST_STEPS * BATCH * 3 * OPERATIONS_AN_ITEM / (rate * CORES_A_MACHINE) / 3600
    wire = 2 * 4 * PARAMETERS * 8 / BITS_A_SECOND
    compute = BATCH * 3 * OPERATIONS_AN_ITEM / (rate * CORES_A_MACHINE)
    return [
        ("operations a second and core, measured", f"{rate / 1e9:.1f} G"),
        ("one teacher labels 100 M items, machine-hours", f"{hours:,.0f}"),
        ("ten members label them, machine-hours", f"{MEMBERS * hours:,.0f}"),
        ("the same on 16 machines, hours", f"{MEMBERS * hours / 16:,.1f}"),
        ("store, top-32", f"{ITEMS * row_bytes(CLASSES, TOP_K) / 1e9:,.1f} GB"),
        ("store, all logits", f"{ITEMS * row_bytes(CLASSES, None) / 1e12:,.1f} TB"),
        ("store, ten members' logits", f"{ITEMS * row_bytes(CLASSES, None, members=MEMBERS) / 1e12:,.1f} TB"),
        ("shards of 64 k rows", f"{-(-ITEMS // 65536):,}"),
        ("a lost worker costs, core-minutes", f"{65536 * OPERATIONS_AN_ITEM / rate / 60:,.0f}"),
        (f"a specialist, {SPECIALIST_STEPS:,} steps of {BATCH}, machine-hours", f"{of_specialist:,.0f}"),
        ("61 specialists, machine-hours", f"{SPECIALISTS * of_specialist:,.0f}"),
        ("data-parallel step of 1,024 a machine: compute, s", f"{compute:.1f}"),
        ("the same: gradients of 60 M parameters over 10 Gbit/s, s", f"{wire:.2f}"),
    ]


def tables(figures: dict) -> str:
    """The page's tables, in Markdown."""
    of = figures["machine"]
    lines = [
        f"Measured on {of['cores']} cores ({of['processor']}), TensorFlow {of['tensorflow']}, one thread a worker.",
        "",
    ]
    tasks = [[name, f"{row['ready_seconds']:.1f}", f"{row['task_ms']:.2f}"] for name, row in figures["tasks"].items()]
    lines.append(table(["engine", "a worker is ready after, s", "a task that does nothing, ms"], tasks))
    header = ["teacher", "bare loop, items/s", "1 worker", "2 workers", "2 over 1", "1 of Ray's"]
    rows, costs = [], []
    for name, row in figures["label"].items():
        rates = [f"{row[f'{who}_items_a_second']:,.0f}" for who in ("loop", "one", "two")]
        of_ray = f"{row['ray_items_a_second']:,.0f}" if "ray_items_a_second" in row else "not installed"
        rows.append([name, *rates, f"{row['speedup']:.2f}", of_ray])
        for engine, who in (("local", "one"), ("ray", "ray")):
            if f"{who}_overhead" in row:
                task_seconds = figures["tasks"][engine]["task_ms"] / 1e3
                predicted = overhead(SHARD, 1.0 / row["loop_items_a_second"], task_seconds)
                costs.append([f"{engine}, {name}", f"{100 * row[f'{who}_overhead']:.1f} %", f"{100 * predicted:.1f} %"])
    lines.append(table(header, rows))
    lines.append(table([f"engine's overhead at {SHARD:,} items a task", "measured", "the model's"], costs))
    sizes = [(f"store, {name} of 15,000, an item", row["bytes_an_item"], row) for name, row in figures["store"].items()]
    sizes += [(f"network, {name}, a step", row["bytes_a_step"], row) for name, row in figures["network"].items()]
    rows = [
        [what, f"{found:,.1f}", f"{row['model']:,.0f}", f"{found / row['model']:.3f}"] for what, found, row in sizes
    ]
    lines.append(table(["", "measured, bytes", "the model's", "ratio"], rows))
    lines.append(table(["100 M items, 15,000 classes", ""], [list(row) for row in projection(figures)]))
    return "\n".join(lines)


def written(page: str) -> str:
    """What stands between the page's two marks."""
    return page.split("<!-- figures: ")[1].split("-->\n", 1)[1].split("<!-- end of figures -->")[0]


def main() -> int:
    """Measures the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.process, arguments.width)
        return 0
    if arguments.check:
        same = written(PAGE.read_text()).strip() == tables(json.loads(RESULTS.read_text())).strip()
        return 0 if same else 1
    parts = arguments.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"PART must be one of {', '.join(PARTS)}; got {', '.join(sorted(unknown))}.")
    if arguments.write and set(parts) != set(PARTS):
        parser.error("--write needs all parts.")
    figures: dict = {"machine": machine()}
    for part in parts:
        figures[part] = globals()[f"measure_{part}"](arguments.rounds)
        print(part, json.dumps(figures[part], indent=1), flush=True)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures, indent=1))
    if arguments.write:
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")
        write_part(PAGE.name, "figures", tables(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
