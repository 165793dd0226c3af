"""A small model of every family that can be pruned, and what its pruned form is compared with."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

import edgeattn.models.streaming_conformer as streaming
from edgeattn.attention.relative_bias import RelativeBiasAttention
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel, Graph
from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer
from edgeattn.pruning.anatomy import Anatomy, Prunable, Unit
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.trials import prunable
from edgeattn.sources import from_module, load_model
from edgeattn.sources.modules import from_graphs
from tests.architectures import (
    BLOCKS,
    DIM,
    FFN,
    HEADS,
    SEQ,
    SEQ2SEQ,
    WAVE,
    WORDS,
    Architecture,
    decoded,
    hugging_face,
    named,
    sound,
)


class Block(nn.Module):
    """edgeattn's attention and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = RelativeBiasAttention(DIM, HEADS, DIM // HEADS, 7, 7)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + cast(Tensor, self.attention(x, mask))

    def step(self, x: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        bias = self.attention.relative_bias(x.shape[1], x.shape[1] + cache.shape[2])[None]
        mixed, after = self.attention.step(x, cache, bias)
        return x + mixed, after


class BiasedEncoder(nn.Module):
    """edgeattn's attention in a stack, over whole sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.num_layers = BLOCKS

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Stream(nn.Module):
    """A stream by hand: layers of edgeattn's attention, stepped with a cache each, and a mean that is carried on."""

    CHUNK, LEFT = 2, 6

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(BLOCKS))

    def forward(self, x: Tensor, last: Tensor, **caches: Tensor) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        y = x + last
        for number, layer in enumerate(cast("list[Block]", list(self.layers))):
            y, outputs[f"next_cache_{number}"] = layer.step(y, caches[f"cache_{number}"])
        return {"y": y, "next_last": y.mean(1, keepdim=True), **outputs}


def hand_written_stream() -> EdgeModel:
    """A user's graph with states of two kinds."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Stream()
        cache = (1, HEADS, Stream.LEFT, 2 * DIM // HEADS)
        inputs = {
            "x": torch.randn(1, Stream.CHUNK, DIM),
            "last": torch.zeros(1, 1, DIM),
            "cache_0": torch.randn(cache),
            "cache_1": torch.randn(cache),
        }
    states = {"last": "next_last", "cache_0": "next_cache_0", "cache_1": "next_cache_1"}
    return from_graphs({"step": Graph(module, inputs, states)}, "stream")


def biased_encoder() -> EdgeModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = BiasedEncoder()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return from_module(module, {"x": torch.randn(1, SEQ, DIM), "mask": torch.zeros(1, 1, SEQ, SEQ)}, "biased")


def streaming_conformer() -> EdgeModel:
    """The built-in model with small sizes and random weights."""
    config = ConformerConfig(dim=DIM, num_blocks=3, head_dim=8, ffn_dim=FFN, channels=(4, 4), left_chunks=1, chunk=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return streaming.edge_model(StreamingConformer(config).eval(), "0" * 64)


MORE = (
    hugging_face(
        "Marian",
        "text to text",
        "MarianConfig",
        "MarianMTModel",
        {**SEQ2SEQ, "max_position_embeddings": 64, "forced_eos_token_id": None, "decoder_vocab_size": WORDS},
        decoded,
    ),
    hugging_face(
        "Wav2Vec2-Conformer (rotary)",
        "sound",
        "Wav2Vec2ConformerConfig",
        "Wav2Vec2ConformerForCTC",
        {**WAVE, "position_embeddings_type": "rotary", "conv_depthwise_kernel_size": 5},
        sound,
    ),
    hugging_face(
        "T5 (gated)",
        "text to text",
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": WORDS,
            "d_model": DIM,
            "d_kv": 8,
            "d_ff": FFN,
            "num_layers": BLOCKS,
            "num_heads": HEADS,
            "use_cache": False,
            "decoder_start_token_id": 0,
            "feed_forward_proj": "gated-gelu",
        },
        decoded,
    ),
    Architecture(
        "nn.Transformer",
        "text to text",
        lambda: (
            nn.Transformer(DIM, HEADS, 2, 2, FFN, batch_first=True),
            {"src": torch.randn(1, SEQ, DIM), "tgt": torch.randn(1, 5, DIM)},
        ),
    ),
)

STOCK = (
    "nn.MultiheadAttention",
    "nn.TransformerEncoder",
    "nn.TransformerDecoder",
    "nn.Transformer",
    "BERT",
    "DistilBERT",
    "ViT",
    "DeiT",
    "CLIP",
    "Wav2Vec2",
    "Wav2Vec2-Conformer",
    "Wav2Vec2-Conformer (rotary)",
    "Whisper",
    "T5",
    "T5 (gated)",
    "BART",
    "Marian",
    "GPT-2",
    "AST",
    "VideoMAE",
    "PatchTST",
)
"""Families of torch and transformers; those of transformers have a directory, too."""

OWN: dict[str, Callable[[], EdgeModel]] = {
    "RelativeBiasAttention": biased_encoder,
    "a stream by hand": hand_written_stream,
    "streaming Conformer": streaming_conformer,
}

FAMILIES = (*STOCK, *OWN)
STEPPED = ("T5", "T5 (gated)", "BART", "Marian", "Whisper")
"""Encoder-decoders, which come as directories where a decoder's step with its caches is wanted."""


