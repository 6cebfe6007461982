"""The command line as a whole: quick help, exit codes, no traceback."""

import os
import signal
import subprocess
import sys
import time

import pytest

import keras_distill
from keras_distill.cli import COMMANDS, by_option, main


def test_help_names_every_command_without_starting_tensorflow():
    code = "import sys, keras_distill.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print({'tensorflow', 'keras', 'numpy', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
    assert all(command in done.stdout for command in COMMANDS)


def test_the_package_runs_as_a_module():
    argv = [sys.executable, "-m", "keras_distill", "--version"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == f"keras-distill {keras_distill.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: keras-distill" in capsys.readouterr().out


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["no-such-command"])
    assert stopped.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


OPTIONS = {
    name: f"--{name.replace('_', '-')}" for name in ("members", "top_k", "max_arena", "teacher", "trials", "data")
}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("num_trials must be >= 1; got 0.", "--trials must be >= 1; got 0."),
        ("members=True needs an ensemble; got another.", "--members needs an ensemble; got another."),
        ("sample must be given alone; got top_k=3.", "sample must be given alone; got --top-k 3."),
        ("tflm must be named where max_arena is a budget.", "tflm must be named where --max-arena is a budget."),
        ("Name it, teacher=…, or leave it out.", "Name it, --teacher …, or leave it out."),
        ('Pass data="mnist" or teacher=.', "Pass --data mnist or --teacher."),
    ],
)
def test_errors_name_arguments_as_they_were_typed(said, expected):
    assert by_option(said, OPTIONS) == expected


@pytest.mark.parametrize(
    "said",
    [
        "the teacher's members must be data; got a teacher.",
        "the column 'top_k' must be numbers; got \"max_arena\".",
        "/data/top_k/max_arena must be a folder; got top_k.npz.",
        "Pass label(x, y=f(1), top_k=3), or store.top_k.",
        "It was top_k=None, or --max_arena, and num_classes=3.",
        "others; members must be many.",
    ],
)
def test_words_files_columns_and_code_are_left_as_they_are(said):
    assert by_option(said, OPTIONS) == said


def test_interrupt_ends_without_a_traceback(monkeypatch, capsys):
    import keras_distill.cli.distill as command

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run", interrupted)
    argv = ["distill", "--teacher", "t", "--student", "s", "--data", "digits", "--out", "o.keras"]
    assert main(argv) == 130
    assert "nothing half-written" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stop_that_a_library_makes_an_error_of_is_still_a_stop(number, code, monkeypatch, capsys):
    import keras_distill.cli.export as command

    def traced(arguments):
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        except KeyboardInterrupt:
            # As TensorFlow does where it traces a function.
            raise TypeError("Binding inputs to tf.function failed") from None

    monkeypatch.setattr(command, "run", traced)
    assert main(["export", "student.keras", "--to", "onnx", "--out", "exported"]) == code
    said = capsys.readouterr().err
    assert "Run the same command again." in said
    assert "tf.function" not in said
