"""How faithful and how fast a bundle is on this machine. Needs numpy and one runtime, nothing else: onnxruntime,
ai-edge-litert or tflite-micro.

    python benchmark.py                    # the bundle that this file lies in
    python benchmark.py BUNDLE --json      # another one, as JSON

First every file is compared with its checksum, then every artifact's answers with the golden ones, and only then
time is measured: one thread, one example a call, warm-up, interleaved rounds; a round's first calls do not count.

What is not here: anything of Keras or TensorFlow. `keras-distill ship` measures with this very file.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np

FORMAT_VERSION = 1
WARM_UP_CALLS = 10
DISCARDED_CALLS = 3
# Bytes that the interpreter for microcontrollers may take here; what it takes there is in the manifest.
TFLM_ARENA = 1 << 26
TFLM_SUFFIX = "tflm.tflite"
# What is read of a manifest here, and its type; README.md says what each field means.
NUMBER = (int, float)
FIELDS = {"name": str, "inputs": list, "class_names": list, "temperature": NUMBER, "artifacts": dict, "files": dict}
ARTIFACT_FIELDS = {"file": str, "bytes": int, "golden_tolerance": (*NUMBER, dict)}


# The bundle


def read_manifest(bundle):
    """Returns the manifest of the folder `bundle`; raises ValueError where the bundle cannot be trusted.

    Of another version, a path that leaves the folder, a file that is missing or whose checksum differs.
    """
    bundle = Path(bundle).resolve()
    path = bundle / "manifest.json"
    if not path.is_file():
        raise ValueError(f"a bundle must hold manifest.json; got {bundle}. Make one with keras-distill ship.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"manifest.json must be JSON; got {error}. Copy the bundle again.") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        remedy = "Ship the student again, or use the kit that came with this bundle."
        raise ValueError(f"format_version must be {FORMAT_VERSION}; got {version!r}. {remedy}")
    check_fields("manifest.json", manifest, FIELDS)
    for name, expected in manifest["files"].items():
        check_fields(f"files[{name!r}]", expected, {"sha256": str})
        checksum = file_checksum(path_inside(bundle, name))
        if checksum != expected["sha256"]:
            remedy = "The file was changed or damaged: copy the bundle again."
            raise ValueError(
                f"{name} must have the checksum {expected['sha256'][:12]}…; got {checksum[:12]}…. {remedy}"
            )
    for name, artifact in manifest["artifacts"].items():
        check_fields(f"artifacts[{name!r}]", artifact, ARTIFACT_FIELDS)
        if artifact["file"] not in manifest["files"]:
            raise ValueError(
                f"the artifact {name} must be in `files`; got {artifact['file']!r}. Copy the bundle again."
            )
    return manifest


def check_fields(where, found, wanted):
    """Raises ValueError where an object of a manifest lacks a field, or has one of another type."""
    received = found if isinstance(found, dict) else {}
    for name, kind in wanted.items():
        value = received.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            expected = " or ".join(each.__name__ for each in kind) if isinstance(kind, tuple) else kind.__name__
            kept = repr(value)[:60] if name in received else "none"
            raise ValueError(f"{where} must have {name!r}, of type {expected}; got {kept}. Copy the bundle again.")


def path_inside(bundle, name):
    """Returns the path of the file `name` of a bundle; raises ValueError where it lies outside or is missing."""
    try:
        path = (Path(bundle) / name).resolve()
    except (ValueError, RuntimeError, OSError) as error:  # a NUL inside, a circle of links, a name too long
        raise ValueError(
            f"a path of a manifest must name a file; got {name!r}: {error}. Copy the bundle again."
        ) from None
    if not path.is_relative_to(Path(bundle).resolve()):
        raise ValueError(f"a path of a manifest must stay inside the bundle; got {name!r}. Do not trust this bundle.")
    if not path.is_file():
        raise ValueError(f"{name} must be in the bundle; got none. Copy the bundle again, whole.")
    return path


def file_checksum(path):
    """Returns the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# The runtimes


