"""Finding units by the names that families give their layers.

One row per way of naming; a row says nothing about the class, so that the many copies of a block in other families are
found too. That a match is right is not taken on trust: :func:`edgeattn.pruning.apply.prune` compares the pruned network
with the masked one before anything is kept, and what attends in another way than the row says is refused there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        vectors: parameters or buffers of the block itself with heads along axis 0: name -> entries per head.
        more: further linear layers whose outputs are heads, such as that of relative positions.
        tables: parameters with a column per head, such as biases by relative position.
        when: an attribute of the block and its value, if the row is about these blocks alone.
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
    tables: tuple[str, ...] = ()
    when: tuple[str, str] | None = None


@dataclass(frozen=True)
class PackedNames:
    """How a family names an attention block with one layer for query, key and value, packed one after the other.

    Attributes:
        counts: attributes that hold the number of heads.
        widths: those that hold heads * head_dim.
    """

    name: str
    packed: str
    output: str
    counts: tuple[str, ...] = ("num_heads",)
    widths: tuple[str, ...] = ()


@dataclass(frozen=True)
class FeedForwardNames:
    """How a family names the layers of a feed-forward, relative to the module that has them all.

    Attributes:
        parts: how many neurons of the first layer make one of the second's inputs; 2 where half of them are gates,
            packed behind the others.
    """

    name: str
    first: tuple[str, ...]
    second: str
    parts: int = 1


TABLE = "relative_position_bias_table"

ATTENTION = (
    AttentionNames("bert", "query", "key", "value", "^.output.dense"),
    AttentionNames("distilbert", "q_lin", "k_lin", "v_lin", "out_lin"),
    AttentionNames("bart", "q_proj", "k_proj", "v_proj", "out_proj"),
    AttentionNames(
        "vit", "q_proj", "k_proj", "v_proj", "o_proj",
        tables=(f"relative_position_bias.{TABLE}", f"^.relative_position_bias.{TABLE}"),
    ),
    AttentionNames("t5", "q", "k", "v", "o", vectors={"heads": 1}, tables=("relative_attention_bias.weight",)),
    AttentionNames("torch", "q", "k", "v", "out", kv_counts=("num_key_value_heads",), vectors={"heads": 1}),
    AttentionNames("albert", "query", "key", "value", "dense"),
    AttentionNames(  # it rotates what it reads, in as many parts as it once had heads
        "wav2vec2-conformer", "linear_q", "linear_k", "linear_v", "linear_out",
        counts=(), when=("position_embeddings_type", "rotary"),
    ),
    AttentionNames(
        "wav2vec2-conformer", "linear_q", "linear_k", "linear_v", "linear_out",
        vectors={"pos_bias_u": 1, "pos_bias_v": 1}, more=("linear_pos",),
    ),
    AttentionNames("edgeattn", "query", "key", "value", "output", vectors={"bias": 1}),
)  # fmt: skip

PACKED = (
    PackedNames("gpt2", "c_attn", "c_proj", widths=("split_size",)),
    PackedNames("modernbert", "Wqkv", "Wo"),
    PackedNames("timm", "qkv", "proj", widths=("attn_dim",)),
)

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
    FeedForwardNames("albert", ("ffn",), "ffn_output"),
    FeedForwardNames("modernbert", ("Wi",), "Wo", parts=2),
    FeedForwardNames("perceiver", ("dense1",), "dense2"),
    FeedForwardNames("xlnet", ("layer_1",), "layer_2"),
    FeedForwardNames("edgeattn", ("expand",), "contract"),
)

NO_NAMES = "its projections have names that no family uses"


def find_anatomy(network: nn.Module) -> Anatomy:
    """All units and stacks of a network, in the order of its modules; a module under several paths once.

    Blocks that share a weight are one unit, that of the first of them.
    """
    units: list[Unit] = []
    nameless: list[Unknown] = []
    for path, module in network.named_modules():
        found = attention_unit(network, path, module) or packed_attention_unit(path, module)
        if found is not None:
            units.append(found)
        elif "attention" in type(module).__name__.lower() and _owns_weights(module):
            nameless.append(Unknown(path, type(module).__name__, NO_NAMES))
        feedforward = feedforward_unit(path, module)
        if feedforward is not None:
            units.append(feedforward)
    attentions = {unit.path for unit in units if unit.kind == "attention"}
    unknown = [one for one in nameless if not any(_within(path, one.path) for path in attentions)]
    whole, shared = together(network, units)
    return Anatomy(whole, tuple(stacks(network)), (*unknown, *shared))


def _owns_weights(module: nn.Module) -> bool:
    return any(isinstance(child, nn.Linear) for child in module.children()) or any(
        parameter.ndim > 1 for parameter in module.parameters(recurse=False)
    )


def _within(path: str, above: str) -> bool:
    return not above or path == above or path.startswith(f"{above}.")


# --- shared weights -----------------------------------------------------------------------------------------------


def together(network: nn.Module, units: Sequence[Unit]) -> tuple[tuple[Unit, ...], tuple[Unknown, ...]]:
    """Units that share weights as one each, and those that cannot be cut because of what they share.

    Cutting one end of a tied weight cuts the other. That is right only where both ends are units and hold their groups
    at the same places.
    """
    names = _names_of_tensors(network)
    clusters: list[list[Unit]] = []
    for unit in units:
        tensors = {id(tensor) for tensor in _tensors(network, unit)}
        near = [c for c in clusters if any(tensors & {id(t) for t in _tensors(network, other)} for other in c)]
        clusters = [cluster for cluster in clusters if cluster not in near]
        clusters.append([*(other for cluster in near for other in cluster), unit])
    whole: dict[str, Unit] = {}
    unknown: list[Unknown] = []
    for cluster in clusters:
        first = cluster[0]
        merged = first if len(cluster) == 1 else _merged(cluster)
        why = _why_not_shared(network, cluster, merged, names)
        if why:
            unknown += [Unknown(unit.path, type(network.get_submodule(unit.path)).__name__, why) for unit in cluster]
        else:
            whole[first.key] = merged
    order = [unit.key for unit in units]
    return tuple(sorted(whole.values(), key=lambda unit: order.index(unit.key))), tuple(unknown)


def _names_of_tensors(network: nn.Module) -> dict[int, set[tuple[str, str]]]:
    """Tensor -> everywhere it is: module's path and name in it."""
    names: dict[int, set[tuple[str, str]]] = {}
    for path, module in network.named_modules():
        for kind in (module.named_parameters, module.named_buffers):
            for name, tensor in kind(recurse=False, remove_duplicate=False):
                names.setdefault(id(tensor), set()).add((path, name))
    return names


