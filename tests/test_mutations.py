"""A test watches the tests: each of these faults, put into a copy of the package, must make some test fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# name: (file, what stands there, the fault, the tests that must notice)
MUTATIONS = {
    "T² dropped": (
        "losses/soft_targets.py",
        "ops.square(ops.cast(temperature, divergence.dtype)) * ",
        "",
        "losses/test_soft_targets.py",
    ),
    "divergence the wrong way round": (
        "losses/soft_targets.py",
        "ops.exp(teacher_log_probabilities) * surprise",
        "ops.exp(student_log_probabilities) * -surprise",
        "losses/test_soft_targets.py",
    ),
    "members averaged without their weights": (
        "losses/soft_targets.py",
        "ops.log(ops.cast(member_weights, log_probabilities.dtype))[..., None]",
        "0.0",
        "losses/test_soft_targets.py",
    ),
    "sample weights ignored by the distillation term": (
        "distiller.py",
        "self._reduce(values, pair[1], item_weights)",
        "self._reduce(values, pair[1], None)",
        "test_distiller.py",
    ),
    "masks ignored by the distillation term": (
        "losses/reduction.py",
        "carrier = mask_carrier if mask is not None",
        "carrier = mask_carrier if False",
        "test_distiller.py",
    ),
    "the teacher saved": (
        "distiller.py",
        'if name != "teacher"]',
        "]",
        "test_distiller.py",
    ),
    "the teacher in training mode": (
        "distiller.py",
        "self._teacher.run(x, False)",
        "self._teacher.run(x, True)",
        "test_distiller.py",
    ),
    "regularisers dropped": (
        "distiller.py",
        "for loss in self.losses]",
        "for loss in self.losses[:0]] + [0.0]",
        "test_distiller.py",
    ),
    "softmax left on": (
        "logits.py",
        "if name in _SQUASHING:\n        return WithoutActivation(operation)",
        'if name == "none":\n        return WithoutActivation(operation)',
        "test_logits.py",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_fault_is_noticed(name, tmp_path):
    file, right, wrong, tests = MUTATIONS[name]
    shutil.copytree(ROOT / "keras_distill", tmp_path / "keras_distill", ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "keras_distill" / file
    text = source.read_text()
    assert text.count(right) == 1, f"{file} no longer reads as this mutation expects: {right!r}"
    source.write_text(text.replace(right, wrong))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), str(ROOT / "tests" / tests)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout[-2000:]
    assert "AssertionError" in done.stdout or "Not equal" in done.stdout, done.stdout[-2000:]
