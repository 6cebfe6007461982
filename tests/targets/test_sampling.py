"""Sampled rows against the softmax that they are in expectation, by SciPy in float64; who draws them is no matter."""

import keras
import numpy as np
import pytest
import scipy.special
import scipy.stats
from backend import gradient

import keras_distill as kd
from keras_distill.losses import BinarySoftTargets, DecoupledKD, LogitMatching, RegressionTargets, SoftTargets
from keras_distill.targets import attach, label
from keras_distill.targets.batches import StoredBatches
from keras_distill.targets.manifest import DamagedShardError, StoreError
from keras_distill.targets.sampling import draw, inclusion, rounded, systematic, uniforms
from keras_distill.targets.store import SoftTargetStore
from keras_distill.teachers import Ensemble
from tests.targets.test_store import tree

NUM_CLASSES = 23
INPUTS = np.random.default_rng(0).normal(size=(300, 6)).astype("float32")


def network(seed, num_classes=NUM_CLASSES):
    kernel = keras.initializers.RandomNormal(stddev=1.0, seed=seed)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(num_classes, kernel_initializer=kernel)])


def shares_of(model, temperature, inputs=INPUTS):
    kernel, bias = model.layers[-1].get_weights()
    logits = inputs.astype("float64") @ kernel.astype("float64") + bias
    return scipy.special.softmax(logits / temperature, axis=-1)


def heavy_tailed(num_rows, num_classes, seed=0, scale=2.0):
    generator = np.random.default_rng(seed)
    return (generator.normal(scale=scale, size=(num_rows, num_classes)) - np.log1p(np.arange(num_classes))).astype("f")


def largest(logits, k):
    return np.argsort(-logits, axis=-1, kind="stable")[:, :k]


def dense(ids, counts, num_classes):
    """Rows of shares, `(n, num_classes)`."""
    found = np.zeros((len(ids), num_classes))
    np.put_along_axis(found, ids, counts / 255, axis=-1)
    return found


def expectation(ids, shares, num_certain, line):
    """Of a row, over the number that says what is drawn, `(num_classes,)`: an integral of steps at known places."""
    found, k = np.zeros(len(line)), len(ids)
    found[ids[:num_certain]] = shares[:num_certain]
    if num_certain < k:
        edges = np.unique(np.concatenate([[0.0, 1.0], line / line[-1] * (k - num_certain) % 1.0]))
        for width, middle in zip(np.diff(edges), (edges[:-1] + edges[1:]) / 2, strict=True):
            drawn = systematic(line, k - num_certain, middle)
            assert len(set(drawn) | set(ids[:num_certain])) == k or width < 1e-9
            found[drawn] += width * shares[num_certain]
    return found


# Drawing.


@pytest.mark.parametrize(("num_classes", "k"), [(5, 1), (9, 4), (40, 12), (40, 39), (12, 12), (1, 1)])
@pytest.mark.parametrize("scale", [0.0, 2.0, 30.0])
def test_every_place_of_the_ruler_together_is_the_softmax(num_classes, k, scale):
    """The expectation itself, not a mean of draws: the integral over both numbers that a row is drawn by.

    What is drawn changes at finitely many places of u alone, which are known, and the share of a place is exact.
    """
    logits, temperature = heavy_tailed(20, num_classes, scale=scale), 1.7
    ids = largest(logits, k)
    shares, num_certain, line = inclusion(logits, ids, temperature)
    np.testing.assert_allclose(shares.sum(axis=-1), 1.0, rtol=2e-6)
    expected = scipy.special.softmax(logits.astype("float64") / temperature, axis=-1)
    for row, certain in enumerate(num_certain):
        found = expectation(ids[row], shares[row], certain, line[row])
        # All k may be certain though the others have a millionth left.
        np.testing.assert_allclose(found, expected[row], rtol=2e-6, atol=1e-6 if certain == k else 1e-12)