def _tensors(network: nn.Module, unit: Unit) -> list[Tensor]:
    return [cast(Tensor, getattr(network.get_submodule(piece.module), piece.tensor)) for piece in unit.slices]


def _merged(cluster: Sequence[Unit]) -> Unit:
    first, *others = cluster
    return replace(
        first,
        slices=tuple(dict.fromkeys(piece for unit in cluster for piece in unit.slices)),
        settings=tuple(dict.fromkeys(setting for unit in cluster for setting in unit.settings)),
        entries=tuple(dict.fromkeys(entry for unit in cluster for entry in unit.entries)),
        tied=tuple(dict.fromkeys(unit.exit for unit in others if unit.exit != first.exit)),
    )


def _why_not_shared(
    network: nn.Module, cluster: Sequence[Unit], merged: Unit, names: Mapping[int, set[tuple[str, str]]]
) -> str:
    """Why what a unit shares keeps it whole; empty if it can be cut."""
    shapes = {(unit.kind, unit.groups, unit.width, unit.heads) for unit in cluster}
    if len(shapes) > 1:
        return f"it shares a weight with {cluster[1 if len(cluster) > 1 else 0].path}, which has other sizes"
    covered = {(piece.module, piece.tensor) for piece in merged.slices}
    places: dict[int, set[tuple[int, int, int]]] = {}
    for piece, tensor in zip(merged.slices, _tensors(network, merged), strict=True):
        outside = sorted(names.get(id(tensor), set()) - covered)
        if id(tensor) not in names:
            return f"{piece.module}.{piece.tensor} is computed from others at every call"
        if outside:
            return f"{piece.module}.{piece.tensor} is also {'.'.join(outside[0])}, which is none of its layers"
        places.setdefault(id(tensor), set()).add((piece.axis, piece.start, piece.width))
    for found in places.values():
        # Rows for one end are columns for the other, or the sections of one lie inside those of the other.
        starts = sorted((start, start + width * merged.groups) for _, start, width in found)
        overlap = any(start < end for (_, end), (start, _) in itertools.pairwise(starts))
        if overlap or len({axis for axis, _, _ in found}) > 1:
            return "a weight that it shares holds its groups at different places"
    return ""


# --- units --------------------------------------------------------------------------------------------------------


def _resolve(network: nn.Module, path: str, relative: str) -> tuple[str, nn.Module] | None:
    """Path and module of a name relative to a block; None if it is not there."""
    if relative.startswith("^."):
        path, relative = path.rpartition(".")[0], relative[2:]
    full = f"{path}.{relative}" if path else relative
    try:
        return full, network.get_submodule(full)
    except AttributeError:
        return None


