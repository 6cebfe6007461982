"""Files and folders that appear whole or not at all, with the rights that the umask leaves."""

import os

import pytest

from keras_distill._files import folder_aside, whole_file, whole_folder


@pytest.fixture
def umask(monkeypatch):
    """A umask that gives the group reading and others nothing, and that nobody may touch while the test runs."""
    before = os.umask(0o027)

    def refused(mask):
        raise AssertionError("the umask is the whole process's: other threads may be making files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "umask", refused)
        yield
    os.umask(before)


def test_files_and_folders_get_the_rights_of_any_other_without_the_umask_being_touched(tmp_path, umask):
    with whole_file(tmp_path / "file") as aside:
        aside.write_text("whole")
    with whole_folder(tmp_path / "folder") as aside:
        (aside / "inside").write_text("whole")
    (tmp_path / "plain").touch()
    (tmp_path / "plain folder").mkdir()
    for ours, plain in (("file", "plain"), ("folder", "plain folder")):
        assert oct((tmp_path / ours).stat().st_mode) == oct((tmp_path / plain).stat().st_mode)
    assert oct((tmp_path / "file").stat().st_mode & 0o777) == "0o640"


def write_and_fail(manager):
    with manager as aside:
        aside.write_text("half")
        raise KeyError


def test_a_block_that_raises_leaves_the_older_file_and_nothing_else(tmp_path):
    (tmp_path / "file").write_text("older")
    with pytest.raises(KeyError):
        write_and_fail(whole_file(tmp_path / "file"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "older"


def test_what_is_left_in_a_folder_aside_goes_with_it_and_what_became_whole_stays(tmp_path):
    with folder_aside(tmp_path / "out") as aside:
        with whole_file(tmp_path / "out" / "file", within=aside) as file:
            assert file.parent == aside
            file.write_text("whole")
        # As of a process that was killed.
        (aside / ".partial-1").write_text("half")
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["file"]


def test_a_folder_aside_that_somebody_swept_already_is_no_error(tmp_path):
    with folder_aside(tmp_path) as aside:
        aside.rmdir()
    assert not list(tmp_path.iterdir())


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"must be the folder that all workers see; got another\. Name a folder"
    ):
        write_and_fail(whole_file(tmp_path / "file", within=tmp_path / "elsewhere"))
    assert not list(tmp_path.iterdir())
