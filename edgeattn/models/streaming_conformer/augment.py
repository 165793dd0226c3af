"""Signal changes that make a few voices and rooms sound like many. All functions are pure given their generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
SAMPLE_RATE = 8_000  # Hz
NUM_MEL = 40
LOW_HZ, HIGH_HZ = 20.0, 3600.0  # the mel range of the features


def resample(samples: Samples, factor: float) -> Samples:
    """Plays ``samples`` ``factor`` times faster: rate, pitch and formants change together.

    Band-limited by soxr: linear interpolation would alias fricatives into vowels.

    Args:
        samples: float32, shape (n,).
        factor: 1.25 is a quarter faster.

    Returns:
        float32, shape (about n / factor,).
    """
    import soxr

    return np.asarray(soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE, quality="LQ"), np.float32)


def power(samples: Samples) -> float:
    """Mean square, never 0."""
    return float(np.dot(samples, samples)) / max(1, len(samples)) + 1e-12


def add_noise(speech: Samples, noise: Samples, snr_db: float, active: Samples | None = None) -> Samples:
    """Adds ``noise`` at a signal-to-noise ratio in dB, the signal's power taken over ``active`` samples.

    Args:
        speech, noise: float32, shape (n,).
        snr_db: ratio of powers in dB.
        active: the samples that hold speech; ``speech`` itself by default.

    Returns:
        float32, shape (n,).
    """
    signal = power(speech if active is None or not len(active) else active)
    gain = np.sqrt(signal / power(noise) * 10.0 ** (-snr_db / 10.0))
    return np.asarray(speech + np.float32(gain) * noise, np.float32)


def coloured_noise(length: int, exponent: float, rng: np.random.Generator) -> Samples:
    """Noise whose power falls as 1 / f**exponent: 0 white, 1 pink, 2 brown. float32, shape (length,)."""
    size = fast_size(length)
    spectrum = np.fft.rfft(rng.standard_normal(size, dtype=np.float32))
    frequency = np.maximum(np.arange(len(spectrum)), 1.0)
    return np.asarray(np.fft.irfft(spectrum * frequency ** (-exponent / 2.0), size)[:length], np.float32)


def fast_size(length: int) -> int:
    """The next length whose FFT is fast: 1, 1.25, 1.5 or 1.75 times a power of two (a prime one is 20 times slower)."""
    unit = 1 << max(0, length.bit_length() - 3)
    return -(-length // unit) * unit


def hum(length: int, rng: np.random.Generator) -> Samples:
    """Mains hum of 50 or 60 Hz with falling harmonics. float32, shape (length,)."""
    base = rng.choice([50.0, 60.0])
    time = np.arange(length, dtype=np.float32) / SAMPLE_RATE
    total = np.zeros(length, np.float32)
    for harmonic in range(1, 8):
        phase, gain = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1) / harmonic
        total += np.float32(gain) * np.sin(2 * np.pi * base * harmonic * time + phase, dtype=np.float32)
    return total


def room_response(rng: np.random.Generator) -> Samples:
    """A synthetic room: direct sound, sparse early reflections, an exponentially decaying tail.

    RT60 0.1 to 0.8 s (60 dB decay: amplitude exp(-6.9 t / RT60)), direct-to-reverberant ratio 0 to 15 dB.

    Returns:
        float32, shape (RT60 in samples,), first sample 1.
    """
    rt60 = float(rng.uniform(0.1, 0.8))
    time = np.arange(int(rt60 * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    tail = rng.standard_normal(len(time), dtype=np.float32) * np.exp(-6.9 * time / rt60)
    tail *= 1.0 - np.exp(-time / 0.004)
    for _ in range(int(rng.integers(2, 8))):
        at = int(rng.uniform(0.001, 0.03) * SAMPLE_RATE)
        tail[at] += rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 3.0)
    ratio_db = float(rng.uniform(0.0, 15.0))
    tail *= np.sqrt(10.0 ** (-ratio_db / 10.0) / float(np.dot(tail, tail)))
    tail[0] = 1.0
    return np.asarray(tail, np.float32)


def convolve(samples: Samples, response: Samples) -> Samples:
    """Linear convolution by FFT, cut to the length of ``samples``."""
    size = fast_size(len(samples) + len(response))
    product = np.fft.rfft(samples, size) * np.fft.rfft(response, size)
    return np.asarray(np.fft.irfft(product, size)[: len(samples)], np.float32)


def companded(samples: Samples, bits: int, law: str) -> Samples:
    """Quantised after companding: ITU-T G.711's continuous mu-law and A-law curves, or linear.

    Args:
        samples: float32, shape (n,), clipped to [-1, 1].
        bits: word length, 8 in G.711.
        law: "mu", "a" or "linear".

    Raises:
        ValueError: on another law.
    """
    x = np.clip(samples, -1.0, 1.0)
    levels = 2.0 ** (bits - 1)
    magnitude = np.abs(x)
    if law == "mu":
        code = np.round(np.log1p(255.0 * magnitude) / np.log(256.0) * levels) / levels
        decoded = np.expm1(code * np.log(256.0)) / 255.0
    elif law == "a":
        edge = 1.0 + np.log(87.6)
        code = np.where(magnitude < 1 / 87.6, 87.6 * magnitude, 1.0 + np.log(np.maximum(magnitude, 1e-6) * 87.6)) / edge
        code = np.round(code * levels) / levels
        decoded = np.where(code < 1 / edge, code * edge / 87.6, np.exp(code * edge - 1.0) / 87.6)
    elif law == "linear":
        decoded = np.round(magnitude * levels) / levels
    else:
        raise ValueError(f"law must be mu, a or linear, got {law!r}")
    return np.asarray(np.sign(x) * decoded, np.float32)


def block_quantised(samples: Samples, bits: int, block: int = 64) -> Samples:
    """Quantised with one step size per block, as adaptive codecs (ADPCM, sub-band) do: noise follows the signal."""
    padded = np.pad(samples, (0, -len(samples) % block)).reshape(-1, block)
    step = np.abs(padded).max(axis=1, keepdims=True) / 2.0 ** (bits - 1) + 1e-9
    return np.asarray((np.round(padded / step) * step).reshape(-1)[: len(samples)], np.float32)


def band_pass(samples: Samples, low_hz: float, high_hz: float) -> Samples:
    """Keeps ``low_hz`` to ``high_hz``, as a telephone line or small speaker does (linear edges of 100 Hz)."""
    size = fast_size(len(samples))
    frequency = np.fft.rfftfreq(size, 1.0 / SAMPLE_RATE)
    above = np.clip((frequency - low_hz) / 100.0 + 0.5, 0.01, 1.0)
    gain = above * np.clip((high_hz - frequency) / 100.0 + 0.5, 0.01, 1.0)
    return np.asarray(np.fft.irfft(np.fft.rfft(samples, size) * gain, size)[: len(samples)], np.float32)


def degrade(samples: Samples, rng: np.random.Generator) -> Samples:
    """One channel at random: codec, few bits, band limit or clipping, after setting a level of -30 to 0 dBFS."""
    peak = 10.0 ** (rng.uniform(-30.0, 0.0) / 20.0)
    samples = np.asarray(samples * np.float32(peak / (np.abs(samples).max() + 1e-6)), np.float32)
    kind = rng.random()
    if kind < 0.07:
        samples = companded(samples, 8, "mu")
    elif kind < 0.12:
        samples = companded(samples, 8, "a")
    elif kind < 0.15:
        samples = companded(samples, int(rng.integers(8, 12)), "linear")
    elif kind < 0.21:
        samples = block_quantised(samples, int(rng.integers(3, 6)))
    elif kind < 0.27:
        gain = np.float32(rng.uniform(1.5, 6.0) / (np.abs(samples).max() + 1e-6))
        samples = np.clip(samples * gain, -1.0, 1.0) * np.float32(rng.uniform(0.2, 1.0))
    if rng.random() < 0.25:
        samples = band_pass(samples, float(rng.uniform(0, 400)), float(rng.uniform(2400, 3900)))
    return np.asarray(samples, np.float32)


def mel_warp_matrix(factor: float) -> NDArray[np.float32]:
    """Interpolates log mel energies as if the vocal tract were ``1 / factor`` as long.

    Vocal tract length perturbation (Jaitly and Hinton, 2013) on the features: a linear warp below 3 kHz, then
    a line to the fixed upper edge.

    Args:
        factor: 0.85 to 1.18; above 1 moves formants up.

    Returns:
        float32, shape (NUM_MEL, NUM_MEL): ``warped = feats @ matrix``.
    """
    low, high = (1127.0 * np.log1p(edge / 700.0) for edge in (LOW_HZ, HIGH_HZ))
    centres = low + (high - low) * np.arange(1, NUM_MEL + 1) / (NUM_MEL + 1)
    target_hz = 700.0 * np.expm1(centres / 1127.0)
    knee = 3000.0 * min(1.0, 1.0 / factor)
    upper = knee + (HIGH_HZ - knee) * (target_hz - knee * factor) / max(1.0, HIGH_HZ - knee * factor)
    source_hz = np.where(target_hz <= knee * factor, target_hz / factor, upper)
    position = (1127.0 * np.log1p(source_hz / 700.0) - low) / (high - low) * (NUM_MEL + 1) - 1
    position = np.clip(position, 0, NUM_MEL - 1)
    floor = np.minimum(position.astype(int), NUM_MEL - 2)
    matrix = np.zeros((NUM_MEL, NUM_MEL), np.float32)
    columns = np.arange(NUM_MEL)
    matrix[floor, columns] += 1.0 - (position - floor)
    matrix[floor + 1, columns] += position - floor
    return matrix


def change_tempo(feats: Samples, tempo: float) -> Samples:
    """Plays features ``tempo`` times faster; pitch and formants stay, unlike with :func:`resample`.

    Args:
        feats: float32, shape (T, F).
        tempo: 1.25 is a quarter faster.

    Returns:
        float32, shape (about T / tempo, F), frames interpolated linearly.
    """
    if tempo == 1.0:
        return feats
    position = np.arange(0.0, len(feats) - 1.0, tempo)
    floor = position.astype(int)
    fraction = (position - floor).astype(np.float32)[:, None]
    return np.asarray(feats[floor] * (1.0 - fraction) + feats[floor + 1] * fraction, np.float32)


def colour_features(feats: Samples, rng: np.random.Generator) -> Samples:
    """A random smooth channel (tilt and three cosines, a few dB) added to log mel energies, and a level shift."""
    axis = np.linspace(0.0, 1.0, NUM_MEL, dtype=np.float32)
    curve = rng.normal(0.0, 1.1) * (axis - 0.5) + rng.normal(0.0, 0.3)
    for order in range(1, 4):
        curve = curve + rng.normal(0.0, 0.45) * np.cos(np.pi * order * axis)
    return np.asarray(feats + curve, np.float32)


def mask_features(feats: Samples, fill: Samples, rng: np.random.Generator) -> Samples:
    """SpecAugment (Park et al., 2019) with short time masks, since one word lasts about 40 frames.

    Args:
        feats: float32, shape (T, NUM_MEL); changed in place.
        fill: float32, shape (NUM_MEL,), what masks show: the mean.

    Returns:
        ``feats``.
    """
    frames = len(feats)
    for _ in range(int(rng.integers(0, 3))):
        width = int(rng.integers(1, 8))
        start = int(rng.integers(0, NUM_MEL - width + 1))
        feats[:, start : start + width] = fill[start : start + width]
    for _ in range(int(rng.integers(0, 1 + frames // 90))):
        width = int(rng.integers(2, 13))
        start = int(rng.integers(0, max(1, frames - width)))
        feats[start : start + width] = fill
    return feats


def mix(parts: Sequence[Samples], length: int, rng: np.random.Generator) -> Samples:
    """Babble: ``parts`` repeated or cut to ``length`` at random offsets and summed. float32, shape (length,)."""
    total = np.zeros(length, np.float32)
    for part in parts:
        repeated = np.resize(part, length + len(part))
        at = int(rng.integers(0, len(part) + 1))
        total += repeated[at : at + length]
    return total