def test_counts_are_the_shares_in_expectation_and_always_255():
    generator = np.random.default_rng(0)
    shares = generator.dirichlet(np.full(12, 0.3), 50)
    # As many numbers as there are steps: the mean over them is the integral.
    steps = (np.arange(4096) + 0.5) / 4096
    counts = np.stack([rounded(shares, np.full((50, 1), step)) for step in steps])
    assert counts.dtype == np.uint8
    assert (counts.sum(axis=-1, dtype=int) == 255).all()
    np.testing.assert_allclose(counts.mean(axis=0), 255 * shares, atol=2.0 / 4096)
    assert np.abs(counts - 255 * shares).max() < 1.0


def test_drawn_classes_are_as_frequent_as_they_should_be_by_a_chi_square_test():
    """The numbers of `uniforms`, not a generator's: of 40,000 rows with the same logits, what is drawn."""
    logits = heavy_tailed(1, 12, seed=3, scale=1.0)
    ids = largest(logits, 6)
    _, num_certain, line = inclusion(logits, ids, 1.0)
    num_drawn = 6 - int(num_certain[0])
    assert num_drawn >= 2
    num_rows = 40_000
    drawn, counts = draw(
        np.repeat(logits, num_rows, 0), np.repeat(ids, num_rows, 0), uniforms(5, np.arange(num_rows), 2), 1.0
    )
    # Between two neighbouring ends of classes, modulo the distance of two points, the same set is drawn.
    edges = np.unique(np.concatenate([[0.0, 1.0], line[0] / line[0, -1] * num_drawn % 1.0]))
    edges = edges[np.insert(np.diff(edges) > 1e-9, 0, True)]
    sets = [tuple(sorted(systematic(line[0], num_drawn, place))) for place in (edges[:-1] + edges[1:]) / 2]
    observed = dict.fromkeys(sets, 0)
    for row in np.sort(drawn, axis=-1):
        observed[tuple(each for each in row.tolist() if each not in ids[0, : num_certain[0]])] += 1
    expected = dict.fromkeys(sets, 0.0)
    for each, width in zip(sets, np.diff(edges), strict=True):
        expected[each] += width * num_rows
    assert scipy.stats.chisquare(list(observed.values()), list(expected.values()), sum_check=False).pvalue > 1e-3
    # And with their counts they are the softmax, within what so many rows may be off.
    found = dense(drawn, counts, 12)
    error = found.mean(axis=0) - scipy.special.softmax(logits[0].astype("float64"))
    assert (np.abs(error) < 5 * found.std(axis=0) / np.sqrt(num_rows) + 1e-6).all()


def test_the_numbers_are_even_and_of_row_place_and_seed_alone():
    numbers = uniforms(7, np.arange(20_000), 3)
    for column in numbers.T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.03
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.03
    np.testing.assert_array_equal(uniforms(7, np.array([19_999, 5]), 3), numbers[[19_999, 5]])
    np.testing.assert_array_equal(uniforms(7, np.array([11]), 1), numbers[11:12, :1])
    assert not np.isin(uniforms(8, np.arange(100), 3), numbers).any()
    assert (uniforms((1 << 63) - 1, np.array([1 << 62]), 2) < 1.0).all()


@pytest.mark.parametrize("gap", [0.0, 20.0, 200.0, 2e4])
def test_a_sure_teachers_rows_hold_k_classes_however_little_the_others_have(gap):
    logits = heavy_tailed(30, 50)
    logits[:, 7] += gap
    ids, counts = draw(logits, largest(logits, 12), uniforms(0, np.arange(30), 2), 1.0)
    assert all(len(set(row)) == 12 for row in ids.tolist())
    assert (counts.sum(axis=-1, dtype=int) == 255).all()
    if gap:
        assert (ids[:, 0] == 7).all()
        assert (counts[:, 0] >= 255 * (1 - 1e-3)).all()


