"""The latency table of a model on a device that is not here: a roofline over its linear and convolution layers."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgeattn.errors import UnsupportedError
from edgeattn.pruning.anatomy import Anatomy, Prunable, Stack, Unit
from edgeattn.pruning.cut import snapped
from edgeattn.pruning.latency import Curve, LatencyTable, falling, watching
from edgeattn.targets import Target
from edgeattn.targets.roofline import ELEMENT_BYTES, Computed, OpFigures, estimate_op, peak_rate


@dataclass(frozen=True)
class _Call:
    """One call of a linear or convolution layer: numbers in, out and of weights, and positions of a sequence in it."""

    taken: int
    given: int
    weights: int
    flops: float
    positions: int


def estimate_table(given: Prunable, target: Target, precision: str = "fp32", threads: int = 1) -> LatencyTable:
    """The table of a model on a device that is not here: a roofline over its linear and convolution layers.

    Each takes the middle of what :func:`edgeattn.targets.roofline.estimate_op` gives for the target's first engine. So
    do the two products of attention, for the keys of the example; those that come from a cache are not seen. float16
    and int8 count as float32 on a device without a rate for them. Everything else a model does is left out: savings
    are better known than the whole.

    Raises:
        UnsupportedError: for a target whose peak rate or bandwidth is not known.
    """
    device = _device(target, precision, threads)
    layers = [path for path, module in given.network.named_modules() if _multiplies(module)]
    calls: dict[str, list[_Call]] = {path: [] for path in layers}

    def see(path: str, x: torch.Tensor, output: Any) -> None:
        weight = given.network.get_submodule(path).weight
        if not (isinstance(weight, torch.Tensor) and isinstance(output, torch.Tensor)):
            return
        channels = output.shape[1] if weight.ndim > 2 else output.shape[-1]
        flops = 2.0 * weight.numel() * output.numel() / channels
        positions = x.shape[-2] if x.ndim > 1 else 1
        calls[path].append(_Call(x.numel(), output.numel(), weight.numel(), flops, positions))

    with watching(given.network, layers, see):
        for graph in given.model.spec.graphs:
            given.model.run(given.model.example[graph.name], graph.name)
    units = {unit.key: unit for unit in given.anatomy.units}
    whole = {path: sum(_layer_ms(device, call, 1.0, 1.0) for call in made) for path, made in calls.items()}
    attended = {key: _attention_ms(device, unit, calls, 1.0) for key, unit in units.items()}
    return LatencyTable(
        full_ms=max(sum(whole.values()) + sum(attended.values()), 1e-9),
        savings={key: _estimated_curve(device, unit, calls, target.kernels.channels) for key, unit in units.items()},
        layers={stack.path: _estimated_layer(given.anatomy, stack, whole, attended) for stack in given.anatomy.stacks},
        kind="estimated", engine="roofline", precision=precision, device=target.title, threads=threads,
        notes=(f"estimated from {target.name}'s stated rates, not measured",),
    )  # fmt: skip


@dataclass(frozen=True)
class _Device:
    """What layers are estimated for."""

    target: Target
    precision: Computed
    threads: int

    def rate(self) -> float:
        """Operations per second at most."""
        return peak_rate(self.target, self.target.backends[0], self.precision, self.threads)

    def ms(self, flops: float, numbers: float, kernels: int = 1) -> float:
        """Milliseconds of operations on that many weights and activations."""
        figures = OpFigures("layer", "MatMul", flops, numbers * ELEMENT_BYTES[self.precision], self.precision, kernels)
        return estimate_op(figures, self.target, self.target.backends[0], self.threads).mid_ms


def _device(target: Target, precision: str, threads: int) -> _Device:
    plain = _Device(target, "fp32", threads)
    try:
        plain.ms(1.0, 1.0)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; or prune by a share instead of a time") from error
    known: dict[str, Computed] = {"fp16": "fp16", "int8": "int8", "int4": "int8"}
    narrow = _Device(target, known.get(precision, "fp32"), threads)
    with contextlib.suppress(UnsupportedError):
        if narrow.rate() > plain.rate():  # processors that unpack float16 move it as float32, too
            return narrow
    return plain


def _multiplies(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)) or type(module).__name__ == "Conv1D"


def _layer_ms(device: _Device, call: _Call, taken: float, given: float) -> float:
    """Milliseconds of a layer of which shares of its inputs and outputs are left."""
    numbers = call.taken * taken + call.given * given + call.weights * taken * given
    return device.ms(call.flops * taken * given, numbers)


def _attention_ms(device: _Device, unit: Unit, calls: Mapping[str, Sequence[_Call]], share: float) -> float:
    """Milliseconds of the two products between queries, keys and values of which a share of heads is left."""
    if unit.kind != "attention" or len(unit.entries) == 0:
        return 0.0
    keys = calls[unit.entries[min(1, len(unit.entries) - 1)]]
    total = 0.0
    for number, call in enumerate(calls[unit.exit]):
        length = keys[min(number, len(keys) - 1)].positions if keys else call.positions
        flops = 4.0 * call.taken * share * length
        total += device.ms(flops, 4.0 * call.taken * share, 2)
    return total


def _estimated_curve(device: _Device, unit: Unit, calls: Mapping[str, Sequence[_Call]], channels: int) -> Curve:
    def ms(groups: int) -> float:
        share = groups / unit.groups
        made = sum(_layer_ms(device, call, 1.0, share) for path in unit.entries for call in calls[path])
        left = sum(_layer_ms(device, call, share, 1.0) for call in calls[unit.exit])
        return made + left + _attention_ms(device, unit, calls, share)

    multiple = channels if unit.kind == "feedforward" else 1
    counts = sorted({snapped(unit.groups * share, unit.groups, multiple) for share in (0.0, 0.25, 0.5, 0.75, 1.0)})
    saved = [max(0.0, ms(unit.groups) - ms(groups)) for groups in counts]
    return Curve(tuple(counts), (*falling(saved[:-1]), 0.0))


def _estimated_layer(
    anatomy: Anatomy, stack: Stack, whole: Mapping[str, float], attended: Mapping[str, float]
) -> float:
    inside = sum(ms for path, ms in whole.items() if path.startswith(f"{stack.path}."))
    inside += sum(ms for key, ms in attended.items() if anatomy.unit(key).exit.startswith(f"{stack.path}."))
    return inside / stack.layers