class Artifact:
    """A model's file, opened in its runtime; inputs and outputs go by name.

    It has `input_names` and `output_names`; by input name `input_shapes`, where an open dimension is no positive int,
    and `input_types`, NumPy's names; and `fixed_batch`, the examples a call, None where any number goes.
    """

    def run(self, inputs):
        """Returns every output, `{output name: (num_items, ...)}`, for `{input name: (num_items, ...)}`.

        Raises ValueError where the inputs are not the ones the file was made for. LiteRT itself takes images of
        another size, and goes on with the last call's values where an input is missing.
        """
        num_items = check_inputs(self, inputs)
        size = self.fixed_batch or num_items
        parts = []
        for start in range(0, num_items, size):
            batch = {name: array[start : start + size] for name, array in inputs.items()}
            missing = start + size - num_items if start + size > num_items else 0
            if missing:
                batch = {name: np.concatenate([each, np.repeat(each[-1:], missing, 0)]) for name, each in batch.items()}
            outputs = self.step(batch)()
            for name, output in zip(self.output_names, outputs, strict=True):
                if np.ndim(output) == 0 or len(output) != size:
                    raise ValueError(
                        f"the output {name!r} must have {size} rows, as the input; got {np.shape(output)}."
                    )
            parts.append([output[: size - missing] for output in outputs])
        return {
            name: np.concatenate([part[position] for part in parts]) if len(parts) > 1 else parts[0][position]
            for position, name in enumerate(self.output_names)
        }

    def __call__(self, inputs):
        """Returns the only output of a file that has one."""
        if len(self.output_names) != 1:
            raise ValueError(f"a call gives the only output; got a file of {self.output_names}. Use run(inputs).")
        return self.run(inputs)[self.output_names[0]]


class OnnxArtifact(Artifact):
    """An .onnx file in onnxruntime."""

    runtime = "onnxruntime"

    def __init__(self, path, num_threads=1):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that wait by spinning take the time of the thread that works.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        inputs = self.session.get_inputs()
        self.input_names = [tensor.name for tensor in inputs]
        self.output_names = [tensor.name for tensor in self.session.get_outputs()]
        self.input_shapes = {tensor.name: list(tensor.shape) for tensor in inputs}
        self.input_types = {tensor.name: onnx_type(tensor.type) for tensor in inputs}
        self.fixed_batch = next((s[0] for s in self.input_shapes.values() if s and isinstance(s[0], int)), None)

    def step(self, inputs):
        """Returns a function of nothing that runs this batch once and gives the list of outputs."""
        session, outputs = self.session, self.output_names
        return lambda: session.run(outputs, inputs)


class LitertArtifact(Artifact):
    """A .tflite file in LiteRT."""

    runtime = "ai-edge-litert"

    def __init__(self, path, num_threads=1):
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=os.fspath(path), num_threads=num_threads)
        runner = self.interpreter.get_signature_runner()
        self.inputs = runner.get_input_details()
        outputs = runner.get_output_details()
        self.input_names, self.output_names = list(self.inputs), list(outputs)
        self.output_indices = [detail["index"] for detail in outputs.values()]
        self.input_shapes = {name: detail["shape_signature"].tolist() for name, detail in self.inputs.items()}
        self.input_types = {name: np.dtype(detail["dtype"]).name for name, detail in self.inputs.items()}
        self.fixed_batch = next((shape[0] for shape in self.input_shapes.values() if shape and shape[0] > 0), None)
        self.shapes = {}
        # A file for microcontrollers takes int8 and gives int8: floats become steps on the way in, and floats again.
        self.input_steps = {name: steps_of(*detail["quantization"]) for name, detail in self.inputs.items()}
        self.output_steps = [steps_of(*detail["quantization"]) for detail in outputs.values()]
        self.input_types |= {name: "float32" for name, steps in self.input_steps.items() if steps}

    def step(self, inputs):
        """Returns a function of nothing that runs this batch once and gives the list of outputs."""
        interpreter, outputs = self.interpreter, self.output_indices
        shapes = {name: array.shape for name, array in inputs.items()}
        if shapes != self.shapes:
            for name, shape in shapes.items():
                interpreter.resize_tensor_input(self.inputs[name]["index"], shape)
            interpreter.allocate_tensors()
            self.shapes = shapes
        feed = [(self.inputs[name]["index"], as_steps(each, self.input_steps[name])) for name, each in inputs.items()]

        def run():
            for index, array in feed:
                interpreter.set_tensor(index, array)
            interpreter.invoke()
            found = (interpreter.get_tensor(index) for index in outputs)
            return [as_floats(each, steps) for each, steps in zip(found, self.output_steps, strict=True)]

        return run