def test_the_squared_error_is_half_of_that_of_as_many_independent_draws():
    """A row of twelve, by threshold, against twelve draws with replacement whose error is known: (1 − Σp²) / 12."""
    logits = heavy_tailed(2000, 500)
    target = scipy.special.softmax(logits.astype("float64"), axis=-1)
    ids, counts = draw(logits, largest(logits, 12), uniforms(0, np.arange(2000), 2), 1.0)
    error = np.square(dense(ids, counts, 500) - target).sum(axis=-1).mean()
    assert error < 0.5 * (1.0 - np.square(target).sum(axis=-1)).mean() / 12


# Labelling.


def test_a_store_of_sampled_rows_is_the_dense_one_in_expectation(tmp_path):
    teacher = network(1)
    target = shares_of(teacher, 2.0)
    stores = [label(teacher, INPUTS, tmp_path / str(seed), sample=6, temperature=2.0, seed=seed) for seed in range(40)]
    manifest = stores[3].manifest
    assert (manifest.kind, manifest.sample, manifest.sampling_temperature, manifest.sampling_seed) == (
        "sampled",
        6,
        2.0,
        3,
    )
    assert (manifest.temperature, manifest.bytes_per_row, manifest.version) == (None, 6 * 3 + 4, 3)
    rows = [store.read(np.arange(300)) for store in stores]
    np.testing.assert_allclose(rows[0]["entropy"], scipy.stats.entropy(target, axis=-1), rtol=1e-5)
    found = np.stack([dense(row["sampled_ids"], 255 * row["sampled_shares"], NUM_CLASSES) for row in rows])
    # Of 6,900 means the largest deviation, in standard errors of a share that is 0 or the threshold.
    spread = np.sqrt(target * 0.25 / len(stores)) + 1e-3
    assert (np.abs(found.mean(axis=0) - target) < 6 * spread).all()
    assert np.abs((found.mean(axis=0) - target).mean(axis=0)).max() < 4e-3


def test_the_loss_of_a_store_and_its_gradient_are_dense_ones_in_expectation(tmp_path):
    teacher, student = network(1), np.random.default_rng(2).normal(size=(300, NUM_CLASSES))
    target, softmax = shares_of(teacher, 3.0), scipy.special.softmax(student / 3.0, axis=-1)
    stores = [label(teacher, INPUTS, tmp_path / str(seed), sample=6, temperature=3.0, seed=seed) for seed in range(12)]
    loss = SoftTargets(3.0)
    values, slopes = [], []
    for store in stores:
        rows = store.read(np.arange(300))
        values.append(np.asarray(loss.per_example(rows, student)).mean())
        slopes.append(gradient(lambda z, rows=rows: loss.per_example(rows, z), student))
        drawn = dense(rows["sampled_ids"], 255 * rows["sampled_shares"], NUM_CLASSES)
        np.testing.assert_allclose(slopes[-1], 3.0 * (softmax - drawn), rtol=1e-5, atol=1e-6)
    expected = 9.0 * scipy.stats.entropy(target, softmax, axis=-1).mean()
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    assert abs(np.mean(values) - expected) < 4 * error < 0.1 * expected
    slope = 3.0 * (softmax - target).mean(axis=0)
    error = np.std(slopes, axis=(0, 1)) / np.sqrt(12 * 300)
    assert (np.abs(np.mean(slopes, axis=(0, 1)) - slope) < 5 * error).all()


def test_the_loss_is_scipys_cross_entropy_less_the_entropy_in_float64():
    generator = np.random.default_rng(0)
    student, shares = generator.normal(size=(40, 2, 9)), generator.dirichlet(np.ones(4), (40, 2))
    shares[0, 0] = [0.5, 0.5, 0.0, 0.0]
    ids = np.argsort(generator.random((40, 2, 9)), axis=-1)[..., :4].astype("int32")
    rows = {"sampled_shares": shares, "sampled_ids": ids, "entropy": generator.random((40, 2))}
    log_q = np.take_along_axis(scipy.special.log_softmax(student / 2.5, axis=-1), ids, axis=-1)
    expected = 6.25 * (-(shares * log_q).sum(axis=-1) - rows["entropy"])
    np.testing.assert_allclose(SoftTargets(2.5).per_example(rows, student), expected, rtol=1e-9)
    # A class without a count does not count, though the student holds it impossible.
    student[0, 0, ids[0, 0, 3]] = -1e4
    assert np.isfinite(SoftTargets(2.5).per_example(rows, student.astype("float32"))).all()
    with pytest.raises(ValueError, match="must have 4 classes"):
        SoftTargets(2.5).validate_outputs(rows, student[..., :3])


