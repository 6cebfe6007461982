"""What people have becomes what the student was trained on: pictures, recordings, rows; and the programs for it."""

import json
import os
import struct
import subprocess
import sys
import wave

import numpy as np
import pytest
from hand_made import write_bundle

from keras_distill._kit import kit_folder
from keras_distill.data import image_file, spoken_digit

pillow = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def readers():
    """The kit's module, which finds its neighbours by the path, as a program in a bundle does."""
    sys.path.insert(0, str(kit_folder()))
    try:
        import readers

        yield readers
    finally:
        sys.path.remove(str(kit_folder()))
        for name in ("readers", "prepare", "sound"):
            sys.modules.pop(name, None)


@pytest.fixture
def bundle(tmp_path):
    return write_bundle(tmp_path / "bundle")


def run(folder, *arguments, program="classify_onnx.py", **environment):
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    command = [sys.executable, str(folder / program), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=own, check=False)


def entry(*shape, dtype="float32", pixel_range=(0.0, 1.0)):
    return {"name": "image", "shape": [None, *shape], "dtype": dtype, "pixel_range": pixel_range, "value_range": [0, 1]}


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", ".png"), ("RGB", ".png"), ("RGBA", ".png"), ("P", ".png"), ("1", ".png"), ("L", ".jpg"), ("RGB", ".jpg")],
)
def test_a_picture_is_what_training_reads_from_it(mode, suffix, readers, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (11, 17, 4), dtype="uint8")
    pixels[0, 0, 3] = 0
    path = tmp_path / f"it{suffix}"
    pillow.fromarray(pixels, "RGBA" if mode == "RGBA" else None).convert(mode).save(path)
    read = image_file.read_image(path)
    expected = image_file.resized(read, (8, 6))
    channels = read.shape[-1]
    np.testing.assert_allclose(readers.picture_of(path, entry(8, 6, channels)), expected, atol=1e-6)
    shifted = readers.picture_of(path, entry(8, 6, channels, pixel_range=(-1.0, 1.0)))
    np.testing.assert_allclose(shifted, 2 * expected - 1, atol=1e-6)
    whole = readers.picture_of(path, entry(8, 6, channels, dtype="uint8", pixel_range=(0.0, 255.0)))
    assert whole.dtype == np.uint8
    np.testing.assert_allclose(whole, 255 * expected, atol=0.51)


def test_a_picture_is_turned_upright_as_training_turns_it(readers, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype="uint8")
    exif = pillow.Exif()
    exif[274] = 6
    pillow.fromarray(pixels).save(tmp_path / "it.png", exif=exif)
    expected = image_file.read_image(tmp_path / "it.png")
    assert expected.shape == (6, 8, 3)
    np.testing.assert_allclose(readers.picture_of(tmp_path / "it.png", entry(6, 8, 3)), expected, atol=1e-6)


def write_wav(path, samples, rate=8000, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat(samples, channels).astype("<i2").tobytes())


@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording_becomes_the_energies_that_training_had(channels, readers, tmp_path):
    samples = (3000 * np.random.default_rng(0).normal(size=4000)).astype("int16")
    write_wav(tmp_path / "seven.wav", samples, channels=channels)
    manifest = {"inputs": [entry(64, 40, 1)], "provenance": {"data": "spoken_digit"}}
    ((name, label, inputs),) = readers.read_examples([str(tmp_path / "seven.wav")], manifest, tmp_path)
    assert (name, label) == ("seven.wav", None)
    np.testing.assert_array_equal(inputs["image"][0, ..., 0], spoken_digit.log_mel(samples))
    write_wav(tmp_path / "fast.wav", samples, rate=16000)
    with pytest.raises(ValueError, match="8000 samples a second; got 16000"):
        list(readers.read_examples([str(tmp_path / "fast.wav")], manifest, tmp_path))


def test_a_student_of_samples_gets_them_cut_or_followed_by_silence(readers, tmp_path):
    samples = np.array([0, 16384, -32768], "int16")
    write_wav(tmp_path / "it.wav", samples)
    wave_entry = {
        "name": "wave",
        "shape": [None, 5],
        "dtype": "float32",
        "value_range": [-1.0, 1.0],
        "pixel_range": None,
    }
    manifest = {"inputs": [wave_entry], "provenance": {"data": "folder"}}
    ((_, _, inputs),) = readers.read_examples([str(tmp_path / "it.wav")], manifest, tmp_path)
    np.testing.assert_array_equal(inputs["wave"], [[0.0, 0.5, -1.0, 0.0, 0.0]])


