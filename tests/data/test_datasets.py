"""Datasets: official splits stay whole, ids are the same every time, and bad data is refused by name."""

import numpy as np
import pytest
from PIL import Image

from keras_distill import data
from keras_distill.data import cifar100, local_data, spoken_digit, tfds
from keras_distill.data.dataset import Dataset, Split, carve, stratified_positions


def arrays(num_train=40, num_test=12, num_classes=4):
    rng = np.random.default_rng(0)
    return {
        "x_train": rng.integers(0, 256, (num_train, 6, 5), dtype=np.uint8),
        "y_train": np.arange(num_train) % num_classes,
        "x_test": rng.integers(0, 256, (num_test, 6, 5), dtype=np.uint8),
        "y_test": np.arange(num_test) % num_classes,
    }


def saved(tmp_path, contents):
    path = tmp_path / "mine.npz"
    np.savez(path, **contents)
    return path


def test_digits_are_all_1797_of_scikit_learn_each_in_one_split():
    from sklearn.datasets import load_digits

    digits = data.load("digits")
    splits = (digits.train, digits.validation, digits.test)
    ours = np.concatenate([split.inputs.reshape(-1, 64) for split in splits])
    labels = np.concatenate([split.labels for split in splits])
    pixels, targets = load_digits(return_X_y=True)
    rows = sorted((*row, label) for row, label in zip((ours * 16).round().astype(int).tolist(), labels, strict=True))
    assert rows == sorted((*row, label) for row, label in zip(pixels.astype(int).tolist(), targets, strict=True))
    assert digits.train.inputs.dtype == np.float32
    assert (digits.input_shape, digits.num_classes) == ((8, 8, 1), 10)


def test_every_class_has_its_share_of_every_split_of_digits():
    digits = data.load("digits")
    for split in (digits.train, digits.validation, digits.test):
        shares = np.bincount(split.labels) / len(split)
        assert shares == pytest.approx(0.1, abs=0.01)


def test_loading_twice_gives_the_same_ids():
    first, second = data.load("digits"), data.load("digits")
    np.testing.assert_array_equal(first.train.inputs, second.train.inputs)
    np.testing.assert_array_equal(first.validation.labels, second.validation.labels)


def test_stratified_positions_take_each_class_in_proportion():
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [60, 30, 10]))
    taken = stratified_positions(labels, 20)
    assert np.bincount(labels[taken]).tolist() == [12, 6, 2]
    assert len(set(taken.tolist())) == 20
    assert (np.diff(taken) > 0).all()


def test_carving_loses_and_doubles_nothing():
    split = Split(np.arange(50.0)[:, None], np.arange(50) % 5)
    remains, taken = carve(split, 10)
    joined = np.concatenate([remains.inputs[:, 0], taken.inputs[:, 0]])
    assert sorted(joined.tolist()) == list(range(50))
    assert (remains.inputs[:, 0].astype(int) % 5 == remains.labels).all()


def test_taking_all_examples_away_is_refused():
    with pytest.raises(ValueError, match="num_taken must be < 3"):
        stratified_positions(np.array([0, 1, 2]), 3)


# .npz


def test_npz_pixels_become_fractions_with_a_channel(tmp_path):
    contents = arrays()
    dataset = data.load(saved(tmp_path, contents))
    assert dataset.input_shape == (6, 5, 1)
    np.testing.assert_allclose(dataset.test.inputs[..., 0], contents["x_test"] / 255.0, rtol=1e-6)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (36, 4, 12)
    assert dataset.class_names == ("0", "1", "2", "3")


def test_npz_keeps_its_own_validation_split_names_and_licence(tmp_path):
    extra = {
        "x_validation": np.zeros((3, 6, 5), np.uint8),
        "y_validation": np.zeros(3, int),
        "class_names": np.array(["a", "b", "c", "d", "never seen"]),
        "licence": np.array("CC0"),
    }
    dataset = data.load(saved(tmp_path, arrays() | extra))
    assert (len(dataset.train), len(dataset.validation)) == (40, 3)
    assert dataset.num_classes == 5
    assert dataset.licence == "CC0"