@pytest.mark.parametrize("loss", [DecoupledKD(), LogitMatching(), BinarySoftTargets(), RegressionTargets()])
def test_losses_that_want_every_class_refuse_sampled_rows(loss, tmp_path):
    rows = label(network(1), INPUTS, tmp_path / "s", sample=6).read([0, 1])
    context = {"labels": np.array([0, 1])} if "labels" in loss.reads else {}
    with pytest.raises(ValueError, match="must be the logits of all classes"):
        loss.per_example(rows, np.zeros((2, NUM_CLASSES), "float32"), **context)


def test_rows_are_the_same_in_any_batch_process_and_shard(tmp_path):
    teacher, everything = network(1), np.arange(300)

    def rows(name, **settings):
        return label(teacher, INPUTS, tmp_path / name, sample=6, temperature=2.0, **settings).read(everything)

    first = rows("first", batch_size=256)
    for name, settings in {
        "small batches": {"batch_size": 7},
        "small shards": {"batch_size": 16, "rows_per_shard": 32},
        "by workers": {"batch_size": 16, "rows_per_shard": 64, "engine": kd.scale.Processes(1)},
    }.items():
        for field, values in rows(name, **settings).items():
            # Another batch size may round a logit otherwise, and the entropy with it.
            np.testing.assert_allclose(values, first[field], rtol=1e-6, err_msg=f"{name}: {field}")
    assert (rows("another seed", seed=1)["sampled_ids"] != first["sampled_ids"]).any()


def test_shares_of_processes_and_resumed_runs_are_byte_for_byte_the_undisturbed_store(tmp_path):
    teacher, settings = network(1), {"sample": 6, "temperature": 2.0, "batch_size": 16, "rows_per_shard": 32}
    label(teacher, INPUTS, tmp_path / "whole", **settings)
    for process in (2, 0, 1):
        label(teacher, INPUTS, tmp_path / "shared", process=process, num_processes=3, **settings)
    assert tree(tmp_path / "shared") == tree(tmp_path / "whole")
    calls = []

    def killed(inputs):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return teacher(inputs, training=False)

    with pytest.raises(KeyboardInterrupt):
        label(killed, INPUTS, tmp_path / "killed", teacher_fingerprint=kd.targets.fingerprint(teacher), **settings)
    assert 1 <= len(list((tmp_path / "killed" / "shards").iterdir())) <= 3
    label(teacher, INPUTS, tmp_path / "killed", **settings)
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


@pytest.mark.tensorflow
def test_views_are_drawn_each_for_itself(tmp_path):
    """The same input in every view: what differs is the draw, which knows the view."""
    images = np.full((20, 5, 5), 0.2, np.float32)
    kernel = keras.initializers.RandomNormal(stddev=1.0, seed=1)
    teacher = keras.Sequential(
        [keras.Input((5, 5)), keras.layers.Flatten(), keras.layers.Dense(40, kernel_initializer=kernel)]
    )
    settings = {
        "augmentation": kd.targets.Augmentation(keras.layers.RandomFlip("horizontal"), seed=3),
        "views": 2,
        "batch_size": 8,
    }
    store = label(teacher, images, tmp_path / "s", sample=6, temperature=3.0, **settings)
    one, other = store.read(np.arange(20), 0), store.read(np.arange(20), 1)
    np.testing.assert_array_equal(one["entropy"], other["entropy"])
    assert len({tuple(row) for row in np.concatenate([one["sampled_ids"], other["sampled_ids"]]).tolist()}) > 20


