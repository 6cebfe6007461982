"""Writing a store while processes die, the disk fills up, and others write too: what is left, the next run takes up."""

import errno
import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from keras_distill.targets import shards
from keras_distill.targets.manifest import StaleTeacherError, StoreError, UnfinishedStoreError
from keras_distill.targets.shards import create, finish, missing_shards, write_shard
from keras_distill.targets.store import SoftTargetStore
from tests.targets.test_store import dense_manifest, environment, random_rows, tree

MANIFEST = dense_manifest(num_items=20)
ROWS, _ = random_rows(MANIFEST)


def work(path):
    """What every labelling process does, the teacher left out."""
    create(path, MANIFEST)
    for index in missing_shards(path, MANIFEST, range(MANIFEST.num_shards)):
        write_shard(path, MANIFEST, index, ROWS[slice(*MANIFEST.shard_rows(index))])
    return finish(path, MANIFEST)


# Functions of `os` and of files that change nothing: a process killed before one leaves what it leaves before the next.
ASKS = ("_path_normpath", "fileno", "fspath", "getpid", "read", "scandir", "stat", "umask", "urandom")
NEEDS_ROOM = ("open", "write", "fsync", "mkdir", "link", "replace")


def changes_files(function):
    """Whether a C function is one of `os`, or of a file, that may change what is on the disk."""
    owner = getattr(function, "__self__", None)
    of_the_system = getattr(owner, "__name__", "") in ("posix", "_io") or type(owner).__module__ == "_io"
    return of_the_system and function.__name__ not in ASKS


@pytest.fixture
def whole(tmp_path):
    assert work(tmp_path / "whole")
    return tree(tmp_path / "whole")


DEATHS = """
import itertools, os, signal, sys
from pathlib import Path
from keras_distill.targets.manifest import FormatVersionError, UnfinishedStoreError
from keras_distill.targets.store import SoftTargetStore
from tests.targets.test_shards import changes_files, work

def dies(path, step):
    "Kills a process before it changes a file for the `step`-th time; False where it came to its end."
    child = os.fork()
    if child == 0:
        steps = itertools.count()
        def watch(frame, event, function):
            if event == "c_call" and changes_files(function) and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.setprofile(watch)
        work(path)
        sys.setprofile(None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, status
    return os.WIFSIGNALED(status)

def state(path):
    "What a reader makes of it: nothing but these."
    try:
        SoftTargetStore.open(path)
        return "finished"
    except (FormatVersionError, UnfinishedStoreError) as error:
        return type(error).__name__

folder = Path(sys.argv[1])
states, num_steps = {}, 0
while dies(folder / f"dead{num_steps:04d}", num_steps):
    path = folder / f"dead{num_steps:04d}"
    states.setdefault(state(path), num_steps)
    # The next run dies as well, elsewhere; the one after it does not.
    dies(path, num_steps * 7 % 31)
    assert work(path)
    num_steps += 1
for step in range(num_steps):
    # One store whose runs die one after the other, each a step later.
    dies(folder / "dead often", step)
assert work(folder / "dead often")
print(num_steps, *sorted(states))
"""


@pytest.mark.slow
def test_a_process_killed_before_any_change_of_a_file_leaves_what_the_next_run_takes_up(tmp_path, whole):
    """SIGKILL before the first call that changes what is on the disk, before the second, … before the last."""
    command = [sys.executable, "-c", DEATHS, tmp_path]
    killer = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert killer.returncode == 0, killer.stderr
    num_steps, *states = killer.stdout.split()
    # 2 shards and 2 manifests, each at least opened, written, flushed and renamed.
    assert int(num_steps) >= 4 * 4
    assert states == ["FormatVersionError", "UnfinishedStoreError", "finished"]
    stores = sorted(tmp_path.glob("dead*"))
    assert len(stores) == int(num_steps) + 2  # with the last, which nobody killed, and the one killed often
    for store in stores:
        assert tree(store) == whole, store.name


