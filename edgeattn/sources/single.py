"""A forward that computes in float32 throughout, whatever precision its author wrote in it.

Engines have no bfloat16 and no float64 that could be relied on, and keep float16 for where they choose it themselves.
So weights of these types are widened (float64: narrowed), and while forward runs, whatever depends on its inputs is
float32: ``x.half()``, ``softmax(..., dtype=torch.float64)`` and regions of ``torch.autocast`` change nothing. What
depends on no input stays in the precision that it was written in, and is cast where it meets the rest: a table of
positions that is worked out in float64 keeps its digits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.amp.autocast_mode import autocast
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

OTHER_FLOATS = (torch.bfloat16, torch.float16, torch.float64)  # the coarsest first
CASTS = ("half", "bfloat16", "double")  # methods of a tensor
EMPTY = ("zeros", "ones", "empty", "zeros_like", "ones_like", "empty_like", "new_zeros", "new_ones", "new_empty")
"""Makers of what is written to afterwards: float32 holds their numbers exactly."""


class FloatMode(TorchFunctionMode):
    """Follows what depends on the inputs of a forward, and keeps it float32.

    Args:
        inputs: of forward.
        keep: leave everything as it is, and only note in :attr:`seen` what would be changed.
    """

    def __init__(self, inputs: Iterable[Any], keep: bool = False) -> None:
        super().__init__()
        self.keep = keep
        self.seen: set[torch.dtype] = set()
        self._dependent: Any = WeakIdKeyDictionary()
        self._follow(list(inputs))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        leaves, tree = pytree.tree_flatten((args, dict(kwargs or {})))
        dependent = any(isinstance(leaf, torch.Tensor) and leaf in self._dependent for leaf in leaves)
        name = str(getattr(func, "__name__", func))
        if name == "__get__":  # x.shape, x.dtype: nothing is computed
            return self._followed(func(*args, **(kwargs or {})), dependent)
        if self.keep:
            return self._looked_at(func(*args, **(kwargs or {})), dependent)
        if not dependent and name not in EMPTY:
            return func(*args, **(kwargs or {}))
        if name in CASTS:
            func = torch.Tensor.float
        written = leaves[0] if _writes(name) else None
        args, kwargs = pytree.tree_unflatten([leaf if leaf is written else _as_float(leaf) for leaf in leaves], tree)
        result = func(*args, **kwargs)
        if written is None:
            result = pytree.tree_map(_as_float, result)
        else:
            self._followed(written, dependent)
        return self._followed(result, dependent)

    def _looked_at(self, result: Any, dependent: bool) -> Any:
        if dependent:
            found = (leaf.dtype for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor))
            self.seen.update(dtype for dtype in found if dtype in OTHER_FLOATS)
        return self._followed(result, dependent)

    def _followed(self, result: Any, dependent: bool) -> Any:
        if dependent:
            self._follow(result)
        return result

    def _follow(self, values: Any) -> None:
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, torch.Tensor):
                self._dependent[leaf] = True


def _writes(name: str) -> bool:
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _as_float(leaf: Any) -> Any:
    if isinstance(leaf, torch.dtype):
        return torch.float32 if leaf in OTHER_FLOATS else leaf
    if isinstance(leaf, torch.Tensor) and leaf.dtype in OTHER_FLOATS:
        return leaf.float()
    return leaf


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Let ``torch.autocast`` change nothing, also where ``torch.export`` would write its regions into the program."""
    enter, leave = autocast.__enter__, autocast.__exit__
    autocast.__enter__ = lambda self: self  # type: ignore[method-assign]
    autocast.__exit__ = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        autocast.__enter__, autocast.__exit__ = enter, leave  # type: ignore[method-assign]


def float_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same, in float32 where they are of another float."""
    return {name: _as_float(tensor) for name, tensor in tensors.items()}


def widen_weights(module: torch.nn.Module) -> frozenset[torch.dtype]:
    """Make the weights of a module float32 in place, its buffers with them; which types they had."""
    found = frozenset(tensor.dtype for tensor in module.parameters() if tensor.dtype in OTHER_FLOATS)
    if found:
        module.float()
    return found
