"""Frames, states and words: each against something counted by hand or tried out in full."""

from itertools import combinations

import numpy as np
import pytest

from examples import speech_frames
from examples.speech_frames import Frames


def frames_of(lengths):
    """Recordings of such lengths; frame i holds 40 times the number i."""
    num_frames = sum(lengths)
    return Frames(
        log_mel=np.repeat(np.arange(num_frames, dtype="float32")[:, None], speech_frames.NUM_MELS, axis=1),
        recordings=np.repeat(np.arange(len(lengths), dtype="int32"), lengths),
        states=np.zeros(num_frames, "int32"),
        digits=np.arange(len(lengths), dtype="int32"),
        speakers=np.array(["george", "theo", "lucas", "jackson"])[: len(lengths)],
    )


def test_window_holds_the_neighbours_and_stays_inside_its_recording():
    windows = frames_of([30, 5]).windows().reshape(35, 21, 40)
    assert windows[15, :, 0].tolist() == list(range(5, 26))
    assert windows[0, :, 0].tolist() == [0] * 10 + list(range(11))
    assert windows[31, :, 7].tolist() == [30] * 10 + [31, 32, 33] + [34] * 8


def test_warp_reads_bands_further_up_or_down():
    ramp = np.tile(np.arange(40, dtype="float32"), (3, 1))
    frames = Frames(ramp, np.zeros(3, "int32"), np.zeros(3, "int32"), np.zeros(1, "int32"), np.array(["theo"]))
    np.testing.assert_allclose(frames.windows(0.5).reshape(3, 21, 40)[1, 10], np.arange(40) / 2, rtol=1e-6)
    np.testing.assert_allclose(frames.windows(2.0).reshape(3, 21, 40)[1, 10, :20], np.arange(20) * 2, rtol=1e-6)


def test_split_holds_the_speakers_of_a_fold_out_and_counts_recordings_anew():
    train, test = speech_frames.split(frames_of([2, 3, 4, 5]), fold=0)
    assert test.speakers.tolist() == ["george", "lucas"]
    assert train.speakers.tolist() == ["theo", "jackson"]
    assert test.recordings.tolist() == [0, 0, 1, 1, 1, 1]
    assert test.digits.tolist() == [0, 2]
    assert test.log_mel[:, 0].tolist() == [0, 1, 5, 6, 7, 8]


def best_word_by_trying_all(scores):
    """The word with the best of all paths that begin in its first state, end in its last and never go back."""
    num_frames = len(scores)
    totals = []
    for word in range(10):
        own = scores[:, 3 * word : 3 * word + 3]
        paths = combinations(range(1, num_frames), 2)
        totals.append(max(own[:a, 0].sum() + own[a:b, 1].sum() + own[b:, 2].sum() for a, b in paths))
    return int(np.argmax(totals))


def test_best_word_is_what_trying_every_path_finds():
    generator = np.random.default_rng(0)
    for _ in range(200):
        scores = generator.normal(size=(generator.integers(3, 9), 30))
        assert speech_frames.best_word(scores) == best_word_by_trying_all(scores)


def test_word_error_rate_counts_recordings_that_are_heard_as_another_word():
    frames = frames_of([6, 6, 6, 6])
    logits = np.full((24, 30), -3.0)
    # Recordings of the digits 0 to 3; the last is spoken as an 8.
    for recording, word in enumerate((0, 1, 2, 8)):
        for frame in range(6):
            logits[6 * recording + frame, 3 * word + frame // 2] = 3.0
    assert speech_frames.word_error_rate(logits, frames, np.full(30, 1 / 30)) == pytest.approx(25.0)


def test_frame_accuracy_is_a_share_in_per_cent():
    assert speech_frames.frame_accuracy(np.eye(4), np.array([0, 1, 2, 0])) == 75.0


def test_tone_is_loudest_in_the_band_of_its_pitch_and_silence_is_cut_off():
    seconds = np.arange(4000) / 8000
    generator = np.random.default_rng(0)
    loudest = {}
    for hertz in (500, 2000):
        tone = 8000 * np.sin(2 * np.pi * hertz * seconds) * np.hanning(4000)
        sound = np.concatenate([np.zeros(4000), tone, np.zeros(4000)]) + generator.normal(size=12000)
        (energies,) = speech_frames.log_mel([sound.astype("int16")])
        # Half a second is 50 frames; a second of silence is gone.
        assert 30 <= len(energies) <= 52
        np.testing.assert_allclose(energies.mean(axis=0), 0.0, atol=1e-4)
        assert energies.shape[1] == 40
        # The band whose energy follows the tone's rise and fall most.
        loudest[hertz] = int(np.argmax(energies.max(axis=0) - energies.min(axis=0)))
    mels = {hertz: 1127 * np.log(1 + hertz / 700) for hertz in (60, 500, 2000, 4000)}
    for hertz, band in loudest.items():
        expected = 41 * (mels[hertz] - mels[60]) / (mels[4000] - mels[60]) - 1
        assert abs(band - expected) <= 1.0
