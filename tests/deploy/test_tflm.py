"""Files for microcontrollers: what the interpreter of TensorFlow Lite for Microcontrollers says of them; the C++."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from environments import environment_of, run
from keras import layers

from keras_distill.data import load
from keras_distill.deploy import Budgets, ConversionError, Provenance, read_bundle, ship
from keras_distill.deploy.kit import kit_module
from keras_distill.deploy.tflm import against_litert, to_tflm

pytestmark = pytest.mark.tensorflow
STUBS = Path(__file__).parent / "tflm_stubs"
# An arena that is too small ends a process as often as it raises.
RUNS_IN = """
import sys
import numpy as np
from tflite_micro import runtime
interpreter = runtime.Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2]))
interpreter.set_input(np.zeros((1, 8, 8, 1), np.int8), 0)
interpreter.invoke()
"""


def network(*inner, shape=(8, 8, 1)):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [keras.Input(shape, name="image"), *inner, layers.Flatten(), layers.Dense(10, name="logits")]
    )


def noise(*shape):
    return np.random.default_rng(0).uniform(size=shape).astype("float32")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A small convolutional network's file, and what was said of it."""
    path = tmp_path_factory.mktemp("tflm") / "it-tflm.tflite"
    model = network(
        layers.Conv2D(4, 3, activation="relu", name="first"), layers.MaxPooling2D(), layers.DepthwiseConv2D(3)
    )
    return path, to_tflm(model, path, calibration={"image": noise(64, 8, 8, 1)}), model


def test_the_arena_is_the_smallest_that_the_interpreter_runs_in(file):
    path, facts, _ = file
    codes = [
        subprocess.run([sys.executable, "-c", RUNS_IN, path, str(size)], capture_output=True, check=False).returncode
        for size in (facts.arena_bytes, facts.arena_bytes - 1)
    ]
    assert codes[0] == 0
    assert codes[1] != 0
    assert 8 * 8 + 6 * 6 * 4 <= facts.activation_bytes < facts.used_bytes <= facts.arena_bytes


def test_the_operations_are_those_that_litert_runs(file, tmp_path):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    path, facts, _ = file
    plain = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    assert list(facts.operations) == sorted({entry["op_name"] for entry in plain._get_ops_details()})


def test_inputs_and_outputs_are_int8_by_the_files_own_scale(file):
    from ai_edge_litert.interpreter import Interpreter

    path, _, model = file
    plain = Interpreter(str(path))
    plain.allocate_tensors()
    (taken,), (given,) = plain.get_input_details(), plain.get_output_details()
    assert {taken["dtype"], given["dtype"]} == {np.int8}
    inputs = noise(20, 8, 8, 1)
    artifact = kit_module().open_artifact(path)
    assert artifact.runtime == "tflite-micro"
    found = artifact({"image": inputs})
    scale, zero = given["quantization"]
    steps = found.astype("float64") / scale + zero
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)
    expected = np.asarray(model(inputs))
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.05 * expected.std()


def test_parity_counts_the_steps_between_the_two_interpreters(file):
    from ai_edge_litert.interpreter import Interpreter
    from tflite_micro import runtime

    path, _, _ = file
    inputs = noise(50, 8, 8, 1)
    litert, micro = Interpreter(str(path)), runtime.Interpreter.from_file(str(path))
    litert.allocate_tensors()
    (taken,), (given,) = litert.get_input_details(), litert.get_output_details()
    scale, zero = taken["quantization"]
    steps = np.clip(np.round(inputs / np.float32(scale)) + zero, -128, 127).astype("int8")
    differences = []
    for one in steps[:, None]:
        litert.set_tensor(taken["index"], one)
        litert.invoke()
        micro.set_input(one, 0)
        micro.invoke()
        differences.append(np.abs(litert.get_tensor(given["index"]).astype(int) - micro.get_output(0)))
    parity = against_litert(path, {"image": inputs})
    assert parity.num_items == 50
    assert parity.max_steps == np.max(differences)
    assert parity.share_different == pytest.approx(np.mean(np.array(differences) > 0))
    assert (parity.first_operation is None) == (parity.max_steps == 0)
    assert parity.reference_max_steps <= 1


@pytest.mark.parametrize(
    ("layer", "operation", "why"),
    [
        (layers.Activation("gelu", name="bell"), "GELU", "TFLM has"),
        (layers.Lambda(keras.ops.sin, name="wave"), "SIN", "in int8"),
    ],
    ids=["lacking", "float only"],
)
def test_what_microcontrollers_cannot_compute_is_named_with_its_layer(layer, operation, why, tmp_path):
    path = tmp_path / "it-tflm.tflite"
    with pytest.raises(ConversionError, match=f"{why}.*got {operation} in the layer '{layer.name}'"):
        to_tflm(network(layers.Conv2D(3, 3), layer), path, calibration={"image": noise(8, 8, 8, 1)})
    assert not path.exists()


def test_a_model_whose_arena_no_chip_has_is_refused(tmp_path):
    model = keras.Sequential(
        [keras.Input((256, 256, 1), name="image"), layers.Conv2D(1200, 1), layers.GlobalMaxPooling2D()]
    )
    with pytest.raises(ConversionError, match="whose arena is more than 67,108,864 bytes"):
        to_tflm(model, tmp_path / "it-tflm.tflite", calibration={"image": noise(1, 256, 256, 1)})