class TflmArtifact(Artifact):
    """A .tflite file of int8 in TensorFlow Lite for Microcontrollers, one example a call."""

    runtime = "tflite-micro"

    def __init__(self, path, num_threads=1, arena_bytes=TFLM_ARENA):
        from tflite_micro import runtime

        content = Path(path).read_bytes()
        self.interpreter = runtime.Interpreter.from_bytes(content, arena_size=arena_bytes)
        graph = runtime.schema_fb.Model.GetRootAs(content, 0).Subgraphs(0)
        self.input_names = [graph.Tensors(index).Name().decode() for index in graph.InputsAsNumpy()]
        self.output_names = [graph.Tensors(index).Name().decode() for index in graph.OutputsAsNumpy()]
        details = [self.interpreter.get_input_details(place) for place in range(len(self.input_names))]
        found = [self.interpreter.get_output_details(place) for place in range(len(self.output_names))]
        self.input_steps, self.output_steps = [[tflm_steps(each) for each in both] for both in (details, found)]
        self.input_shapes = {name: each["shape"].tolist() for name, each in zip(self.input_names, details, strict=True)}
        self.input_types = {
            name: "float32" if steps else np.dtype(each["dtype"]).name
            for name, steps, each in zip(self.input_names, self.input_steps, details, strict=True)
        }
        self.fixed_batch = next((shape[0] for shape in self.input_shapes.values() if shape), 1)

    def step(self, inputs):
        """Returns a function of nothing that runs this batch once and gives the list of outputs."""
        interpreter, steps = self.interpreter, self.input_steps
        feed = [as_steps(inputs[name], steps[place]) for place, name in enumerate(self.input_names)]

        def run():
            for place, array in enumerate(feed):
                interpreter.set_input(array, place)
            interpreter.invoke()
            return [as_floats(interpreter.get_output(place), each) for place, each in enumerate(self.output_steps)]

        return run


def tflm_steps(details):
    """Returns the scale and the zero point of a tensor of tflite-micro; None where it is not quantised."""
    found = details["quantization_parameters"]
    return steps_of(found["scales"][0], found["zero_points"][0]) if len(found["scales"]) else None


def steps_of(scale, zero_point):
    """Returns (scale, zero point) of an int8 tensor, or None where there is no scale: it is not quantised."""
    return (np.float32(scale), int(zero_point)) if scale else None


def as_steps(array, steps):
    """Returns floats as the int8 steps that stand for them: round(x / scale) + zero point, kept to -128 … 127."""
    if steps is None:
        return array
    return np.clip(np.round(array / steps[0]) + steps[1], -128, 127).astype(np.int8)


def as_floats(array, steps):
    """Returns what int8 steps stand for, float32: (step - zero point) * scale."""
    return array if steps is None else (array.astype(np.float32) - steps[1]) * steps[0]


def onnx_type(text):
    """Returns NumPy's name of what onnxruntime calls `tensor(float)`, `tensor(int64)`, …"""
    name = text.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def check_inputs(artifact, inputs):
    """Returns the number of examples; raises ValueError where names, shapes or counts are not the artifact's."""
    if set(inputs) != set(artifact.input_names):
        raise ValueError(f"inputs must be called {sorted(artifact.input_names)}; got {sorted(inputs)}.")
    for name, array in inputs.items():
        wanted, found = list(artifact.input_shapes[name]), np.shape(array)
        sizes = zip(wanted[1:], found[1:], strict=False)
        if len(wanted) != len(found) or any(isinstance(w, int) and w > 0 and w != size for w, size in sizes):
            shape = ("batch", *wanted[1:])
            raise ValueError(f"the input {name!r} must have the shape {shape}; got {found}.")
    counts = {np.shape(array)[0] if np.ndim(array) else 0 for array in inputs.values()}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"inputs must hold equally many examples, at least one; got {sorted(counts)}.")
    return counts.pop()


def for_one_call(artifact, inputs):
    """Returns one example of `inputs`, or as many as the artifact takes a call, repeated where there are too few."""
    return {
        name: np.ascontiguousarray(np.resize(array, (artifact.fixed_batch or 1, *array.shape[1:])))
        for name, array in inputs.items()
    }


def open_artifact(path, num_threads=1):
    """Opens an .onnx or .tflite file in its runtime; raises ValueError where the runtime refuses it.

    A file whose name ends in tflm.tflite is for microcontrollers, and their interpreter runs it.
    """
    opener = {".onnx": OnnxArtifact, ".tflite": LitertArtifact}.get(Path(path).suffix)
    if Path(path).name.endswith(TFLM_SUFFIX):
        opener = TflmArtifact
    if opener is None:
        raise ValueError(f"an artifact must be an .onnx or a .tflite file; got {path}. Web bundles run in a browser.")
    try:
        return opener(path, num_threads)
    except ImportError:
        raise
    except Exception as error:
        # Runtimes have exception types of their own, one a failure; all mean that this file cannot be served.
        summary = " ".join(str(error).split())[:300]
        name = Path(path).name
        raise ValueError(f"{name} must be a model that its runtime opens; got {summary}. Convert it again.") from error


