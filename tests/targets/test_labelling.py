"""Labelling against the teacher itself; kills, full disks, shared work."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats

from keras_distill.losses import SoftTargets
from keras_distill.targets.augmentation import Augmentation, Shift
from keras_distill.targets.fingerprints import fingerprint
from keras_distill.targets.labelling import label
from keras_distill.targets.manifest import ForeignDatasetError, FormatVersionError, StaleTeacherError, StoreError
from keras_distill.targets.store import SoftTargetStore
from keras_distill.teachers import Ensemble
from tests.targets.test_store import environment, tree, write_version_1

INPUTS = np.random.default_rng(0).normal(size=(300, 6)).astype("float32")


def network(seed, num_classes=5, head="linear", inputs=(6,)):
    kernel = keras.initializers.RandomNormal(stddev=0.7, seed=seed)
    layers = [
        keras.Input(inputs),
        keras.layers.Flatten(),
        keras.layers.Dense(num_classes, head, kernel_initializer=kernel),
    ]
    return keras.Sequential(layers)


def logits_of(model, inputs=INPUTS):
    kernel, bias = model.layers[-1].get_weights()
    return inputs.reshape(len(inputs), -1).astype("float64") @ kernel.astype("float64") + bias


@pytest.fixture(scope="module")
def teacher():
    return network(1)


@pytest.fixture(scope="module")
def ensemble():
    return Ensemble([network(1), network(2)], weights=[1, 3])


def test_rows_are_the_teachers_logits(teacher, tmp_path):
    store = label(teacher, INPUTS, tmp_path / "s", dtype="float32", batch_size=64)
    np.testing.assert_allclose(store.read(np.arange(300)), logits_of(teacher), rtol=1e-5, atol=1e-6)
    half = label(teacher, INPUTS, tmp_path / "h", batch_size=64)
    np.testing.assert_allclose(half.read(np.arange(300)), logits_of(teacher), rtol=1e-3, atol=1e-3)
    assert half.manifest.bytes_per_row == 10


def test_a_layer_must_be_wrapped_and_a_seed_may_be_numpys(teacher, tmp_path):
    with pytest.raises(TypeError, match=r"got the layer RandomFlip. Wrap it: Augmentation\(keras.layers.RandomFlip"):
        label(teacher, INPUTS, tmp_path / "s", augmentation=keras.layers.RandomFlip("horizontal"))
    store = label(teacher, INPUTS, tmp_path / "s", sample=2, seed=np.int64(3))
    assert store.manifest.sampling_seed == 3


def test_a_softmax_head_is_taken_off(tmp_path):
    teacher = network(3, head="softmax")
    store = label(teacher, INPUTS, tmp_path / "s", dtype="float32")
    np.testing.assert_allclose(store.read(np.arange(300)), logits_of(teacher), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_classes", [5, 1])
def test_a_teacher_of_sigmoids_gives_its_sigmoids_and_no_softmax_of_them(tmp_path, num_classes):
    model = network(1, num_classes, head="sigmoid")
    store = label(model, INPUTS, tmp_path / "s", dtype="float32")
    expected = scipy.special.expit(logits_of(model) / 2.0)
    np.testing.assert_allclose(store.soft_targets(np.arange(300), 2.0), expected, atol=1e-6)
    assert SoftTargetStore.open(tmp_path / "s").manifest == store.manifest
    with pytest.raises(StoreError, match="must hold logits of a softmax; got those of sigmoids"):
        store.check_softmax()
    for settings in ({"top_k": 1}, {"sample": 1}):
        with pytest.raises(ValueError, match="rows of a teacher of sigmoids must be whole"):
            label(model, INPUTS, tmp_path / "t", **settings)
    assert not (tmp_path / "t").exists()
    # Of others nothing is said, and their manifests are as they were.
    assert "head" not in label(network(1, head="softmax"), INPUTS, tmp_path / "u").manifest.to_json()


def test_top_k_rows_are_the_largest_with_the_log_sum_exp_of_the_others(teacher, tmp_path):
    store = label(teacher, INPUTS, tmp_path / "s", top_k=2, dtype="float32", batch_size=50)
    read, dense = store.read(np.arange(300)), logits_of(teacher)
    ids = np.argsort(-dense, axis=-1)[:, :2]
    np.testing.assert_array_equal(read["top_k_ids"], ids)
    np.testing.assert_allclose(read["top_k_logits"], np.take_along_axis(dense, ids, -1), rtol=1e-5, atol=1e-6)
    np.put_along_axis(dense, ids, -np.inf, -1)
    np.testing.assert_allclose(read["log_tail"], scipy.special.logsumexp(dense, axis=-1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("tail", [1e-3, 1e-6, 1e-9, 1e-12])
def test_a_sure_teachers_store_gives_the_loss_of_its_dense_targets(tmp_path, dtype, tail):
    """Within 1 %, for each example, where the tail is even and the policies are exact; by SciPy in float64.

    But for the rounding of a loss near 0: at T = 1 the teacher's first class is all there is.
    """
    generator, num_classes, k = np.random.default_rng(0), 1000, 16
    dense = np.zeros((64, num_classes))
    ids = np.argsort(generator.random(dense.shape), axis=-1)[:, :k]
    kept = generator.uniform(1.0, 6.0, (64, k))
    # The first logit is raised until all classes that are not kept have `tail` of the whole.
    kept[:, 0] = np.log((num_classes - k) * (1.0 / tail - 1.0) - np.exp(kept[:, 1:]).sum(axis=-1))
    np.put_along_axis(dense, ids, kept, axis=-1)
    student = (0.6 * dense + generator.normal(size=dense.shape)).astype("float32")
    store = label(np.asarray, dense.astype("float32"), tmp_path / "s", top_k=k, dtype=dtype, teacher_fingerprint="t")
    in_tail = np.ones_like(dense, bool)
    np.put_along_axis(in_tail, ids, False, axis=-1)
    for temperature in (1.0, 4.0, 20.0):
        p, q = (scipy.special.softmax(logits.astype("float64") / temperature, axis=-1) for logits in (dense, student))
        expected = {"uniform": temperature**2 * scipy.stats.entropy(p, q, axis=-1)}
        p, q = (np.append(np.take_along_axis(x, ids, -1), (x * in_tail).sum(-1, keepdims=True), -1) for x in (p, q))
        expected["bucket"] = temperature**2 * scipy.stats.entropy(p, q, axis=-1)
        for policy, values in expected.items():
            found = SoftTargets(temperature, tail=policy).per_example(store.read(np.arange(64)), student)
            np.testing.assert_allclose(found, values, rtol=1e-2, atol=2e-6, err_msg=f"{policy} at T = {temperature}")


def test_a_finished_store_of_version_1_is_returned_and_an_unfinished_one_refused(tmp_path):
    logits = np.random.default_rng(0).normal(size=(50, 40)).astype("float32")
    settings = {"top_k": 4, "dtype": "float32", "batch_size": 32, "rows_per_shard": 32, "teacher_fingerprint": "t"}
    write_version_1(tmp_path / "finished", logits, 4, "float32")
    before = tree(tmp_path / "finished")
    store = label(np.asarray, logits, tmp_path / "finished", **settings)
    assert (store.manifest.version, tree(tmp_path / "finished")) == (1, before)
    sorted((tmp_path / "finished" / "shards").iterdir())[1].unlink()
    with pytest.raises(FormatVersionError, match=r"of format 2; got format 1\. Label into a new folder"):
        label(np.asarray, logits, tmp_path / "finished", **settings)


def test_an_ensembles_members_give_the_mean_of_softmaxes_at_every_temperature(ensemble, tmp_path):
    store = label(ensemble, INPUTS, tmp_path / "s", members=True, dtype="float32")
    for temperature in (1.0, 6.0):
        shares = [scipy.special.softmax(logits_of(model) / temperature, axis=-1) for model in ensemble.models]
        expected = 0.25 * shares[0] + 0.75 * shares[1]
        np.testing.assert_allclose(store.soft_targets(np.arange(300), temperature), expected, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 6.0])
def test_a_merged_row_is_right_at_its_temperature_and_refuses_another(ensemble, tmp_path, temperature):
    store = label(ensemble, INPUTS, tmp_path / "s", temperature=temperature, dtype="float32")
    shares = [scipy.special.softmax(logits_of(model) / temperature, axis=-1) for model in ensemble.models]
    expected = 0.25 * shares[0] + 0.75 * shares[1]
    np.testing.assert_allclose(store.soft_targets(np.arange(300), temperature), expected, rtol=1e-4)
    assert store.manifest.temperature == temperature
    with pytest.raises(StoreError, match="merged"):
        store.soft_targets([0], 2.0)


def test_a_geometric_ensemble_is_a_single_teacher(tmp_path):
    ensemble = Ensemble([network(1), network(2)], combine="geometric")
    store = label(ensemble, INPUTS, tmp_path / "s", dtype="float32")
    expected = (logits_of(ensemble.models[0]) + logits_of(ensemble.models[1])) / 2
    np.testing.assert_allclose(store.read(np.arange(300)), expected, rtol=1e-4, atol=1e-5)


def test_any_callable_labels_in_numpy_if_it_has_a_name(tmp_path):
    store = label(lambda x: np.asarray(x) @ np.ones((6, 3)), INPUTS, tmp_path / "s", teacher_fingerprint="ones")
    np.testing.assert_allclose(store.read([5])[0], [INPUTS[5].sum()] * 3, rtol=2e-3)
    with pytest.raises(ValueError, match="teacher_fingerprint="):
        label(lambda x: x, INPUTS, tmp_path / "t")


@pytest.mark.tensorflow
def test_a_stream_gives_the_same_store_as_its_arrays(teacher, tmp_path):
    import tensorflow as tf

    label(teacher, INPUTS, tmp_path / "a", batch_size=32, rows_per_shard=64)
    stream = tf.data.Dataset.from_tensor_slices((INPUTS, np.arange(300)))
    store = label(teacher, stream, tmp_path / "b", batch_size=32, rows_per_shard=64)
    np.testing.assert_array_equal(store.read(np.arange(300)), SoftTargetStore.open(tmp_path / "a").read(np.arange(300)))


@pytest.mark.tensorflow
@pytest.mark.parametrize("as_stream", [False, True])
def test_views_are_the_teachers_logits_of_the_augmented_inputs(tmp_path, as_stream):
    import tensorflow as tf

    images = np.random.default_rng(1).random((40, 5, 5), dtype=np.float32)
    teacher, augmentation = (
        network(4, inputs=(5, 5)),
        Augmentation(Shift(1), keras.layers.RandomFlip("horizontal"), seed=3),
    )
    data = tf.data.Dataset.from_tensor_slices(images) if as_stream else images
    store = label(teacher, data, tmp_path / "s", augmentation=augmentation, views=3, batch_size=16, dtype="float32")
    for view in range(3):
        seen = augmentation(images, np.arange(40), np.full(40, view)).numpy()
        np.testing.assert_allclose(store.read(np.arange(40), view), logits_of(teacher, seen), rtol=1e-4, atol=1e-5)
    assert Augmentation.from_config(store.manifest.augmentation).get_config() == augmentation.get_config()


def test_all_25_shifts_of_two_pixels_are_one_store(tmp_path):
    images = np.random.default_rng(1).random((20, 5, 5), dtype=np.float32)
    store = label(
        network(4, inputs=(5, 5)), images, tmp_path / "s", augmentation=Augmentation(Shift(2, exhaustive=True))
    )
    assert store.manifest.num_views == 25
    assert store.manifest.num_rows == 500


def test_sequences_keep_their_shape(tmp_path):
    teacher = keras.Sequential([keras.Input((4, 6)), keras.layers.Dense(3)])
    store = label(teacher, INPUTS.reshape(75, 4, 6)[:70], tmp_path / "s", top_k=2)
    assert store.read([[1, 2]])["top_k_logits"].shape == (1, 2, 4, 2)
    assert store.read([[1, 2]])["log_tail"].shape == (1, 2, 4)


# Fingerprints.


def test_a_fingerprint_knows_weights_and_configuration_but_not_names(teacher, tmp_path):
    twin = network(1)
    assert twin.layers[-1].name != teacher.layers[-1].name
    assert fingerprint(twin) == fingerprint(teacher)
    teacher.save(tmp_path / "teacher.keras")
    assert fingerprint(keras.models.load_model(tmp_path / "teacher.keras")) == fingerprint(teacher)
    assert fingerprint(network(1, head="softmax")) != fingerprint(teacher)
    weights = twin.get_weights()
    weights[0][0, 0] = np.nextafter(weights[0][0, 0], np.float32(9))
    twin.set_weights(weights)
    assert fingerprint(twin) != fingerprint(teacher)


def test_another_teacher_and_other_data_are_refused_by_name(teacher, tmp_path):
    label(teacher, INPUTS, tmp_path / "s")
    with pytest.raises(StaleTeacherError, match="fingerprint"):
        label(network(2), INPUTS, tmp_path / "s")
    with pytest.raises(ForeignDatasetError, match="number of items"):
        label(teacher, INPUTS[:-1], tmp_path / "s")
    with pytest.raises(ForeignDatasetError, match="data set's fingerprint"):
        label(teacher, INPUTS[::-1], tmp_path / "s")
    with pytest.raises(StoreError, match="top_k"):
        label(teacher, INPUTS, tmp_path / "s", top_k=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"members": True}, "arithmetic ensemble"),
        ({"temperature": 2.0}, "unless the teacher is an arithmetic ensemble"),
        ({"top_k": 6}, "top_k must be <= 5"),
        ({"views": 2}, "views must be 1 without an augmentation"),
        ({"rows_per_shard": 100, "batch_size": 64}, "multiple of batch_size"),
        ({"process": 2, "num_processes": 2}, "process must be in"),
        ({"dtype": "int8"}, "dtype"),
        ({"num_items": 7}, "7 items"),
    ],
)
def test_settings_that_mean_nothing_are_refused(teacher, tmp_path, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        label(teacher, INPUTS, tmp_path / "s", **settings)


def test_an_arithmetic_ensemble_must_say_how_it_is_kept(ensemble, tmp_path):
    with pytest.raises(ValueError, match="members=True, or the temperature"):
        label(ensemble, INPUTS, tmp_path / "s")


@pytest.mark.tensorflow
def test_streams_of_unknown_or_false_length_and_mixup_of_streams_are_refused(teacher, tmp_path):
    import tensorflow as tf

    stream = tf.data.Dataset.from_tensor_slices(INPUTS)
    with pytest.raises(ValueError, match="num_items="):
        label(teacher, stream.filter(lambda x: True), tmp_path / "s")
    with pytest.raises(ForeignDatasetError, match="fewer"):
        label(teacher, stream, tmp_path / "s", num_items=400)
    with pytest.raises(ValueError, match="MixUp"):
        label(teacher, stream, tmp_path / "t", augmentation=Augmentation(keras.layers.MixUp()))


def test_logits_that_are_not_finite_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(ValueError, match='dtype="float32"'):
        label(lambda x: x * 1e6, INPUTS, tmp_path / "s", teacher_fingerprint="large")
    with pytest.raises(ValueError, match="300 NaN"):
        label(lambda x: x[:, :1] * np.nan, INPUTS, tmp_path / "t", teacher_fingerprint="nan")


# Resuming and sharing.


def test_workers_share_a_store_and_the_last_one_finishes_it(teacher, tmp_path):
    settings = {"batch_size": 16, "rows_per_shard": 32}
    label(teacher, INPUTS, tmp_path / "whole", **settings)
    assert label(teacher, INPUTS, tmp_path / "s", process=1, num_processes=3, **settings) is None
    assert label(teacher, INPUTS, tmp_path / "s", process=0, num_processes=3, **settings) is None
    assert label(teacher, INPUTS, tmp_path / "s", process=2, num_processes=3, **settings) is not None
    assert tree(tmp_path / "s") == tree(tmp_path / "whole")


def test_a_second_run_labels_only_what_is_missing_or_damaged(teacher, tmp_path):
    settings = {"batch_size": 16, "rows_per_shard": 32, "teacher_fingerprint": "t"}
    label(teacher, INPUTS, tmp_path / "s", **settings)
    before = tree(tmp_path / "s")
    files = sorted((tmp_path / "s" / "shards").iterdir())
    files[2].unlink()
    files[5].write_bytes(files[5].read_bytes()[:-3])
    seen = []

    def watched(inputs):
        seen.append(len(inputs))
        return teacher(inputs, training=False)

    label(watched, INPUTS, tmp_path / "s", **settings)
    assert tree(tmp_path / "s") == before
    assert sum(seen) == 16 + 2 * 32  # the first batch, which tells the shape of rows, and two shards


@pytest.mark.tensorflow
def test_a_damaged_shard_of_a_stream_is_labelled_again(teacher, tmp_path):
    import tensorflow as tf

    settings = {"batch_size": 16, "rows_per_shard": 32}
    stream = tf.data.Dataset.from_tensor_slices(INPUTS)
    label(teacher, stream, tmp_path / "s", **settings)
    before = tree(tmp_path / "s")
    sorted((tmp_path / "s" / "shards").iterdir())[4].unlink()
    sorted((tmp_path / "s" / "shards").iterdir())[-1].unlink()
    label(teacher, stream, tmp_path / "s", **settings)
    assert tree(tmp_path / "s") == before


def test_a_teacher_that_fails_leaves_whole_shards_and_the_next_run_goes_on(teacher, tmp_path):
    settings = {"batch_size": 16, "rows_per_shard": 32, "teacher_fingerprint": "t"}
    calls = []

    def failing(inputs):
        calls.append(1)
        if len(calls) == 8:
            raise RuntimeError("the device is gone")
        return teacher(inputs, training=False)

    with pytest.raises(RuntimeError, match="the device is gone"):
        label(failing, INPUTS, tmp_path / "s", **settings)
    assert not list((tmp_path / "s").rglob(".partial-*"))
    assert 1 <= len(list((tmp_path / "s" / "shards").iterdir())) <= 3
    label(teacher, INPUTS, tmp_path / "s", **settings)
    label(teacher, INPUTS, tmp_path / "whole", **settings)
    assert tree(tmp_path / "s") == tree(tmp_path / "whole")


class Fragile(keras.layers.Layer):
    """Fails inside the graph at an input beyond a limit, which is no part of its configuration."""

    limit = 50.0

    def call(self, inputs):
        import tensorflow as tf

        with tf.control_dependencies([tf.debugging.assert_less(inputs, self.limit)]):
            return tf.identity(inputs)


@pytest.mark.tensorflow
def test_a_keras_teacher_that_fails_in_a_thread_leaves_whole_shards_and_the_next_run_goes_on(tmp_path, monkeypatch):
    import tensorflow as tf

    settings = {"batch_size": 16, "rows_per_shard": 32}
    dense = keras.layers.Dense(5, kernel_initializer=keras.initializers.RandomNormal(stddev=0.7, seed=1))
    teacher = keras.Sequential([keras.Input((6,)), Fragile(), dense])
    inputs = INPUTS.copy()
    inputs[149, 0] = 99.0
    with pytest.raises(tf.errors.InvalidArgumentError, match="assertion failed"):
        label(teacher, inputs, tmp_path / "s", **settings)
    assert not list((tmp_path / "s").rglob(".partial-*"))
    assert [file.name[:6] for file in sorted((tmp_path / "s" / "shards").iterdir())] == [f"{i:06d}" for i in range(4)]
    monkeypatch.setattr(Fragile, "limit", 100.0)
    label(teacher, inputs, tmp_path / "s", **settings)
    label(teacher, inputs, tmp_path / "whole", **settings)
    assert tree(tmp_path / "s") == tree(tmp_path / "whole")


def test_a_disk_without_room_is_said_before_the_teacher_runs_on(teacher, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(OSError, match=r"Errno 28.*room for"):
        label(teacher, INPUTS, tmp_path / "s")
    assert list((tmp_path / "s" / "shards").iterdir()) == []


def test_the_progress_bar_says_the_size_first_and_the_rate(teacher, tmp_path, capsys):
    label(teacher, INPUTS, tmp_path / "s", batch_size=16, progress=True)
    shown = capsys.readouterr().err
    assert "300 rows × 10 bytes = 0.0 MB in 1 shards" in " ".join(shown.split())
    assert "items/s" in shown


LABEL = """
import sys, numpy as np
from keras_distill.targets.labelling import label
def teacher(inputs):
    return np.cumsum(inputs, axis=-1)