def linear_sizes(module: nn.Module) -> tuple[int, int] | None:
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
        if names.when is not None and getattr(module, names.when[0], None) != names.when[1]:
            continue
        parts = [_resolve(network, path, name) for name in (names.query, names.key, names.value, names.output)]
        present = [part for part in parts if part is not None]
        sizes = [size for part in present if (size := linear_sizes(part[1])) is not None]
        if len(sizes) < 4:
            continue
        (q, k, v, o), (qs, ks, vs, os) = present, sizes
        counted = _counts(module, names, qs[1], ks[1])
        if counted is None:
            continue
        heads, kv_heads = counted
        share = heads // kv_heads  # query heads of one key/value head
        key_dim, head_dim = ks[1] // kv_heads, vs[1] // kv_heads  # the same but for Perceiver's
        if qs[1] != heads * key_dim or vs[1] % kv_heads or os[0] != heads * head_dim:
            continue
        slices = [
            *out_slices(*q, share * key_dim), *out_slices(*k, key_dim), *out_slices(*v, head_dim),
            in_slice(*o, share * head_dim),
        ]  # fmt: skip
        for name in names.more:
            more = _resolve(network, path, name)
            if more is not None:
                slices += out_slices(*more, share * key_dim)
        for name, width in names.vectors.items():
            if isinstance(getattr(module, name, None), Tensor):
                slices.append(Slice(path, name, 0, width * share))
        for name in names.tables:
            table, _, tensor = name.rpartition(".")
            owner = _resolve(network, path, table)
            if owner is not None and isinstance(getattr(owner[1], tensor, None), Tensor):
                slices.append(Slice(owner[0], tensor, 1, share))
        settings = [
            *(Setting(path, name, share) for name in names.counts if isinstance(getattr(module, name, None), int)),
            *(Setting(path, name, 1) for name in names.kv_counts if isinstance(getattr(module, name, None), int)),
            *(Setting(path, n, share * head_dim) for n in names.widths if isinstance(getattr(module, n, None), int)),
        ]
        return Unit(
            path=path, kind="attention", family=names.name, groups=kv_heads, width=share * head_dim, exit=o[0],
            slices=tuple(slices), settings=tuple(settings), heads=heads, head_dim=head_dim,
            cross="cross" in type(module).__name__.lower() or path.rpartition(".")[2] in CROSS,
            entries=tuple(dict.fromkeys((q[0], k[0], v[0]))),
        )  # fmt: skip
    return None


def _counts(module: nn.Module, names: AttentionNames, query: int, key: int) -> tuple[int, int] | None:
    """Query heads and key/value heads, by the width of one or by their number; None if a block tells neither."""
    dims = [dim for name in names.head_dim if isinstance(dim := getattr(module, name, None), int) and dim > 0]
    if dims:
        heads, kv_heads = query // dims[0], key // dims[0]
        fits = query % dims[0] == 0 and key % dims[0] == 0
    else:
        numbers = [n for name in names.counts if isinstance(n := getattr(module, name, None), int) and n > 0]
        if not numbers or query != key:
            return None
        heads = kv_heads = numbers[0]
        fits = key % kv_heads == 0
    return (heads, kv_heads) if fits and kv_heads and heads % kv_heads == 0 else None


CROSS = ("encoder_attn", "EncDecAttention", "crossattention", "cross_attention", "multihead_attn", "cross_attn")
"""What families call the block that reads another sequence."""


def packed_attention_unit(path: str, module: nn.Module) -> Unit | None:
    """A block whose query, key and value come from one layer, packed one after the other."""
    head_dim = getattr(module, "head_dim", None)
    if not isinstance(head_dim, int) or head_dim < 1 or hasattr(module, "q_attn"):  # GPT-2's cross attention
        return None
    prefix = f"{path}." if path else ""
    for names in PACKED:
        packed, out = _below(module, names.packed), _below(module, names.output)
        sizes = None if packed is None or out is None else (linear_sizes(packed), linear_sizes(out))
        if packed is None or out is None or sizes is None or sizes[0] is None or sizes[1] is None:
            continue
        width = sizes[1][0]
        if sizes[0][1] != 3 * width or width % head_dim:
            continue
        slices = [s for part in range(3) for s in out_slices(f"{prefix}{names.packed}", packed, head_dim, part * width)]
        slices.append(in_slice(f"{prefix}{names.output}", out, head_dim))
        settings = [
            *(Setting(path, name, 1) for name in names.counts if isinstance(getattr(module, name, None), int)),
            *(Setting(path, name, head_dim) for name in names.widths if isinstance(getattr(module, name, None), int)),
        ]
        heads = width // head_dim
        return Unit(
            path=path, kind="attention", family=names.name, groups=heads, width=head_dim,
            exit=f"{prefix}{names.output}", slices=tuple(slices), settings=tuple(settings), heads=heads,
            head_dim=head_dim, entries=(f"{prefix}{names.packed}",),
        )  # fmt: skip
    return None


