"""Finding units by the names that families give their layers.

One row per way of naming; a row says nothing about the class, so that the many copies of a block in other families are
found too. That a match is right is not taken on trust: :func:`edgeattn.pruning.apply.prune` compares the pruned network
with the masked one before anything is kept, and what attends in another way than the row says is refused there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from edgeattn.pruning.anatomy import Anatomy, Setting, Slice, Stack, Unit, Unknown


@dataclass(frozen=True)
class AttentionNames:
    """How a family names the parts of an attention block. Paths are relative to the block; ``^`` is its parent.

    Attributes:
        head_dim: attributes, in the order in which they are looked for, that hold the width of one head.
        counts: attributes that hold the number of query heads.
        kv_counts: those that hold the number of key/value heads, where they may be fewer.
        widths: attributes that hold heads * head_dim.
        vectors: parameters or buffers of the block itself with groups along axis 0: name -> entries per head, 0 for
            one head_dim.
        more: further linear layers whose outputs are heads, such as that of relative positions.
    """

    name: str
    query: str
    key: str
    value: str
    output: str
    head_dim: tuple[str, ...] = ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim")
    counts: tuple[str, ...] = ("num_heads", "num_attention_heads", "n_heads")
    kv_counts: tuple[str, ...] = ("num_key_value_heads",)
    widths: tuple[str, ...] = ("all_head_size", "inner_dim")
    vectors: dict[str, int] = field(default_factory=dict)
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeedForwardNames:
    """How a family names the layers of a feed-forward, relative to the module that has them all."""

    name: str
    first: tuple[str, ...]
    second: str


ATTENTION = (
    AttentionNames("bert", "query", "key", "value", "^.output.dense"),
    AttentionNames("distilbert", "q_lin", "k_lin", "v_lin", "out_lin"),
    AttentionNames("bart", "q_proj", "k_proj", "v_proj", "out_proj"),
    AttentionNames("vit", "q_proj", "k_proj", "v_proj", "o_proj"),
    AttentionNames("t5", "q", "k", "v", "o"),
    AttentionNames(
        "wav2vec2-conformer", "linear_q", "linear_k", "linear_v", "linear_out",
        vectors={"pos_bias_u": 1, "pos_bias_v": 1}, more=("linear_pos",),
    ),
    AttentionNames("edgeattn", "query", "key", "value", "output", vectors={"bias": 1}),
)  # fmt: skip

FEEDFORWARD = (
    FeedForwardNames("bert", ("intermediate.dense",), "output.dense"),
    FeedForwardNames("distilbert", ("lin1",), "lin2"),
    FeedForwardNames("fc", ("fc1",), "fc2"),
    FeedForwardNames("wav2vec2", ("intermediate_dense",), "output_dense"),
    FeedForwardNames("t5", ("wi",), "wo"),
    FeedForwardNames("t5-gated", ("wi_0", "wi_1"), "wo"),
    FeedForwardNames("llama", ("gate_proj", "up_proj"), "down_proj"),
    FeedForwardNames("gpt2", ("c_fc",), "c_proj"),
    FeedForwardNames("torch", ("linear1",), "linear2"),
    FeedForwardNames("patchtst", ("ff.0",), "ff.3"),
    FeedForwardNames("edgeattn", ("expand",), "contract"),
)


def find(network: nn.Module) -> Anatomy:
    """All units and stacks of a network, in the order of its modules; a module under several paths once."""
    units: list[Unit] = []
    unknown: list[Unknown] = []
    for path, module in network.named_modules():
        found = attention_unit(network, path, module) or packed_attention_unit(path, module)
        if found is not None:
            units.append(found)
        elif "attention" in type(module).__name__.lower() and _owns_linear(module):
            unknown.append(Unknown(path, type(module).__name__, "its projections have names that no family uses"))
        feedforward = feedforward_unit(path, module)
        if feedforward is not None:
            units.append(feedforward)
    return Anatomy(tuple(units), tuple(stacks(network)), tuple(unknown))


def _owns_linear(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Linear) for child in module.children())


def _resolve(network: nn.Module, path: str, relative: str) -> tuple[str, nn.Module] | None:
    """Path and module of a name relative to a block; None if it is not there."""
    if relative.startswith("^."):
        path, relative = path.rpartition(".")[0], relative[2:]
    full = f"{path}.{relative}" if path else relative
    try:
        return full, network.get_submodule(full)
    except AttributeError:
        return None


def _sizes(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear layer, None for another module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if type(module).__name__ == "Conv1D" and isinstance(getattr(module, "weight", None), Tensor):
        inputs, outputs = cast(Tensor, module.weight).shape
        return inputs, outputs
    return None


def out_slices(path: str, module: nn.Module, width: int, start: int = 0) -> tuple[Slice, ...]:
    """Slices of a linear layer whose outputs are groups."""
    transposed = not isinstance(module, nn.Linear)
    slices = [Slice(path, "weight", 1 if transposed else 0, width, start)]
    if getattr(module, "bias", None) is not None:
        slices.append(Slice(path, "bias", 0, width, start))
    return tuple(slices)


def in_slice(path: str, module: nn.Module, width: int) -> Slice:
    """The slice of a linear layer whose inputs are groups."""
    return Slice(path, "weight", 1 if isinstance(module, nn.Linear) else 0, width)


def attention_unit(network: nn.Module, path: str, module: nn.Module) -> Unit | None:
    """The attention block at a path, if its parts have the names of a family and sizes that fit."""
    for names in ATTENTION:
        parts = [_resolve(network, path, name) for name in (names.query, names.key, names.value, names.output)]
        present = [part for part in parts if part is not None]
        sizes = [_sizes(part[1]) for part in present]
        dims = [getattr(module, name, None) for name in names.head_dim]
        head_dim = next((dim for dim in dims if isinstance(dim, int)), 0)
        if len(present) < 4 or None in sizes or not head_dim:
            continue
        (q, k, v, o), (qs, ks, vs, os) = present, [size for size in sizes if size is not None]
        heads, kv_heads = qs[1] // head_dim, ks[1] // head_dim
        if ks[1] != vs[1] or os[0] != qs[1] or qs[1] % head_dim or ks[1] % head_dim or heads % max(1, kv_heads):
            continue
        share = heads // kv_heads  # query heads of one key/value head
        slices = [
            *out_slices(*q, share * head_dim), *out_slices(*k, head_dim), *out_slices(*v, head_dim),
            in_slice(*o, share * head_dim),
        ]  # fmt: skip
        for name in names.more:
            more = _resolve(network, path, name)
            if more is not None:
                slices += out_slices(*more, share * head_dim)
        for name, width in names.vectors.items():
            if isinstance(getattr(module, name, None), Tensor):
                slices.append(Slice(path, name, 0, width * share))
        settings = [
            *(Setting(path, name, share) for name in names.counts if isinstance(getattr(module, name, None), int)),
            *(Setting(path, name, 1) for name in names.kv_counts if isinstance(getattr(module, name, None), int)),
            *(Setting(path, n, share * head_dim) for n in names.widths if isinstance(getattr(module, n, None), int)),
        ]
        return Unit(
            path, "attention", names.name, kv_heads, share * head_dim, o[0], tuple(slices), tuple(settings), heads,
            head_dim, "cross" in type(module).__name__.lower() or path.rpartition(".")[2] in CROSS,
            tuple(dict.fromkeys((q[0], k[0], v[0]))),
        )  # fmt: skip
    return None


CROSS = ("encoder_attn", "EncDecAttention", "crossattention", "cross_attention", "multihead_attn", "cross_attn")
"""What families call the block that reads another sequence."""


def packed_attention_unit(path: str, module: nn.Module) -> Unit | None:
    """GPT-2's block: query, key and value in one layer, outputs packed one after the other."""
    qkv, out = getattr(module, "c_attn", None), getattr(module, "c_proj", None)
    head_dim, heads = getattr(module, "head_dim", None), getattr(module, "num_heads", None)
    if not (isinstance(head_dim, int) and isinstance(heads, int) and qkv is not None and out is not None):
        return None
    width = heads * head_dim
    if _sizes(qkv) is None or _sizes(out) is None or getattr(module, "q_attn", None) is not None:
        return None
    sizes = _sizes(qkv)
    if sizes is None or sizes[1] != 3 * width:
        return None
    prefix = f"{path}." if path else ""
    slices = [s for part in range(3) for s in out_slices(f"{prefix}c_attn", qkv, head_dim, part * width)]
    slices.append(in_slice(f"{prefix}c_proj", out, head_dim))
    settings = (
        Setting(path, "num_heads", 1),
        Setting(path, "split_size", head_dim),
    )
    return Unit(
        path, "attention", "gpt2", heads, head_dim, f"{prefix}c_proj", tuple(slices), settings, heads, head_dim,
        entries=(f"{prefix}c_attn",),
    )  # fmt: skip


