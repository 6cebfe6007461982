"""`--config FILE`: options in TOML; the command line wins, and a name that no option has is an error."""

import re

import pytest

from keras_distill.cli import build_parser, main
from keras_distill.cli.config_file import with_config

CONFIG = """
teacher = ["a.keras", "b.keras"]
student = "s.keras"
data = "digits"
out = "o.keras"
pixel-range = "-1-1"
epochs = 7
student-loss-weight = 0.25
no-twin = true
verbose = false
"""


def parsed(tmp_path, text, *argv):
    file = tmp_path / "distill.toml"
    file.write_text(text)
    parser = build_parser()
    return parser.parse_args(with_config(["distill", "--config", str(file), *argv], parser))


def test_options_are_read_and_the_command_line_wins(tmp_path):
    found = parsed(tmp_path, CONFIG, "--epochs", "9", "--data=mnist")
    assert found.teacher == ["a.keras", "b.keras"]
    assert (found.pixel_range, found.student_loss_weight, found.twin, found.verbose) == ("-1-1", 0.25, False, False)
    assert (found.epochs, found.data) == (9, "mnist")


def test_a_store_on_the_command_line_takes_the_place_of_the_files_teacher(tmp_path):
    found = parsed(tmp_path, CONFIG, "--store", "targets")
    assert (found.teacher, found.store) == (None, "targets")


def test_without_a_file_nothing_changes():
    argv = ["distill", "--out", "o.keras"]
    assert with_config(argv, build_parser()) == argv
    assert with_config(["ship", "s.keras", "--config", "x"], build_parser()) == ["ship", "s.keras", "--config", "x"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("temprature = 2", "must hold names of options; got 'temprature'. Did you mean temperature?"),
        ("xyzzy = 2", "must hold names of options; got 'xyzzy'. Known are any-teacher, batch-size,"),
        ("epochs = [1, 2]", r"epochs in .* must be one value; got \[1, 2\]"),
        ("no-twin = 1", "no-twin in .* must be true or false; got 1"),
        ("epochs = 2024-01-01", "epochs in .* must be text or a number; got datetime.date"),
        ("epochs: 3", "must be a TOML file; got Expected '=' after a key"),
        (None, "No such file or directory"),
    ],
)
def test_a_file_that_is_wrong_is_one_sentence(tmp_path, capsys, text, said):
    file = tmp_path / "c.toml"
    if text is not None:
        file.write_text(text)
    assert main(["distill", "--config", str(file)]) == 2
    assert re.search(said, capsys.readouterr().err)
