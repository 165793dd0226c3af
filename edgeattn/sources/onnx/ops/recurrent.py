"""LSTM, GRU, RNN. What torch's own layers compute is handed to them; the rest is unrolled over the steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.sources.onnx.ops.node import Function, Node, NotImportableError, op, to_tensor

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ORDER = {
    "LSTM": (0, 2, 3, 1),
    "GRU": (1, 0, 2),
    "RNN": (0,),
}  # torch's order of gates in ONNX's: ifgo of iofc, rzn of zrh
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Relu": torch.relu,
    "HardSigmoid": lambda x: torch.clamp(0.2 * x + 0.5, 0.0, 1.0),
    "Softsign": nn.functional.softsign,
    "Softplus": nn.functional.softplus,
}


@op("LSTM", "GRU", "RNN")
def _recurrent(node: Node) -> Function | nn.Module:
    node.refuse("clip", 0.0)
    node.refuse("input_forget", 0)
    direction = node.text("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    hidden = node.integer("hidden_size", node.shape(2)[2])
    batch_first = bool(node.integer("layout"))
    steps, batch = (node.shape()[1], node.shape()[0]) if batch_first else node.shape()[:2]
    node.count("steps", steps)
    if hidden != node.shape(2)[2]:
        raise NotImportableError(f"hidden_size = {hidden}, its weights have {node.shape(2)[2]}")
    if node.has(4) and not (node.static(4) == steps).all():
        raise NotImportableError("sequence_lens shorter than the sequence are not imported")
    given = [v.decode() if isinstance(v, bytes) else str(v) for v in node.attributes.get("activations", [])]
    activations = [name.title() if name.islower() else name for name in given] or list(DEFAULTS[node.op]) * directions
    weights = [to_tensor(node.static(i).astype(np.float32)) for i in (1, 2)]
    width = GATES[node.op] * hidden
    bias = to_tensor(node.static(3)) if node.has(3) else torch.zeros(directions, 2 * width)
    peepholes = to_tensor(node.static(7)) if node.has(7) else None
    plain = (
        activations == list(DEFAULTS[node.op]) * directions
        and (peepholes is None or not bool(peepholes.any()))
        and (node.op != "GRU" or node.integer("linear_before_reset") == 1)
    )
    shape = (directions, batch, hidden)
    if plain:
        layer = _torch_layer(node.op, weights[0], weights[1], bias, direction)
        return Recurrent(layer, direction == "reverse", batch_first, shape)
    rows = [
        Cell(node.op, weights[0][d], weights[1][d], bias[d], None if peepholes is None else peepholes[d],
             tuple(activations[d * len(DEFAULTS[node.op]) : (d + 1) * len(DEFAULTS[node.op])]),
             bool(node.integer("linear_before_reset")))
        for d in range(directions)
    ]  # fmt: skip
    backwards = [direction == "reverse"] if directions == 1 else [False, True]
    return Unrolled(rows, backwards, batch_first, shape)


def _torch_layer(kind: str, w: Tensor, r: Tensor, bias: Tensor, direction: str) -> nn.LSTM | nn.GRU | nn.RNN:
    hidden, size = r.shape[2], w.shape[2]
    kinds: dict[str, type[nn.LSTM | nn.GRU | nn.RNN]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
    layer = kinds[kind](size, hidden, bidirectional=direction == "bidirectional")
    order = ORDER[kind]

    def ordered(t: Tensor) -> Tensor:
        parts = torch.split(t, hidden, 0)
        return torch.cat([parts[i] for i in order], 0).contiguous()

    with torch.no_grad():
        for d in range(w.shape[0]):
            suffix = "_reverse" if d else ""
            both = torch.split(bias[d], GATES[kind] * hidden)
            values = {"weight_ih": w[d], "weight_hh": r[d], "bias_ih": both[0], "bias_hh": both[1]}
            for name, value in values.items():
                getattr(layer, f"{name}_l0{suffix}").copy_(ordered(value))
    return layer.requires_grad_(False)


class Recurrent(nn.Module):
    """A torch layer that takes and gives what the ONNX node does."""

    def __init__(
        self, layer: nn.LSTM | nn.GRU | nn.RNN, reverse: bool, batch_first: bool, shape: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.layer = layer
        self.reverse = reverse
        self.batch_first = batch_first
        self.shape = shape

    def forward(self, x: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
        """Outputs (T, directions, N, hidden), the last hidden state, and for an LSTM the last cell state."""
        x = x.transpose(0, 1) if self.batch_first else x
        x = x.flip(0) if self.reverse else x
        h, c = _states(rest, self.shape, self.batch_first, x)
        if isinstance(self.layer, nn.LSTM):
            y, (h, c) = self.layer(x, (h, c))
        else:
            y, h = self.layer(x, h)
        y = y.reshape(y.shape[0], y.shape[1], self.shape[0], self.shape[2]).permute(0, 2, 1, 3)
        y = y.flip(0) if self.reverse else y
        last = (h, c) if isinstance(self.layer, nn.LSTM) else (h,)
        return _laid_out(y, last, self.batch_first)


def _states(
    rest: tuple[Tensor | None, ...], shape: tuple[int, ...], batch_first: bool, x: Tensor
) -> tuple[Tensor, Tensor]:
    # Inputs after x: W, R, B, sequence_lens, initial_h, initial_c.
    found = [(*rest, *[None] * 6)[i] for i in (4, 5)]
    states = []
    for state in found:
        if state is None:
            states.append(torch.zeros(shape, dtype=x.dtype, device=x.device))
        else:
            states.append(state.transpose(0, 1) if batch_first else state)
    return states[0], states[1]


def _laid_out(y: Tensor, last: tuple[Tensor, ...], batch_first: bool) -> tuple[Tensor, ...]:
    if not batch_first:
        return (y, *last)
    return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))


class Cell(nn.Module):
    """One direction of a recurrent node, in ONNX's own order of gates."""

    def __init__(
        self, kind: str, w: Tensor, r: Tensor, bias: Tensor, peepholes: Tensor | None, activations: tuple[str, ...],
        reset_after: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        unknown = sorted(set(activations) - set(ACTIVATIONS))
        if unknown:
            raise NotImportableError(f"activation {unknown[0]} is not imported")
        self.kind = kind
        self.w, self.r, self.bias = (nn.Parameter(t.clone(), requires_grad=False) for t in (w, r, bias))
        self.peepholes = None if peepholes is None else nn.Parameter(peepholes.clone(), requires_grad=False)
        self.activations = activations
        self.reset_after = reset_after

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next hidden and cell state, each (N, hidden)."""
        f = [ACTIVATIONS[name] for name in self.activations]
        size = self.r.shape[1]
        forward_bias, back_bias = self.bias.chunk(2)
        ours = torch.nn.functional.linear(x, self.w, forward_bias)
        if self.kind == "GRU":
            return self._gru(f, ours, h, back_bias), c
        total = ours + torch.nn.functional.linear(h, self.r, back_bias)
        if self.kind == "RNN":
            return f[0](total), c
        i, o, forget, cell = torch.split(total, size, -1)
        p = torch.split(self.peepholes, size) if self.peepholes is not None else None
        if p is not None:
            i, forget = i + p[0] * c, forget + p[2] * c
        c = f[0](forget) * c + f[0](i) * f[1](cell)
        o = o if p is None else o + p[1] * c
        return f[0](o) * f[2](c), c

    def _gru(self, f: list[Callable[[Tensor], Tensor]], ours: Tensor, h: Tensor, back_bias: Tensor) -> Tensor:
        size = self.r.shape[1]
        linear = torch.nn.functional.linear
        gates = ours[:, : 2 * size] + linear(h, self.r[: 2 * size], back_bias[: 2 * size])
        z, reset = (f[0](part) for part in torch.split(gates, size, -1))
        if self.reset_after:
            candidate = ours[:, 2 * size :] + reset * linear(h, self.r[2 * size :], back_bias[2 * size :])
        else:
            candidate = ours[:, 2 * size :] + linear(reset * h, self.r[2 * size :], back_bias[2 * size :])
        return (1 - z) * f[1](candidate) + z * h


class Unrolled(nn.Module):
    """A recurrent node step by step."""

    def __init__(self, cells: list[Cell], backwards: list[bool], batch_first: bool, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.cells = nn.ModuleList(cells)
        self.backwards = backwards
        self.batch_first = batch_first
        self.shape = shape

    def forward(self, x: Tensor, *rest: Tensor | None) -> tuple[Tensor, ...]:
        """Outputs (T, directions, N, hidden), the last hidden state, and for an LSTM the last cell state."""
        x = x.transpose(0, 1) if self.batch_first else x
        first_h, first_c = _states(rest, self.shape, self.batch_first, x)
        rows, last_h, last_c = [], [], []
        for d, cell in enumerate(self.cells):
            h, c = first_h[d], first_c[d]
            steps = range(x.shape[0] - 1, -1, -1) if self.backwards[d] else range(x.shape[0])
            seen = []
            for t in steps:
                h, c = cell(x[t], h, c)
                seen.append(h)
            rows.append(torch.stack(seen[::-1] if self.backwards[d] else seen))
            last_h.append(h)
            last_c.append(c)
        last = (torch.stack(last_h), torch.stack(last_c))
        lstm = any(isinstance(cell, Cell) and cell.kind == "LSTM" for cell in self.cells)
        return _laid_out(torch.stack(rows, 1), last if lstm else last[:1], self.batch_first)