def test_npz_tokens_stay_integers_and_columns_of_labels_are_flattened(tmp_path):
    contents = arrays()
    for name in ("train", "test"):
        contents[f"x_{name}"] = contents[f"x_{name}"].astype("int64")
        contents[f"y_{name}"] = contents[f"y_{name}"][:, None]
    dataset = data.load(saved(tmp_path, contents))
    assert dataset.train.inputs.dtype == np.int32
    assert dataset.input_shape == (6, 5)
    assert dataset.test.labels.shape == (12,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, "that holds x_train, y_train, x_test, y_test; got no y_test"),
        ({"y_train": np.full(40, -1)}, r"in \[0, 4\); got -1 \(3[0-9] such\)"),
        ({"y_train": np.eye(40)}, "integers of shape .* numpy.argmax"),
        ({"y_train": np.eye(40) * 0.9 + 0.1 / 40}, "soft targets, not labels: .* likeliest ones with numpy.argmax"),
        ({"y_train": np.ones((40, 3), int)}, r"^(?!.*argmax).*Several labels an item are not read .*BinarySoftTargets"),
        ({"y_train": np.full(40, "cat")}, r"^(?!.*argmax).*numpy.unique\(labels, return_inverse=True\)\[1\]"),
        ({"y_train": np.arange(40.0)}, r"^(?!.*argmax).*labels.astype\(int\)"),
        ({"y_train": np.arange(40) / 3}, r"^(?!.*argmax).*a regression are not read .*Distiller"),
        ({"y_train": np.full((40, 5), 7)}, r"^(?!.*argmax).*several values an item are not read"),
        ({"y_train": np.arange(39)}, "as many inputs as labels; got 40 inputs and 39 labels"),
        ({"x_test": np.zeros((0, 6, 5), np.uint8), "y_test": np.zeros(0, int)}, "test split .* at least one example"),
        ({"x_train": np.zeros((0, 6, 5), np.uint8), "y_train": np.zeros(0, int)}, "at least 2 examples"),
        ({"x_test": np.zeros((12, 7, 5), np.uint8)}, "examples of one shape"),
        ({"x_train": np.full((40, 6, 5), np.nan)}, "finite; got 1200 of 1200"),
        ({"x_train": np.full((40, 6), "a")}, "numbers; got dtype"),
        ({"x_train": np.zeros(40)}, "must have shape"),
        ({"class_names": np.array(["only one"])}, r"in \[0, 1\)"),
        ({"x_validation": np.zeros((2, 6, 5), np.uint8)}, "y_validation beside x_validation"),
    ],
)
def test_npz_that_is_not_a_dataset_is_refused(tmp_path, change, message):
    contents = {name: array for name, array in (arrays() | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        data.load(saved(tmp_path, contents))


def test_npz_with_pickled_objects_is_refused(tmp_path):
    contents = arrays() | {"x_train": np.array([{"run": "me"}] * 40, dtype=object)}
    with pytest.raises(ValueError, match=r"readable \.npz of plain arrays; got Python objects in x_train\.") as raised:
        data.load(saved(tmp_path, contents))
    assert "allow_pickle" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"not a zip at all", None])
def test_corrupt_npz_is_refused(tmp_path, content):
    path = saved(tmp_path, arrays())
    # None: a download that broke off.
    path.write_bytes(path.read_bytes()[:900] if content is None else content)
    with pytest.raises(ValueError, match=r"readable \.npz") as raised:
        data.load(path)
    assert "allow_pickle" not in str(raised.value)


def test_npz_with_a_flipped_byte_is_refused(tmp_path):
    path = saved(tmp_path, arrays())
    content = bytearray(path.read_bytes())
    content[600] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"readable \.npz"):
        data.load(path)


# Folders of images


def write_images(folder, num_images=10, size=(4, 3), mode="L"):
    rng = np.random.default_rng(0)
    for class_name in ("cat", "dog"):
        (folder / class_name).mkdir(parents=True)
        for index in range(num_images):
            shape = (size[0], size[1]) if mode == "L" else (size[0], size[1], 3)
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / class_name / f"{index}.png")