inputs = np.random.default_rng(0).normal(size=(4000, 6)).astype("float32")
label(teacher, inputs, sys.argv[1], teacher_fingerprint="cumsum", batch_size=200, rows_per_shard=2000, dtype="float32")
"""


KILL = """
import json, os, signal, sys, time, numpy as np
from keras_distill.targets.labelling import label
kind = json.loads(sys.argv[2])
# TensorFlow is imported once, before it starts a thread; each run is a fork.
def run(path, pipe=None, **share):
    def teacher(inputs):
        if pipe is not None:
            os.write(pipe, b".")
        time.sleep(0.001)
        return np.cumsum(inputs, axis=-1)
    inputs = np.random.default_rng(0).normal(size=(8000, 6)).astype("float32")
    child = os.fork()
    if child == 0:
        settings = {"teacher_fingerprint": "cumsum", "batch_size": 20, "rows_per_shard": 40, **kind}
        os._exit(0 if label(teacher, inputs, path, **settings, **share) is not None else 1)
    return child
def killed(path):
    # After so many batches, not so many seconds: a slow or busy machine only takes longer to get there.
    ours, theirs = os.pipe()
    child = run(path, theirs)
    os.close(theirs)
    for _ in range(generator.integers(0, 90)):
        if not os.read(ours, 1):
            break
    time.sleep(generator.uniform(0, 0.004))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    os.close(ours)
    assert os.WIFSIGNALED(status) or status == 0, status
    return os.WIFSIGNALED(status)
