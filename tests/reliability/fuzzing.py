"""Damaged and hostile files, by the thousand: each must be read, or refused with a message, in bounded time and memory.

    python tests/reliability/fuzzing.py manifests shards bundles archives --cases 2000
    python tests/reliability/fuzzing.py keras onnx tflite arguments --cases 100

Prints one JSON object: for each kind how many cases there were and how they ended. What is neither a value nor an error
of ours (`ValueError`, `TypeError`, `OSError`) is a failure, and so is a file opened outside of the folder given,
a case of more than ten seconds of processor time, and memory beyond the limit. Every case follows from its number and
the seed.
"""

import argparse
import collections
import contextlib
import copy
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
# Of processor time, and of the clock: on a busy machine a case waits for others.
SECONDS_A_CASE, WAITED_SECONDS = 10, 120
# Of address space, beyond what the process holds when the fuzzing begins.
MEMORY_LIMIT = 1 << 30
REFUSALS = (ValueError, TypeError, OSError)
NASTY = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "a", "..", "../../outside", "/etc/passwd", "a\x00b", "\ud800", "0" * 5000, "💥", [], [[]], [1, 2], [-1], [0],
    ["x"], {}, {"a": 1}, [None], "manifest.json", "shards", ".", [10**12], [2**31, 2**31], "float16", "dense", "top_k",
]  # fmt: skip


class Hang(BaseException):
    """A case that took too long."""


class Watch:
    """Sees every file that Python opens, once `watched` names the folders where that is allowed."""

    def __init__(self):
        self.allowed: tuple[str, ...] = ()
        self.outside: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event, arguments):
        if event != "open" or not self.allowed or not isinstance(arguments[0], (str, bytes, os.PathLike)):
            return
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith(self.allowed):
            self.outside.append(path)


WATCH = Watch()


def ends(kind, number, read, folder):
    """How one case ends: "read", "refused", or words that begin with FAILED."""

    def stop(signum, frame):
        raise Hang

    timers = {
        signal.ITIMER_PROF: (signal.SIGPROF, SECONDS_A_CASE),
        signal.ITIMER_REAL: (signal.SIGALRM, WAITED_SECONDS),
    }
    for timer, (number, seconds) in timers.items():
        signal.signal(number, stop)
        signal.setitimer(timer, seconds)
    WATCH.outside.clear()
    # Besides the folder: Python's own files, and what the system says of itself.
    WATCH.allowed = (os.path.realpath(folder), sys.prefix, sys.base_prefix, "/proc", "/dev", "/sys", "/usr", "/etc/os-")
    WATCH.allowed += (str(ROOT / "keras_distill"), str(ROOT / "export"))
    if kind == "arguments":
        # A command line names the folders itself.
        WATCH.allowed = ()
    try:
        read()
        end = "read"
    except REFUSALS as error:
        end = "refused" if str(error).strip() else f"FAILED without a message: {type(error).__name__}"
    except Hang:
        end = f"FAILED: more than {SECONDS_A_CASE} s of processor time, or {WAITED_SECONDS} s"
    except BaseException as error:
        end = f"FAILED: {type(error).__name__}: {str(error)[:200]}"
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        WATCH.allowed = ()
    if WATCH.outside:
        end = f"FAILED: opened {WATCH.outside[0]}"
    return end if not end.startswith("FAILED") else f"{end} ({kind} {number})"


def damaged(data, generator):
    """Bytes with some flipped, cut off, put in, doubled, zeroed or swapped."""
    data = bytearray(data)
    for _ in range(generator.choice([1, 1, 2, 5, 20])):
        if not data:
            break
        place, length = generator.randrange(len(data)), generator.choice([1, 1, 2, 4, 8, 64])
        match generator.randrange(6):
            case 0:
                data[place] ^= 1 << generator.randrange(8)
            case 1:
                data[place : place + length] = generator.randbytes(length)
            case 2:
                del data[place : place + length]
            case 3:
                data[place:place] = data[place : place + length]
            case 4:
                data[place : place + length] = bytes([generator.choice([0, 0xFF])]) * length
            case 5:
                del data[place:]
    return bytes(data)