def test_image_folder_reads_pixels_and_classes(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", 2)
    dataset = data.load(tmp_path)
    assert dataset.class_names == ("cat", "dog")
    assert dataset.input_shape == (4, 3, 1)
    first = np.asarray(Image.open(tmp_path / "test/dog/0.png")) / 255.0
    np.testing.assert_allclose(dataset.test.inputs[2, ..., 0], first, rtol=1e-6)
    assert dataset.test.labels.tolist() == [0, 0, 1, 1]
    assert (len(dataset.train), len(dataset.validation)) == (18, 2)


def test_image_folder_without_splits_is_divided(tmp_path):
    write_images(tmp_path, mode="RGB")
    dataset = data.load(tmp_path)
    assert dataset.input_shape == (4, 3, 3)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (14, 2, 4)
    assert np.bincount(dataset.test.labels).tolist() == [2, 2]


def test_images_of_several_sizes_are_refused_unless_resized(tmp_path):
    write_images(tmp_path)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "dog/other.png")
    with pytest.raises(ValueError, match=r"have one size; got \(4, 3\) and \(9, 9\).*image_size"):
        data.load(tmp_path)
    assert data.load(tmp_path, image_size=(6, 5)).input_shape == (6, 5, 1)


def test_sixteen_bit_grey_keeps_its_shades(tmp_path):
    write_images(tmp_path)
    shades = np.array([[0, 257 * 128], [257 * 10, 65535]], np.uint16).repeat(2, 0)[:, [0, 1, 1]]
    Image.fromarray(shades).save(tmp_path / "cat/0.png")
    dataset = data.load(tmp_path)
    every = np.concatenate([split.inputs for split in (dataset.train, dataset.validation, dataset.test)])
    expected = (shades // 257 / 255.0)[..., None]
    assert np.abs(every - expected).max(axis=(1, 2, 3)).min() < 1e-6


def test_broken_image_is_named(tmp_path):
    write_images(tmp_path)
    (tmp_path / "cat/3.png").write_bytes((tmp_path / "cat/3.png").read_bytes()[:40])
    with pytest.raises(ValueError, match=r"3\.png must be a readable image"):
        data.load(tmp_path)


def test_folder_without_images_or_with_unknown_test_classes_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one folder a class"):
        data.load(tmp_path)
    write_images(tmp_path / "train")
    with pytest.raises(ValueError, match="with test/ beside train/"):
        data.load(tmp_path)
    (tmp_path / "test/wolf").mkdir(parents=True)
    with pytest.raises(ValueError, match="among cat, dog; got wolf"):
        data.load(tmp_path)


# Names, the network, local files


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nonsense", ValueError, "one of digits, mnist.*got 'nonsense'"),
        ("no/such/folder", FileNotFoundError, "no such file or folder"),
        ("missing.npz", FileNotFoundError, "an .npz file; got no such file"),
    ],
)
def test_unknown_data_is_refused(name, error, message):
    with pytest.raises(error, match=message):
        data.load(name)


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "table.xlsx").write_text("a,b")
    with pytest.raises(ValueError, match="another kind of file"):
        data.load(tmp_path / "table.xlsx")