# Parity


def compare(expected, found):
    """Returns how far an output is from the one expected, both `(num_items, ..., num_values)`.

    Two answers are the same where their largest values are in the same place, and, of a single value, where both are
    positive or neither is. A value that is NaN or infinite is infinitely far from any other.
    """
    if expected.shape != found.shape:
        raise ValueError(f"outputs must have the shape {expected.shape}; got {found.shape}. Convert the model again.")
    with np.errstate(invalid="ignore", over="ignore"):
        difference = found.astype("float64") - expected
        difference[~np.isfinite(difference)] = np.inf
        if expected.ndim == 1 or expected.shape[-1] == 1:
            same = (found > 0) == (expected > 0)
        else:
            same = np.argmax(found, -1) == np.argmax(expected, -1)
    return {
        "max_abs_error": float(np.max(np.abs(difference), initial=0.0)),
        "logit_rmse": float(np.sqrt(np.mean(difference**2))),
        "argmax_agreement": float(np.mean(same)),
    }


# Latency


def measure(steps, rounds=10, seconds_per_round=0.08):
    """Times functions of nothing against each other, and returns `{name: figures}`, in milliseconds a call.

    The rounds of all of them are interleaved and start with another one each time, so that a slow spell of the machine
    hits all alike. `process_ms` is the processor time of all threads of this process.
    """
    calls_per_round = {}
    for name, step in steps.items():
        for _ in range(WARM_UP_CALLS):
            step()
        start = time.perf_counter()
        step()
        once = max(time.perf_counter() - start, 1e-7)
        calls_per_round[name] = DISCARDED_CALLS + max(5, min(20_000, int(seconds_per_round / once)))
    wall = {name: [] for name in steps}
    process = {name: [] for name in steps}
    names = list(steps)
    for round_index in range(rounds):
        first = round_index % len(names)
        for name in names[first:] + names[:first]:
            step, num_calls = steps[name], calls_per_round[name]
            ticks = np.empty(num_calls + 1, np.int64)
            for call in range(num_calls):
                if call == DISCARDED_CALLS:
                    process_start = time.process_time_ns()
                ticks[call] = time.perf_counter_ns()
                step()
            ticks[num_calls] = time.perf_counter_ns()
            process[name].append((time.process_time_ns() - process_start) / (num_calls - DISCARDED_CALLS))
            wall[name].append(np.diff(ticks)[DISCARDED_CALLS:])
    figures = {}
    for name in names:
        samples = np.concatenate(wall[name]) / 1e6
        p50, p90, p99 = np.percentile(samples, (50, 90, 99))
        figures[name] = {
            "p50_ms": float(p50),
            "p90_ms": float(p90),
            "p99_ms": float(p99),
            "process_ms": float(np.median(process[name]) / 1e6),
            "num_calls": len(samples),
        }
    return figures


# The command


# Golden answers are of some examples: an archive that says it unpacks to more is none of ours.
GOLDEN_LIMIT = 1 << 28
# What NumPy and zipfile raise over an archive whose bytes are wrong.
GARBLED = (ValueError, OSError, EOFError, AttributeError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error)


def golden_of(bundle):
    """Returns the golden inputs `{name: array}` and the golden outputs `{target: array}`, `{target/output: array}`."""
    path = path_inside(bundle, "golden.npz")
    try:
        with zipfile.ZipFile(path) as archive:
            num_bytes = sum(member.file_size for member in archive.infolist())
        if num_bytes > GOLDEN_LIMIT:
            raise ValueError(f"{num_bytes:,} bytes once unpacked, more than {GOLDEN_LIMIT:,}")
        with np.load(path, allow_pickle=False) as golden:
            arrays = {name: golden[name] for name in golden.files}
    except GARBLED as error:
        raise ValueError(f"golden.npz must be an archive of arrays; got {error}. Copy the bundle again.") from None
    inputs = {name.removeprefix("input/"): array for name, array in arrays.items() if name.startswith("input/")}
    logits = {name.removeprefix("logits/"): array for name, array in arrays.items() if name.startswith("logits/")}
    return inputs, logits


def answers_to(name, artifact, inputs):
    """Returns all outputs of an artifact for these inputs; raises ValueError where it does not take them."""
    check_inputs(artifact, inputs)
    try:
        return artifact.run(inputs)
    except Exception as error:
        # See `open_artifact`.
        summary = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the artifact {name} must take the inputs; got {summary}. Convert the model again."
        ) from error


