"""The tensors of a pruned model on disk, as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeattn.errors import ModelError, load_extra
from edgeattn.guards.blocks import sha256_of


def write_weights(path: Path, network: nn.Module) -> None:
    """The state of a network, float32, tensors that several names share once."""
    safetensors: Any = load_extra("safetensors.torch", "convert")
    written: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in network.state_dict().items():
        if same_memory(tensor) not in seen:
            seen.add(same_memory(tensor))
            kept = tensor.detach().cpu()
            written[name] = kept.to(torch.float32 if kept.is_floating_point() else kept.dtype).contiguous().clone()
    safetensors.save_file(written, path, metadata={"format": "pt"})
    path.chmod(0o644)


def same_memory(tensor: Tensor) -> tuple[Any, ...]:
    """What tells whether two tensors are the same memory; each empty one is its own."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def file_sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return sha256_of(file)


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a network, in place; of names that share one tensor, one is enough.

    Raises:
        ModelError: naming the tensor that is missing, unknown, of another shape, or holds NaN or infinity.
    """
    state = network.state_dict(keep_vars=True)
    unknown = sorted(set(tensors) - set(state))
    if unknown:
        raise ModelError(f"the pruned network has no tensor {unknown[0]!r:.100}; these are weights of another one")
    shared: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in state.items():
        shared.setdefault(same_memory(tensor), []).append(name)
    with torch.no_grad():
        for names in shared.values():
            there = [name for name in names if name in tensors]
            if not there:
                raise ModelError(f"the weights hold no {names[0]!r}")
            for name in there:
                if tensors[name].shape != state[name].shape:
                    shapes = f"{tuple(state[name].shape)} is wanted, {tuple(tensors[name].shape)} is stored"
                    raise ModelError(f"{name}: {shapes}; cuts and weights do not belong together")
                if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
                    raise ModelError(f"{name} holds NaN or infinity")
                state[name].copy_(tensors[name])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, copied into memory, float ones as float32.

    The format bounds what is read: a header's offsets must lie in the file and fit the shapes, so no header allocates
    more than four times the file.

    Raises:
        ModelError: if it is truncated or damaged.
    """
    safetensors: Any = load_extra("safetensors", "convert")
    tensors: dict[str, Tensor] = {}
    try:
        with safetensors.safe_open(str(path), "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                tensor = opened.get_tensor(name)
                # A copy: a mapped file that is written again later would take the process down.
                kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
                tensors[name] = tensor.to(kind, copy=True)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: truncated or no safetensors file: {said}; copy it again") from error
    return tensors
