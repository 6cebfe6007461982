"""One image file as an array: its depth, colours, transparency and orientation as the file says, or refused.

Here Pillow is asked; `export/web/image.js` reads files for the page of a bundle by the same rules, so that a student is
shown there what it was trained on. Change the two together.
"""

import struct
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from keras_distill._checks import error_message

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff")
# Images too, but in formats that are not read here: to pass over them would lose examples without a word.
OTHER_SUFFIXES = (
    ".apng", ".avif", ".cr2", ".dcm", ".dng", ".exr", ".hdr", ".heic", ".heif", ".j2k", ".jp2", ".jxl", ".nef", ".pbm",
    ".pgm", ".pnm", ".ppm", ".psd", ".svg", ".tga",
)  # fmt: skip
GREY_MODES = ("1", "L", "LA", "La")
COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
# TIFF's own names of the fields that Pillow's mode does not tell.
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION, _SAMPLE_FORMAT = 258, 262, 274, 339
_WHITE_IS_ZERO, _UNSIGNED, _FLOAT = 0, 1, 3


def read_image(path: Path) -> np.ndarray:
    """Reads one image as its file says it.

    - Depth: 1 to 16 bits a sample, divided by the largest value that so many bits hold; float32 TIFFs in [0, 1].
    - Colours: palettes are looked up, CMYK and YCbCr converted; colour profiles and gamma are left aside.
    - Transparency: what is behind it is black, and partly transparent pixels of 8 bits are rounded to 8 bits.
    - Orientation: turned upright where EXIF says how.

    Args:
        path: a PNG, JPEG, BMP, WebP, GIF or TIFF file, whatever its name.

    Returns:
        float32 in [0, 1]: `(height, width, 1)` where the file stores shades of grey, else `(height, width, 3)`.

    Raises:
        ValueError: the file is damaged, an animation or of several pages; its samples are of a kind that has no
            certain black and white (32-bit integers, signed integers, floats outside [0, 1]) or that is not read here
            (Lab, inks of 16 bits); all that it shows is black before a transparent background.
        ImportError: Pillow is not installed.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> path = Path(tempfile.mkdtemp()) / "deep.png"
        >>> Image.fromarray(np.array([[0, 13107, 65535]], "uint16")).save(path)
        >>> read_image(path)[..., 0]
        array([[0. , 0.2, 1. ]], dtype=float32)
    """
    image, orientation = _loaded(path)
    pixels, alpha = _samples(path, image)
    if alpha is not None:
        pixels = _before_black(path, pixels, alpha)
    largest = np.iinfo(np.uint8).max if pixels.dtype == np.uint8 else 1
    return np.ascontiguousarray(_upright(pixels, orientation), "float32") / np.float32(largest)