def nasty(generator):
    """One of the values that a reader does not expect, and nobody else's: the next alteration may be inside of it."""
    return copy.deepcopy(generator.choice(NASTY))


def altered(content, generator):
    """A JSON value with parts replaced, left out, renamed or added."""
    content = json.loads(json.dumps(content))
    for _ in range(generator.choice([1, 1, 1, 2, 3])):
        parent, key = None, None
        node = content
        while isinstance(node, (dict, list)) and node and (parent is None or generator.random() < 0.7):
            parent = node
            key = generator.choice(list(node)) if isinstance(node, dict) else generator.randrange(len(node))
            node = node[key]
        if parent is None:
            return nasty(generator)
        match generator.randrange(6):
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[generator.choice(["", "x", "__class__", key + " "])] = parent.pop(key)
            case 2 if isinstance(node, (int, float)) and not isinstance(node, bool):
                parent[key] = generator.choice([node + 1, -node, node * 10**6, node / 3, str(node)])
            case _:
                parent[key] = nasty(generator)
    return content


# Stores


def make_store(folder, kind):
    from keras_distill.targets.manifest import Manifest
    from keras_distill.targets.shards import create, finish, write_shard

    shape = {"top_k": {"top_k": 2}, "members": {"member_weights": (0.5, 0.5)}, "dense": {}}
    shape["sampled"] = {"sample": 3, "sampling_temperature": 2.0, "sampling_seed": 5}
    shape = shape[kind]
    manifest = Manifest(kind=kind, num_items=20, num_classes=5, rows_per_shard=8, example_shape=(2,), **shape)
    rows = np.zeros(20, manifest.row_dtype)
    for name in rows.dtype.names:
        rows[name] = np.arange(rows[name].size).reshape(rows[name].shape) % 3
    create(folder, manifest)
    for index in range(manifest.num_shards):
        write_shard(folder, manifest, index, rows[slice(*manifest.shard_rows(index))])
    finish(folder, manifest)


def read_store(folder, verify):
    from keras_distill.targets.store import SoftTargetStore

    store = SoftTargetStore.open(folder, verify=verify)
    store.read([0, len(store) - 1])
    store.soft_targets([0], temperature=2.0)
    next(store.batches(4))


def cases_of_manifests(folder, generator):
    """Manifests of any content, with the checksum that belongs to it, or of any bytes."""
    kinds = ("dense", "top_k", "members", "sampled")
    for kind in kinds:
        make_store(folder / kind, kind)
    while True:
        store = folder / generator.choice(kinds)
        file = store / "manifest.json"
        whole = file.read_bytes()
        if generator.random() < 0.3:
            file.write_bytes(damaged(whole, generator))
        elif generator.random() < 0.02:
            file.write_text("[" * generator.choice([10, 5_000, 200_000]))
        else:
            content = json.loads(whole)
            del content["checksum"]
            content = altered(content, generator)
            if isinstance(content, dict):
                content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            file.write_text(json.dumps(content), errors="surrogatepass")
        verify = generator.random() < 0.8
        yield lambda store=store, verify=verify: read_store(store, verify), store
        file.write_bytes(whole)


