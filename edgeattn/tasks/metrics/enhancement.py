"""Metrics of enhanced sound: an answer and a target are samples of one shape, (n,) or (channels, n)."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from edgeattn.errors import DataError, load_extra
from edgeattn.tasks.metric import Metric
from edgeattn.tasks.metrics.reading import floats, same_shape
from edgeattn.tasks.metrics.sums import ratio_metric

MOST_DB = 100.0
LEAST_STOI = -1.0


def _channels(answer: Any, target: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64, shape (channels, n)."""
    said, true = floats(answer), floats(target)
    same_shape(said, true)
    if true.ndim not in (1, 2) or not true.size or not np.isfinite(true).all() or not np.atleast_2d(true).any(1).all():
        raise DataError("a target here is sound, (n,) or (channels, n), finite and no channel of it silent")
    return np.atleast_2d(said), np.atleast_2d(true)


def signal_to_distortion(said: np.ndarray, true: np.ndarray) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, within 100 dB of 0; the mean is not taken off.

    Args:
        said: float64, shape (n,); -100 dB if it is silent or not finite.
        true: float64, shape (n,), not silent.

    Source: Le Roux et al., "SDR - half-baked or well done?", ICASSP 2019.
    """
    if not np.isfinite(said).all() or not said.any():
        return -MOST_DB
    said, true = said / np.abs(said).max(), true / np.abs(true).max()
    signal = (said @ true) / (true @ true) * true
    noise = said - signal
    ratio = 10 * (math.log10(max(signal @ signal, 1e-300)) - math.log10(max(noise @ noise, 1e-300)))
    return min(MOST_DB, max(-MOST_DB, ratio))


def _si_sdr(answer: Any, target: Any) -> tuple[float, float]:
    said, true = _channels(answer, target)
    ratios = [signal_to_distortion(one, other) for one, other in zip(said, true, strict=True)]
    return math.fsum(ratios) / len(ratios), 1.0


SI_SDR = ratio_metric("si-sdr", _si_sdr, unit="dB")
"""The mean over samples (and their channels) of :func:`signal_to_distortion`."""


def stoi(rate: int) -> Metric:
    """Short-time objective intelligibility, the mean over samples: about the share of words that are understood.

    Needs pystoi, on a workstation: ``edgeattn[speech]``. An answer that is silent or not finite has -1.

    Args:
        rate: of the samples, in Hz.

    Source: Taal et al., "An algorithm for intelligibility prediction of time-frequency weighted noisy speech", 2011.
    """

    def parts(answer: Any, target: Any) -> tuple[float, float]:
        said, true = _channels(answer, target)
        measure = load_extra("pystoi", "speech").stoi
        if not np.isfinite(said).all() or not said.any(axis=1).all():
            return LEAST_STOI, 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            try:
                scores = [float(measure(other, one, rate)) for one, other in zip(said, true, strict=True)]
            except (RuntimeWarning, ValueError) as error:
                raise DataError("stoi needs a target with more than 0.4 s of sound that is not silent") from error
        return math.fsum(scores) / len(scores), 1.0

    return ratio_metric("stoi", parts, unit="")
