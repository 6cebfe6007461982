"""`OUT.keras` and `OUT.json`: together or not at all, and never over what is not ours."""

import json
import os

import pytest

from keras_distill import _files
from keras_distill.cli.student_file import student_file


def write(out, text, **options):
    with student_file(out, **options) as file:
        file.model_aside.write_text(text)
        file.write_record({"n": len(text)})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_it_wrote_it_writes_again(tmp_path):
    for text in ("one", "two"):
        write(tmp_path / "s.keras", text)
    assert names(tmp_path) == ["s.json", "s.keras"]
    assert (tmp_path / "s.keras").read_text() == "two"
    assert json.loads((tmp_path / "s.json").read_text())["n"] == 3


def test_an_error_leaves_what_was_there(tmp_path):
    write(tmp_path / "s.keras", "one")
    before = (tmp_path / "s.json").read_text()
    with pytest.raises(TypeError):
        write(tmp_path / "s.keras", None)
    assert names(tmp_path) == ["s.json", "s.keras"]
    assert (tmp_path / "s.json").read_text() == before
    assert (tmp_path / "s.keras").read_text() == "one"


@pytest.mark.parametrize("is_first", [True, False])
def test_killed_between_the_two_renames_the_same_command_goes_on(tmp_path, monkeypatch, is_first):
    if not is_first:
        write(tmp_path / "s.keras", "one")

    def killed(asides, targets):
        os.replace(asides[0], targets[0])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_files, "_take_names", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "s.keras", "two")
    write(tmp_path / "s.keras", "three")
    assert (tmp_path / "s.keras").read_text() == "three"


def test_somebody_elses_files_are_refused(tmp_path):
    (tmp_path / "s.keras").write_text("mine")
    with pytest.raises(
        ValueError, match=r"got a file without s.json beside it. Name another --out, or insist with --ov"
    ):
        write(tmp_path / "s.keras", "x")
    (tmp_path / "s.json").write_text('{"format": "mine"}')
    with pytest.raises(ValueError, match=r"s.json must be a record of keras-distill distill; got another file"):
        write(tmp_path / "s.keras", "x")
    write(tmp_path / "s.keras", "x", overwrite=True)
    (tmp_path / "s.keras").write_text("trained further, by hand")
    with pytest.raises(ValueError, match=r"s.json does not name: changed, or somebody else's"):
        write(tmp_path / "s.keras", "y")
    assert (tmp_path / "s.keras").read_text() == "trained further, by hand"
    (tmp_path / "d.keras").mkdir()
    with pytest.raises(ValueError, match=r"--out must not be in the way of a folder"):
        write(tmp_path / "d.keras", "y")
