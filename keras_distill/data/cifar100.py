"""`cifar100`: 60,000 photographs in 100 classes, 32 × 32 pixels."""

from pathlib import Path

import numpy as np

from keras_distill._checks import error_message
from keras_distill.data import local_data, npz, tfds
from keras_distill.data.dataset import Dataset, Split, carve

LICENCE = "not stated by its authors (Krizhevsky, Nair, Hinton)"
_WORDS = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
    "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
    "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
    "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
    "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
    "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
    "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CLASS_NAMES = tuple(_WORDS.split())


def load_cifar100() -> Dataset:
    """Loads `cifar100`: images float32 `(32, 32, 3)` in [0, 1], 100 fine classes.

    45,000 to train, 5,000 to validate, the official 10,000 to test.
    Read from `cifar100.npz` or the authors' `cifar-100-binary` folder in `KERAS_DISTILL_DATA`, else
    downloaded by tensorflow-datasets.

    Raises:
        OSError: it is neither local nor to be downloaded.
    """
    path = local_data.find("cifar100.npz", "cifar-100-binary")
    if path and path.is_dir():
        pairs = [read_binary(path / f"{name}.bin") for name in ("train", "test")]
    elif path:
        arrays = local_data.read_arrays(path, npz.REQUIRED)
        pairs = [(arrays[f"x_{name}"], arrays[f"y_{name}"]) for name in ("train", "test")]
    else:
        pairs = [tfds.read_split("cifar100", name) for name in ("train", "test")]
    full, test = (
        Split(npz.as_inputs("cifar100's images", images), labels.reshape(-1).astype("int32"))
        for images, labels in pairs
    )
    train, validation = carve(full, len(full) // 10)
    return Dataset("cifar100", train, validation, test, CLASS_NAMES, LICENCE)


def read_binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads `train.bin` or `test.bin`: rows of a coarse label, a fine label and 3 × 32 × 32 pixels, one byte each.

    Returns:
        Images uint8 `(num_items, 32, 32, 3)` and fine labels uint8 `(num_items,)`.
    """
    row_bytes = 2 + 3 * 32 * 32
    content = np.fromfile(path, dtype=np.uint8)
    if not content.size or content.size % row_bytes:
        raise ValueError(error_message(f"{path!s} must have a multiple of {row_bytes} bytes", f"{content.size} bytes"))
    rows = content.reshape(-1, row_bytes)
    return rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 1]
