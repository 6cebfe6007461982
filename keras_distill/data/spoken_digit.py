"""`spoken_digit`: 3000 recordings of spoken digits (FSDD) as log-mel spectrograms of one size.

The features are arithmetic on NumPy arrays, here in full: no audio package is needed.
"""

from itertools import pairwise

import numpy as np

from keras_distill._checks import error_message
from keras_distill.data import local_data, tfds
from keras_distill.data.dataset import Dataset, Split

LICENCE = "CC BY-SA 4.0 (Free Spoken Digit Dataset, Zohar Jackson and others)"
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SAMPLE_RATE = 8000
NUM_FRAMES = 64
NUM_MELS = 40
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

    Pre-emphasis 0.97, Hamming windows of 25 ms every 10 ms, 40 triangular bands from 60 Hz to 4 kHz.
    Utterances of more than 64 frames (0.65 s) are cut, shorter ones are followed by zeros, the mean.

    Args:
        audio: int16 or float samples at 8 kHz, `(num_samples,)`.

    Returns:
        float32 `(64, 40)`, in nats (log of energy).

    Reference:
        Davis and Mermelstein, 1980; Hinton et al., section 3, uses 40 such bands.
    """
    samples = np.asarray(audio, "float64") / 32768.0
    emphasised = np.append(samples[:1], samples[1:] - 0.97 * samples[:-1])
    frame_length, frame_step = int(0.025 * SAMPLE_RATE), int(0.010 * SAMPLE_RATE)
    padded = np.pad(emphasised, (0, max(0, frame_length - len(emphasised))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, frame_length)[::frame_step]
    power = np.abs(np.fft.rfft(frames * np.hamming(frame_length), n=256)) ** 2
    energies = np.log(power @ mel_filters().T + 1e-8)
    # Silence: 6 nats (26 dB) below the loudest frame, at either end.
    loudness = energies.max(axis=1)
    loud = np.flatnonzero(loudness > loudness.max() - 6.0)
    energies = energies[loud[0] : loud[-1] + 1]
    energies = (energies - energies.mean(axis=0))[:NUM_FRAMES]
    return np.pad(energies, ((0, NUM_FRAMES - len(energies)), (0, 0))).astype("float32")


def mel_filters(num_bins: int = 129) -> np.ndarray:
    """Triangles of equal width on the mel scale, `(40, num_bins)`, over the bins of a 256-point spectrum at 8 kHz."""
    lowest, highest = (2595.0 * np.log10(1.0 + hertz / 700.0) for hertz in (60.0, SAMPLE_RATE / 2))
    corners = 700.0 * (10.0 ** (np.linspace(lowest, highest, NUM_MELS + 2) / 2595.0) - 1.0)
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, num_bins)
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling))