def cases_of_shards(folder, generator):
    """Shards of any bytes, under the name that their checksum asks for, in half the cases; links; other files."""
    for kind in ("top_k", "sampled"):
        make_store(folder / kind, kind)
    outside = folder / "outside.npy"
    while True:
        store = folder / "store"
        shutil.copytree(folder / generator.choice(["top_k", "sampled"]), store)
        content = json.loads((store / "manifest.json").read_text())
        index = generator.randrange(len(content["shards"]))
        file = store / "shards" / content["shards"][index]
        data = damaged(file.read_bytes(), generator)
        if (generator.random() < 0.5 and len(data) == file.stat().st_size) or generator.random() < 0.1:
            file.unlink()
            content["shards"][index] = f"{index:06d}-{hashlib.sha256(data).hexdigest()[:16]}.npy"
            file = store / "shards" / content["shards"][index]
            del content["checksum"]
            content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
            (store / "manifest.json").write_text(json.dumps(content))
        if generator.random() < 0.05:
            outside.write_bytes(data)
            file.unlink(missing_ok=True)
            file.symlink_to(outside)
        elif generator.random() < 0.02:
            file.unlink(missing_ok=True)
            file.mkdir()
        else:
            file.write_bytes(data)
        verify = generator.random() < 0.7
        yield lambda store=store, verify=verify: read_store(store, verify), store
        shutil.rmtree(store)


# Bundles


def kit():
    """The kit, as a device has it: without this package."""
    spec = spec_from_file_location("kit_benchmark", ROOT / "export/benchmark.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_bundle(folder):
    """A bundle without its kit: what is read before a runtime opens anything."""
    folder.mkdir()
    (folder / "student.onnx").write_bytes(b"not opened here")
    inputs, logits = np.zeros((4, 8), "float32"), np.zeros((4, 3), "float32")
    np.savez(folder / "golden.npz", labels=np.zeros(4, "int32"), **{"input/x": inputs, "logits/onnx": logits})
    names = ("student.onnx", "golden.npz")
    content = {
        "format_version": 1,
        "name": "tiny",
        "inputs": [{"name": "x", "shape": [None, 8], "dtype": "float32", "value_range": [0.0, 1.0]}],
        "class_names": ["a", "b", "c"],
        "temperature": 1.0,
        "artifacts": {"onnx": {"file": "student.onnx", "bytes": 15, "precision": "float32", "golden_tolerance": 1e-3}},
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names},
    }
    (folder / "manifest.json").write_text(json.dumps(content))


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_bundle(folder, module):
    module.read_manifest(folder)
    module.golden_of(folder)


def cases_of_bundles(folder, generator):
    """Manifests of any content or bytes over whole files."""
    module = kit()
    make_bundle(folder / "bundle")
    file = folder / "bundle/manifest.json"
    whole = file.read_bytes()
    while True:
        if generator.random() < 0.3:
            file.write_bytes(damaged(whole, generator))
        else:
            file.write_text(json.dumps(altered(json.loads(whole), generator)), errors="surrogatepass")
        yield lambda: read_bundle(folder / "bundle", module), folder / "bundle"


