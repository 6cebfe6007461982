"""A folder of the user's own images, one folder a class."""

from pathlib import Path

import numpy as np

from keras_distill._checks import error_message
from keras_distill.data.dataset import Dataset, Split, carve
from keras_distill.data.image_file import OTHER_SUFFIXES, SUFFIXES, read_image, resized

VALIDATION_NAMES = ("validation", "val", "valid")
# What archivers, network drives and operating systems leave beside a user's folders, besides names with a dot in front.
LEFT_BY_SYSTEMS = ("__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found")


def load_image_folder(folder: Path, image_size: tuple[int, int] | None = None) -> Dataset:
    """Loads `folder/train/CLASS/*` and `folder/test/CLASS/*`, or `folder/CLASS/*`.

    The classes are the names of the folders, sorted; hidden folders, what systems leave (`__MACOSX`, …) and folders
    that hold files but no images are none. `folder/validation/` (or `val`) may exist; else a stratified tenth of the
    training images validates. Without a `train` folder a stratified fifth of all images tests. Both are the same ones
    every time. Images become float32 in [0, 1] as `read_image` says: of every depth, upright, before a black
    background where they are transparent; `(height, width, 1)` where all of them are grey, else `(height, width, 3)`.

    Args:
        folder: where the images are.
        image_size: `(height, width)` that every image is resized to, bilinearly; `None` asks for
            images of one size.

    Raises:
        ValueError: no images, images of several sizes, an image that `read_image` refuses or whose format is not read,
            or test classes that training lacks.
        ImportError: Pillow is not installed.
    """
    folders = {"train": folder}
    if (folder / "train").is_dir():
        if not (folder / "test").is_dir():
            raise ValueError(error_message(f"{folder} must be a folder with test/ beside train/", "no test/"))
        folders = {"train": folder / "train", "test": folder / "test"}
        validation_folder = next((folder / name for name in VALIDATION_NAMES if (folder / name).is_dir()), None)
        if validation_folder:
            folders["validation"] = validation_folder
    class_names = classes_of(folders["train"])
    read = {name: read_images(place, class_names, image_size) for name, place in folders.items()}
    num_channels = max(image.shape[-1] for images, _ in read.values() for image in images)
    splits = {name: _split(images, labels, num_channels) for name, (images, labels) in read.items()}
    train, test, validation = splits["train"], splits.get("test"), splits.get("validation")
    if test is None:
        train, test = _carve(folder, train, 0.2, seed=1)
    if validation is None:
        train, validation = _carve(folder, train, 0.1)
    return Dataset(folder.resolve().name, train, validation, test, class_names, "not stated")


def classes_of(folder: Path) -> tuple[str, ...]:
    """The names of the classes: the sub-folders that hold images, or nothing yet, sorted."""
    visible = [path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)]
    names = tuple(sorted(path.name for path in visible if image_files(path) or _is_empty(path)))
    if not names:
        remedy = f"Put the images of each class into a folder of its own, {folder}/CLASS/."
        raise ValueError(error_message(f"{folder} must be a folder with one folder a class", "no folders", remedy))
    return names


def image_files(folder: Path) -> list[Path]:
    """Every image below `folder`, sorted by path, so that a position names the same image on every machine.

    Raises:
        ValueError: an image of a format that is not read.
    """
    found = []
    for path in folder.rglob("*"):
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES + OTHER_SUFFIXES or any(map(is_hidden, path.relative_to(folder).parts)):
            continue
        if not path.is_file():
            continue
        if suffix in OTHER_SUFFIXES:
            remedy = "Save it in one of these formats, or move it elsewhere."
            raise ValueError(error_message(f"{path} must be an image of {' '.join(SUFFIXES)}", suffix, remedy))
        found.append(path)
    return sorted(found)


def read_images(
    folder: Path, class_names: tuple[str, ...], image_size: tuple[int, int] | None
) -> tuple[list[np.ndarray], list[int]]:
    """Reads `folder/CLASS/*`: images of one height and width, grey ones of one channel, and the labels of all."""
    unknown = sorted(set(classes_of(folder)) - set(class_names))
    if unknown:
        expectation = f"the classes in {folder} must be among {', '.join(class_names)}"
        raise ValueError(error_message(expectation, ", ".join(unknown)))
    images: list[np.ndarray] = []
    labels: list[int] = []
    for label, class_name in enumerate(class_names):
        for path in image_files(folder / class_name):
            image = read_image(path)
            if image_size:
                image = resized(image, image_size)
            if images and image.shape[:2] != images[0].shape[:2]:
                received = f"{images[0].shape[:2]} and {image.shape[:2]} ({path})"
                remedy = "Pass image_size=(height, width) to resize them."
                raise ValueError(error_message(f"the images in {folder} must have one size", received, remedy))
            images.append(image)
            labels.append(label)
    if not images:
        raise ValueError(error_message(f"{folder} must be a folder with images ({' '.join(SUFFIXES)})", "none"))
    return images, labels


def _split(images: list[np.ndarray], labels: list[int], num_channels: int) -> Split:
    """Images as one array, grey ones in three channels where any image is of colour."""
    inputs = np.empty((len(images), *images[0].shape[:2], num_channels), "float32")
    for position, image in enumerate(images):
        inputs[position] = image
    return Split(inputs, np.array(labels, "int32"))


def _carve(folder: Path, split: Split, fraction: float, seed: int = 0) -> tuple[Split, Split]:
    if len(split) < 2:
        raise ValueError(error_message(f"{folder} must be a folder with at least 3 images", len(split)))
    return carve(split, max(1, round(len(split) * fraction)), seed)


def is_hidden(name: str) -> bool:
    """Whether a file or a folder is nothing that the user put there, by its name."""
    return name.startswith(".") or name in LEFT_BY_SYSTEMS


def _is_empty(folder: Path) -> bool:
    return all(is_hidden(path.name) for path in folder.iterdir())
