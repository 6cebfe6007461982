"""What the whole suite shares: one TensorFlow, few threads, real data where it is to be had."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Closed forms are compared in float64, which JAX has only if asked.
os.environ.setdefault("JAX_ENABLE_X64", "1")

import gc
import sys
from pathlib import Path

import pytest

# A worker holds millions of objects of TensorFlow and of compiled models, which the collector looks at over and over.
gc.set_threshold(50_000, 20, 20)

# For type checkers alone; doctest would run it.
collect_ignore = ["client.py"]

# Each worker takes a whole file at a time: the longest come first, so that no worker waits for the other's last one.
LONGEST = [
    "tests/scale/test_engines.py",
    "tests/scale/test_scale_page.py",
    "tests/random_heads/test_first_thousand.py",
    "tests/random_heads/test_second_thousand.py",
    "tests/test_readme.py",
    "tests/reliability/test_faults.py",
    "tests/specialists/test_combiner.py",
    "tests/test_structured_outputs.py",
    "tests/pruning/test_prune.py",
    "tests/examples/test_experiments.py",
    "tests/deploy/test_matrix.py",
    "tests/reliability/test_every_public_class.py",
    "tests/examples/test_specialists_example.py",
    "tests/random_heads/test_a_hundred.py",
    "tests/cli/test_specialists.py",
    "tests/test_distiller_features.py",
    "tests/specialists/test_as_teacher.py",
]

ON_TENSORFLOW = os.environ["KERAS_BACKEND"] == "tensorflow"


class _WithoutTensorFlow:
    """On another backend TensorFlow is as if it were not installed: nothing that these tests touch may want it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ModuleNotFoundError(f"No module named {name!r}: these tests do without", name=name)


def pytest_configure(config):
    """Sets TensorFlow's threads before any test can start its pools."""
    if not ON_TENSORFLOW:
        # PyTorch asks, while it is imported, whether there is a TensorFlow.
        from keras.src.backend.common import dtypes

        sys.meta_path.insert(0, _WithoutTensorFlow)
        # Elsewhere than on TensorFlow Keras rounds to float32 halfway, in a mean for example, what it calls float64.
        dtypes.BIT64_TO_BIT32_DTYPE["float64"] = "float64"
        return
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def pytest_collection_modifyitems(config, items):
    """Puts the longest files first; skips what needs TensorFlow on another backend, or real data that is not there."""
    ranks = {config.rootpath / file: rank for rank, file in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(LONGEST)))
    elsewhere = pytest.mark.skip(reason="is about TensorFlow itself")
    for item in items:
        if "tensorflow" in item.keywords and not ON_TENSORFLOW:
            item.add_marker(elsewhere)
    folder = os.environ.get("KERAS_DISTILL_DATA", "")
    if folder and Path(folder).is_dir():
        return
    absent = pytest.mark.skip(reason="KERAS_DISTILL_DATA names no folder with the real data")
    for item in items:
        if "needs_data" in item.keywords:
            item.add_marker(absent)


@pytest.fixture(autouse=True)
def _seed():
    """Every test starts from the same seed, whatever ran before it."""
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_steps():
    """What JAX has compiled it keeps for ever: gigabytes over a whole suite."""
    yield
    if not ON_TENSORFLOW:
        import jax

        jax.clear_caches()
