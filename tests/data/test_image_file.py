"""Every kind of image file against NumPy: depth, colours, transparency and orientation as the file says, or refused."""

import struct

import numpy as np
import pytest
from pictures import SIDES, as_stored, exif, png, tiff
from PIL import Image

from keras_distill import data
from keras_distill.data.image_file import read_image, resized

RGB = np.random.default_rng(0).integers(0, 256, (7, 11, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (7, 11), dtype=np.uint8)


def written(tmp_path, content):
    path = tmp_path / "image.bin"
    path.write_bytes(content)
    return path


def saved(tmp_path, image, suffix, **options):
    path = tmp_path / f"image{suffix}"
    image.save(path, **options)
    return path


def before_black(colours, alpha):
    """Colours of 8 bits before a black background, in [0, 1]."""
    return np.rint(colours.astype(float) * alpha[..., None].astype(float) / 255.0) / 255.0


# Depth


@pytest.mark.parametrize("num_samples", [1, 2, 3, 4])
def test_every_shade_of_a_png_of_16_bits_is_kept(tmp_path, num_samples):
    # Twelve bits of data in sixteen: cut down to eight, sixteen shades would be left.
    samples = np.random.default_rng(num_samples).integers(0, 4096, (7, 11, num_samples))
    path = written(tmp_path, png(samples, 16, filters=range(5)))
    expected = samples / 65535.0
    if num_samples in (2, 4):
        expected = expected[..., :-1] * expected[..., -1:]
    np.testing.assert_allclose(read_image(path), expected, rtol=1e-6, strict=False)
    assert read_image(path).dtype == np.float32


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("is_transparent", [False, True])
def test_shades_of_few_bits_reach_from_black_to_white(tmp_path, bits, is_transparent):
    shades = np.random.default_rng(bits).integers(0, 2**bits, (7, 11, 1))
    shades[0, :2, 0] = 0, 2**bits - 1
    path = written(tmp_path, png(shades, bits, transparent=[0] if is_transparent else None))
    np.testing.assert_allclose(read_image(path), shades / (2.0**bits - 1.0), rtol=1e-6)


@pytest.mark.parametrize(("bits", "num_samples"), [(2, 1), (4, 1), (8, 1), (8, 3), (16, 1), (16, 3)])
def test_the_one_transparent_colour_of_a_png_is_black_and_no_other(tmp_path, bits, num_samples):
    samples = np.random.default_rng(bits).integers(1, 2**bits, (7, 11, num_samples))
    colour = samples[2, 3]
    path = written(tmp_path, png(samples, bits, transparent=colour))
    expected = samples / (2.0**bits - 1.0) * (samples != colour).any(-1, keepdims=True)
    np.testing.assert_allclose(read_image(path), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("bits", "white_is_zero", "byte_order"),
    [(8, False, "<"), (8, True, "<"), (8, True, ">"), (16, False, "<"), (16, False, ">"), (16, True, "<")],
)
def test_shades_of_a_tiff_are_divided_by_what_white_is(tmp_path, bits, white_is_zero, byte_order):
    shades = np.random.default_rng(bits).integers(0, 2**bits, (7, 11))
    rows = [row.astype(f"{byte_order}u{bits // 8}").tobytes() for row in shades]
    path = written(tmp_path, tiff(rows, 11, bits, white_is_zero=white_is_zero, byte_order=byte_order))
    expected = shades / (2.0**bits - 1.0)
    expected = 1.0 - expected if white_is_zero else expected
    np.testing.assert_allclose(read_image(path)[..., 0], expected, rtol=1e-6, atol=1e-9)


def test_a_tiff_of_12_bits_is_divided_by_4095(tmp_path):
    shades = np.random.default_rng(0).integers(0, 4096, (7, 10))
    digits = (shades[..., None] >> np.arange(12)[::-1]) & 1
    rows = [row.tobytes() for row in np.packbits(digits.reshape(7, -1).astype("uint8"), axis=1)]
    path = written(tmp_path, tiff(rows, 10, 12))
    np.testing.assert_allclose(read_image(path)[..., 0], shades / 4095.0, rtol=1e-6)


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_floats_from_0_to_1_are_kept_as_they_are(tmp_path, byte_order):
    shades = np.random.default_rng(0).uniform(size=(7, 11)).astype("float32")
    rows = [row.astype(f"{byte_order}f4").tobytes() for row in shades]
    np.testing.assert_array_equal(
        read_image(written(tmp_path, tiff(rows, 11, 32, kind=3, byte_order=byte_order)))[..., 0], shades
    )


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_every_shade_of_a_tiff_of_16_bit_colours_is_kept(tmp_path, byte_order, is_packed):
    colours = np.random.default_rng(0).integers(0, 4096, (7, 11, 3))
    rows = [row.astype(f"{byte_order}u2").tobytes() for row in colours]
    path = written(tmp_path, tiff(rows, 11, 16, num_samples=3, byte_order=byte_order, is_packed=is_packed))
    np.testing.assert_allclose(read_image(path), colours / 65535.0, rtol=1e-6)


def rows_of(values, dtype):
    return [row.astype(dtype).tobytes() for row in np.asarray(values).reshape(7, -1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            tiff(rows_of(np.linspace(0, 255, 77), "<f4"), 11, 32, kind=3),
            r"from 0 \(black\) to 1 .*; got floats from 0 to 255",
        ),
        (tiff(rows_of(np.linspace(-1, 1, 77), "<f4"), 11, 32, kind=3), "got floats from -1 to 1"),
        (tiff(rows_of(np.full(77, np.nan), "<f4"), 11, 32, kind=3), "got floats from nan to nan"),
        (tiff(rows_of(np.arange(77), "<u4"), 11, 32), "32 bits a sample"),
        (tiff(rows_of(np.arange(77), "<i4"), 11, 32, kind=2), "signed integers"),
        (tiff(rows_of(np.arange(77), "<i2"), 11, 16, kind=2), "signed integers"),
        (tiff(rows_of(np.arange(77), "i1"), 11, 8, kind=2), "signed integers"),
    ],
)
def test_samples_whose_black_and_white_nobody_knows_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_image(written(tmp_path, content))