def feedforward_unit(path: str, module: nn.Module) -> Unit | None:
    """The feed-forward whose layers are below a module, if they have the names of a family and sizes that fit."""
    prefix = f"{path}." if path else ""
    for names in FEEDFORWARD:
        first = [_below(module, name) for name in names.first]
        second = _below(module, names.second)
        if second is None or any(layer is None for layer in first):
            continue
        layers = [layer for layer in first if layer is not None]
        ins, outs = {_sizes(layer) for layer in layers}, _sizes(second)
        if len(ins) != 1 or outs is None:
            continue
        sizes = next(iter(ins))
        if sizes is None or sizes[1] != outs[0] or sizes[0] != outs[1]:
            continue
        slices = [
            s for name, layer in zip(names.first, layers, strict=True) for s in out_slices(f"{prefix}{name}", layer, 1)
        ]
        slices.append(in_slice(f"{prefix}{names.second}", second, 1))
        return Unit(
            path, "feedforward", names.name, outs[0], 1, f"{prefix}{names.second}", tuple(slices),
            entries=tuple(f"{prefix}{name}" for name in names.first),
        )  # fmt: skip
    return None


def _below(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


def stacks(network: nn.Module) -> Iterator[Stack]:
    """Every list of layers that hold attention."""
    for path, module in network.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2 or len({type(layer) for layer in module}) > 1:
            continue
        holds = [
            any(
                attention_unit(network, f"{path}.{number}.{name}" if name else f"{path}.{number}", part) is not None
                or packed_attention_unit(name, part) is not None
                for name, part in layer.named_modules()
            )
            for number, layer in enumerate(module)
        ]
        if all(holds):
            pinned = tuple(
                number
                for number, layer in enumerate(module)
                if any(getattr(part, "has_relative_attention_bias", False) for part in layer.modules())
            )
            yield Stack(path, len(module), pinned, ("layer_idx",))
