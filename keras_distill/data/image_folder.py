"""A folder of the user's own images, one folder a class."""

from pathlib import Path

import numpy as np

from keras_distill._checks import error_message
from keras_distill.data.dataset import Dataset, Split, carve

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
VALIDATION_NAMES = ("validation", "val", "valid")


def load_image_folder(folder: Path, image_size: tuple[int, int] | None = None) -> Dataset:
    """Loads `folder/train/CLASS/*` and `folder/test/CLASS/*`, or `folder/CLASS/*`.

    The classes are the names of the folders, sorted. `folder/validation/` (or `val`) may exist; else a
    stratified tenth of the training images validates. Without a `train` folder a stratified fifth of
    all images tests. Both are the same ones every time. Images become float32 in [0, 1],
    `(height, width, 1)` where all of them are grey and `(height, width, 3)` otherwise.

    Args:
        folder: where the images are.
        image_size: `(height, width)` that every image is resized to, bilinearly; `None` asks for
            images of one size.

    Raises:
        ValueError: no images, images of several sizes, an unreadable image, or test classes that
            training lacks.
        ImportError: Pillow is not installed.
    """
    has_splits = (folder / "train").is_dir()
    if has_splits and not (folder / "test").is_dir():
        raise ValueError(error_message(f"{folder} must be a folder with test/ beside train/", "no test/"))
    class_names = classes_of(folder / "train" if has_splits else folder)
    grey = is_grey(folder)
    if has_splits:
        train = read_split(folder / "train", class_names, image_size, grey)
        test = read_split(folder / "test", class_names, image_size, grey)
    else:
        train, test = _carve(folder, read_split(folder, class_names, image_size, grey), 0.2, seed=1)
    validation_folder = next((folder / name for name in VALIDATION_NAMES if (folder / name).is_dir()), None)
    if has_splits and validation_folder:
        validation = read_split(validation_folder, class_names, image_size, grey)
    else:
        train, validation = _carve(folder, train, 0.1)
    return Dataset(folder.resolve().name, train, validation, test, class_names, "not stated")


def _carve(folder: Path, split: Split, fraction: float, seed: int = 0) -> tuple[Split, Split]:
    if len(split) < 2:
        raise ValueError(error_message(f"{folder!s} must be a folder with at least 3 images", len(split)))
    return carve(split, max(1, round(len(split) * fraction)), seed)


def classes_of(folder: Path) -> tuple[str, ...]:
    """The names of the classes: the sub-folders, sorted."""
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        remedy = f"Put the images of each class into a folder of its own, {folder}/CLASS/."
        raise ValueError(error_message(f"{folder!s} must be a folder with one folder a class", "no folders", remedy))
    return names


def image_files(folder: Path) -> list[Path]:
    """Every image below `folder`, sorted by path, so that a position names the same image on every machine."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def read_split(folder: Path, class_names: tuple[str, ...], image_size: tuple[int, int] | None, grey: bool) -> Split:
    """Reads `folder/CLASS/*` into arrays of one shape."""
    unknown = sorted(set(classes_of(folder)) - set(class_names))
    if unknown:
        raise ValueError(
            error_message(f"the classes in {folder} must be among {', '.join(class_names)}", ", ".join(unknown))
        )
    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        for path in image_files(folder / class_name):
            image = read_image(path, grey)
            if image_size:
                image = resized(image, image_size)
            if images and image.shape != images[0].shape:
                received = f"{images[0].shape[:2]} and {image.shape[:2]} ({path})"
                remedy = "Pass image_size=(height, width) to resize them."
                raise ValueError(error_message(f"the images in {folder} must have one size", received, remedy))
            images.append(image)
            labels.append(label)
    if not images:
        raise ValueError(error_message(f"{folder!s} must be a folder with images ({' '.join(SUFFIXES)})", "none"))
    return Split(np.stack(images).astype("float32") / np.float32(255.0), np.array(labels, "int32"))


def is_grey(folder: Path) -> bool:
    """Whether every image below `folder` is stored in shades of grey."""
    for path in image_files(folder):
        with _open(path) as image:
            if image.mode not in ("1", "L", "LA") and not image.mode.startswith("I"):
                return False
    return True


def read_image(path: Path, grey: bool) -> np.ndarray:
    """Reads one image, uint8 `(height, width, 1)` where `grey`, else `(height, width, 3)`."""
    with _open(path) as image:
        try:
            if image.mode.startswith("I"):
                # 16 bits a pixel, which Pillow's own conversion would cut off at 255.
                shades = (np.asarray(image) // 257).astype("uint8")[..., None]
                return shades if grey else np.repeat(shades, 3, axis=-1)
            pixels = np.asarray(image.convert("L" if grey else "RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                error_message(f"{path!s} must be a readable image", str(error), "Delete or replace it.")
            ) from error
    return pixels[..., None] if grey else pixels


def resized(image: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """`image`, uint8 `(height, width, channels)`, resized bilinearly to `image_size`, `(height, width)`."""
    from PIL import Image

    num_channels = image.shape[-1]
    height, width = image_size
    picture = Image.fromarray(image[..., 0] if num_channels == 1 else image)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return pixels.reshape(height, width, num_channels)


def _open(path: Path):
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading an image folder needs Pillow; install it with `pip install pillow`.") from error
    try:
        return Image.open(path)
    except OSError as error:
        raise ValueError(
            error_message(f"{path!s} must be a readable image", str(error), "Delete or replace it.")
        ) from error