# Colours


def test_colours_of_8_bits_are_divided_by_255(tmp_path):
    for suffix, options in ((".png", {}), (".bmp", {}), (".tif", {}), (".webp", {"lossless": True})):
        path = saved(tmp_path, Image.fromarray(RGB), suffix, **options)
        np.testing.assert_allclose(read_image(path), RGB / 255.0, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tif", ".bmp"])
def test_palettes_are_looked_up(tmp_path, suffix):
    palette = np.random.default_rng(0).integers(0, 256, (16, 3), dtype=np.uint8)
    indices = np.random.default_rng(1).integers(0, 16, (7, 11), dtype=np.uint8)
    image = Image.fromarray(indices, "L").convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(palette.tobytes())
    np.testing.assert_allclose(read_image(saved(tmp_path, image, suffix)), palette[indices] / 255.0, rtol=1e-6)


def test_inks_become_light(tmp_path):
    inks = np.random.default_rng(0).integers(0, 256, (7, 11, 4), dtype=np.uint8)
    path = saved(tmp_path, Image.frombytes("CMYK", (11, 7), inks.tobytes()), ".tif")
    expected = (1.0 - inks[..., :3] / 255.0) * (1.0 - inks[..., 3:] / 255.0)
    np.testing.assert_allclose(read_image(path), expected, atol=0.5001 / 255.0 + 1e-6)


def test_lab_is_refused(tmp_path):
    with pytest.raises(ValueError, match="mode 'LAB'"):
        read_image(saved(tmp_path, Image.new("LAB", (11, 7)), ".tif"))


# Transparency


@pytest.mark.parametrize(
    ("suffix", "options"), [(".png", {}), (".tif", {}), (".webp", {"lossless": True, "exact": True})]
)
def test_what_is_transparent_is_seen_before_black(tmp_path, suffix, options):
    path = saved(tmp_path, Image.fromarray(np.dstack([RGB, ALPHA])), suffix, **options)
    np.testing.assert_allclose(read_image(path), before_black(RGB, ALPHA), rtol=1e-6)


def test_transparent_shades_stay_grey(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.dstack([RGB[..., 0], ALPHA]), "LA"), ".png")
    np.testing.assert_allclose(read_image(path), before_black(RGB[..., :1], ALPHA), rtol=1e-6)