def bomb(num_bytes):
    """An .npz of a few kilobytes that becomes so many bytes of zeros."""
    stream = io.BytesIO()
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (num_bytes // 4,)})
    with (
        zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("input/x.npy", "w") as member,
    ):
        member.write(header.getvalue())
        for _ in range(num_bytes >> 20):
            member.write(bytes(1 << 20))
    return stream.getvalue()


def cases_of_archives(folder, generator):
    """Golden archives of any bytes under the right checksum: damaged, pickled, bombs, huge shapes, other paths."""
    module = kit()
    make_bundle(folder / "bundle")
    golden, manifest = folder / "bundle/golden.npz", folder / "bundle/manifest.json"
    whole = golden.read_bytes()
    large = bomb(3 << 29)
    while True:
        choice = generator.random()
        stream = io.BytesIO()
        if choice < 0.85:
            data = damaged(whole, generator)
        elif choice < 0.87:
            data = large
        elif choice < 0.92:
            with contextlib.suppress(ValueError), zipfile.ZipFile(stream, "w") as archive:
                shape = generator.choice([(10**12,), (2**40, 2**40), (-1,), (0,), (10**9,)])
                description = {
                    "descr": generator.choice(["<f4", "|O", "<U1000000"]),
                    "fortran_order": False,
                    "shape": shape,
                }
                header = io.BytesIO()
                np.lib.format.write_array_header_1_0(header, description)
                archive.writestr("input/x.npy", header.getvalue() + b"\0" * 64)
            data = stream.getvalue()
        elif choice < 0.96:
            np.savez(stream, **{"input/x": np.array([{"a": 1}], object)})
            data = stream.getvalue()
        else:
            with zipfile.ZipFile(stream, "w") as archive:
                archive.writestr(generator.choice(["../../outside.npy", "/tmp/outside.npy", "input/../x.npy"]), b"x")
            data = stream.getvalue()
        golden.write_bytes(data)
        content = json.loads(manifest.read_text())
        content["files"]["golden.npz"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest.write_text(json.dumps(content))
        yield lambda: read_bundle(folder / "bundle", module), folder / "bundle"


# Models


def cases_of_keras(folder, generator):
    """`.keras` files: damaged, with altered configurations, bombs, and members whose paths lead out."""
    import keras

    from keras_distill.models.saving import load_model

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(2)])
    net.save(folder / "whole.keras")
    whole = (folder / "whole.keras").read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    file = folder / "model.keras"
    while True:
        choice = generator.random()
        if choice < 0.4:
            file.write_bytes(damaged(whole, generator))
        else:
            changed = dict(members)
            if choice < 0.7:
                changed["config.json"] = json.dumps(altered(json.loads(members["config.json"]), generator)).encode()
            elif choice < 0.9:
                changed["model.weights.h5"] = damaged(members["model.weights.h5"], generator)
            elif choice < 0.95:
                changed[generator.choice(["../outside.txt", "/tmp/outside.txt", "assets/../../outside.txt"])] = b"x"
            else:
                changed["config.json"] = members["config.json"] + b" " * (300 << 20)
            kind = zipfile.ZIP_DEFLATED if choice >= 0.95 else zipfile.ZIP_STORED
            with zipfile.ZipFile(file, "w", kind) as archive:
                for name, data in changed.items():
                    archive.writestr(name, data)
        yield lambda: load_model(file), folder
        if (folder.parent / "outside.txt").exists():
            raise RuntimeError("a member was written outside of the folder")


