"""Recordings for tests."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

RATE = 16_000


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    """16-bit PCM; samples in [-1, 1], shape (n,)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.asarray(samples) * 32_767).astype("<i2").tobytes())
    return path


def tone(hertz: float, seconds: float = 0.25, seed: int = 0, noise: float = 0.01) -> np.ndarray:
    """A sine with a little noise, float64."""
    at = np.arange(int(seconds * RATE)) / RATE
    return 0.5 * np.sin(2 * np.pi * hertz * at) + noise * np.random.default_rng(seed).standard_normal(len(at))