def test_data_variable_that_names_no_folder_is_refused(monkeypatch):
    monkeypatch.setenv(local_data.VARIABLE, "/no/such/folder")
    with pytest.raises(NotADirectoryError, match="KERAS_DISTILL_DATA must be a folder"):
        data.load("mnist")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_network_is_one_sentence_and_not_minutes(monkeypatch, tmp_path):
    monkeypatch.delenv(local_data.VARIABLE, raising=False)
    monkeypatch.setattr(tfds, "network_answers", lambda: False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(OSError, match=r"'mnist' must be on this machine or to be downloaded.*KERAS_DISTILL_DATA"):
        data.load("mnist")


def test_network_that_refuses_does_not_answer(monkeypatch):
    import socket

    for variable in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(tfds, "HOST", "127.0.0.1")
        real = socket.create_connection
        port = server.getsockname()[1]
        monkeypatch.setattr(socket, "create_connection", lambda address, timeout: real((address[0], port), timeout))
        assert tfds.network_answers()
    assert not tfds.network_answers()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_unknown_tfds_name_is_refused():
    with pytest.raises(ValueError, match="must name a dataset that tensorflow-datasets knows"):
        data.load("tfds:no_such_dataset_anywhere")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_half_an_import_of_tensorflow_datasets_is_one_sentence(monkeypatch):
    import tensorflow_datasets

    monkeypatch.delattr(tensorflow_datasets, "builder")
    with pytest.raises(OSError, match=r"must be imported whole; got half of it.*tensorflow-metadata<1.18"):
        data.load("tfds:mnist")


def test_a_split_knows_when_lengths_differ_and_a_dataset_when_labels_do():
    with pytest.raises(ValueError, match="2 inputs and 3 labels"):
        Split(np.zeros((2, 1)), np.zeros(3, int))
    good, bad = Split(np.zeros((2, 1)), np.array([0, 1])), Split(np.zeros((2, 1)), np.array([0, 2]))
    with pytest.raises(ValueError, match=r"labels in the test split of 'x' must be in \[0, 2\); got 2"):
        Dataset("x", good, good, bad, ("a", "b"), "CC0")


# Real data


def test_cifar100_binary_rows_are_fine_labels_and_planes(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    images = rng.integers(0, 256, (200, 32, 32, 3), dtype=np.uint8)
    for name in ("train", "test"):
        rows = [bytes([7, index % 100]) + image.transpose(2, 0, 1).tobytes() for index, image in enumerate(images)]
        (folder / f"{name}.bin").write_bytes(b"".join(rows))
    monkeypatch.setenv(local_data.VARIABLE, str(tmp_path))
    dataset = data.load("cifar100")
    np.testing.assert_allclose(dataset.test.inputs, images / 255.0, rtol=1e-6)
    assert dataset.test.labels[:3].tolist() == [0, 1, 2]
    assert (len(dataset.train), len(dataset.validation)) == (180, 20)
    assert dataset.class_names[0] == "apple"
    assert dataset.class_names[99] == "worm"
    assert len(set(dataset.class_names)) == 100


def test_cifar100_file_of_a_broken_download_is_refused(tmp_path):
    (tmp_path / "train.bin").write_bytes(bytes(3000))
    with pytest.raises(ValueError, match="a multiple of 3074 bytes; got 3000 bytes"):
        cifar100.read_binary(tmp_path / "train.bin")


@pytest.mark.needs_data
def test_mnist_has_its_official_test_set_and_validates_on_training_images():
    mnist = data.load("mnist")
    assert [len(split) for split in (mnist.train, mnist.validation, mnist.test)] == [55000, 5000, 10000]
    # The published counts of the test labels, and the first ten of them.
    assert np.bincount(mnist.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert (mnist.train.inputs.min(), mnist.train.inputs.max()) == (0.0, 1.0)
    every = np.concatenate([mnist.train.labels, mnist.validation.labels])
    assert np.bincount(every).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


@pytest.mark.needs_data
def test_spoken_digits_test_on_takes_0_to_4_and_a_line_can_tell_them_apart():
    from sklearn.linear_model import LogisticRegression

    spoken = data.load("spoken_digit")
    assert [len(split) for split in (spoken.train, spoken.validation, spoken.test)] == [2400, 300, 300]
    assert np.bincount(spoken.test.labels).tolist() == [30] * 10
    assert spoken.input_shape == (64, 40, 1)

    def coarse(split):  # 8 × 8 means, enough for a linear model
        return split.inputs.reshape(-1, 8, 8, 8, 5).mean(axis=(2, 4)).reshape(-1, 64)

    line = LogisticRegression(max_iter=300).fit(coarse(spoken.train), spoken.train.labels)
    assert line.score(coarse(spoken.test), spoken.test.labels) > 0.75


def test_a_tone_is_loudest_in_its_own_mel_band():
    seconds = np.arange(8000) / 8000.0
    for hertz in (300.0, 1000.0, 2500.0):
        power = np.abs(np.fft.rfft(np.sin(2 * np.pi * hertz * seconds)[:256] * np.hamming(256))) ** 2
        band = int(np.argmax(spoken_digit.mel_filters() @ power))
        mel = 2595 * np.log10(1 + np.array([60.0, hertz, 4000.0]) / 700)
        expected = (mel[1] - mel[0]) / (mel[2] - mel[0]) * 41 - 1
        assert band == pytest.approx(expected, abs=1.0)


def test_log_mel_is_of_one_size_centred_and_forgets_the_volume():
    rng = np.random.default_rng(0)
    audio = (rng.normal(size=4000) * 3000).astype("int16")
    features = spoken_digit.log_mel(audio)
    assert features.shape == (64, 40)
    num_frames = np.flatnonzero(np.abs(features).sum(axis=1))[-1] + 1
    np.testing.assert_allclose(features[:num_frames].mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(spoken_digit.log_mel(audio * 2), features, atol=0.02)
    assert spoken_digit.log_mel(rng.normal(size=20_000)).shape == (64, 40)
    assert spoken_digit.log_mel(np.zeros(10, "int16")).shape == (64, 40)