def resized(image: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """An image resized bilinearly, of the same dtype; where it shrinks, every pixel counts (Pillow's way).

    Args:
        image: `(height, width, channels)`, numbers.
        image_size: `(height, width)` that is wanted; the proportions of the image are not kept.

    Example:
        >>> resized(np.array([[[0.0], [1.0]], [[0.0], [1.0]]], "float32"), (1, 4))[0, :, 0]
        array([0.  , 0.25, 0.75, 1.  ], dtype=float32)
    """
    pillow = _pillow()
    height, width = image_size
    # In floats and channel by channel, which Pillow does for every depth and any number of channels.
    channels = [
        np.asarray(pillow.fromarray(channel).resize((width, height), pillow.Resampling.BILINEAR))
        for channel in np.moveaxis(image.astype("float32"), -1, 0)
    ]
    pixels = np.stack(channels, axis=-1)
    if np.issubdtype(image.dtype, np.integer):
        pixels = np.rint(pixels)
    return pixels.astype(image.dtype)


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading images needs Pillow; install it with `pip install pillow`.") from error
    return Image


def _loaded(path: Path) -> tuple["Image.Image", int]:
    """The one image in a file, and its EXIF orientation, 1 to 8."""
    pillow = _pillow()
    broken = (OSError, SyntaxError, EOFError, IndexError, TypeError, ValueError, struct.error, zlib.error)
    try:
        with pillow.open(path) as image:
            # An MPO is a photograph with another beside it, a preview or a map of its lights; viewers show the first.
            num_frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
            if num_frames == 1:
                covers_all = image.format != "GIF" or image.tile[0][1] == (0, 0, *image.size)
                image.load()
                # Of EXIF alone: Pillow would take XMP's word too, browsers do not.
                for name in ("xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
                    image.info.pop(name, None)
                # Of a TIFF there is none left: Pillow turns it as it loads it.
                orientation = image.getexif().get(_ORIENTATION, 1)
    except (*broken, pillow.DecompressionBombError) as error:
        remedy = "Delete or replace it."
        raise ValueError(error_message(f"{path} must be a readable image", str(error), remedy)) from error
    if num_frames > 1:
        remedy = "Save the one that shows the class, or each of them, as a file of its own."
        raise ValueError(error_message(f"{path} must hold one image", f"{num_frames} frames or pages", remedy))
    if not covers_all:
        remedy = "Save it with a frame as large as its screen."
        raise ValueError(error_message(f"{path} must be a GIF whose frame fills its screen", "a smaller one", remedy))
    return image, orientation


def _samples(path: Path, image: "Image.Image") -> tuple[np.ndarray, np.ndarray | None]:
    """What the file stores: pixels `(height, width, 1 or 3)`, uint8 or floats in [0, 1]; alpha alike, or `None`."""
    if image.format == "PNG" and _png_bits(path) == 16:
        return _samples_of_deep_png(path, image)
    if image.format == "TIFF" and (deep := _samples_of_deep_tiff(path, image)) is not None:
        return deep, None
    if image.mode not in GREY_MODES + COLOUR_MODES:
        raise _unreadable(path, f"samples of Pillow's mode {image.mode!r}")
    if image.mode == "CMYK":
        image = image.convert("RGB")
    if image.format == "PNG" and image.mode == "L" and "transparency" in image.info:
        # Pillow spreads shades of 2 or 4 bits over 8, but not the one shade that the file calls transparent.
        image.info["transparency"] *= 255 // (2 ** _png_bits(path) - 1)
    is_transparent = "transparency" in image.info or image.mode[-1] in "Aa"
    is_grey = image.mode in GREY_MODES
    if not is_transparent:
        pixels = np.asarray(image.convert("L" if is_grey else "RGB"))
        return pixels.reshape(*pixels.shape[:2], -1), None
    pixels = np.asarray(image.convert("LA" if is_grey else "RGBA"))
    return pixels[..., :-1], pixels[..., -1]


def _png_bits(path: Path) -> int:
    # Pillow opens colours of 16 bits as if they were 8: the file's header knows.
    with open(path, "rb") as file:
        return file.read(25)[24]


def _samples_of_deep_png(path: Path, image: "Image.Image") -> tuple[np.ndarray, np.ndarray | None]:
    samples = np.asarray(image)[..., None] if image.mode.startswith("I") else _deep_colours(path)
    shares = samples / 65535.0
    if samples.shape[-1] in (2, 4):
        return shares[..., :-1], shares[..., -1]
    if "transparency" in image.info:
        # One colour of the file is transparent: the shade, or the three shades, that its tRNS chunk names.
        return shares, (samples != np.reshape(image.info["transparency"], -1)).any(-1).astype(float)
    return shares, None


def _samples_of_deep_tiff(path: Path, image: "Image.Image") -> np.ndarray | None:
    """The samples of a TIFF that is deeper than 8 bits, in [0, 1]; `None` where it is no deeper."""
    fields = image.tag_v2  # type: ignore[attr-defined]  # of Pillow's TIFF images alone
    bits = max(fields.get(_BITS_PER_SAMPLE, (1,)))
    kinds = set(fields.get(_SAMPLE_FORMAT, (_UNSIGNED,)))
    if image.mode == "F" and kinds == {_FLOAT}:
        samples = np.asarray(image)[..., None]
        if not ((samples >= 0.0) & (samples <= 1.0)).all():
            received = f"floats from {samples.min():g} to {samples.max():g}"
            remedy = "Divide by what white is, and save as float32 or 16-bit grey."
            raise ValueError(error_message(f"{path} must hold floats from 0 (black) to 1 (white)", received, remedy))
    elif kinds != {_UNSIGNED}:
        raise _unreadable(path, "signed integers or floats of another size")
    elif bits <= 8:
        return None
    elif image.mode.startswith("I;16"):
        samples = np.asarray(image)[..., None] / (2.0**bits - 1.0)
    elif image.mode == "RGB" and bits == 16:
        samples = _deep_colours(path) / 65535.0
    else:
        raise _unreadable(path, f"{bits} bits a sample, mode {image.mode!r}")
    # Pillow turns the shades round itself where 8 bits or fewer count from white to black, and only there.
    return 1.0 - samples if fields.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else samples


def _deep_colours(path: Path) -> np.ndarray:
    """Colours of 16 bits, integers `(height, width, 2 to 4)`.

    Pillow has no such images and keeps the upper byte of each sample. Told that the file has the other byte order, it
    keeps the lower one.
    """
    pillow = _pillow()
    with pillow.open(path) as image:
        upper = np.asarray(image).astype("uint16")
    with pillow.open(path) as image:
        has_shades = "LA;16B" in image.tile[0]
        image.tile = [_lower_bytes(path, part) for part in image.tile]
        lower = np.asarray(image).astype("uint16")
    if has_shades:
        # A shade and its alpha, two bytes each, were read as if they were a colour of 8 bits.
        return 256 * lower[..., ::2] + lower[..., 1::2]
    return 256 * upper + lower


def _lower_bytes(path: Path, part: tuple) -> tuple:
    """A part of an image as Pillow is told to read it, changed to give the other byte of each sample."""
    codec, extents, offset, options = part
    raw_mode = options if isinstance(options, str) else options[0]
    orders = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    if raw_mode == "LA;16B":
        lower = "RGBA"
    elif raw_mode[:-1] in ("RGB;16", "RGBX;16", "RGBA;16"):
        lower = raw_mode[:-1] + orders[raw_mode[-1]]
    else:
        raise _unreadable(path, f"16 bits a sample, stored as {raw_mode!r}")
    changed = (codec, extents, offset, lower if isinstance(options, str) else (lower, *options[1:]))
    # A named tuple in newer versions of Pillow, a plain one in older.
    return part._make(changed) if hasattr(part, "_make") else changed


def _unreadable(path: Path, received: str) -> ValueError:
    remedy = "Save it as a PNG: of 8 or 16 bits, grey or RGB."
    expectation = f"{path} must hold shades of 1 to 16 bits, float32 from 0 to 1, or colours of 8 or 16 bits"
    return ValueError(error_message(expectation, received, remedy))


def _before_black(path: Path, pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixels before a black background, of the same dtype."""
    is_eight_bits = pixels.dtype == np.uint8
    shares = pixels * (alpha[..., None] / (255.0 if is_eight_bits else 1.0))
    # As browsers do: so the page of a bundle sees the same.
    flat = np.rint(shares).astype("uint8") if is_eight_bits else shares
    if flat.max() == flat.min() and alpha.max() != alpha.min():
        remedy = "Put it before a background of another colour."
        received = "black on transparent, of which nothing would be left"
        raise ValueError(error_message(f"{path} must be visible before a black background", received, remedy))
    return flat


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels turned upright: EXIF's orientation says on which sides of the picture its first row and column are."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
