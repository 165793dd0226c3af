"""Time series: what was, what is known of the future, and decisions in a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeattn.sources.huggingface.makers.noise import noise
from edgeattn.sources.huggingface.source import TOKENS, Source


def _history(source: Source) -> int:
    lags: list[int] = source.find("", "lags_sequence") or [0]
    return source.number("", "context_length", "prediction_length", default=32) + max(lags)


def past_values(source: Source) -> np.ndarray:
    """(1, history) float32, with a last axis of channels where there are several."""
    channels = source.number("", "num_input_channels", default=0)
    width = channels or source.number("", "input_size", default=1)
    shape = (1, _history(source), width) if channels or width > 1 else (1, _history(source))
    return noise(shape)


def past_time_features(source: Source) -> np.ndarray:
    """(1, history, features) float32."""
    return noise((1, _history(source), source.number("", "num_time_features", default=0)), 1)


def future_time_features(source: Source) -> np.ndarray:
    """(1, steps, features) float32."""
    steps = source.number("", "prediction_length", default=1)
    return noise((1, steps, source.number("", "num_time_features", default=0)), 2)


def future_values(source: Source) -> np.ndarray:
    """(1, steps) float32, with a last axis of values where there are several."""
    width = source.number("", "input_size", default=1)
    steps = source.number("", "prediction_length", default=1)
    return noise((1, steps, width) if width > 1 else (1, steps), 3)


def decision_of(name: str) -> Callable[[Source], np.ndarray]:
    """The maker of (1, steps, width) float32, one row per step that was taken."""

    def make(source: Source) -> np.ndarray:
        width = source.number("", {"states": "state_dim", "actions": "act_dim"}.get(name, ""), default=1)
        return noise((1, TOKENS, width))

    return make
