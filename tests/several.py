"""Models of several graphs and several sizes: a masked encoder, two towers, encoder and decoder step, a transducer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeattn.model import EdgeModel, Graph
from edgeattn.sources import from_graphs

torch = pytest.importorskip("torch", reason="the models need edgeattn[convert]")

TOKENS, CACHE = 20, 8


class Encoder(torch.nn.Module):  # type: ignore[misc, name-defined]
    """ids and mask [1, n] -> memory [1, n, width] and pooled [1, 4]; padded positions are hidden."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(TOKENS, width)
        self.place = torch.nn.Embedding(40, width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.head = torch.nn.Linear(width, 4)

    def forward(self, ids: Any, mask: Any) -> Any:
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1]))
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 4 + (1 - mask[:, None].float()) * -1e4
        x = x + self.out(torch.softmax(scores, -1) @ v)
        shown = mask[..., None].float()
        return {"memory": x, "pooled": self.head((x * shown).sum(1) / shown.sum(1))}


class DecoderStep(torch.nn.Module):  # type: ignore[misc, name-defined]
    """One token [1, 1] with a cache of keys and values that Concat and Slice move, on an encoder's memory -> logits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(TOKENS, width)
        self.kv, self.query = torch.nn.Linear(width, 2 * width), torch.nn.Linear(width, width)
        self.head = torch.nn.Linear(width, TOKENS)

    def forward(self, token: Any, memory: Any, memory_mask: Any, keys: Any, values: Any) -> Any:
        x = self.embed(token)
        key, value = self.kv(x).chunk(2, -1)
        keys, values = torch.cat([keys, key], 1)[:, 1:], torch.cat([values, value], 1)[:, 1:]
        x = x + torch.softmax(self.query(x) @ keys.transpose(1, 2) / 4, -1) @ values
        scores = x @ memory.transpose(1, 2) / 4 + (1 - memory_mask[:, None].float()) * -1e4
        x = x + torch.softmax(scores, -1) @ memory
        return {"logits": self.head(x), "next_keys": keys, "next_values": values}


class Joiner(torch.nn.Module):  # type: ignore[misc, name-defined]
    """One frame of an encoder and one of a predictor [1, width] -> scores [1, 20]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.head = torch.nn.Linear(width, TOKENS)

    def forward(self, encoded: Any, predicted: Any) -> Any:
        return {"scores": self.head(torch.tanh(encoded + predicted))}


def _ids(length: int) -> dict[str, Any]:
    return {"ids": torch.randint(0, TOKENS, (1, length)), "mask": torch.ones(1, length, dtype=torch.int64)}


def masked_encoder(width: int = 16) -> EdgeModel:
    """One graph whose length varies."""
    torch.manual_seed(0)
    graph = Graph(Encoder(width), _ids(10), dims={"ids": {1: "seq"}, "mask": {1: "seq"}})
    return from_graphs({"main": graph}, "encoder")


def two_towers(width: int = 16) -> EdgeModel:
    """Queries of 6 tokens and documents of 12 through one encoder."""
    torch.manual_seed(0)
    shared = Encoder(width)
    return from_graphs({"query": Graph(shared, _ids(6)), "document": Graph(shared, _ids(12))}, "towers")


def decoder_graph(memory: int) -> Graph:
    """A decoder step whose caches are states."""
    example = {
        "token": torch.tensor([[3]]),
        "memory": torch.randn(1, memory, 16),
        "memory_mask": torch.ones(1, memory, dtype=torch.int64),
        "keys": torch.zeros(1, CACHE, 16),
        "values": torch.zeros(1, CACHE, 16),
    }
    dims = {"memory": {1: "src"}, "memory_mask": {1: "src"}}
    return Graph(DecoderStep(), example, {"keys": "next_keys", "values": "next_values"}, dims)


def encoder_decoder() -> EdgeModel:
    """An encoder, and one step of a decoder."""
    torch.manual_seed(0)
    encoder = Graph(Encoder(), _ids(6), dims={"ids": {1: "src"}, "mask": {1: "src"}})
    return from_graphs({"encoder": encoder, "decoder_step": decoder_graph(6)}, "translator")


def transducer() -> EdgeModel:
    """Encoder, predictor with a state, joiner."""
    torch.manual_seed(0)

    class Predictor(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix = torch.nn.Embedding(TOKENS, 16), torch.nn.Linear(32, 16)

        def forward(self, token: Any, before: Any) -> Any:
            state = torch.tanh(self.mix(torch.cat([self.embed(token)[:, 0], before], -1)))
            return {"predicted": state, "after": state + 0}

    predictor = Graph(Predictor(), {"token": torch.tensor([[1]]), "before": torch.zeros(1, 16)}, {"before": "after"})
    joiner = Graph(Joiner(), {"encoded": torch.randn(1, 16), "predicted": torch.randn(1, 16)})
    return from_graphs({"encoder": Graph(Encoder(), _ids(6)), "predictor": predictor, "joiner": joiner}, "transducer")


def call(length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of the encoder of any length."""
    ids = np.random.default_rng(seed).integers(0, TOKENS, (1, length))
    return {"ids": ids, "mask": np.ones((1, length), np.int64)}


def plain(model: EdgeModel, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the torch module itself gives, at the length of the inputs: nothing is padded."""
    with torch.inference_mode():
        outputs = model.modules[graph](**{name: torch.from_numpy(value) for name, value in inputs.items()})
    return {name: value.numpy() for name, value in outputs.items()}