def cases_of_onnx(folder, generator):
    """`.onnx` files as teachers: damaged, or with weights that lie outside of the folder."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from keras_distill.teachers import OnnxTeacher

    kernel = numpy_helper.from_array(np.ones((4, 3), "float32"), "kernel")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "kernel"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [kernel],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    whole = model.SerializeToString()
    inner = folder / "inner"
    inner.mkdir()
    secret = folder / "secret.bin"
    secret.write_bytes(np.full(12, 7, "float32").tobytes())

    def read(leads_out):
        teacher = OnnxTeacher(inner / "teacher.onnx", num_threads=1)
        logits = teacher.logits(np.ones((2, 4), "float32"))
        if leads_out and np.any(logits == 28.0):
            raise RuntimeError("weights were read from outside of the folder")

    while True:
        leads_out = generator.random() < 0.1
        data = damaged(whole, generator)
        if leads_out:
            tensor = model.graph.initializer[0]
            away = onnx.ModelProto()
            away.CopyFrom(model)
            tensor = away.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": generator.choice(["../secret.bin", str(secret)]), "length": "48"}.items():
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
            data = away.SerializeToString()
        (inner / "teacher.onnx").write_bytes(data)
        yield lambda leads_out=leads_out: read(leads_out), inner


def cases_of_tflite(folder, generator):
    """`.tflite` files as artifacts of a bundle."""
    import keras
    import tensorflow as tf

    from keras_distill.deploy.verify import open_artifact

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(2)])
    call = tf.function(net, input_signature=[tf.TensorSpec([1, 4], tf.float32)])
    whole = tf.lite.TFLiteConverter.from_concrete_functions([call.get_concrete_function()], net).convert()
    file = folder / "student.tflite"
    while True:
        file.write_bytes(damaged(whole, generator))
        yield lambda: open_artifact(file), folder


def cases_of_arguments(folder, generator):
    """Command lines of any words: the files they name do not exist, so that none of them can begin its work."""
    import re

    from keras_distill.cli import COMMANDS, build_parser, main

    text = {}
    for name in COMMANDS:
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream), contextlib.suppress(SystemExit):
            build_parser().parse_args([name, "--help"])
        text[name] = sorted(set(re.findall(r"--[a-z][a-z-]+", stream.getvalue())) - {"--help", "--import"})
    values = ["", "0", "-1", "1e9", "nan", "inf", "-inf", "x" * 3000, "💥", "../..", "/", ".", "digits", "none.keras",
              "tfds:", "0/1", "3/2", "1MB", "--", "-", "a=b", "[red]", "%s", "\\", "1" * 400, "a\x00b"]  # fmt: skip

    def run(argv):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = main(argv)
            except SystemExit as stopped:
                code = stopped.code
        if code != 2:
            raise RuntimeError(f"exit code {code} of {argv}")
        if "error:" not in said.getvalue():
            raise RuntimeError(f"no message for {argv}")

    while True:
        name = generator.choice(COMMANDS)
        argv = [name] if generator.random() < 0.95 else [generator.choice(values)]
        if name == "demo":
            argv += ["--seeds", generator.choice(["0", "-1", "x", "1.5"])]
        for _ in range(generator.randrange(8)):
            argv.append(generator.choice(text[name]))
            argv += [generator.choice(values) for _ in range(generator.choice([0, 1, 1, 1, 2]))]
        yield lambda argv=argv: run(argv), folder


KINDS = {
    "manifests": cases_of_manifests,
    "shards": cases_of_shards,
    "bundles": cases_of_bundles,
    "archives": cases_of_archives,
    "keras": cases_of_keras,
    "onnx": cases_of_onnx,
    "tflite": cases_of_tflite,
    "arguments": cases_of_arguments,
}


def fuzz(kind, num_cases, seed):
    """How so many cases of a kind end: `{end: how many}`. A crash of the process is an end too, of one case."""
    ends_of_all = collections.Counter()
    done = 0
    while done < num_cases:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            code = 1
            try:
                _fuzz_some(kind, num_cases, seed, done, write)
                code = 0
            finally:
                if code:
                    import traceback

                    traceback.print_exc()
                os._exit(code)
        os.close(write)
        with open(read) as stream:
            found = stream.read().splitlines()
        _, status = os.waitpid(child, 0)
        ends_of_all.update(found)
        done += len(found)
        if os.WIFSIGNALED(status) and done < num_cases:
            ends_of_all[f"FAILED: died of {signal.Signals(os.WTERMSIG(status)).name} ({kind} {done})"] += 1
            done += 1
        elif status:
            raise RuntimeError(f"the fuzzer of {kind} failed at case {done}")
    return dict(ends_of_all)


def _fuzz_some(kind, num_cases, seed, first, write):
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve() / "home"
        home.mkdir()
        # Keras unpacks assets into a temporary folder: that one is ours as well.
        tempfile.tempdir = str(home)
        generator = random.Random(f"{kind} {seed}")
        cases = KINDS[kind](home, generator)
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = None
        for number in range(num_cases):
            read, inside = next(cases)
            if limit is None:
                limit = held + MEMORY_LIMIT + (4 << 30 if kind in ("keras", "onnx", "tflite", "arguments") else 0)
                resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            if number < first:
                continue
            os.write(write, (ends(kind, number, read, inside).replace("\n", " ") + "\n").encode(errors="replace"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("kinds", nargs="+", choices=tuple(KINDS))
    parser.add_argument("--cases", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if {"keras", "onnx", "tflite", "arguments"} & set(arguments.kinds):
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import keras  # noqa: F401
        import tensorflow  # noqa: F401

        import keras_distill.models.saving
        import keras_distill.teachers  # noqa: F401
    print(json.dumps({kind: fuzz(kind, arguments.cases, arguments.seed) for kind in arguments.kinds}))


if __name__ == "__main__":
    main()
