"""What a forward does and no engine can, done another way while it runs, in torch as in every trace of it.

Other floats than float32 (:mod:`edgeattn.sources.single`) and packed sequences (:mod:`edgeattn.sources.packed`). A
module that has neither is left as it is. One that has is changed in place, its class included: whoever calls it
afterwards, to trace, prune or train it, gets what engines will be given. What came of it is compared with the source as
it was.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import UnsupportedError
from edgeattn.guards.silence import silenced
from edgeattn.runtimes.agreement import sqnr_db
from edgeattn.sources.outputs import name_outputs

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]
LEAST_DB = {"bfloat16": 20.0, "float16": 40.0, "float64": 80.0}
"""How near the source in its own precision comes to itself in float32: 8, 11 and 24 bits, less what layers add up."""
SAME_DB = 90.0  # of a float32 source with packed sequences: the same numbers, in another order


@dataclass(frozen=True, kw_only=True)
class Asis:
    """A module as its author wrote it, and what it gives.

    Attributes:
        floats: other floats than float32 among its weights, its inputs, and what it computes from them.
        packs: whether it packs sequences.
        outputs: None where it does not run here.
    """

    floats: frozenset[str]
    packs: bool
    outputs: Tensors | None


def freeze_observers(module: torch.nn.Module) -> bool:
    """Let what watches activations for quantization only hand them on; whether there was any.

    Fake quantization keeps the scales that training left. Modules of torch.ao.quantization go on watching in eval mode,
    and ask buffers which of both they do, a branch that no trace can follow.
    """
    quantization: Any = sys.modules.get("torch.ao.quantization")
    if quantization is None:
        return False
    found = False
    for part in module.modules():
        if isinstance(part, quantization.FakeQuantizeBase):
            part.__class__ = _frozen(type(part), bool(part.fake_quant_enabled[0]))
            found = True
        elif isinstance(part, quantization.ObserverBase):
            part.__class__ = _frozen(type(part), False)
            found = True
    return found


def _frozen(kind: type, rounds: bool) -> type:
    """A class like a fake quantizer's or an observer's, that rounds with its scales or does nothing."""
    import torch

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if not rounds:
            return x
        zero, bounds = self.zero_point.to(torch.int32), (self.quant_min, self.quant_max)
        if self.is_per_channel:
            return torch.fake_quantize_per_channel_affine(x, self.scale, zero, self.ch_axis, *bounds)
        return torch.fake_quantize_per_tensor_affine(x, self.scale.reshape(()), zero.reshape(()), *bounds)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


def looked_at(module: torch.nn.Module, inputs: Tensors) -> Asis:
    """Run a module as it is, on inputs of its own types."""
    import torch

    from edgeattn.sources.packed import PackedMode
    from edgeattn.sources.single import OTHER_FLOATS, FloatMode

    mode, packed = FloatMode(inputs.values(), keep=True), PackedMode(keep=True)
    tensors = (*module.parameters(), *inputs.values())
    floats = {tensor.dtype for tensor in tensors if tensor.dtype in OTHER_FLOATS}
    outputs = None
    try:
        with silenced(), torch.no_grad(), mode, packed:
            outputs = {
                name: tensor.clone()
                for name, tensor in name_outputs(module(**{n: tensor.clone() for n, tensor in inputs.items()})).items()
            }
    except Exception:  # noqa: BLE001  # told by whoever runs it next
        outputs = None
    found = frozenset(str(dtype).removeprefix("torch.") for dtype in floats | mode.seen)
    return Asis(floats=found, packs=packed.used, outputs=outputs)


def make_followable(module: torch.nn.Module) -> None:
    """Let a module compute in float32 and without packing from now on; once is enough."""
    import torch

    from edgeattn.sources.packed import PackedMode, plain_permutations
    from edgeattn.sources.single import FloatMode, no_autocast, widen_weights

    widen_weights(module)
    kind = type(module)
    if getattr(kind, "_edgeattn_followable", False) or isinstance(module, torch.jit.ScriptModule):
        return

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = torch.utils._pytree.tree_leaves((args, kwargs))  # noqa: SLF001  # torch's own way to the leaves
        with no_autocast(), plain_permutations(), FloatMode(given), PackedMode():
            return kind.forward(self, *args, **kwargs)

    members = {"forward": forward, "_edgeattn_followable": True, "__module__": kind.__module__}
    module.__class__ = type(kind.__name__, (kind,), members)


def compared(name: str, before: Asis, module: torch.nn.Module, inputs: Tensors) -> tuple[str, ...]:
    """Run a followable module and hold it to what it gave before.

    Args:
        name: of the graph.
        inputs: in float32 where they had another float.

    Returns:
        what its user should know.

    Raises:
        UnsupportedError: for an output that is further from the source than its precision explains.
    """
    import torch

    notes = [] if not before.floats else [f"{' and '.join(sorted(before.floats))} of the source: computed in float32"]
    if before.packs:
        notes.append("packed sequences are computed as padded ones; outputs have as many rows as the padded input")
    if before.outputs is None:
        return tuple(notes)
    with silenced(), torch.no_grad():
        after = name_outputs(module(**{key: tensor.clone() for key, tensor in inputs.items()}))
    least = min((LEAST_DB[kind] for kind in before.floats), default=SAME_DB)
    worst = np.inf
    for key, tensor in before.outputs.items():
        if not tensor.is_floating_point() or key not in after or after[key].shape != tensor.shape:
            continue
        expected, got = tensor.double().numpy(), after[key].double().numpy()
        finite = np.isfinite(expected) & np.isfinite(got)
        ratio = sqnr_db(expected[finite], got[finite]) if finite.any() else np.inf
        if ratio < least:
            raise UnsupportedError(
                f"graph {name!r}: in float32 output {key!r} is {ratio:.0f} dB from what the source gives in its own "
                f"{' and '.join(sorted(before.floats)) or 'float32'}, expected are {least:g} dB; engines compute in "
                "float32: write what cancels or rounds so that it does not need the other precision"
            )
        worst = min(worst, ratio)
    if before.floats and worst < SAME_DB:
        notes[0] += f", {worst:.0f} dB from the source in its own precision on the example"
    return tuple(notes)