def feedforward_unit(path: str, module: nn.Module) -> Unit | None:
    """The feed-forward whose layers are below a module, if they have the names of a family and sizes that fit."""
    prefix = f"{path}." if path else ""
    for names in FEEDFORWARD:
        first = [_below(module, name) for name in names.first]
        second = _below(module, names.second)
        if second is None or any(layer is None for layer in first):
            continue
        layers = [layer for layer in first if layer is not None]
        ins, outs = {linear_sizes(layer) for layer in layers}, linear_sizes(second)
        if len(ins) != 1 or outs is None:
            continue
        sizes = next(iter(ins))
        if sizes is None or sizes[1] != names.parts * outs[0] or sizes[0] != outs[1]:
            continue
        slices = [
            piece
            for name, layer in zip(names.first, layers, strict=True)
            for part in range(names.parts)
            for piece in out_slices(f"{prefix}{name}", layer, 1, part * outs[0])
        ]
        slices.append(in_slice(f"{prefix}{names.second}", second, 1))
        return Unit(
            path=path, kind="feedforward", family=names.name, groups=outs[0], width=1, exit=f"{prefix}{names.second}",
            slices=tuple(slices), entries=tuple(f"{prefix}{name}" for name in names.first),
        )  # fmt: skip
    return None


def _below(module: nn.Module, name: str) -> nn.Module | None:
    try:
        return module.get_submodule(name)
    except AttributeError:
        return None


# --- layers -------------------------------------------------------------------------------------------------------

LAYER_COUNTS = {
    "encoder": ("num_hidden_layers", "encoder_layers", "num_encoder_layers", "num_layers", "n_layers", "n_layer"),
    "decoder": ("decoder_layers", "num_decoder_layers", "num_layers", "num_hidden_layers", "n_layers", "n_layer"),
    "": ("num_hidden_layers", "num_layers", "n_layers", "n_layer", "num_blocks", "depth"),
}
"""What modules and configs call the number of layers, by the part of the network that a stack is of."""

LAYER_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""What configs call lists with an entry per layer."""


def stacks(network: nn.Module) -> Iterator[Stack]:
    """Every list of layers that hold attention."""
    for path, module in network.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2 or len({type(layer) for layer in module}) > 1:
            continue
        if len({id(layer) for layer in module}) < len(module):
            continue  # one layer several times: leaving one out would leave the others
        holds = [
            any(
                attention_unit(network, f"{path}.{number}.{name}" if name else f"{path}.{number}", part) is not None
                or packed_attention_unit(name, part) is not None
                for name, part in layer.named_modules()
            )
            for number, layer in enumerate(module)
        ]
        if all(holds):
            settings, lists = _depth_settings(network, path, len(module))
            yield Stack(path, len(module), _pinned(module), ("layer_idx",), settings, lists)


def _pinned(layers: nn.ModuleList) -> tuple[int, ...]:
    """Layers that make a bias of relative positions for the others; none where each has its own."""
    making = tuple(
        number
        for number, layer in enumerate(layers)
        if any(getattr(part, "has_relative_attention_bias", False) for part in layer.modules())
    )
    return () if len(making) == len(layers) else making


def _depth_settings(
    network: nn.Module, path: str, layers: int
) -> tuple[tuple[Setting, ...], tuple[tuple[str, str], ...]]:
    """Numbers and lists of the modules around a stack, and of their configs, that tell how many layers it has."""
    steps = path.split(".")
    role = next((name for name in ("decoder", "encoder") if name in steps), "")
    settings: list[Setting] = []
    lists: list[tuple[str, str]] = []
    seen: set[int] = set()
    for length in range(len(steps) - 1, -1, -1):
        owner = ".".join(steps[:length])
        module = network.get_submodule(owner)
        nearest = length == len(steps) - 1
        for prefix, holder in (("", module), ("config.", getattr(module, "config", None))):
            if holder is None or id(holder) in seen:
                continue
            seen.add(id(holder))
            counts = [name for name in _layer_counts(holder, role, nearest) if _own(holder, name) == layers]
            settings += [Setting(owner, f"{prefix}{name}", 1) for name in counts]
            for name in LAYER_LISTS:
                value = _own(holder, name)
                if isinstance(value, (list, tuple)) and len(value) == layers:
                    lists.append((owner, f"{prefix}{name}"))
    return tuple(settings), tuple(lists)


def _layer_counts(holder: object, role: str, nearest: bool) -> tuple[str, ...]:
    """Names of the count in one holder: one that both parts of an encoder-decoder share says which part it means."""
    if role == "decoder":
        for name in ("decoder_layers", "num_decoder_layers"):
            if _own(holder, name) is not None and (name == "decoder_layers" or not nearest):
                return (name,)
        return LAYER_COUNTS[role] if nearest else ()
    return LAYER_COUNTS[role]


def _own(holder: object, name: str) -> object:
    """An attribute that an object holds itself, not one that a config answers with another one's value."""
    return vars(holder).get(name)