def test_a_path_that_the_kit_would_open_in_litert_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in tflm\.tflite; got '.*it.tflite'"):
        to_tflm(network(), tmp_path / "it.tflite", calibration={"image": noise(8, 8, 8, 1)})


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"tflite-micro.*keras-distill\[tflm\]"):
        to_tflm(network(), tmp_path / "it-tflm.tflite", calibration={"image": noise(8, 8, 8, 1)})


# The gate


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def student():
    return network(layers.Conv2D(4, 3, activation="relu", name="first"))


def shipped_by(student, digits, out, **budgets):
    return ship(
        student,
        digits,
        out,
        provenance=Provenance("it"),
        targets=["tflm"],
        # It was never trained.
        budgets=Budgets(max_accuracy_drop=0.2, min_accuracy=0.0, **budgets),
        rounds=1,
    )


@pytest.fixture(scope="module")
def bundle(student, digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("ship") / "bundle"
    shipment = shipped_by(student, digits, out, max_arena=16_000)
    assert shipment.out is not None, shipment.outcomes
    return out


def test_the_bundle_says_arena_operations_and_parity(bundle):
    artifact = read_bundle(bundle)["artifacts"]["tflm"]
    assert artifact["runtime"] == "tflite-micro"
    assert artifact["micro"]["operations"] == ["CONV_2D", "FULLY_CONNECTED", "RESHAPE"]
    assert 0 < artifact["micro"]["arena_bytes"] <= 16_000
    assert artifact["litert_parity"]["num_items"] == 719
    card = (bundle / "model_card.md").read_text()
    assert f"{artifact['micro']['arena_bytes']:,} bytes" in card
    assert "CONV_2D" in card


def test_an_arena_past_the_budget_is_refused_by_how_much(student, digits, tmp_path, bundle):
    arena = read_bundle(bundle)["artifacts"]["tflm"]["micro"]["arena_bytes"]
    shipment = shipped_by(student, digits, tmp_path / "bundle", max_arena=arena - 7)
    assert shipment.out is None
    (outcome,) = shipment.outcomes
    said = f"needs an arena of {arena:,} bytes: 7 past the budget of {arena - 7:,}"
    assert said in outcome.reasons
    assert not (tmp_path / "bundle").exists()


def test_an_arena_is_a_budget_of_the_target_alone(student, digits, tmp_path):
    with pytest.raises(ValueError, match=r"tflm must be named where max_arena is a budget; got litert\."):
        ship(
            student,
            digits,
            tmp_path / "bundle",
            provenance=Provenance("it"),
            targets=["litert"],
            budgets=Budgets(max_arena=16_000),
        )
    with pytest.raises(ValueError, match="max_arena must be > 0"):
        Budgets(max_arena=0)


def test_the_array_is_the_file_and_the_golden_answers_are_the_interpreters(bundle):
    source = (bundle / "tflm" / "model.cc").read_text()
    array = source.partition("kModel[] = {")[2].partition("}")[0]
    assert (
        bytes(int(word, 16) for word in re.findall(r"0x(\w\w)", array)) == (bundle / "student-tflm.tflite").read_bytes()
    )
    golden = (bundle / "tflm" / "golden.h").read_text()
    rows = re.findall(r"^    \{(.*)\},$", golden, re.MULTILINE)
    found = np.array([row.split(",") for row in rows], int)
    header = (bundle / "tflm" / "model.h").read_text()
    scale, zero = (re.search(rf"{name} = (\S+?)f?;", header)[1] for name in ("kOutputScale", "kOutputZeroPoint"))
    with np.load(bundle / "golden.npz") as arrays:
        expected, images = arrays["logits/tflm"], arrays["input/image"]
    np.testing.assert_allclose((found - int(zero)) * float(scale), expected, rtol=1e-5, atol=1e-5)
    values = np.array(golden.partition("kGoldenInput0[] = {")[2].partition("}")[0].strip(" \n,").split(","), int)
    scale, zero = (
        re.search(r"kInputScale\[\] = \{(.*)f\}", header)[1],
        re.search(r"ZeroPoint\[\] = \{(.*)\}", header)[1],
    )
    assert np.abs((values - int(zero)) * float(scale) - images.ravel()).max() <= 0.51 * float(scale)
    arena = read_bundle(bundle)["artifacts"]["tflm"]["micro"]["arena_bytes"]
    assert f"kArenaBytes = {arena};" in header


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ is installed")
def test_the_source_compiles(bundle):
    for name in ("model.cc", "main.cc"):
        command = ["g++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-I{STUBS}", "-I.", name]
        done = subprocess.run(command, cwd=bundle / "tflm", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_names_of_classes_are_ascii_strings_that_read_back(tmp_path):
    from keras_distill.deploy.micro_source import _text

    name = 'naïve "quote"\\ ??/ ふ\n1'
    literal = _text(name)
    assert literal.isascii()
    assert "??" not in literal
    spelled = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), literal[1:-1])
    assert spelled.encode("latin-1").decode() == name


def test_the_bundle_is_checked_where_there_is_only_numpy_and_the_interpreter(bundle, tmp_path):
    requirements = (bundle / "requirements-tflm.txt").read_text().split()
    assert requirements == ["numpy", "tflite-micro"]
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    python = environment_of(tmp_path / "venv", requirements)
    probe = "import importlib.util as u, sys; print([name for name in sys.argv[1:] if u.find_spec(name)])"
    found = run(python, "-c", probe, "keras", "tensorflow", "ai_edge_litert", "onnxruntime", cwd=tmp_path)
    assert found.stdout.strip() == "[]", found.stderr
    done = run(python, copy / "benchmark.py", "--json", "--rounds", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["artifacts"]["tflm"]
    assert result["holds"]
    assert result["max_abs_error"] == 0.0