def test_places_of_a_sequence_and_tokens_are_drawn_each_for_itself(tmp_path):
    inputs = np.tile(INPUTS[:1, None], (30, 4, 1))
    kernel = keras.initializers.RandomNormal(stddev=1.0, seed=1)
    teacher = keras.Sequential([keras.Input((4, 6)), keras.layers.Dense(40, kernel_initializer=kernel)])
    rows = label(teacher, inputs, tmp_path / "s", sample=6, temperature=3.0).read(np.arange(30))
    assert rows["sampled_ids"].shape == (30, 4, 6)
    # On the line of 40 classes there are no more than 40 different places.
    assert len({tuple(row) for row in rows["sampled_ids"].reshape(-1, 6).tolist()}) > 15
    assert len({tuple(row) for row in rows["sampled_ids"].swapaxes(1, 2).reshape(-1, 4).tolist()}) > 15
    mask = np.random.default_rng(0).random((30, 4)) < 0.6
    store = label(teacher, inputs, tmp_path / "t", sample=6, mask=mask, batch_size=8)
    assert (len(store), store.manifest.id_scheme) == (mask.sum(), "token")
    # A token's id is its row: the draw is that of the same place in a store of as many items.
    flat = label(network(1, 40), np.repeat(INPUTS[:1], mask.sum(), 0), tmp_path / "flat", sample=6)
    np.testing.assert_array_equal(
        store.read(np.arange(len(store)))["sampled_ids"], flat.read(np.arange(len(store)))["sampled_ids"]
    )
    batches = StoredBatches((inputs, None), store, mask=mask, batch_size=10, shuffle=False)
    assert batches[0][1]["soft_targets"]["sampled_shares"].shape == (10, 4, 6)


def test_an_arithmetic_ensemble_is_merged_and_drawn_at_one_temperature(tmp_path):
    models = [network(1), network(2)]
    ensemble = Ensemble(models, weights=[1, 3])
    with pytest.raises(ValueError, match="members=True, or the temperature"):
        label(ensemble, INPUTS, tmp_path / "s", sample=6)
    store = label(ensemble, INPUTS, tmp_path / "s", sample=6, temperature=3.0)
    assert (store.manifest.temperature, store.manifest.sampling_temperature) == (3.0, 3.0)
    target = 0.25 * shares_of(models[0], 3.0) + 0.75 * shares_of(models[1], 3.0)
    rows = store.read(np.arange(300))
    np.testing.assert_allclose(rows["entropy"], scipy.stats.entropy(target, axis=-1), rtol=1e-5)
    found = dense(rows["sampled_ids"], 255 * rows["sampled_shares"], NUM_CLASSES)
    assert np.abs((found - target).mean(axis=0)).max() < 0.02


def test_a_student_learns_from_sampled_rows(tmp_path):
    """A linear student of a linear teacher, from 6 of 23 classes an item: near the teacher, which top-6 is not."""
    teacher = network(1)
    x = np.random.default_rng(3).normal(size=(5000, 6)).astype("float32")
    found = {}
    for kind in ("sample", "top_k"):
        store = label(teacher, x, tmp_path / kind, **{kind: 6}, **({"temperature": 4.0} if kind == "sample" else {}))
        keras.utils.set_random_seed(0)
        student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(NUM_CLASSES)])
        distiller = kd.Distiller(None, student, SoftTargets(4.0, tail="renormalise"), student_loss_weight=0.0)
        distiller.compile(keras.optimizers.Adam(0.02))
        distiller.fit(attach((x, None), store, batch_size=100), epochs=4, verbose=0, shuffle=False)
        p, q = shares_of(teacher, 4.0, x), shares_of(student, 4.0, x)
        found[kind] = scipy.stats.entropy(p, q, axis=-1).mean()
    assert found["sample"] < 0.01
    assert found["sample"] < 0.1 * found["top_k"]


# What is refused.


