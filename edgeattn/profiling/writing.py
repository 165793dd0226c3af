"""How fast a language model writes: the time to its first token, and tokens per second after it."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from edgeattn.errors import InputError
from edgeattn.profiling.figures import Writing
from edgeattn.runtimes import GenerateOptions
from edgeattn.runtimes.generation import generate
from edgeattn.runtimes.generation.writers import IDS, MASK, Model, kind_of, largest

PROMPT, NEW = 64, 32  # tokens, where a cache has room for both
TEXTS = 3  # timed, behind one that warms up
LEAST_NEW = 2  # one token has no time between tokens


def measure_writing(
    model: Model, most_seconds: float = 10.0, clock: Callable[[], float] = time.perf_counter
) -> Writing | None:
    """Write greedily what never ends, through the loop that ships.

    Args:
        model: a session.
        most_seconds: of all texts; a slow model writes fewer of them, but one.
        clock: seconds.

    Returns:
        medians; None for a model that writes no text, or whose config does not say how a text begins.
    """
    kind = kind_of(model.spec)
    if kind is None:
        return None
    room = largest(model.spec, kind[1]).states[0].shape[2] + 1  # tokens that are read before one falls out
    if kind[0] == "prefill":
        size = next(tensor.shape[1] for tensor in largest(model.spec, kind[0]).inputs if tensor.name == IDS)
        count = max(1, min(PROMPT, size, room - NEW))
        prompt = {IDS: np.ones((1, count), np.int64)}
    else:
        count, prompt = 1, {t.name: _whole(t.shape, t.dtype, t.name) for t in largest(model.spec, kind[0]).inputs}
    options = GenerateOptions(
        max_new_tokens=max(LEAST_NEW, min(NEW, room - count)), beams=1, sample=False, stop=(), forced_eos=()
    )
    rows: list[list[float]] = []
    began = clock()
    try:
        while len(rows) < 1 + TEXTS and (len(rows) < LEAST_NEW or clock() - began < most_seconds):
            start = clock()
            rows.append([start, *(clock() for _ in generate(model, prompt, options))])
    except InputError:
        return None
    timed = rows[1:]
    return Writing(
        prompt_tokens=count if kind[0] == "prefill" else None,
        new_tokens=len(timed[0]) - 1,
        first_token_ms=1e3 * float(np.median([times[1] - times[0] for times in timed])),
        tokens_per_second=float(np.median([(len(times) - 2) / max(times[-1] - times[1], 1e-9) for times in timed])),
    )


def _whole(shape: tuple[int, ...], dtype: str, name: str) -> np.ndarray:
    """Noise for sound and images; a text of ones, all of it shown."""
    if dtype.startswith("float") and name != MASK:
        return np.random.default_rng(0).standard_normal(shape).astype(dtype)
    return np.ones(shape, dtype)