def test_golden_examples_are_marked_right_or_wrong(bundle):
    folder, images, logits = bundle
    with np.load(folder / "golden.npz") as golden:
        arrays = dict(golden)
    arrays["labels"][3] = (arrays["labels"][3] + 1) % 3
    np.savez(folder / "golden.npz", **arrays)
    done = run(folder, PYTHONIOENCODING="utf-8")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(images)
    wrong = ["ant", "bee", "cow"][arrays["labels"][3]]
    assert [("✓" in line, "✗" in line) for line in lines] == [(at != 3, at == 3) for at in range(len(lines))]
    assert f"✗ it is {wrong}" in lines[3]
    assert lines[5].startswith(["ant", "bee", "cow"][int(logits[5].argmax())])


def test_a_picture_is_answered_as_its_array_is(bundle, tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (8, 8), dtype="uint8")
    pillow.fromarray(pixels).save(tmp_path / "it.png")
    np.save(tmp_path / "it.npy", (pixels[None, ..., None] / 255.0).astype("float32"))
    by_file = run(bundle[0], tmp_path / "it.png").stdout
    by_array = run(bundle[0], tmp_path / "it.npy").stdout
    assert by_file.partition("   (")[0] == by_array.partition("   (")[0] != ""
    assert "(it.png)" in by_file


@pytest.mark.parametrize("program", ["classify_onnx.py", "classify_litert.py"])
def test_help_says_what_may_be_given(bundle, program):
    done = run(bundle[0], "--help", program=program)
    assert done.returncode == 0
    for word in ("CAT.png", "SEVEN.wav", "ROWS.csv", "golden", "EXAMPLES.npy"):
        assert word in done.stdout


def wav_of_floats(path):
    path.write_bytes(
        b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, 8000, 32000, 4, 32)
    )


def arrays(array):
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("gone.png", None, "gone.png must be a file; got none"),
        ("it.png", lambda path: path.write_bytes(b"no"), "must be a readable picture"),
        ("it.wav", wav_of_floats, "must be a .wav file of plain samples"),
        ("it.wav", lambda path: write_wav(path, np.ones(9)), "takes float32 of shape (8, 8, 1), no recordings"),
        ("it.csv", lambda path: path.write_text("a\n1\n"), "takes pictures, .npy or .npz files; got"),
        ("gone.npy", None, "gone.npy must be a readable file of arrays; got"),
        ("it.npy", lambda path: np.save(path, np.array([{}])), "must be a readable file of arrays; got Object arrays"),
        ("it.npy", arrays(np.zeros((2, 5, 5, 1))), "examples of shape ('any', 8, 8, 1) for 'image'; got (2, 5, 5, 1)"),
        ("it.npy", arrays(np.zeros((8, 8, 1))), "got (8, 8, 1). The first number counts the examples."),
        ("it.npy", arrays(np.zeros((0, 8, 8, 1))), "got (0, 8, 8, 1). The first number counts the examples."),
        ("it.npy", arrays(np.full((1, 8, 8, 1), "a")), "must hold float32 for 'image'; got <U1. Convert it."),
        ("it.npy", arrays(np.full((1, 8, 8, 1), np.nan)), "must hold finite numbers for 'image'; got NaN"),
        ("it.npy", arrays(np.full((1, 8, 8, 1), 255)), "must hold values from about 0.05 to 0.9 for 'image'"),
    ],
)
def test_what_the_student_does_not_take_is_one_sentence(bundle, tmp_path, name, write, said):
    if write:
        write(tmp_path / name)
    done = run(bundle[0], tmp_path / name)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_bundle_of_another_runtime_is_one_sentence(bundle):
    done = run(bundle[0], program="classify_litert.py")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "must hold one of litert-int8, litert, litert-float16; got onnx" in done.stderr


def test_without_pillow_the_package_is_named(bundle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "PIL.py").write_text("raise ImportError('none', name='PIL')\n")
    (tmp_path / "it.png").write_bytes(b"")
    done = run(bundle[0], tmp_path / "it.png", PYTHONPATH=str(tmp_path / "elsewhere"))
    assert done.returncode == 2
    assert "PIL must be installed; got none. pip install pillow." in done.stderr


def test_the_manifest_decides_and_not_the_name(readers, tmp_path):
    manifest = {"inputs": [entry(8, 8, 1), entry(4)], "provenance": {"data": "x"}}
    (tmp_path / "it.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"several inputs must be given a \.npz"):
        list(readers.read_examples([str(tmp_path / "it.png")], json.loads(json.dumps(manifest)), tmp_path))