@pytest.mark.parametrize("temperature", [4.0, kd.schedules.Linear(4.0, 2.0, 100)])
def test_a_loss_of_another_temperature_ends_fit_at_its_first_batch(tmp_path, temperature):
    store = label(network(1), INPUTS, tmp_path / "s", sample=6, temperature=2.0)
    student = network(2)
    before = student.get_weights()
    for loss, message in ((SoftTargets(temperature), "at which the rows were sampled"), (SoftTargets(2.0), None)):
        distiller = kd.Distiller(None, student, loss, student_loss_weight=0.0)
        distiller.compile("adam")
        fit = {"x": attach((INPUTS, None), store, batch_size=100), "verbose": 0, "shuffle": False}
        if message is None:
            assert set(distiller.fit(**fit).history) == {"distillation_loss", "loss", "total_loss"}
            continue
        with pytest.raises(ValueError, match=message):
            distiller.fit(**fit)
        for kept, weight in zip(before, student.get_weights(), strict=True):
            np.testing.assert_array_equal(kept, weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sample": 0}, "sample must be >= 1"),
        ({"sample": 24}, "sample must be <= 23, the number of classes"),
        ({"sample": 2.5}, "sample must be a whole number"),
        ({"sample": 6, "top_k": 3}, "sample must be given alone; got top_k=3"),
        ({"sample": 6, "members": True}, "sample must be given alone; got members=True"),
        ({"sample": 6, "temperature": 0.0}, "temperature must be > 0"),
        ({"sample": 6, "temperature": -1.0}, "temperature must be > 0"),
        ({"sample": 6, "seed": -1}, "seed must be >= 0"),
        ({"sample": 6, "seed": 2**63}, "sampling_seed must be < 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        label(network(1), INPUTS, tmp_path / "s", **settings)
    assert not (tmp_path / "s").exists()


def test_more_classes_than_there_are_counts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="sample must be <= 255; got 256"):
        label(network(1, 300), INPUTS, tmp_path / "s", sample=256)
    assert (label(network(1, 300), INPUTS, tmp_path / "s", sample=255).read([0])["sampled_shares"] > 0).sum() > 30


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(tmp_path, value):
    def teacher(x):
        return np.where(np.arange(6) == 4, value, x)

    with pytest.raises(ValueError, match="the teacher's logits must be finite; got 300 NaN or infinite"):
        label(teacher, INPUTS, tmp_path / "s", sample=3, teacher_fingerprint="t", batch_size=300)


def test_a_run_with_another_seed_temperature_or_sample_is_refused(tmp_path):
    settings = {"sample": 6, "temperature": 2.0, "seed": 0}
    label(network(1), INPUTS, tmp_path / "s", **settings)
    for change, message in (
        ({"seed": 1}, "sampling_seed must be 1"),
        ({"temperature": 1.0}, "sampling_temperature must be 1.0"),
        ({"sample": 7}, "sample must be 7"),
    ):
        with pytest.raises(StoreError, match=message):
            label(network(1), INPUTS, tmp_path / "s", **settings | change)
    # No logit is stored, so that its type is no matter.
    label(network(1), INPUTS, tmp_path / "s", dtype="float32", **settings)


def test_an_altered_count_is_found(tmp_path):
    store = label(network(1), INPUTS, tmp_path / "s", sample=6)
    file = next((tmp_path / "s" / "shards").iterdir())
    content = bytearray(file.read_bytes())
    content[200 + 13] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedShardError, match="1 altered"):
        SoftTargetStore.open(store.path)
    label(network(1), INPUTS, tmp_path / "s", sample=6)
    SoftTargetStore.open(store.path)


def test_a_store_of_one_temperature_is_not_tuned_with(tmp_path):
    pytest.importorskip("optuna")
    store = label(network(1), INPUTS, tmp_path / "s", sample=6, temperature=2.0)
    data = INPUTS, np.zeros(300, "int32")
    with pytest.raises(ValueError, match="must serve every temperature to be tuned with; got one that serves 2 alone"):
        kd.search.tune(lambda: network(2), data, data, store, tmp_path / "study", epochs=1, batch_size=32)
