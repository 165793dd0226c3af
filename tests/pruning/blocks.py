"""A classifier of a few hundred weights with attention, feed-forwards and layers, as a model and as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.model import Arrays
from edgeattn.pruning.anatomy import Anatomy, Kind, Prunable
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms.groups import least_important
from edgeattn.pruning.trials import prunable
from edgeattn.sources import from_module

DIM, HEADS, HEAD_DIM, HIDDEN, LAYERS, TIME, CLASSES = 8, 3, 4, 10, 3, 5, 3


class Attention(nn.Module):
    """Softmax attention over time."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, HEAD_DIM
        self.query, self.key, self.value = (nn.Linear(DIM, HEADS * HEAD_DIM) for _ in range(3))
        self.output = nn.Linear(HEADS * HEAD_DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = (
            layer(x).reshape(batch, time, self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = torch.softmax(q @ k.transpose(-1, -2) / self.head_dim**0.5, -1) @ v
        attended: Tensor = self.output(mixed.transpose(1, 2).reshape(batch, time, -1))
        return attended


class FeedForward(nn.Module):
    """tanh between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.contract = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)

    def forward(self, x: Tensor) -> Tensor:
        narrowed: Tensor = self.contract(torch.tanh(self.expand(x)))
        return narrowed


class Block(nn.Module):
    """Both, with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.feedforward = Attention(), FeedForward()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        added: Tensor = x + self.feedforward(x)
        return added


class Classifier(nn.Module):
    """x (batch, TIME, DIM) -> logits (batch, CLASSES) of the first place in time."""

    def __init__(self, layers: int = LAYERS, mixed: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(layers))
        self.head = nn.Linear(DIM, CLASSES)
        self.mixed = mixed

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.mixed:  # what a batch must not do
            x = x - x.mean(0, keepdim=True)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.head(x[:, 0])}


def classifier(layers: int = LAYERS, mixed: bool = False) -> Prunable:
    """The same in every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Classifier(layers, mixed).eval()
        return prunable(from_module(module, {"x": torch.randn(1, TIME, DIM)}, "classifier"))


def rows(count: int, seed: int = 1) -> dict[str, list[Arrays]]:
    """Inputs of it."""
    rng = np.random.default_rng(seed)
    return {"main": [{"x": rng.standard_normal((1, TIME, DIM)).astype(np.float32)} for _ in range(count)]}


def uniform_cut(anatomy: Anatomy, scores: Mapping[str, Any], heads: float, neurons: float) -> Cut:
    """The same share of the least important groups gone from every unit."""
    kinds: tuple[tuple[Kind, float], ...] = (("attention", heads), ("feedforward", neurons))
    found = [least_important(anatomy, kind, scores, share) for kind, share in kinds]
    return Cut(found[0] | found[1])
