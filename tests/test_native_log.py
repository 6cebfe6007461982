"""What is written to the file descriptor of standard error while something starts."""

import os
import subprocess
import sys

import pytest

from keras_distill._native_log import quiet_start

GREETINGS = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    "I0000 00:00:1700000000.000001       1 cudart_stub.cc:31] Could not find cuda drivers on your machine.\n"
    "E0000 00:00:1700000000.000001       1 cuda_platform.cc:52] failed call to cuInit: INTERNAL: CUDA error\n"
    "2026-01-01 00:00:00.000001: I tensorflow/core/platform/cpu_feature_guard.cc:210] This binary is optimized\n"
    "To enable the following instructions: AVX2, in other operations, rebuild TensorFlow.\n"
    "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"
)
KEPT = (
    "E0000 00:00:1700000000.000001       1 file_system.cc:9] disk quota exceeded\n"
    "2026-01-01 00:00:00.000001: F tensorflow/core/platform/env.cc:1] Check failed\n"
    "Traceback (most recent call last):\n"
)


def test_greetings_are_dropped_and_all_else_is_kept_in_order(capfd):
    with quiet_start() as stderr:
        os.write(2, (GREETINGS + KEPT).encode())
        print("a word meanwhile", file=stderr, flush=True)
        assert capfd.readouterr().err == "a word meanwhile\n"
    assert capfd.readouterr().err == KEPT


def test_what_was_held_back_is_told_when_the_start_fails(capfd):
    def start():
        with quiet_start():
            os.write(2, (GREETINGS + KEPT).encode())
            raise ImportError("broken")

    with pytest.raises(ImportError, match="broken"):
        start()
    assert capfd.readouterr().err == KEPT


def test_two_starts_at_once_leave_standard_error_as_it_was(capfd):
    first, second = quiet_start(), quiet_start()
    first.__enter__()
    second.__enter__()
    # Not the other way round, as one thread would have it.
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    os.write(2, b"still here\n")
    assert capfd.readouterr().err == "still here\n"


def test_a_program_without_standard_error_starts_too():
    code = (
        "import os; os.close(2)\nfrom keras_distill._native_log import quiet_start\nwith quiet_start() as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


@pytest.mark.tensorflow
@pytest.mark.slow
def test_a_command_says_nothing_but_its_own_words(tmp_path):
    arguments = ["export", str(tmp_path / "none.keras"), "--out", str(tmp_path / "out")]
    code = "import sys; from keras_distill.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    first, *rest = done.stderr.splitlines()
    assert done.returncode == 2
    assert first == "starting Keras …"
    assert len(rest) == 1
    assert rest[0].startswith("keras-distill export: error: ")
