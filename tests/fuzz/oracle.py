"""What torch gives for a program, and how far an engine may be from it.

An engine sums in another order, fuses, and flushes subnormal numbers; that must cost nothing more than rounding does.
How much that is, torch itself tells: the program runs again with every result that is not exact changed by some
roundings (and what a sum or product reads, as its error is relative to that), subnormals flushed or kept. An output
may differ from the exact run by 1e-4 of its size, and by :data:`AMPLIFIED` times what such runs differ along its row.
Entries that become NaN or infinite in one of them, or integers that change, say nothing; nor does NaN of torch itself.
"""

# TorchDispatchMode types nothing:
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.fuzz.programs import Attention, Program

BOUND = 1e-4
SMALL = 1e-2  # of an output's size, below which the bound is absolute
ROUNDING = 2.0**-22
AMPLIFIED = 8.0
RUNS = 3
# What reads many numbers for one of its result: its error is relative to what it reads.
SUMS = frozenset((
    "mm", "bmm", "addmm", "baddbmm", "matmul", "linear", "sum", "mean", "var", "std", "var_mean", "std_mean",
    "linalg_vector_norm", "norm", "native_layer_norm", "native_group_norm", "native_batch_norm", "convolution",
    "_scaled_dot_product_flash_attention_for_cpu", "cumsum", "logsumexp", "_log_softmax", "_cdist_forward",
    "avg_pool2d", "prod", "dot", "mv", "_fused_rms_norm", "_native_batch_norm_legit", "_euclidean_dist", "add", "sub",
    "rsub", "cumprod",
))  # fmt: skip
# What only moves or picks numbers is exact on every engine.
EXACT = frozenset((
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "expand", "slice", "select", "clone", "cat",
    "stack", "index", "gather", "index_select", "where", "masked_fill", "max", "min", "amax", "amin", "topk", "sort",
    "argmax", "argmin", "relu", "abs", "neg", "clamp", "clamp_min", "clamp_max", "flip", "roll", "sign", "sgn",
    "floor", "ceil",
    "round", "trunc", "constant_pad_nd", "full", "full_like", "zeros", "zeros_like", "ones", "ones_like", "arange",
    "nan_to_num", "maximum", "minimum", "_to_copy", "unfold", "as_strided", "copy_", "tril", "triu", "repeat",
    "squeeze", "unsqueeze", "split", "unbind", "alias", "detach", "lift_fresh", "scatter", "max_pool2d_with_indices",
    "hardtanh", "threshold", "diagonal", "masked_fill_", "fill_", "embedding", "view_as_real", "view_as_complex",
    "empty", "new_zeros", "new_full", "eye", "scalar_tensor", "aminmax", "hardshrink", "softshrink", "leaky_relu",
    "linspace", "split_with_sizes", "chunk", "select_scatter", "reflection_pad1d", "replication_pad1d", "polar",
))  # fmt: skip


