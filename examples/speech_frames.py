"""Spoken digits as an acoustic model sees them: frames, the states they belong to, and words out of states again.

After section 4 of the paper: 40 log-mel energies every 10 ms, a window of 21 frames, targets from an alignment of
hidden Markov states, frame accuracy, and word errors with a Viterbi decoder. A word here is a digit of three states,
aligned in equal parts. What is trained, and what it shows, is in `speech.py` and `soft_targets_regularise.py`.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill.data import networks, spoken_digit

NUM_MELS, CONTEXT, STATES_A_WORD, NUM_WORDS = 40, 10, 3, 10
NUM_STATES = STATES_A_WORD * NUM_WORDS
SAMPLE_RATE, FRAME_STEP = 8000, 80
# Who is held out: two speakers a fold, of six.
FOLDS = (("george", "lucas"), ("jackson", "nicolas"), ("theo", "yweweler"))
# A throat longer or shorter by that factor moves all resonances along the frequency axis.
VOICES = (1.0, 0.94, 1.06)
# What a teacher labels: four more, between them and beyond.
TRANSFER_VOICES = (*VOICES, 0.97, 1.03, 0.91, 1.09)


@dataclass(frozen=True)
class Frames:
    """Recordings, frame by frame.

    Attributes:
        log_mel: float32 `(num_frames, 40)`, nats, each band's mean over the recording removed.
        recordings: int32 `(num_frames,)`, which recording a frame is of, ascending.
        states: int32 `(num_frames,)`, `3 · digit + third of the word`.
        digits: int32 `(num_recordings,)`.
        speakers: `(num_recordings,)`.
    """

    log_mel: np.ndarray
    recordings: np.ndarray
    states: np.ndarray
    digits: np.ndarray
    speakers: np.ndarray

    def take(self, recordings: np.ndarray) -> "Frames":
        """The recordings at these ascending positions."""
        kept = np.isin(self.recordings, recordings)
        return Frames(
            self.log_mel[kept],
            np.searchsorted(recordings, self.recordings[kept]).astype("int32"),
            self.states[kept],
            self.digits[recordings],
            self.speakers[recordings],
        )

    def windows(self, warp: float = 1.0) -> np.ndarray:
        """Each frame between its ten neighbours on either side, float32 `(num_frames, 21 · 40)`.

        At a recording's ends the outermost frame stands for those that are not there.
        """
        starts = np.searchsorted(self.recordings, self.recordings, side="left")
        stops = np.searchsorted(self.recordings, self.recordings, side="right")
        around = np.arange(len(self.recordings))[:, None] + np.arange(-CONTEXT, CONTEXT + 1)
        around = np.clip(around, starts[:, None], stops[:, None] - 1)
        return _warped(self.log_mel, warp)[around].reshape(len(around), -1)


def load_frames(*, max_recordings: int | None = None) -> Frames:
    """The Free Spoken Digit Dataset as frames: from `fsdd.npz` in KERAS_DISTILL_DATA, else tensorflow-datasets.

    Args:
        max_recordings: how many to read, spread over all speakers and digits; all of them by default.
    """
    path = Path(os.environ.get("KERAS_DISTILL_DATA", "")) / "fsdd.npz"
    read = spoken_digit.read_fsdd(dict(np.load(path))) if path.is_file() else spoken_digit.read_tfds()
    recordings, digits, speakers, takes = read
    order = np.lexsort((speakers, digits, takes))[:max_recordings]
    energies = log_mel([recordings[position] for position in order])
    lengths = [len(energy) for energy in energies]
    thirds = [np.arange(length) * STATES_A_WORD // length for length in lengths]
    words = digits[order].astype("int32")
    return Frames(
        log_mel=np.concatenate(energies),
        recordings=np.repeat(np.arange(len(order), dtype="int32"), lengths),
        states=np.concatenate([STATES_A_WORD * word + third for word, third in zip(words, thirds, strict=True)]).astype(
            "int32"
        ),
        digits=words,
        speakers=np.asarray(speakers)[order],
    )


def log_mel(recordings: list[np.ndarray]) -> list[np.ndarray]:
    """Log-mel energies of recordings, silence at the ends cut off, each band's mean removed; float32 `(frames, 40)`."""
    layer = keras.layers.MelSpectrogram(
        fft_length=256,
        sequence_stride=FRAME_STEP,
        sequence_length=200,
        window="hamming",
        sampling_rate=SAMPLE_RATE,
        num_mel_bins=NUM_MELS,
        min_freq=60.0,
        power_to_db=False,
    )
    found: list[Any] = [None] * len(recordings)
    by_length = np.argsort([len(recording) for recording in recordings], kind="stable")
    for start in range(0, len(recordings), 100):
        batch = by_length[start : start + 100]
        samples = np.zeros((len(batch), max(len(recordings[position]) for position in batch)), "float32")
        for place, position in enumerate(batch):
            sound = recordings[position].astype("float32") / 32768.0
            samples[place, : len(sound)] = np.append(sound[:1], sound[1:] - 0.97 * sound[:-1])
        energies = np.log(keras.ops.convert_to_numpy(layer(samples)).swapaxes(1, 2) + 1e-8)
        for place, position in enumerate(batch):
            found[position] = _trimmed(energies[place, : 1 + len(recordings[position]) // FRAME_STEP])
    return found


def network(name: str = "acoustic_model") -> keras.Model:
    """Three layers of 256 rectified units, from a window to the logits of 30 states."""
    return networks.mlp(((2 * CONTEXT + 1) * NUM_MELS,), NUM_STATES, (256, 256, 256), name=name)


def split(frames: Frames, fold: int) -> tuple[Frames, Frames]:
    """Training recordings of four speakers, and test recordings of the two that the fold holds out."""
    held_out = np.isin(frames.speakers, FOLDS[fold])
    return frames.take(np.flatnonzero(~held_out)), frames.take(np.flatnonzero(held_out))


def training_set(train: Frames, voices: Sequence[float] = VOICES) -> tuple[np.ndarray, np.ndarray]:
    """Windows and states of the training frames in several voices, all frames of one voice after those of another."""
    return np.concatenate([train.windows(warp) for warp in voices]), np.tile(train.states, len(voices))


def adam(num_steps: int, peak: float = 2e-3) -> keras.optimizers.Optimizer:
    """Adam whose rate falls to zero along a cosine."""
    return keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(peak, num_steps))


def frame_accuracy(logits: np.ndarray, states: np.ndarray) -> float:
    """Share of frames whose most probable state is theirs, in per cent."""
    return 100.0 * float(np.mean(logits.argmax(axis=-1) == states))


def word_error_rate(logits: np.ndarray, frames: Frames, priors: np.ndarray) -> float:
    """Share of recordings whose best path is through another word, in per cent.

    Args:
        logits: of states, `(num_frames, 30)`.
        frames: the recordings that they are of.
        priors: share of each state in the training frames, `(30,)`; a hybrid model divides by them.
    """
    scores = logits - _log_sum_exp(logits) - np.log(priors)
    bounds = np.searchsorted(frames.recordings, np.arange(len(frames.digits) + 1))
    heard = [best_word(scores[start:stop]) for start, stop in itertools.pairwise(bounds)]
    return 100.0 * float(np.mean(np.array(heard) != frames.digits))


def best_word(scores: np.ndarray) -> int:
    """The word with the best path: from its first state to its last, one step at most a frame (Viterbi).

    Args:
        scores: log likelihoods of the states, `(num_frames, 30)`.

    Example:
        >>> scores = np.full((4, 30), -5.0)
        >>> scores[[0, 1, 2, 3], [21, 21, 22, 23]] = 0.0  # the three states of a seven
        >>> best_word(scores)
        7
    """
    by_word = scores.reshape(len(scores), NUM_WORDS, STATES_A_WORD)
    best = np.full((NUM_WORDS, STATES_A_WORD), -np.inf)
    best[:, 0] = by_word[0, :, 0]
    for frame in by_word[1:]:
        best[:, 1:] = np.maximum(best[:, 1:], best[:, :-1])
        best = best + frame
    return int(best[:, -1].argmax())


def state_priors(train: Frames) -> np.ndarray:
    """Share of each state, float64 `(30,)`."""
    return np.bincount(train.states, minlength=NUM_STATES) / len(train.states)


def _trimmed(energies: np.ndarray) -> np.ndarray:
    # Silence: 6 nats (26 dB) below the loudest frame, at either end.
    loudness = energies.max(axis=1)
    loud = np.flatnonzero(loudness > loudness.max() - 6.0)
    kept = energies[loud[0] : loud[-1] + 1]
    return (kept - kept.mean(axis=0)).astype("float32")


def _warped(log_mel_energies: np.ndarray, factor: float) -> np.ndarray:
    """Bands read at `factor` times their place."""
    places = np.clip(np.arange(NUM_MELS) * factor, 0, NUM_MELS - 1)
    below = np.minimum(places.astype(int), NUM_MELS - 2)
    share = (places - below).astype("float32")
    return log_mel_energies[:, below] * (1 - share) + log_mel_energies[:, below + 1] * share


def _log_sum_exp(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(axis=-1, keepdims=True)
    return largest + np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True))
