"""The models that calibration measures: small, with random weights, attention with what stands around it.

Encoders of several sizes and widths of a head, a streaming step with caches, one token of a decoder with a vocabulary,
patches of an image behind convolutions, and sound through strided convolutions. Times depend on shapes alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.model import EdgeModel, Graph
from edgeattn.sources import from_graphs, from_module

KERNEL = 9  # of the causal convolution


@dataclass(frozen=True)
class Size:
    """Of an encoder: positions, model width, layers, width of a head, sequences; feed-forwards are 4 times as wide."""

    tokens: int
    width: int
    layers: int
    head: int = 32
    batch: int = 1

    @property
    def name(self) -> str:
        """For people."""
        return f"encoder {self.tokens}x{self.width}x{self.layers}"


def encoder(size: Size) -> EdgeModel:
    """A pre-norm Transformer encoder with GELU, (batch, tokens, width) -> the same."""
    layer = nn.TransformerEncoderLayer(
        size.width, max(1, size.width // size.head), 4 * size.width, dropout=0.0, activation="gelu",
        batch_first=True, norm_first=True,
    )  # fmt: skip
    network = Encoder(layer, size.layers).eval()
    return from_module(network, {"x": torch.randn(size.batch, size.tokens, size.width)}, "encoder")


class Encoder(nn.Module):
    """Layers alone."""

    def __init__(self, layer: nn.TransformerEncoderLayer, layers: int) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See the class."""
        return {"y": self.layers(x)}


class CachedAttention(nn.Module):
    """Attention over a cache and the new positions, (1, new, width); caches are (1, heads, past, width of a head)."""

    def __init__(self, width: int, head: int) -> None:
        super().__init__()
        self.head = head
        self.norm = nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        parts = self.qkv(self.norm(x)).chunk(3, -1)
        q, k, v = (part.reshape(1, x.shape[1], -1, self.head).transpose(1, 2) for part in parts)
        k, v = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        seen = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.head), -1) @ v
        new = x.shape[1]
        return x + self.out(seen.transpose(1, 2).reshape(x.shape)), k[:, :, new:], v[:, :, new:]


class CachedConvolution(nn.Module):
    """A gated depthwise convolution over a cache, (1, new, width); the cache is (1, width, KERNEL - 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.depthwise = nn.Conv1d(width, width, KERNEL, groups=width)

    def forward(self, x: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        whole = torch.cat([seen, functional.glu(self.gate(self.norm(x)), -1).transpose(1, 2)], 2)
        y = functional.silu(self.depthwise(whole)).transpose(1, 2)
        return x + self.out(y), whole[:, :, x.shape[1] :]


def feedforward(width: int) -> nn.Module:
    """A norm and two linear layers, four times as wide between them."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))


