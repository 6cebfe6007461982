"""`spoken_digit`: 3000 recordings of spoken digits (FSDD) as log-mel spectrograms of one size.

The features are arithmetic on NumPy arrays, in the kit's `sound.py`: no audio package is needed.
"""

from itertools import pairwise

import numpy as np

from keras_distill._checks import error_message
from keras_distill._kit import kit_module
from keras_distill.data import local_data, tfds
from keras_distill.data.dataset import Dataset, Split

LICENCE = "CC BY-SA 4.0 (Free Spoken Digit Dataset, Zohar Jackson and others)"
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SOUND = kit_module("sound")
SAMPLE_RATE: int = _SOUND.SAMPLE_RATE
NUM_FRAMES: int = _SOUND.NUM_FRAMES
NUM_MELS: int = _SOUND.NUM_MELS
REQUIRED = ("audio", "offsets", "digit", "speaker", "index")
# The official test split is takes 0 to 4 of every speaker and digit; we validate on the next five.
NUM_TEST_TAKES = 5
NUM_VALIDATION_TAKES = 5


def load_spoken_digit() -> Dataset:
    """Loads `spoken_digit`: inputs float32 `(64, 40, 1)`, 64 frames of 40 log-mel energies.

    Takes 0–4 of every speaker and digit test, as the dataset's authors have it; takes 5–9 validate.
    Read from `fsdd.npz` in `KERAS_DISTILL_DATA`, else downloaded by tensorflow-datasets.

    Raises:
        OSError: it is neither local nor to be downloaded.
    """
    path = local_data.find("fsdd.npz")
    if path:
        recordings, digits, speakers, takes = read_fsdd(local_data.read_arrays(path, REQUIRED))
    else:
        recordings, digits, speakers, takes = read_tfds()
    # Ids are positions, so the order must not depend on where the data came from.
    order = np.lexsort((takes, speakers, digits))
    inputs = np.stack([log_mel(recordings[position]) for position in order])[..., None]
    full = Split(inputs, digits[order].astype("int32"))
    takes = takes[order]
    is_test = takes < NUM_TEST_TAKES
    is_validation = ~is_test & (takes < NUM_TEST_TAKES + NUM_VALIDATION_TAKES)
    return Dataset(
        name="spoken_digit",
        train=full.take(np.flatnonzero(~is_test & ~is_validation)),
        validation=full.take(np.flatnonzero(is_validation)),
        test=full.take(np.flatnonzero(is_test)),
        class_names=CLASS_NAMES,
        licence=LICENCE,
    )


def read_fsdd(arrays: dict[str, np.ndarray]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Recordings, digits, speakers and takes from the arrays of `fsdd.npz`: `audio[offsets[i]:offsets[i + 1]]`."""
    audio, offsets = arrays["audio"], arrays["offsets"]
    recordings = [audio[start:end] for start, end in pairwise(offsets)]
    digits, speakers, takes = arrays["digit"], arrays["speaker"], arrays["index"].astype(int)
    if not len(recordings) == len(digits) == len(speakers) == len(takes):
        received = f"{len(recordings)} recordings and {len(digits)} digits"
        raise ValueError(error_message("fsdd.npz must be a file with as many labels as recordings", received))
    return recordings, digits, speakers, takes


def read_tfds() -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """The same from tensorflow-datasets, where a file is called `DIGIT_SPEAKER_TAKE.wav`."""
    recordings, names = [], []
    for example in tfds.prepared_builder("spoken_digit").as_dataset(split="train").as_numpy_iterator():
        recordings.append(example["audio"])
        names.append(example["audio/filename"].decode().removesuffix(".wav").split("_"))
    digits, speakers, takes = zip(*names, strict=True)
    return recordings, np.array(digits, int), np.array(speakers), np.array(takes, int)


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Log-mel energies of one recording, silence trimmed, each band's mean over the utterance removed.

    The arithmetic is the kit's (`export/sound.py`), so that a device repeats it on a .wav file bit for bit.

    Args:
        audio: int16 or float samples at 8 kHz, `(num_samples,)`.

    Returns:
        float32 `(64, 40)`, in nats (log of energy).
    """
    return _SOUND.log_mel(audio)


def mel_filters(num_bins: int = 129) -> np.ndarray:
    """Triangles of equal width on the mel scale, `(40, num_bins)`, over the bins of a 256-point spectrum at 8 kHz."""
    return _SOUND.mel_filters(num_bins)
