"""Ten sets of inputs for a program: what people meet and examples do not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tests.fuzz.parts import BATCH, DIM, LENGTH

SENTINELS = (-np.inf, float(np.finfo(np.float32).min), -1e9, -1e4)
SETS = 10
TINY = 1e-30  # its squares are below float32; of subnormals an engine may flush any part, which leaves nothing to ask


def inputs(kind: str, seed: int) -> list[dict[str, np.ndarray]]:
    """The sets for a program; the first is an ordinary one, which conversion takes as the example.

    Args:
        kind: of the mask.
    """
    rng = np.random.default_rng(seed)
    shape = (BATCH, LENGTH, DIM)
    normal = rng.standard_normal(shape)
    some = rng.random((BATCH, LENGTH)) < 0.7
    some[:, 0] = True
    if kind == "length":
        some = np.arange(LENGTH) < np.array([LENGTH, 3])[:, None]
    none, every, first, last = (np.zeros_like(some) for _ in range(4))
    every[:], first[:, 0], last[:, -1] = True, True, True
    row_hidden, other_hidden = some.copy(), some.copy()
    row_hidden[0], other_hidden[1] = False, False
    signs = np.where(np.arange(DIM) % 2, -1.0, 1.0) * np.where(np.arange(LENGTH)[:, None] % 2, -1.0, 1.0)
    sets: list[tuple[np.ndarray, np.ndarray]] = [
        (normal, some),
        (np.zeros(shape), every),
        (10 * rng.standard_normal(shape), some),
        (1e-6 * rng.standard_normal(shape), row_hidden),
        (np.full(shape, 1.5), none),
        (TINY * np.sign(normal), every),
        (np.broadcast_to(signs, shape), first),
        (np.broadcast_to(rng.standard_normal((BATCH, LENGTH, 1)), shape), first if kind == "length" else last),
        (-np.abs(normal), some),
        (rng.integers(-2, 3, shape).astype(float), other_hidden),
    ]
    return [
        {"x": np.ascontiguousarray(x, np.float32), "mask": encoded(kind, seen, SENTINELS[i % len(SENTINELS)])}
        for i, (x, seen) in enumerate(sets)
    ]


def encoded(kind: str, seen: np.ndarray, hidden: float) -> np.ndarray:
    """A mask input that shows what ``seen`` says."""
    if kind == "additive":
        return np.where(seen, 0.0, hidden).astype(np.float32)[:, None, None]
    if kind == "length":
        return np.asarray(seen.sum(-1), np.int64)
    if kind == "hides":
        return ~seen
    return seen.astype({"bool": np.bool_, "int64": np.int64, "float": np.float32}[kind])


def together(sets: list[list[dict[str, np.ndarray]]]) -> list[Mapping[str, np.ndarray]]:
    """The sets of several programs as inputs of :class:`~tests.fuzz.programs.Several`."""
    return [
        {f"{name}{i}": array for i, own in enumerate(sets) for name, array in own[place].items()}
        for place in range(SETS)
    ]