class Rounded(TorchDispatchMode):
    """Every result that is not exact is changed by some roundings.

    Args:
        flushed: without subnormal numbers in any result; torch's own switch leaves those of its vectorized functions.
    """

    def __init__(self, seed: int, flushed: bool = False) -> None:
        super().__init__()
        self._flushed = flushed
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in SUMS and not func._schema.is_mutable:  # the only way to ask
            args = torch.utils._pytree.tree_map(self._moved, args)
        if name in ("topk", "sort") and not (kwargs or {}).get("stable"):
            return self._ties(func, args, kwargs or {})
        made = func(*args, **(kwargs or {}))
        if func._schema.is_mutable:
            return made
        if self._flushed:
            made = torch.utils._pytree.tree_map(_normal, made)
        return made if name in EXACT else torch.utils._pytree.tree_map(self._moved, made)

    def _ties(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Which of equal values comes first is nobody's promise: the axis is shuffled before, and put back."""
        axis = (*args, -1, -1)[2 if func.overloadpacket.__name__ == "topk" else 1]
        axis = axis if isinstance(axis, int) and not isinstance(axis, bool) else -1
        order = torch.randperm(args[0].shape[axis], generator=self._generator)
        values, places = func(args[0].index_select(axis, order), *args[1:], **kwargs)
        return values, order[places]

    def _moved(self, value: Any) -> Any:
        """Numbers that are no integers: an engine gets these exactly."""
        if not isinstance(value, torch.Tensor) or value.dtype is not torch.float32:
            return value
        noise = torch.randn(value.shape, generator=self._generator) * ROUNDING
        made = value + value * noise
        return torch.where((value == value.round()) | ~torch.isfinite(made), value, made)


def _normal(value: Any) -> Any:
    """Subnormal numbers as zeros."""
    if not isinstance(value, torch.Tensor) or value.dtype is not torch.float32:
        return value
    return torch.where(value.abs() < torch.finfo(torch.float32).tiny, torch.zeros_like(value), value)


@dataclass(frozen=True)
class Expected:
    """An output on one set of inputs.

    Attributes:
        value: float64 or integers; NaN where it says nothing.
        allowed: absolute, by entry.
        says: whether an entry is compared.
    """

    value: np.ndarray
    allowed: np.ndarray
    says: np.ndarray

    def wrong(self, got: np.ndarray) -> str:
        """What differs, in words; empty where nothing does."""
        if got.shape != self.value.shape:
            return f"shape {got.shape} in place of {self.value.shape}"
        other = got.astype(np.float64)
        with np.errstate(invalid="ignore"):
            off = np.abs(other - self.value)
            equal = other == self.value
        bad = self.says & ~equal & ~(off <= self.allowed)
        if not bad.any():
            return ""
        where = tuple(np.argwhere(bad)[np.argmax(np.nan_to_num(off[bad], nan=np.inf))])
        return (
            f"{int(bad.sum())} of {bad.size} entries; at {tuple(map(int, where))} {other[where]:.9g} in place of "
            f"{self.value[where]:.9g}, allowed {self.allowed[where]:.2g}"
        )


def expected(program: Program, sets: Sequence[Mapping[str, np.ndarray]]) -> list[Expected]:
    """What torch gives on each set of inputs, with what an engine may differ by."""
    module = Attention(program).eval()
    found = []
    for place, given in enumerate(sets):
        exact = _run(module, given)
        with _flushed():
            others = [_run(module, given)]
            for seed in range(RUNS - 1):
                with Rounded(seed, flushed=True):
                    others.append(_run(module, given))
        with Rounded(RUNS + place):
            others.append(_run(module, given))
        found.append(_bounded(exact, others))
    return found


def _run(module: Attention, given: Mapping[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        made = module(**{name: torch.from_numpy(array.copy()) for name, array in given.items()})
    return np.asarray(made.numpy())


@contextmanager
def _flushed() -> Iterator[None]:
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _bounded(exact: np.ndarray, others: Sequence[np.ndarray]) -> Expected:
    if exact.dtype.kind != "f":
        same = np.all([exact == other for other in others], axis=0)
        return Expected(exact.astype(np.float64), np.zeros(exact.shape), np.asarray(same))
    wide = exact.astype(np.float64)
    finite = np.isfinite(wide)
    with np.errstate(invalid="ignore"):
        apart = np.max([np.abs(other.astype(np.float64) - wide) for other in others], axis=0)
        says = np.all([(other == exact) | (np.isfinite(other) & finite) for other in others], axis=0)
    apart = np.where(says & finite, apart, 0.0)
    row = apart.max(-1, keepdims=True) if apart.ndim else apart
    size = max(SMALL, float(np.abs(wide[says & finite]).max(initial=0.0)))
    return Expected(wide, BOUND * size + AMPLIFIED * np.broadcast_to(row, wide.shape), np.asarray(says))
