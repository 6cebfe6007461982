"""Recordings as a student's inputs: samples, or log-mel energies. Needs numpy, nothing else.

keras-distill makes the energies of spoken digits with this very file, so that the device repeats them bit for bit.
"""

import wave

import numpy as np

SAMPLE_RATE = 8000
NUM_FRAMES = 64
NUM_MELS = 40


def read_wav(path):
    """Returns the samples of a .wav file of 8, 16 or 32 bits as int16, `(num_samples,)`, and its rate in Hz.

    Several channels are averaged. Raises ValueError for a file that is none, or that is compressed.
    """
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            content = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} must be a .wav file of plain samples; got {error}. Save it again as PCM.") from None
    if width not in (1, 2, 4) or not content:
        raise ValueError(f"{path} must hold samples of 8, 16 or 32 bits; got {len(content)} bytes of {8 * width} bits.")
    samples = np.frombuffer(content, {1: "u1", 2: "<i2", 4: "<i4"}[width]).reshape(-1, channels).astype("float64")
    samples = {1: (samples - 128) * 256, 2: samples, 4: samples / 65536}[width].mean(axis=1)
    return np.clip(np.rint(samples), -32768, 32767).astype("int16"), rate


def sound_of(samples, rate, manifest, entry):
    """Returns a recording as the input `entry` of a manifest.

    Log-mel energies for a student of spoken digits; for one of plain samples, `(num_samples,)` or `(num_samples, 1)`,
    samples in [-1, 1], cut or followed by silence. Raises ValueError where the student takes neither.
    """
    shape = tuple(entry["shape"][1:])
    if manifest.get("provenance", {}).get("data") == "spoken_digit" and shape == (NUM_FRAMES, NUM_MELS, 1):
        if rate != SAMPLE_RATE:
            raise ValueError(f"a recording must have {SAMPLE_RATE} samples a second; got {rate}. Resample it first.")
        return log_mel(samples)[..., None]
    low, high = entry["value_range"]
    if manifest.get("preparation") or len(shape) not in (1, 2) or shape[1:] not in ((), (1,)) or low < -1 or high > 1:
        raise ValueError(f"this student takes {entry['dtype']} of shape {shape}, no recordings; got one.")
    num_samples = shape[0] or len(samples)
    waveform = np.zeros(num_samples, "float32")
    waveform[: len(samples)] = samples[:num_samples] / 32768.0
    return waveform.reshape(num_samples, *shape[1:]).astype(entry["dtype"])


def log_mel(audio):
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


def mel_filters(num_bins=129):
    """Triangles of equal width on the mel scale, `(40, num_bins)`, over the bins of a 256-point spectrum at 8 kHz."""
    lowest, highest = (2595.0 * np.log10(1.0 + hertz / 700.0) for hertz in (60.0, SAMPLE_RATE / 2))
    corners = 700.0 * (10.0 ** (np.linspace(lowest, highest, NUM_MELS + 2) / 2595.0) - 1.0)
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, num_bins)
    left, centre, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    return np.maximum(0.0, np.minimum(rising, falling))
