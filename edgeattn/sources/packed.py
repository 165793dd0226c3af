"""Packed sequences as padded ones with a mask.

``pack_padded_sequence`` lays the rows of sequences of different lengths behind each other, as many as there are: a size
that depends on values. Here a PackedSequence holds every padded row, T * B of them, and ``batch_sizes`` counts as it
does in torch, with zeros up to T. Recurrent layers then run over the padded rows: forwards padding comes after all that
counts, and backwards each sequence is turned within its own length. What ``pad_packed_sequence`` gives has always T
rows, where torch's ends with the longest sequence unless ``total_length`` is given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import rnn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
FROZEN = 60.0  # as a gate's input: float32 gives 1 for it, and 0 for its negative up to 1e-26


@dataclass(frozen=True, kw_only=True)
class _Packing:
    """What ``batch_sizes`` stands for.

    Attributes:
        lengths: int64 [B], in the order of the packed rows.
        steps: T.
        mask: bool [T, B], true in sequences.
    """

    lengths: torch.Tensor
    steps: int
    mask: torch.Tensor


class PackedMode(TorchFunctionMode):
    """Stands in for torch's functions on packed sequences while a forward runs.

    Args:
        keep: leave everything as it is, and only note in :attr:`used` that sequences are packed.
    """

    def __init__(self, keep: bool = False) -> None:
        super().__init__()
        self.keep = keep
        self.used = False
        self._packings: Any = WeakIdKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = str(getattr(func, "__name__", func))
        self.used |= name == "_pack_padded_sequence"
        if name == "_pack_padded_sequence" and not self.keep:
            return self._pack(*args, **(kwargs or {}))
        packing = next((self._packings[a] for a in args if isinstance(a, torch.Tensor) and a in self._packings), None)
        if packing is not None and name == "_pad_packed_sequence":
            return _pad(packing, *args, **(kwargs or {}))
        if packing is not None and name in RECURRENT:
            return _recurrent(packing, func, *args, **(kwargs or {}))
        if packing is not None and name == "__getitem__" and args[1] == 0:
            return packing.mask.shape[1]  # of all sequences: what the layers size their states by
        return func(*args, **(kwargs or {}))

    def _pack(self, padded: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> tuple[torch.Tensor, ...]:
        rows = padded.transpose(0, 1) if batch_first else padded
        steps = torch.arange(rows.shape[0])
        mask = steps[:, None] < lengths[None]
        sizes = mask.sum(1)
        self._packings[sizes] = _Packing(lengths=lengths, steps=rows.shape[0], mask=mask)
        return rows.flatten(0, 1), sizes


@contextlib.contextmanager
def plain_permutations() -> Iterator[None]:
    """Let a permutation be turned round without a scatter, which mobile engines refuse."""
    original = rnn.invert_permutation

    def inverted(permutation: torch.Tensor | None) -> torch.Tensor | None:
        if permutation is None:
            return None
        places = torch.arange(permutation.shape[0])
        return ((permutation[None] == places[:, None]) * places).sum(1)

    rnn.invert_permutation = inverted
    try:
        yield
    finally:
        rnn.invert_permutation = original


def _pad(
    packing: _Packing, rows: torch.Tensor, _sizes: torch.Tensor, batch_first: bool, value: float, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """[T * B, ...] -> [T, B, ...], ``value`` behind each sequence."""
    padded = rows.reshape(*packing.mask.shape, *rows.shape[1:])
    mask = packing.mask.reshape(*packing.mask.shape, *[1] * (padded.ndim - 2))
    padded = torch.where(mask, padded, torch.tensor(value, dtype=padded.dtype))
    if length > packing.steps:
        more = padded.new_full((length - packing.steps, *padded.shape[1:]), value)
        padded = torch.cat((padded, more))
    return padded.transpose(0, 1) if batch_first else padded, packing.lengths.clone()


def _recurrent(
    packing: _Packing,
    func: Any,
    rows: torch.Tensor,
    _sizes: torch.Tensor,
    states: Any,
    weights: Sequence[torch.Tensor],
    biased: bool,
    layers: int,
    _dropout: float,
    _train: bool,
    bidirectional: bool,
) -> tuple[torch.Tensor, ...]:
    """A recurrent network over packed rows: its output rows, and its last states [layers * directions, B, H]."""
    first = states if isinstance(states, torch.Tensor) else states[0]
    cells = None if isinstance(states, torch.Tensor) else states[1]
    directions = 1 + int(bidirectional)
    each = len(weights) // (layers * directions)
    x = rows.reshape(*packing.mask.shape, *rows.shape[1:])
    last, last_cells = [], []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            at = layer * directions + direction
            own = list(weights[at * each : (at + 1) * each])
            given = _turned(x, packing) if direction else x
            state = first[at : at + 1]
            if cells is None:
                output = func(given, state, own, biased, 1, 0.0, False, False, False)[0]
            else:
                output = func(given, (state, cells[at : at + 1]), own, biased, 1, 0.0, False, False, False)[0]
                last_cells.append(_last_cell(packing, func, given, (state, cells[at : at + 1]), own, biased))
            last.append(_at_end(output, packing))
            outputs.append(_turned(output, packing) if direction else output)
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
    ends = (torch.cat(last),) if cells is None else (torch.cat(last), torch.cat(last_cells))
    return (x.flatten(0, 1), *ends)


def _turned(x: torch.Tensor, packing: _Packing) -> torch.Tensor:
    """[T, B, F] with each sequence backwards, padding where it was."""
    steps = torch.arange(packing.steps)[:, None]
    places = torch.where(packing.mask, packing.lengths[None] - 1 - steps, steps)
    return x.gather(0, places[:, :, None].expand(x.shape))


def _at_end(x: torch.Tensor, packing: _Packing) -> torch.Tensor:
    """[1, B, F], the last row of each sequence."""
    return x.gather(0, (packing.lengths - 1)[None, :, None].expand(1, *x.shape[1:]))


def _last_cell(
    packing: _Packing,
    func: Any,
    x: torch.Tensor,
    states: tuple[torch.Tensor, ...],
    own: list[torch.Tensor],
    biased: bool,
) -> torch.Tensor:
    """[1, B, H], the cell behind each sequence: beyond its end the gates keep what is there.

    One more input, 1 in padding, closes the input's gate and opens the one that forgets nothing.
    """
    size = own[0].shape[0] // 4  # rows: input, forget, cell, output
    signs = torch.tensor([-FROZEN, FROZEN, 0.0, 0.0]).repeat_interleave(size)[:, None]
    padding = (~packing.mask).to(x.dtype)[:, :, None]
    kept = [torch.cat((own[0], signs.to(own[0].dtype)), 1), *own[1:]]
    return func(torch.cat((x, padding), -1), states, kept, biased, 1, 0.0, False, False, False)[2]  # type: ignore[no-any-return]