def architecture(name: str) -> Architecture:
    """A stock family."""
    return next((one for one in MORE if one.name == name), None) or named(name)


@functools.cache
def model_of(name: str) -> EdgeModel:
    """The model of a family; made once, and nobody changes it."""
    if name in OWN:
        return OWN[name]()
    with silenced():
        module, inputs = architecture(name).build()
        return from_module(module, inputs, "small")


@functools.cache
def prunable_of(name: str) -> Prunable:
    """What of a family can be cut."""
    return prunable(model_of(name))


def directory_of(name: str, where: Path) -> EdgeModel:
    """A family of transformers as a directory, read the way of a user."""
    module, _ = architecture(name).build()
    with silenced():
        module.save_pretrained(where)  # type: ignore[operator]
    return load_model(str(where))


# --- cuts -----------------------------------------------------------------------------------------------------------


def unequal(anatomy: Anatomy, kind: str) -> Cut:
    """One or two groups of the first, a third of the neurons of every unit: layers end with unequal numbers."""
    groups = {}
    units = [unit for unit in anatomy.units if unit.kind == kind]
    for number, unit in enumerate(units):
        gone = _gone(unit, number)
        groups[unit.key] = tuple(group for group in range(unit.groups) if group not in gone)
    return Cut(groups)


def _gone(unit: Unit, number: int) -> set[int]:
    if unit.kind == "attention":
        return {0} if number % 2 else {1, unit.groups - 1}
    return set(range(number % 3, unit.groups, 3))


def shallower(anatomy: Anatomy) -> Cut:
    """The first layer of every stack that can go left out."""
    layers = {}
    for stack in anatomy.stacks:
        first = next(number for number in range(stack.layers) if number not in stack.pinned)
        layers[stack.path] = tuple(number for number in range(stack.layers) if number != first)
    return Cut({}, layers)


def quarter(anatomy: Anatomy) -> Cut:
    """The first quarter of heads and of neurons of every unit removed."""
    return Cut({unit.key: tuple(range(max(1, unit.groups // 4), unit.groups)) for unit in anatomy.units})


# --- the oracle -----------------------------------------------------------------------------------------------------


def zeroed(given: Prunable, cut: Cut) -> EdgeModel:
    """The original with zeros in those columns of each exit that the removed groups leave through.

    Apart from the masks that edgeattn itself checks with: there the inputs of the exits are multiplied.
    """
    network = copy.deepcopy(given.network)
    with torch.no_grad():
        for key, kept in cut.groups.items():
            unit = given.anatomy.unit(key)
            for path in (unit.exit, *unit.tied):
                layer = network.get_submodule(path)
                weight = cast(Tensor, layer.weight)
                columns = weight if isinstance(layer, nn.Linear) else weight.T
                for group in set(range(unit.groups)) - set(kept):
                    columns[:, group * unit.width : (group + 1) * unit.width] = 0.0
    assert given.model.rebuild is not None
    return given.model.rebuild(network)


def parameters(network: nn.Module | None) -> int:
    """How many numbers a network has."""
    assert network is not None
    return sum(parameter.numel() for parameter in network.parameters())
