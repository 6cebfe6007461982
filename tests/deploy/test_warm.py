"""Workers out of a warm process: each on its own, whatever it dies of."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from keras_distill.deploy import ConversionError, warm
from keras_distill.deploy.conversion import convert
from keras_distill.deploy.warm import NotServed, WarmProcess

# Runs the code that a job brings, in the worker; the imports of a real one are spared.
PROGRAM = """
import socket, sys
from keras_distill.deploy import ConversionError, warm
from keras_distill.deploy.conversion import convert

def work(job):
    exec(job["code"], globals())
    return job.get("exit_code", 0)

{first}
sys.exit(warm.serve(socket.socket(fileno=int(sys.argv[1])), work, preloaded=()))
"""
PARENT = "import os, sys; print(os.getppid(), file=sys.stderr)"


@pytest.fixture
def start():
    """A function that gives a server, after some code of its own."""
    started = []

    def start(first=""):
        started.append(WarmProcess([sys.executable, "-P", "-c", PROGRAM.format(first=first)]))
        return started[-1]

    yield start
    for process in started:
        process.stop()


def test_exit_code_and_stderr_of_a_worker_come_back(start):
    done = start().run({"code": "import sys; print('a word', file=sys.stderr)", "exit_code": 7}, 60)
    assert (done.returncode, done.stderr) == (7, "a word\n")


def test_a_worker_that_raises_says_where(start):
    done = start().run({"code": "1 / 0"}, 60)
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_more_output_than_a_pipe_holds_blocks_nobody(start):
    done = start().run({"code": "import sys; sys.stderr.write('x' * 1_000_000 + 'end')"}, 60)
    assert (done.returncode, done.stderr[-4:]) == (0, "xend")


def test_a_segmentation_fault_ends_its_worker_alone(start):
    server = start()
    before = server.run({"code": PARENT}, 60).stderr
    assert server.run({"code": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"}, 60).returncode == -11
    assert server.run({"code": PARENT}, 60).stderr == before


def test_what_a_worker_changes_the_next_one_does_not_see(start):
    server = start()
    assert server.run({"code": "sys.changed = True; warm.IDLE_S = 0"}, 60).returncode == 0
    assert server.run({"code": "assert not hasattr(sys, 'changed') and warm.IDLE_S > 0"}, 60).returncode == 0


def wait_for_no_worker(server):
    while Path(f"/proc/{server}/task/{server}/children").read_text():
        time.sleep(0.01)


def test_a_worker_without_end_is_killed_and_the_server_lives(start):
    server = start()
    before = server.run({"code": PARENT}, 60).stderr
    with pytest.raises(subprocess.TimeoutExpired):
        server.run({"code": "import time; time.sleep(600)"}, 0.2)
    wait_for_no_worker(int(before))
    assert server.run({"code": PARENT}, 60).stderr == before


def test_a_caller_that_gave_up_while_the_server_was_starting_leaves_no_worker(start, tmp_path):
    # The server begins to take jobs once the file is there.
    ready = tmp_path / "ready"
    server = start(f"import os, time\nwhile not os.path.exists({str(ready)!r}): time.sleep(0.01)")
    with pytest.raises(subprocess.TimeoutExpired):
        server.run({"code": "import time; time.sleep(600)"}, 0.01)
    ready.touch()
    wait_for_no_worker(int(server.run({"code": PARENT}, 60).stderr))


def test_two_workers_run_at_once(start, tmp_path):
    server = start()
    # Each ends only after the other has begun.
    meet = (
        "import os, time\nopen('{folder}/{own}', 'w')\nwhile not os.path.exists('{folder}/{other}'): time.sleep(0.01)"
    )
    codes = [meet.format(folder=tmp_path, own=own, other=other) for own, other in ("ab", "ba")]
    ended = []
    threads = [
        threading.Thread(target=lambda code=code: ended.append(server.run({"code": code}, 60).returncode))
        for code in codes
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [0, 0]


def test_a_server_that_was_killed_is_started_again(start):
    server = start()
    before = server.run({"code": PARENT}, 60).stderr
    os.kill(int(before), signal.SIGKILL)
    assert server.run({"code": PARENT}, 60).stderr != before


def test_a_server_without_work_ends_and_comes_again(start):
    server = start("warm.IDLE_S = 0.01")
    before = int(server.run({"code": PARENT}, 60).stderr)
    assert server._process.wait(60) == 0
    assert int(server.run({"code": PARENT}, 60).stderr) != before


def test_a_server_ends_with_its_caller(start):
    server = start()
    pid = int(server.run({"code": PARENT}, 60).stderr)
    server.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    "first",
    ["sys.exit(3)", "import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"],
)
def test_one_that_cannot_fork_safely_is_not_asked_twice(start, first):
    server = start(first)
    for _ in range(2):
        with pytest.raises(NotServed):
            server.run({"code": ""}, 60)
    assert server._process.wait(60) > 0


def test_the_converters_are_served():
    # Had one of the imported packages started a thread, every conversion would pay for its imports.
    with pytest.raises(ConversionError, match="saved_model"):
        convert("to_onnx", {})
    assert warm.WARM_PROCESS._is_available
    assert warm.WARM_PROCESS._process.poll() is None
