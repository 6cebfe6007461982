"""What the whole suite shares: one TensorFlow, few threads, real data where it is to be had."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest


def pytest_configure(config):
    """Sets TensorFlow's threads before any test can start its pools."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def pytest_collection_modifyitems(items):
    """Skips the tests that need real data where there is none."""
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
