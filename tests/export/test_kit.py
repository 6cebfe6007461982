"""The kit: needs no Keras, refuses what was changed, compares before it measures."""

import ast
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from keras_distill._kit import kit_folder, kit_module
from keras_distill.deploy import bundle as deploy_bundle

KIT = kit_folder()
# The last two only for tokenisers that are not ours, and for pictures.
ALLOWED = {"numpy", "onnxruntime", "ai_edge_litert", "tflite_micro", "tokenizers", "PIL"}
kit = kit_module()


@pytest.mark.parametrize("file", sorted(path.name for path in KIT.rglob("*.py")))
def test_a_file_of_the_kit_imports_numpy_and_a_runtime_at_most(file):
    imported = set()
    for node in ast.walk(ast.parse((KIT / file).read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    of_the_kit = {path.stem for path in KIT.glob("*.py")}
    assert imported - set(sys.stdlib_module_names) - of_the_kit <= ALLOWED


@pytest.mark.parametrize("name", ["classify_onnx.py", "classify_litert.py"])
def test_a_consumer_is_at_most_forty_lines(name):
    assert len((KIT / name).read_text().splitlines()) <= 40


def test_every_field_of_a_manifest_is_documented(bundle):
    documented = (KIT / "README.md").read_text()
    manifest = json.loads((bundle[0] / "manifest.json").read_text())
    fields = {*manifest, *manifest["artifacts"]["onnx"], *manifest["inputs"][0]}
    assert [field for field in fields if f"`{field}`" not in documented] == []


# Trust


def change(folder, **fields):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_whole_bundle_is_read(bundle):
    assert deploy_bundle.read_bundle(bundle[0])["name"] == "linear"


@pytest.mark.parametrize("name", ["student.onnx", "golden.npz", "benchmark.py", "README.md"])
def test_one_changed_byte_is_refused_by_name(bundle, name):
    content = bytearray((bundle[0] / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle[0] / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} must have the checksum"):
        kit.read_manifest(bundle[0])


def test_a_missing_file_is_refused(bundle):
    (bundle[0] / "golden.npz").unlink()
    with pytest.raises(ValueError, match=r"golden\.npz must be in the bundle"):
        kit.read_manifest(bundle[0])


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version_is_refused(bundle, version):
    change(bundle[0], format_version=version)
    with pytest.raises(ValueError, match="format_version must be 1"):
        kit.read_manifest(bundle[0])


@pytest.mark.parametrize("path", ["../outside.onnx", "/etc/hostname", "web/../../outside.onnx"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle, path):
    (bundle[0].parent / "outside.onnx").write_bytes(b"")
    change(bundle[0], files={path: {"bytes": 0, "sha256": ""}})
    with pytest.raises(ValueError, match="must stay inside the bundle"):
        kit.read_manifest(bundle[0])


def test_a_link_that_leaves_the_bundle_is_refused(bundle):
    outside = bundle[0].parent / "outside.onnx"
    outside.write_bytes((bundle[0] / "student.onnx").read_bytes())
    (bundle[0] / "student.onnx").unlink()
    (bundle[0] / "student.onnx").symlink_to(outside)
    with pytest.raises(ValueError, match="must stay inside the bundle"):
        kit.read_manifest(bundle[0])


def test_an_artifact_without_a_checksum_is_refused(bundle):
    manifest = json.loads((bundle[0] / "manifest.json").read_text())
    del manifest["files"]["student.onnx"]
    (bundle[0] / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="must be in `files`"):
        kit.read_manifest(bundle[0])


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format_version": 1}'])
def test_a_garbled_manifest_is_refused(bundle, text):
    (bundle[0] / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"Copy the bundle again|Ship the student again"):
        kit.read_manifest(bundle[0])


def fields_of(value, path=()):
    """The path of every field and every item of a JSON value."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield (*path, key)
        yield from fields_of(inner, (*path, key))


GONE = object()
NONSENSE = [GONE, None, True, -1, 0.5, "", "\0", "x" * 5000, [], {}, ["x"], {"x": None}]


def test_a_manifest_with_any_field_gone_or_nonsense_is_read_or_refused_in_a_sentence(bundle, monkeypatch):
    monkeypatch.setattr(kit, "measure", lambda steps, rounds: {name: {} for name in steps})
    text = (bundle[0] / "manifest.json").read_text()
    refusals = []
    for path in fields_of(json.loads(text)):
        for nonsense in NONSENSE:
            manifest = json.loads(text)
            holder = manifest
            for key in path[:-1]:
                holder = holder[key]
            if nonsense is GONE:
                del holder[path[-1]]
            else:
                holder[path[-1]] = nonsense
            (bundle[0] / "manifest.json").write_text(json.dumps(manifest))
            try:
                kit.benchmark(bundle[0])
            except ValueError as error:
                refusals.append(str(error))
    assert len(refusals) > 100
    assert [refusal for refusal in refusals if not refusal.endswith(".")] == []


def test_a_manifest_cut_short_anywhere_is_refused(bundle):
    text = (bundle[0] / "manifest.json").read_text()
    for length in range(0, len(text.rstrip()) - 1, 37):
        (bundle[0] / "manifest.json").write_text(text[:length])
        with pytest.raises(ValueError, match="must be JSON"):
            kit.read_manifest(bundle[0])


@pytest.mark.parametrize("name", ["input/image", "logits/onnx"])
def test_golden_answers_that_lack_an_array_are_refused(bundle, name):
    folder, images, logits = bundle
    arrays = {"input/image": images, "logits/onnx": logits}
    del arrays[name]
    np.savez(folder / "golden.npz", **arrays)
    deploy_bundle.write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    with pytest.raises(ValueError, match=r"golden\.npz must hold"):
        kit.benchmark(folder)


@pytest.mark.parametrize("name", ["golden.npz", "student.onnx"])
def test_a_damaged_file_with_its_own_checksum_is_refused_in_a_sentence(bundle, name):
    (bundle[0] / name).write_bytes((bundle[0] / name).read_bytes()[:60])
    deploy_bundle.write_manifest(bundle[0], json.loads((bundle[0] / "manifest.json").read_text()))
    done = run(bundle[0], "benchmark.py")
    assert done.returncode == 2
    assert f"error: {name} must be" in done.stderr
    assert "Traceback" not in done.stderr


def test_golden_inputs_of_another_shape_are_refused_in_a_sentence(bundle):
    folder, images, logits = bundle
    deploy_bundle.write_golden(folder, {"image": images[:, :5]}, logits.argmax(-1), {"onnx": logits})
    deploy_bundle.write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    with pytest.raises(ValueError, match=r"the input 'image' must have the shape \('batch', 8, 8, 1\)"):
        kit.benchmark(folder)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(ValueError, match=r"must hold manifest\.json"):
        kit.read_manifest(tmp_path)
    with pytest.raises(ValueError, match="a bundle must be a folder"):
        deploy_bundle.read_bundle(tmp_path / "none")


# Parity and latency


def test_comparison_is_that_of_numpy():
    expected = np.array([[1.0, 2.0], [3.0, 0.0]])
    found = kit.compare(expected, np.array([[1.0, 2.5], [1.0, 2.0]], "float32"))
    assert found == {
        "max_abs_error": 2.0,
        "logit_rmse": pytest.approx(np.sqrt((0.25 + 4.0 + 4.0) / 4)),
        "argmax_agreement": 0.5,
    }
    with pytest.raises(ValueError, match="must have the shape"):
        kit.compare(expected, expected[:1])


def test_measure_never_calls_a_sleep_shorter_than_it_is_and_counts_only_what_it_keeps():
    calls = {"short": 0, "long": 0}

    def sleeper(name, seconds):
        def step():
            calls[name] += 1
            time.sleep(seconds)

        return step

    figures = kit.measure({"short": sleeper("short", 1e-3), "long": sleeper("long", 4e-3)}, rounds=2)
    for name, milliseconds in (("short", 1.0), ("long", 4.0)):
        row = figures[name]
        # A sleep is never shorter than asked; how much longer depends on the machine.
        assert milliseconds <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["process_ms"] < row["p50_ms"]
        assert row["num_calls"] == calls[name] - kit.WARM_UP_CALLS - 1 - 2 * kit.DISCARDED_CALLS


def test_the_golden_tolerance_grows_with_the_range_of_the_logits_and_with_coarseness():
    logits = np.array([[-10.0, 10.0]])
    assert deploy_bundle.golden_tolerance("float32", logits) == pytest.approx(2e-3)
    assert deploy_bundle.golden_tolerance("int8", logits) == pytest.approx(1.0)
    # Of values in a small unit as of those in a large one, and of a constant as of its own size.
    assert deploy_bundle.golden_tolerance("float32", logits / 100) == pytest.approx(2e-5)
    assert deploy_bundle.golden_tolerance("float32", 0 * logits + 7.0) == pytest.approx(7e-4)
    assert deploy_bundle.golden_tolerance("float32", 0 * logits) == pytest.approx(1e-6)


@pytest.mark.parametrize("num_classes", [1, 3, 16, 40])
def test_golden_examples_are_of_as_many_classes_as_can_be(num_classes):
    # An image folder comes class by class.
    labels = np.repeat(np.arange(num_classes), 30)
    chosen = deploy_bundle.choose_golden(labels)
    assert len(set(chosen)) == 16
    assert len(set(labels[chosen])) == min(num_classes, 16)
    counts = np.bincount(labels[chosen], minlength=num_classes)
    assert counts[counts > 0].max() - counts[counts > 0].min() <= 1
    shuffled = np.random.default_rng(0).permutation(labels)
    assert len(set(shuffled[deploy_bundle.choose_golden(shuffled)])) == min(num_classes, 16)
    assert deploy_bundle.choose_golden(labels[:5]).tolist() == [0, 1, 2, 3, 4]


# Several outputs


@pytest.fixture
def two_outputs(tmp_path):
    """A bundle whose file gives `kind`, and `size` in another unit."""
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    kernels = {"kind": float32(generator.normal(size=(4, 3))), "size": float32(50 * generator.normal(size=(4, 1)))}
    x = float32(generator.normal(size=(16, 4)))
    outputs = {name: x @ kernel for name, kernel in kernels.items()}

    def write(folder, golden, sign=1.0, **fields):
        folder.mkdir()
        nodes = [helper.make_node("MatMul", ["x", f"{name}_kernel"], [name]) for name in kernels]
        graph = helper.make_graph(
            nodes,
            "two",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", None]) for name in kernels],
            [
                numpy_helper.from_array(float32(kernel * (sign if name == "size" else 1)), f"{name}_kernel")
                for name, kernel in kernels.items()
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        (folder / "student.onnx").write_bytes(model.SerializeToString())
        deploy_bundle.write_golden(folder, {"x": x}, np.zeros(16, int), golden)
        artifact = {"file": "student.onnx", "bytes": 1, "golden_tolerance": {"kind": 1e-4, "size": 1e-2}} | fields
        manifest = {"name": "two", "inputs": [], "class_names": [], "temperature": 1.0, "artifacts": {"onnx": artifact}}
        deploy_bundle.write_manifest(folder, manifest)
        return folder

    return write, outputs, tmp_path / "bundle"


def float32(array):
    return np.asarray(array, "float32")


def test_every_output_is_compared_with_its_own_golden_one(two_outputs, monkeypatch):
    monkeypatch.setattr(kit, "measure", lambda steps, rounds: {name: {} for name in steps})
    write, outputs, folder = two_outputs
    golden = deploy_bundle.golden_entries("onnx", outputs)
    assert kit.benchmark(write(folder, golden))["artifacts"]["onnx"]["holds"]
    row = kit.benchmark(write(folder.with_name("other"), golden, sign=-1.0))["artifacts"]["onnx"]
    assert not row["holds"]
    assert row["output"] == "size"
    assert row["max_abs_error"] == pytest.approx(2 * np.abs(outputs["size"]).max(), rel=1e-5)


def test_golden_answers_or_a_tolerance_of_one_output_alone_are_refused(two_outputs):
    write, outputs, folder = two_outputs
    golden = deploy_bundle.golden_entries("onnx", outputs)
    with pytest.raises(ValueError, match="must have 'size', of type int or float; got none"):
        kit.benchmark(write(folder, golden, golden_tolerance={"kind": 1e-4}))
    del golden["onnx/size"]
    with pytest.raises(ValueError, match=r"golden\.npz must hold inputs and logits/onnx/size"):
        kit.benchmark(write(folder.with_name("other"), golden))


def test_an_output_that_is_no_number_differs_and_is_printed_as_null(bundle):
    folder, images, logits = bundle
    broken = logits.copy()
    broken[0, 0] = np.nan
    deploy_bundle.write_golden(folder, {"image": images}, logits.argmax(-1), {"onnx": broken})
    deploy_bundle.write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    done = run(folder, "benchmark.py", "--json", "--rounds", "1")
    assert done.returncode == 1
    row = json.loads(done.stdout)["artifacts"]["onnx"]
    assert row["max_abs_error"] is None
    assert not row["holds"]
    assert "DIFFERS" in run(folder, "benchmark.py").stdout


def test_infinity_equals_nothing_and_a_single_value_s_answer_is_its_sign():
    infinite = np.array([[np.inf], [1.0]])
    assert kit.compare(infinite, infinite)["max_abs_error"] == np.inf
    found = kit.compare(np.array([[1.0], [-1.0], [2.0], [3.0]]), np.array([[0.5], [1.0], [3.0], [2.0]]))
    assert found["argmax_agreement"] == 0.75


# The commands


def run(folder, script, *arguments, python=sys.executable):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, str(folder / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent, check=False)


def test_benchmark_of_an_honest_bundle_prints_json_with_its_parity(bundle):
    done = run(bundle[0], "benchmark.py", "--json", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["artifacts"]["onnx"]
    assert row["holds"]
    assert row["max_abs_error"] < 1e-4
    assert 0.0 < row["p50_ms"] <= row["p99_ms"]


def test_benchmark_of_other_answers_exits_one_and_measures_nothing(bundle):
    folder, images, logits = bundle
    deploy_bundle.write_golden(folder, {"image": images}, logits.argmax(-1), {"keras": logits, "onnx": logits + 0.5})
    deploy_bundle.write_manifest(folder, json.loads((folder / "manifest.json").read_text()))
    done = run(folder, "benchmark.py", "--json", "--rounds", "1")
    assert done.returncode == 1
    row = json.loads(done.stdout)["artifacts"]["onnx"]
    assert row["max_abs_error"] == pytest.approx(0.5, abs=1e-3)
    assert "p50_ms" not in row
    assert "DIFFERS" in run(folder, "benchmark.py").stdout


def test_benchmark_of_a_changed_bundle_exits_two_without_a_traceback(bundle):
    (bundle[0] / "student.onnx").write_bytes(b"changed")
    done = run(bundle[0], "benchmark.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: student.onnx must have the checksum")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--targets", "tpu"), ("--rounds", "0"), ("--threads", "0")])
def test_benchmark_refuses_bad_arguments_in_one_sentence(bundle, arguments):
    done = run(bundle[0], "benchmark.py", *arguments)
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_consumer_prints_the_softmax_at_the_manifest_s_temperature(bundle):
    folder, _, logits = bundle
    done = run(folder, "classify_onnx.py")
    assert done.returncode == 0, done.stderr
    exponentials = np.exp(np.float64(logits[0]) / 2.0)
    best = int(logits[0].argmax())
    expected = f"{['ant', 'bee', 'cow'][best]} {exponentials[best] / exponentials.sum():.1%}"
    assert done.stdout.splitlines()[0].startswith(expected)
    assert len(done.stdout.splitlines()) == 16


def test_the_consumer_takes_a_file_of_examples(bundle, tmp_path):
    np.save(tmp_path / "examples.npy", bundle[1][:3])
    done = run(bundle[0], "classify_onnx.py", str(tmp_path / "examples.npy"))
    assert len(done.stdout.splitlines()) == 3