def test_a_disk_that_is_full_at_any_call_leaves_nothing_half_written(tmp_path, whole):
    """The n-th write, flush, rename or new file of a run fails for want of room, for every n."""
    failures = []
    for step in range(1000):
        path, calls = tmp_path / f"full{step}", []

        def watch(frame, event, function, calls=calls, step=step):
            if event == "c_call" and changes_files(function) and function.__name__ in NEEDS_ROOM:
                calls.append(function.__name__)
                if len(calls) > step:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        sys.setprofile(watch)
        try:
            work(path)
        except OSError as error:
            failures.append(error.errno)
        finally:
            sys.setprofile(None)
        assert not list(path.rglob(".partial-*"))
        done = len(calls) <= step
        assert work(path)
        assert tree(path) == whole
        if done:
            break
    assert done
    assert len(failures) >= 4 * 4
    assert set(failures) == {errno.ENOSPC}


TOGETHER = """
import os, sys
from tests.targets.test_shards import work
for number in range(20):
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            os._exit(0 if work(f"{sys.argv[1]}/together{number}") else 3)
        children.append(child)
    for child in children:
        status = os.waitpid(child, 0)[1]
        assert status == 0, status
"""


def test_processes_that_write_the_same_shards_at_once_all_end_well(tmp_path, whole):
    command = [sys.executable, "-c", TOGETHER, tmp_path]
    run = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for number in range(20):
        assert tree(tmp_path / f"together{number}") == whole


def test_of_two_teachers_that_begin_a_store_at_once_the_slower_is_refused(tmp_path, monkeypatch):
    link, path = os.link, tmp_path / "s"

    def slow_link(source, target):
        monkeypatch.setattr(os, "link", link)
        create(path, MANIFEST)
        link(source, target)

    monkeypatch.setattr(os, "link", slow_link)
    with pytest.raises(StaleTeacherError):
        create(path, dense_manifest(num_items=20, teacher_fingerprint="another"))
    assert create(path, MANIFEST).teacher_fingerprint == "t"
    assert sorted(os.listdir(path)) == ["manifest.json", "shards"]


def test_a_file_system_without_hard_links_takes_a_store_too(tmp_path, monkeypatch, whole):
    def refused(source, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    work(tmp_path / "s")
    assert tree(tmp_path / "s") == whole


def test_a_final_manifest_that_another_process_swept_aside_is_written_again(tmp_path, monkeypatch, whole):
    whole_file, swept = shards.whole_file, []

    @contextmanager
    def swept_once(path, within=None):
        with whole_file(path, within) as aside:
            yield aside
            if path.name == "manifest.json" and not swept:
                swept.append(aside.name)
                aside.unlink()

    monkeypatch.setattr(shards, "whole_file", swept_once)
    assert work(tmp_path / "s")
    assert swept
    assert tree(tmp_path / "s") == whole


def test_a_slower_writer_whose_rounding_differs_gets_the_shard_that_is_there(tmp_path, monkeypatch):
    """The store is finished, and the copy swept aside, just before it would have been renamed into place."""
    path, replace = tmp_path / "s", os.replace
    create(path, MANIFEST)
    other = ROWS[:16].copy()
    other["logits"][0, 0] += np.float16(0.01)

    def finished_by_another(source, target):
        monkeypatch.setattr(os, "replace", replace)
        work(path)
        replace(source, target)

    monkeypatch.setattr(os, "replace", finished_by_another)
    published = write_shard(path, MANIFEST, 0, other)
    assert published.name == SoftTargetStore.open(path).manifest.shards[0]


def test_a_store_that_has_only_begun_is_unfinished(tmp_path):
    create(tmp_path / "s", MANIFEST)
    (tmp_path / "s" / "shards").rmdir()
    with pytest.raises(UnfinishedStoreError, match="0 of 2 shards"):
        SoftTargetStore.open(tmp_path / "s")
    assert work(tmp_path / "s")


def test_shards_without_their_manifest_and_files_are_not_taken_for_the_beginning_of_a_store(tmp_path, whole):
    (tmp_path / "whole" / "manifest.json").unlink()
    with pytest.raises(StoreError, match="a folder of something else"):
        create(tmp_path / "whole", MANIFEST)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="got a file"):
        create(tmp_path / "file", MANIFEST)