class Streaming(nn.Module):
    """A step of some frames with the states of each layer stacked."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.attention = nn.ModuleList(CachedAttention(width, 32) for _ in range(layers))
        self.convolution = nn.ModuleList(CachedConvolution(width) for _ in range(layers))
        self.feedforward = nn.ModuleList(feedforward(width) for _ in range(layers))

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> dict[str, Tensor]:
        """See the class."""
        nexts: list[tuple[Tensor, Tensor, Tensor]] = []
        for i, (attend, convolve, feed) in enumerate(
            zip(self.attention, self.convolution, self.feedforward, strict=True)
        ):
            x, k, v = attend(x, keys[i : i + 1], values[i : i + 1])
            x, s = convolve(x, seen[i : i + 1])
            x = x + feed(x)
            nexts.append((k, v, s))
        k, v, s = (torch.cat(parts) for parts in zip(*nexts, strict=True))
        return {"y": x, "next_keys": k, "next_values": v, "next_seen": s}


def streaming(frames: int, width: int, past: int, layers: int) -> EdgeModel:
    """A streaming step of speech with caches of keys, values and convolutions."""
    cache = (layers, width // 32, past, 32)
    inputs = {
        "x": torch.randn(1, frames, width),
        "keys": torch.randn(cache),
        "values": torch.randn(cache),
        "seen": torch.randn(layers, width, KERNEL - 1),
    }
    states = {name: f"next_{name}" for name in ("keys", "values", "seen")}
    return from_graphs({"main": Graph(Streaming(width, layers).eval(), inputs, states)}, "streaming")


class Decoder(nn.Module):
    """One token after a cache, to the scores of a vocabulary."""

    def __init__(self, width: int, layers: int, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.attention = nn.ModuleList(CachedAttention(width, 64) for _ in range(layers))
        self.feedforward = nn.ModuleList(feedforward(width) for _ in range(layers))

    def forward(self, token: Tensor, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        """See the class."""
        x = self.embedding(token)
        nexts: list[tuple[Tensor, Tensor]] = []
        for i, (attend, feed) in enumerate(zip(self.attention, self.feedforward, strict=True)):
            x, k, v = attend(x, keys[i : i + 1], values[i : i + 1])
            x = x + feed(x)
            nexts.append((k, v))
        k, v = (torch.cat(parts) for parts in zip(*nexts, strict=True))
        return {"scores": x @ self.embedding.weight.T, "next_keys": k, "next_values": v}


def decoder(width: int, past: int, layers: int, words: int) -> EdgeModel:
    """A step of a language model: every weight is read for one row."""
    cache = (layers, width // 64, past, 64)
    inputs = {"token": torch.zeros(1, 1, dtype=torch.int64), "keys": torch.randn(cache), "values": torch.randn(cache)}
    states = {"keys": "next_keys", "values": "next_values"}
    return from_graphs({"main": Graph(Decoder(width, layers, words).eval(), inputs, states)}, "decoder")


class Image(nn.Module):
    """Convolutions, plain and depthwise, patches and an encoder layer."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, 2, 1), nn.GELU(), nn.Conv2d(channels, 2 * channels, 3, 2, 1), nn.GELU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, 1, 1, groups=2 * channels), nn.Conv2d(2 * channels, width, 4, 4),
        )  # fmt: skip
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = Encoder(layer, 1)
        self.head = nn.Linear(width, 100)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See the class."""
        return {"y": self.head(self.encoder(self.stem(x).flatten(2).transpose(1, 2))["y"].mean(1))}


def image(pixels: int, channels: int, width: int) -> EdgeModel:
    """A small vision model, (1, 3, pixels, pixels) -> 100 scores."""
    return from_module(Image(channels, width).eval(), {"x": torch.randn(1, 3, pixels, pixels)}, "image")


class Sound(nn.Module):
    """Strided convolutions over samples."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = ((1, 10, 5), (channels, 4, 2), (channels, 4, 2), (channels, 4, 2))
        self.convolutions = nn.ModuleList(nn.Conv1d(read, channels, kernel, step) for read, kernel, step in sizes)
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See the class."""
        x = x[:, None]
        for convolution in self.convolutions:
            x = functional.gelu(convolution(x))
        return {"y": self.head(x.transpose(1, 2))}


def sound(samples: int, channels: int) -> EdgeModel:
    """The front end of a speech model, (1, samples) -> a vector for 40 of them."""
    return from_module(Sound(channels).eval(), {"x": torch.randn(1, samples)}, "sound")


@dataclass(frozen=True)
class Load:
    """A model to measure."""

    name: str
    make: Callable[[], EdgeModel]


def of_size(size: Size) -> Load:
    """An encoder of a size."""
    return Load(size.name, functools.partial(encoder, size))


SIZES = (
    Size(8, 128, 4), Size(32, 64, 3), Size(48, 96, 2, head=12, batch=4), Size(96, 64, 4, head=64), Size(64, 256, 2),
    Size(128, 384, 2), Size(128, 512, 1, head=64), Size(196, 192, 3), Size(64, 768, 1, head=64), Size(512, 128, 1),
)  # fmt: skip
LOADS = (
    *(of_size(size) for size in SIZES),
    Load("streaming step", functools.partial(streaming, 4, 96, 48, 3)),
    Load("decoder token", functools.partial(decoder, 384, 64, 2, 8000)),
    Load("image patches", functools.partial(image, 128, 32, 128)),
    Load("sound", functools.partial(sound, 8000, 128)),
)
"""From a streaming step of speech to the patches of an image."""