def test_what_is_wholly_opaque_is_as_without_alpha(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.dstack([RGB, np.full_like(ALPHA, 255)])), ".png")
    np.testing.assert_allclose(read_image(path), RGB / 255.0, rtol=1e-6)


def test_black_on_transparent_is_refused_for_nothing_would_be_left(tmp_path):
    logo = np.zeros((7, 11, 4), np.uint8)
    logo[2:5, 2:5, 3] = 255
    with pytest.raises(ValueError, match=r"visible before a black background; got black on transparent"):
        read_image(saved(tmp_path, Image.fromarray(logo), ".png"))


# Orientation


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_images_are_turned_upright(tmp_path, suffix, orientation):
    image = Image.fromarray(as_stored(RGB, orientation))
    options = {"lossless": True} if suffix == ".webp" else {}
    block = Image.Exif()
    block[274] = orientation
    path = saved(tmp_path, image, suffix, exif=block, **options)
    np.testing.assert_allclose(read_image(path), RGB / 255.0, rtol=1e-6)


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("num_samples", [1, 3])
def test_deep_images_are_turned_upright(tmp_path, orientation, num_samples):
    samples = np.random.default_rng(0).integers(0, 65536, (7, 11, num_samples))
    path = written(tmp_path, png(as_stored(samples, orientation), 16, orientation=orientation))
    np.testing.assert_allclose(read_image(path), samples / 65535.0, rtol=1e-6)


def test_a_photograph_of_a_phone_held_upright_is_upright(tmp_path):
    # Four flat quarters, which JPEG keeps to a shade or two.
    quarters = np.kron([[10, 240], [120, 60]], np.ones((16, 24))).astype("uint8")
    path = saved(tmp_path, Image.fromarray(as_stored(quarters, 6)), ".jpg", exif=b"Exif\0\0" + exif(6), quality=95)
    np.testing.assert_allclose(read_image(path)[..., 0], quarters / 255.0, atol=2 / 255)


# Animations, damage


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_animations_and_pages_are_refused(tmp_path, suffix):
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    path = saved(tmp_path, first, suffix, save_all=True, append_images=[second])
    with pytest.raises(ValueError, match=r"must hold one image; got 2 frames or pages\. Save the one"):
        read_image(path)


def test_of_a_photograph_with_its_preview_the_photograph_is_read(tmp_path):
    first, second = (Image.fromarray(np.full((8, 8, 3), shade, np.uint8)) for shade in (40, 200))
    path = saved(tmp_path, first, ".mpo", save_all=True, append_images=[second])
    np.testing.assert_allclose(read_image(path), 40 / 255, atol=1 / 255)


