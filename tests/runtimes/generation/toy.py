"""A language model of a few lines of numpy: its logits are noise, drawn from the tokens that its cache shows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeattn.runtimes.step import check_states
from edgeattn.spec import BucketSpec, CutAxis, GraphSpec, ModelSpec, PaddedAxis, StateSpec, TensorSpec

WORDS, CACHE, SIZES = 11, 6, (4, 8)
Arrays = dict[str, np.ndarray]


def logits_of(seen: Sequence[int]) -> np.ndarray:
    """The oracle: logits of the next token after what is seen, float32."""
    return (3 * np.random.default_rng([len(seen), *seen]).standard_normal(WORDS)).astype(np.float32)


def greedy(prompt: Sequence[int], count: int, sliding: bool = False) -> list[int]:
    """The best tokens one after the other, without any rule; ``sliding``: of the last that a cache shows."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits_of(tokens[-CACHE - 1 :] if sliding else tokens).argmax()))
    return tokens[len(prompt) :]


def spec(kind: str) -> ModelSpec:
    ids, position = TensorSpec("input_ids", "int64", (1, 1)), TensorSpec("position", "int64", (1,))
    logits, state = TensorSpec("logits", "float32", (1, 1, WORDS)), StateSpec("key_0", "next_key_0", (1, 1, CACHE, 1))
    if kind == "other":
        return ModelSpec("toy", "fill-mask", (GraphSpec("main", (ids,), (logits,)),))
    if kind == "crossed":
        memory = TensorSpec("cross_key_0", "float32", (1, 1, 4, 1))
        source = (TensorSpec("input_ids", "int64", (1, 4)), TensorSpec("attention_mask", "int64", (1, 4)))
        step = GraphSpec("decoder_step", (ids, position, memory), (logits,), (state,))
        return ModelSpec("toy", "translation", (GraphSpec("encoder", source, (memory,)), step))
    sizes = [
        GraphSpec(
            f"prefill_{size}",
            (TensorSpec("input_ids", "int64", (1, size)), TensorSpec("attention_mask", "int64", (1, size))),
            (TensorSpec("logits", "float32", (1, size, WORDS)), TensorSpec("key_0", "float32", (1, 1, size, 1))),
        )
        for size in SIZES
    ]
    pad = tuple(PaddedAxis(name, 1, "seq", 0.0) for name in ("input_ids", "attention_mask"))
    cut = (CutAxis("logits", 1, "input_ids", 1), CutAxis("key_0", 2, "input_ids", 1))
    bucket = BucketSpec("prefill", tuple(graph.name for graph in sizes), pad, cut)
    return ModelSpec(
        "toy", "text-generation", (*sizes, GraphSpec("step", (ids, position), (logits,), (state,))), buckets=(bucket,)
    )


class ToyStep:
    """Keys are the tokens themselves, plus one: 0 is empty."""

    def __init__(self, graph: GraphSpec, positions: list[int]) -> None:
        self._graph, self._positions = graph, positions
        self.inputs = {t.name: np.zeros(t.shape, t.dtype) for t in graph.inputs}
        self.outputs = {t.name: np.zeros(t.shape, t.dtype) for t in graph.outputs}
        self.reset()

    def reset(self) -> None:
        self._states = self._graph.initial_states()

    def states(self) -> Arrays:
        return {name: array.copy() for name, array in self._states.items()}

    def set_states(self, values: Mapping[str, np.ndarray]) -> None:
        check_states(self._graph, values)
        self._states = {name: np.array(values[name]) for name in self._states}

    def run(self) -> None:
        self._positions.append(int(self.inputs["position"][0]))
        keys = np.append(self._states["key_0"].ravel(), self.inputs["input_ids"].ravel() + 1).astype(np.float32)
        memory = self.inputs.get("cross_key_0", np.empty(0, np.float32)).ravel()
        seen = [int(token) for token in memory] + [int(key) - 1 for key in keys if key > 0]
        self.outputs["logits"][0, 0] = logits_of(seen)
        self._states = {"key_0": keys[1:].reshape(1, 1, CACHE, 1)}


class ToyModel:
    """What a session or the float32 source is to the loop.

    Attributes:
        positions: that its steps were told, in order.
        prompts: lengths of the prompts that were read at once.
    """

    def __init__(self, kind: str = "causal", assets: Mapping[str, Path] | None = None) -> None:
        self.spec, self.assets = spec(kind), assets or {}
        self.positions: list[int] = []
        self.prompts: list[int] = []

    def run(self, inputs: Mapping[str, np.ndarray], graph: str | None = None) -> Arrays:
        ids = inputs["input_ids"]
        if graph == "encoder":
            return {"cross_key_0": (ids * inputs["attention_mask"]).astype(np.float32).reshape(1, 1, 4, 1)}
        self.prompts.append(ids.shape[1])
        rows = [logits_of(ids[0, : index + 1].tolist()) for index in range(ids.shape[1])]
        return {"logits": np.stack(rows)[None], "key_0": (ids + 1).astype(np.float32).reshape(1, 1, -1, 1)}

    def step(self, graph: str | None = None) -> ToyStep:
        return ToyStep(self.spec.graph(graph), self.positions)


def assets(
    directory: Path, config: Mapping[str, object], generation: Mapping[str, object] | None = None
) -> dict[str, Path]:
    """Configs as files."""
    written = {"config.json": config} | ({} if generation is None else {"generation_config.json": generation})
    for name, values in written.items():
        (directory / name).write_text(json.dumps(values))
    return {name: directory / name for name in written}
