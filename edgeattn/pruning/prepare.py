"""Blocks that cannot be cut as they are, replaced by others that compute the same and can.

Two kinds exist. ``nn.MultiheadAttention`` keeps its projections packed and never calls its output layer. Blocks that
add a bias which another module made for all heads (T5, MPNet) need to know which of its rows are theirs once their
heads differ from the others'.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from edgeattn.attention.multihead import from_torch
from edgeattn.attention.padded_rows import KEPT

BIAS = "position_bias"  # what T5 and those after it call the bias that they pass from layer to layer
MAKES = "has_relative_attention_bias"
TABLE = "relative_attention_bias"


def prepare(network: nn.Module) -> bool:
    """Make all blocks of a network such that their heads can be removed one by one, in place.

    Returns:
        whether anything was changed.
    """
    # All of them are evaluated: each may have something to change.
    return any([_own_layers(network), _own_bias(network), _own_rows(network)])


def _own_layers(network: nn.Module) -> bool:
    """Replace torch's packed attention by one with a layer per projection."""
    made: dict[int, nn.Module] = {}
    for module in list(network.modules()):
        if isinstance(module, nn.TransformerEncoder):
            # Nested tensors are entered by a look at packed weights; the zeros at padded positions stay.
            setattr(module, KEPT, getattr(module, KEPT, module.use_nested_tensor))
            module.use_nested_tensor = False
        for name, child in list(module.named_children()):
            if type(child) is nn.MultiheadAttention and not _has_extra_key(child):
                setattr(module, name, made.setdefault(id(child), from_torch(child)))
    return bool(made)


def _has_extra_key(block: nn.MultiheadAttention) -> bool:
    return block.bias_k is not None or block.bias_v is not None or block.add_zero_attn


def _own_bias(network: nn.Module) -> bool:
    """Give every layer the table of relative positions that the first one has made the bias of all from.

    Each then keeps the columns of its own heads, and the first layer can be left out.
    """
    changed = False
    for layers in network.modules():
        if not isinstance(layers, nn.ModuleList) or len(layers) < 2:
            continue
        for name, maker in layers[0].named_modules():
            if not getattr(maker, MAKES, False) or not isinstance(getattr(maker, TABLE, None), nn.Embedding):
                continue
            others = [_at(layer, name) for layer in list(layers)[1:]]
            readers = [block for block in others if block is not None and getattr(block, MAKES, None) is False]
            if len(readers) < len(layers) - 1:
                continue
            for block in readers:
                setattr(block, MAKES, True)
                setattr(block, TABLE, _copy(getattr(maker, TABLE)))
            for block in layers.modules():
                if isinstance(getattr(block, MAKES, None), bool):
                    block.register_forward_hook(_pass_no_bias)
            changed = True
    return changed


def _at(layer: nn.Module, name: str) -> nn.Module | None:
    try:
        return layer.get_submodule(name)
    except AttributeError:
        return None


def _copy(table: nn.Embedding) -> nn.Embedding:
    copy = nn.Embedding(table.num_embeddings, table.embedding_dim)
    with torch.no_grad():
        copy.weight.copy_(table.weight)
    copy.weight.requires_grad_(table.weight.requires_grad)
    return copy.train(table.training)


def _pass_no_bias(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    """The bias is the second output: without it the next layer makes its own."""
    if isinstance(output, tuple) and len(output) > 1:
        return (output[0], None, *output[2:])
    return output


def _own_rows(network: nn.Module) -> bool:
    """Let blocks that are given a bias for all heads take the rows of those that they have."""
    changed = False
    for module in network.modules():
        heads = getattr(module, "num_attention_heads", None)
        if not isinstance(heads, int) or not hasattr(module, "q") or hasattr(module, MAKES) or hasattr(module, "heads"):
            continue
        if BIAS in inspect.signature(module.forward).parameters:
            module.register_buffer("heads", torch.arange(heads), persistent=False)
            module.register_forward_pre_hook(_take_rows, with_kwargs=True)
            changed = True
    return changed


def _take_rows(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    bound = inspect.signature(module.forward).bind(*args, **named)
    bias, heads = bound.arguments.get(BIAS), module.heads
    if not isinstance(bias, Tensor) or not isinstance(heads, Tensor) or bias.shape[1] == len(heads):
        return None
    bound.arguments[BIAS] = bias.index_select(1, heads)
    return bound.args, bound.kwargs