def test_a_gif_that_leaves_a_part_of_its_screen_open_is_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB).quantize(16), ".gif")
    content = bytearray(path.read_bytes())
    struct.pack_into("<HH", content, 6, 20, 20)
    with pytest.raises(ValueError, match="whose frame fills its screen"):
        read_image(written(tmp_path, bytes(content)))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of fields that it cannot read
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".webp", ".bmp", ".tif"])
def test_every_damaged_file_is_one_sentence(tmp_path, suffix):
    whole = saved(tmp_path, Image.fromarray(RGB), suffix).read_bytes()
    rng = np.random.default_rng(0)
    for length in range(0, len(whole) - 1, max(1, len(whole) // 40)):
        content = bytearray(whole[:length])
        if length > 20:
            content[rng.integers(10, length)] ^= 0xFF
        path = written(tmp_path, bytes(content))
        try:
            assert read_image(path).shape[-1] in (1, 3)
        except ValueError as error:
            assert str(error).startswith(str(path))  # noqa: PT017  # some cuts leave a whole image


# Size


def bilinear_weights(old, new):
    """Triangles as wide as a new pixel, or an old one where that is wider; float64 `(new, old)`."""
    scale = old / new
    reach = max(scale, 1.0)
    centres = (np.arange(new) + 0.5) * scale
    distances = np.abs(np.arange(old) + 0.5 - centres[:, None])
    weights = np.maximum(1.0 - distances / reach, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(3, 5), (7, 11), (20, 30), (1, 1), (14, 4)])
@pytest.mark.parametrize("num_channels", [1, 3])
def test_resizing_is_bilinear_over_every_pixel(size, num_channels):
    image = np.random.default_rng(0).uniform(size=(7, 11, num_channels)).astype("float32")
    down, across = bilinear_weights(7, size[0]), bilinear_weights(11, size[1])
    expected = np.einsum("ij,kl,jlc->ikc", down, across, image.astype(float))
    np.testing.assert_allclose(resized(image, size), expected, atol=1e-6)
    rounded = resized((image * 255).astype("uint8"), size)
    expected = np.einsum("ij,kl,jlc->ikc", down, across, (image * 255).astype("uint8").astype(float))
    assert rounded.dtype == np.uint8
    np.testing.assert_allclose(rounded, expected, atol=0.5 + 1e-4)


# Folders


def folder_of(tmp_path, num_images=6):
    for class_name in ("cat", "dog"):
        (tmp_path / class_name).mkdir()
        for index in range(num_images):
            shades = np.full((4, 3), 10 * index, np.uint8)
            Image.fromarray(shades).save(tmp_path / class_name / f"{index}.png")
    return tmp_path


def test_hidden_folders_leavings_of_archivers_and_folders_without_images_are_no_classes(tmp_path):
    folder = folder_of(tmp_path)
    for name in ("__MACOSX/cat", ".thumbnails", "@eaDir", ".git/objects", "cat/.thumbnails", "dog/__MACOSX"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((4, 3), 255, np.uint8)).save(folder / name / "x.png")
    (folder / "cat/._0.png").write_bytes(b"what macOS keeps beside a file")
    (folder / "documents").mkdir()
    (folder / "documents/licence.txt").write_text("CC0")
    (folder / "cat/Thumbs.db").write_bytes(b"Windows")
    dataset = data.load(folder)
    assert dataset.class_names == ("cat", "dog")
    assert sum(map(len, (dataset.train, dataset.validation, dataset.test))) == 12
    assert max(split.inputs.max() for split in (dataset.train, dataset.validation, dataset.test)) < 0.3


def test_an_image_of_a_format_that_is_not_read_is_no_example_lost_without_a_word(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "cat/photo.HEIC").write_bytes(b"a photograph")
    with pytest.raises(ValueError, match=r"photo\.HEIC must be an image of .*\.png.*; got \.heic"):
        data.load(folder)


def test_images_of_several_depths_are_on_one_scale(tmp_path):
    folder = folder_of(tmp_path)
    for index, shade in enumerate((0, 1000, 30000, 65535)):
        Image.fromarray(np.full((4, 3), shade, np.uint16)).save(folder / f"dog/deep{index}.png")
    dataset = data.load(folder)
    shades = sorted(
        float(image.mean()) for split in (dataset.train, dataset.validation, dataset.test) for image in split.inputs
    )
    expected = sorted([10 * index / 255 for index in range(6)] * 2 + [0, 1000 / 65535, 30000 / 65535, 1.0])
    np.testing.assert_allclose(shades, expected, rtol=1e-5)


def test_one_image_of_colour_gives_all_of_them_three_channels(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        folder_of(tmp_path / split)
    Image.fromarray(np.full((4, 3, 3), (250, 0, 0), np.uint8)).save(tmp_path / "test/dog/red.png")
    dataset = data.load(tmp_path)
    assert dataset.input_shape == (4, 3, 3)
    np.testing.assert_array_equal(dataset.train.inputs[..., 0], dataset.train.inputs[..., 2])
    np.testing.assert_allclose(dataset.test.inputs[-1], np.broadcast_to([250 / 255, 0, 0], (4, 3, 3)), rtol=1e-6)
