"""The README is run, not believed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_script_runs_as_written_and_the_distilled_student_wins_over_three_seeds(tmp_path):
    (script,) = blocks("python")
    assert len([line for line in script.splitlines() if line.strip()]) <= 20
    # As written, once for each seed; TensorFlow starts once.
    code = f"import keras\nfor seed in range(3):\n keras.utils.set_random_seed(seed)\n exec({script!r}, {{}})"
    environment = os.environ | {"PYTHONWARNINGS": "default", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    student = keras.saving.load_model(tmp_path / "student.keras")
    assert type(student).__module__.startswith("keras.")
    verdicts = re.findall(r"BETTER: ([\d.]+) % errors against ([\d.]+) %", done.stdout)
    teachers = [float(value) for value in re.findall(r"'accuracy': ([\d.]+)", done.stdout)]
    # What the README says of it, with a little room.
    assert len(verdicts) == len(teachers) == 3
    assert all(float(distilled) < 6 and 15 < float(labels) < 22 for distilled, labels in verdicts), verdicts
    assert min(teachers) > 0.96


def test_commands_of_the_readme_are_commands_of_the_parser():
    from keras_distill.cli import build_parser

    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("keras-distill ")]
    assert commands
    for command in commands:
        build_parser().parse_args(command.split("#")[0].split()[1:])


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\S+)", "\n".join(blocks("bash")), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_results_table_says_what_the_committed_figures_say():
    done = subprocess.run([sys.executable, "-m", "examples.results", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run python -m examples.results"
