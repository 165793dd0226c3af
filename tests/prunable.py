"""A small classifier that can be pruned, as a user's file, and labelled data for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeattn.evaluation.arrays import ArrayData, ArraySample
from edgeattn.model import EdgeModel
from edgeattn.sources import load_model

LAYERS, HEADS, NEURONS = 3, 4, 64
FACTORY = """\
import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.head_dim = 4, 8
        self.query, self.key, self.value = (nn.Linear(16, 32) for _ in range(3))
        self.output = nn.Linear(32, 16)

    def forward(self, x):
        q, k, v = (
            layer(x).reshape(x.shape[0], x.shape[1], self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
        return self.output(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.expand, self.contract = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x):
        x = x + self.attention(x)
        return x + self.contract(torch.tanh(self.expand(x)))


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return {"scores": self.head(x.mean(1))}


def model():
    torch.manual_seed(0)
    return Classifier(), {"x": torch.randn(1, 8, 16)}
"""


def write_prunable(directory: Path, count: int = 60) -> tuple[str, str]:
    """The factory, and an npz of samples whose labels are the model's own."""
    reference, data = directory / "prunable.py", directory / "prunable.npz"
    reference.write_text(FACTORY)
    model = load_model(str(reference))
    x = np.random.default_rng(1).standard_normal((count, 8, 16)).astype(np.float32)
    labels = np.array([model.run({"x": sample[None]})["scores"].argmax() for sample in x])
    np.savez(data, allow_pickle=False, x=x, target_scores=labels)
    return str(reference), str(data)


def unlabelled(data: ArrayData) -> ArrayData:
    """The same inputs without targets."""
    return ArrayData(data.origin, data.calibration, tuple(ArraySample(s.inputs, {}, s.given) for s in data.evaluation))


def block_weights(model: EdgeModel) -> int:
    """How many weights the layers hold."""
    assert model.network is not None
    return sum(p.numel() for name, p in model.network.named_parameters() if name.startswith("blocks"))