def parity_of(name, entry, golden, found):
    """Returns how an artifact's outputs compare with its golden ones: the figures of the one that is worst."""
    rows = []
    for output, array in found.items():
        key = name if len(found) == 1 else f"{name}/{output}"
        if key not in golden:
            raise ValueError(f"golden.npz must hold inputs and logits/{key}; got none. Copy the bundle again.")
        tolerance = entry["golden_tolerance"]
        if isinstance(tolerance, dict):
            check_fields(f"the golden_tolerance of {name}", tolerance, {output: NUMBER})
            tolerance = tolerance[output]
        figures = compare(golden[key], array)
        # Another processor may round otherwise; an int8 network's rounding moves a logit by a step or two.
        holds = figures["max_abs_error"] <= tolerance
        rows.append({**figures, "output": output, "golden_tolerance": tolerance, "holds": holds})
    return max(rows, key=lambda row: (not row["holds"], row["max_abs_error"] / max(row["golden_tolerance"], 1e-30)))


def benchmark(bundle, targets=None, rounds=10, num_threads=1):
    """Checks and times the artifacts of a bundle whose runtime is installed; returns one dictionary."""
    manifest = read_manifest(bundle)
    inputs, golden = golden_of(bundle)
    unknown = sorted(set(targets or ()) - set(manifest["artifacts"]))
    if unknown:
        raise ValueError(f"targets must be among {sorted(manifest['artifacts'])}; got {unknown}.")
    results, opened, skipped = {}, {}, {}
    for name, entry in manifest["artifacts"].items():
        if targets and name not in targets:
            continue
        try:
            opened[name] = open_artifact(path_inside(bundle, entry["file"]), num_threads)
        except ImportError as error:
            skipped[name] = f"{error.name} is not installed"
    if not opened:
        remedy = "pip install -r requirements-onnx.txt, -litert.txt or -tflm.txt, as the bundle needs it."
        raise ValueError(f"a runtime must be installed for one of the artifacts; got {skipped}. {remedy}")
    for name, artifact in opened.items():
        if not inputs:
            raise ValueError("golden.npz must hold inputs; got none. Copy the bundle again.")
        entry = manifest["artifacts"][name]
        results[name] = parity_of(name, entry, golden, answers_to(name, artifact, inputs))
        results[name] |= {"bytes": entry["bytes"], "runtime": artifact.runtime}
    steps = {
        name: artifact.step(for_one_call(artifact, inputs))
        for name, artifact in opened.items()
        if results[name]["holds"]
    }
    for name, figures in measure(steps, rounds).items() if steps else ():
        results[name] |= figures
    return {
        "bundle": manifest["name"],
        "machine": {"processor": processor_name(), "system": platform.platform(), "num_threads": num_threads},
        "artifacts": results,
        "skipped": skipped,
    }


def processor_name():
    """Returns the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def main(argv=None):
    """Prints the table, or JSON. Exit code 0: every artifact answers as it did when it was shipped; 1: one does not."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("bundle", nargs="?", default=Path(__file__).resolve().parent, help="folder with manifest.json")
    parser.add_argument("--targets", nargs="+", help="artifacts to run; default: all whose runtime is installed")
    parser.add_argument("--rounds", type=int, default=10, help="interleaved rounds of about 80 ms (default 10)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (default 1)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    try:
        if arguments.rounds < 1 or arguments.threads < 1:
            raise ValueError("--rounds and --threads must be >= 1.")
        result = benchmark(arguments.bundle, arguments.targets, arguments.rounds, arguments.threads)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if arguments.json:
        # JSON has no infinity: an output that is NaN or infinite is no number away from its golden one.
        for row in result["artifacts"].values():
            row |= {key: None for key, value in row.items() if value == float("inf")}
        print(json.dumps(result, indent=2))
    else:
        machine = result["machine"]
        print(f"{result['bundle']} on {machine['processor']}, {machine['num_threads']} thread, one example a call")
        columns = "".join(f"{title:>9}" for title in ("p50 ms", "p90 ms", "p99 ms", "cpu ms"))
        print(f"{'artifact':<14}{'bytes':>10}{columns}{'max error':>11}  golden")
        for name, row in result["artifacts"].items():
            times = "".join(
                f"{row.get(key, float('nan')):>9.4f}" for key in ("p50_ms", "p90_ms", "p99_ms", "process_ms")
            )
            verdict = "ok" if row["holds"] else f"DIFFERS (allowed {row['golden_tolerance']:.1e})"
            print(f"{name:<14}{row['bytes']:>10}{times}{row['max_abs_error']:>11.1e}  {verdict}")
        for name, reason in result["skipped"].items():
            print(f"{name:<14}skipped: {reason}")
    return 0 if all(row["holds"] for row in result["artifacts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
