"""Distortion against closed forms, intelligibility against pystoi."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest

from edgeattn.errors import DataError, MissingExtraError
from edgeattn.tasks.metrics.enhancement import SI_SDR, stoi
from tests.tasks.metrics.measuring import measured

RATE = 10_000
TONE = np.sin(np.arange(800) * 2 * np.pi / 80)  # whole periods: orthogonal to the cosine
NOISE = np.cos(np.arange(800) * 2 * np.pi / 80)


@pytest.mark.parametrize("decibels", [-20.0, 0.0, 13.5, 60.0])
@pytest.mark.parametrize("scale", [-1.0, 1e-30, 1.0, 1e30])
def test_orthogonal_noise_has_the_ratio_of_its_energy_at_any_scale(decibels: float, scale: float) -> None:
    answer = scale * (TONE + NOISE * 10 ** (-decibels / 20))
    assert measured(SI_SDR, [(answer, TONE)]) == pytest.approx(decibels, abs=1e-9)
    assert measured(SI_SDR, [(answer, scale * TONE)]) == pytest.approx(decibels, abs=1e-9)
    assert SI_SDR.unit == "dB"


def test_the_ratio_is_that_of_its_formula() -> None:
    rng = np.random.default_rng(0)
    said, true = rng.standard_normal((2, 500))
    part = (said @ true) / (true @ true) * true
    expected = 10 * math.log10((part @ part) / ((said - part) @ (said - part)))
    assert measured(SI_SDR, [(said, true)]) == pytest.approx(expected, abs=1e-9)


def test_the_ratio_is_bounded_and_nan_or_silence_is_the_worst() -> None:
    assert measured(SI_SDR, [(TONE, TONE)]) == 100.0
    assert measured(SI_SDR, [(NOISE, TONE)]) == -100.0
    broken = TONE.copy()
    broken[3] = math.nan
    for answer in (broken, np.zeros(800), np.full(800, math.inf)):
        assert measured(SI_SDR, [(answer, TONE)]) == -100.0


def test_channels_are_averaged() -> None:
    said = np.stack([TONE + NOISE, TONE + NOISE / 10])
    assert measured(SI_SDR, [(said, np.stack([TONE, TONE]))]) == pytest.approx(10.0, abs=1e-9)


@pytest.mark.parametrize(
    "target", [np.zeros(800), np.full(800, math.nan), np.stack([TONE, 0 * TONE]), TONE.reshape(2, 4, 100), np.zeros(0)]
)  # fmt: skip
def test_silent_and_broken_targets_are_refused(target: np.ndarray) -> None:
    for metric in (SI_SDR, stoi(RATE)):
        with pytest.raises(DataError, match="finite and no channel of it silent"):
            metric.statistics(np.ones_like(target), target)


def test_sound_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match=r"an answer of shape \(799,\) does not fit a target of shape \(800,\)"):
        SI_SDR.statistics(TONE[:-1], TONE)


def test_intelligibility_is_that_of_pystoi() -> None:
    pystoi = pytest.importorskip("pystoi", reason="edgeattn[speech] installs it")
    rng = np.random.default_rng(0)
    true = rng.standard_normal(RATE) * (1 + np.sin(np.arange(RATE) / 500))
    said = true + rng.standard_normal(RATE)
    expected = pystoi.stoi(true, said, RATE)
    assert measured(stoi(RATE), [(said, true)]) == pytest.approx(expected, abs=1e-12)
    assert measured(stoi(RATE), [(true, true)]) == pytest.approx(1.0, abs=1e-6)
    assert measured(stoi(RATE), [(said * math.nan, true), (0 * said, true)]) == -1.0
    assert 0.1 < expected < 0.95


def test_sound_that_is_too_short_for_intelligibility_is_refused() -> None:
    pytest.importorskip("pystoi", reason="edgeattn[speech] installs it")
    for count in (100, 2_000):
        sound = np.random.default_rng(0).standard_normal(count)
        with pytest.raises(DataError, match=r"stoi needs a target with more than 0\.4 s of sound"):
            stoi(RATE).statistics(sound, sound)


def test_without_pystoi_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pystoi is needed here: pip install 'edgeattn\[speech\]'"):
        stoi(RATE).statistics(TONE, TONE)