folder, generator, num_kills, store = sys.argv[1], np.random.default_rng(7), 0, 0
assert os.waitpid(run(folder + "/whole"), 0)[1] == 0
while num_kills < 30:
    path, store = f"{folder}/killed{store}", store + 1
    while killed(path):
        num_kills += 1
        shards = sum(not name.startswith(".") for name in os.listdir(path + "/shards")) if os.path.exists(path) else 0
        print(shards, flush=True)
    assert os.waitpid(run(path), 0)[1] == 0
# Three that label together, one of them killed and begun again.
path = folder + "/killed and shared"
workers = [run(path, process=number, num_processes=3) for number in range(3)]
time.sleep(0.2)
os.kill(workers[0], signal.SIGKILL)
os.waitpid(workers[0], 0)
workers[0] = run(path, process=0, num_processes=3)
endings = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
assert 0 in endings and set(endings) <= {0, 1}, endings
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [{"dtype": "float32"}, {"sample": 3, "temperature": 2.0, "seed": 1}])
def test_a_store_killed_thirty_times_is_byte_for_byte_that_of_an_undisturbed_run(tmp_path, kind):
    """SIGKILL at random moments of labelling, again and again until a run comes to its end; alone and among others."""
    command = [sys.executable, "-c", KILL, tmp_path, json.dumps(kind)]
    killer = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert killer.returncode == 0, killer.stderr
    num_published = [int(line) for line in killer.stdout.split()]
    assert len(num_published) >= 30
    # Most kills hit a run in the midst of its 200 shards.
    assert sum(0 < count < 200 for count in num_published) >= 20
    whole = tree(tmp_path / "whole")
    assert len(whole) == 201
    stores = sorted(tmp_path.glob("killed*"))
    assert len(stores) >= 3
    for store in stores:
        assert tree(store) == whole


@pytest.mark.slow
def test_a_disk_that_fills_up_while_labelling_is_an_error_and_the_next_run_goes_on(tmp_path):
    """A limit on the size of files stands for the full disk: a shard of 48 kB does not fit into 30 kB."""
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n" + LABEL
    run = subprocess.run(
        [sys.executable, "-c", limited, tmp_path / "s"], env=environment(), capture_output=True, text=True
    )
    assert run.returncode == 1
    assert "OSError: [Errno 27]" in run.stderr
    assert sorted(file.name for file in (tmp_path / "s").rglob("*")) == ["manifest.json", "shards"]
    subprocess.run([sys.executable, "-c", LABEL, tmp_path / "s"], env=environment(), check=True, capture_output=True)
    assert len(SoftTargetStore.open(tmp_path / "s")) == 4000
