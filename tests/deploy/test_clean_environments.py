"""Outside the checkout: the wheel ships where its own requirements are, its bundle runs where Keras is not."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import metadata
from pathlib import Path

import keras
import pytest
from environments import environment_of, install_wheel, run
from keras import layers
from packaging.requirements import Requirement

from keras_distill.deploy import read_bundle

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution, and the wheel that was built of it."""
    folder = tmp_path_factory.mktemp("distributions")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return source, wheel


def installed(wheel, folder, *extras):
    """The Python of an environment of a wheel and what it requires, of its extras too."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = re.findall(r"^Requires-Dist: (.*)$", archive.read(name).decode(), re.MULTILINE)
    wanted = [requirement for line in lines if is_wanted(requirement := Requirement(line), extras)]
    python = environment_of(folder, [f"{each.name}{each.specifier}" for each in wanted])
    install_wheel(python, wheel)
    return python


def is_wanted(requirement, extras):
    """Whether it is required here without extras or with one of these."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


@pytest.fixture(scope="module")
def shipped(distributions, tmp_path_factory):
    """The bundle that the wheel made: a student of another folder, in an environment of the wheel's requirements."""
    folder = tmp_path_factory.mktemp("outside")
    model = keras.Sequential([keras.Input((8, 8, 1), name="image"), layers.Flatten(), layers.Dense(10, name="logits")])
    model.save(folder / "student.keras")
    python = installed(distributions[1], folder / "venv")
    place = run(python, "-c", "import keras_distill; print(keras_distill.__file__)", cwd=folder)
    assert Path(place.stdout.strip()).is_relative_to(folder), place.stdout + place.stderr
    command = [python.parent / "keras-distill", "ship", "student.keras", "--data", "digits", "--out", "bundle"]
    # It was never trained, which the gate would see.
    done = run(python, *command, "--targets", "onnx", "litert", "--min-accuracy", "0", cwd=folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "bundle"


def test_the_distributions_hold_the_kit_and_no_litter(distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        wheel = set(archive.namelist())
    with tarfile.open(distributions[0]) as archive:
        source = {name.split("/", 1)[-1] for name in archive.getnames()}
    kit = {path.relative_to(ROOT / "export").as_posix() for path in (ROOT / "export").rglob("*") if path.is_file()}
    kit = {name for name in kit if "__pycache__" not in name}
    assert {f"keras_distill/kit/{name}" for name in kit} <= wheel
    assert {f"export/{name}" for name in kit} <= source
    assert "keras_distill/report/templates/page.html" in wheel
    assert "keras_distill/py.typed" in wheel
    assert [name for name in wheel if name.endswith(".dist-info/licenses/LICENSE")]
    assert {"LICENSE", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"} <= source
    assert not [name for name in wheel | source if "__pycache__" in name]
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"keras_distill"}
    assert metadata("keras-distill")["Version"] in distributions[1].name


def test_the_wheel_in_a_clean_environment_ships(shipped):
    manifest = read_bundle(shipped)
    assert set(manifest["artifacts"]) == {"onnx", "litert"}
    assert all(artifact["verification"]["holds"] for artifact in manifest["artifacts"].values())


def test_the_readmes_commands_run_as_printed_from_the_wheel(distributions, tmp_path):
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("keras-distill ")]
    assert len(lines) >= 8
    python = installed(distributions[1], tmp_path / "venv", "tune")
    # TensorFlow starts once.
    commands = [line.split("#")[0].split()[1:] for line in lines]
    code = f"from keras_distill.cli import main\nfor command in {commands!r}:\n assert main(command) == 0, command"
    done = run(python, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    student = re.search(r"student: .*, ([\d,]+) bytes", done.stdout)
    assert int(student[1].replace(",", "")) <= 12_000
    there = {path.name for path in (tmp_path / "small").iterdir()}
    assert {"student.keras", "bundle", "report.html", "compression.json", "study.db"} <= there
    assert re.search(r"verdict: (BETTER|NO BETTER|WORSE|INCONCLUSIVE): ", done.stdout)
    there = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert {"student.onnx", "student.tflite", "report.html", "manifest.json"} <= there
    assert sorted(path.name for path in (tmp_path / "exported").iterdir()) == ["out.onnx", "out.tflite"]


@pytest.mark.parametrize(
    ("runtime", "target"), [("onnx", "onnx"), ("litert", "litert")], ids=["numpy+onnxruntime", "numpy+ai-edge-litert"]
)
def test_a_copied_bundle_runs_where_there_is_only_numpy_and_its_runtime(shipped, runtime, target, tmp_path):
    copy = tmp_path / "elsewhere" / "bundle"
    shutil.copytree(shipped, copy)
    requirements = (copy / f"requirements-{runtime}.txt").read_text().split()
    assert len(requirements) == 2
    python = environment_of(tmp_path / "venv", requirements)
    other = {"onnx": "ai_edge_litert", "litert": "onnxruntime"}[runtime]
    probe = "import importlib.util as u, sys; print([name for name in sys.argv[1:] if u.find_spec(name)])"
    found = run(python, "-c", probe, "keras", "tensorflow", "keras_distill", "onnx", other, cwd=tmp_path)
    assert found.stdout.strip() == "[]", found.stderr
    done = run(python, copy / "benchmark.py", "--json", "--rounds", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["artifacts"][target]["holds"]
    assert list(result["skipped"].values()) == [f"{other} is not installed"]
    done = run(python, copy / f"classify_{runtime}.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 16
