"""Tokenizers, specs and torch models that are just large enough for tests of tasks of texts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgeattn.evaluation.accuracy import Score
from edgeattn.evaluation.task_data import TaskData
from edgeattn.jobs.parcel import pack, unpacked
from edgeattn.model import EdgeModel, Graph, Reference
from edgeattn.sources.modules import from_graphs
from edgeattn.sources.sizes import with_buckets
from edgeattn.spec import GraphSpec, ModelSpec, TensorSpec

SPECIAL = ("[UNK]", "[CLS]", "[SEP]", "[PAD]")
PAD = 3


def write_assets(directory: Path, words: Sequence[str], **config: Any) -> dict[str, Path]:
    """A tokenizer of word pieces ([CLS] a [SEP] b [SEP]) and a config.json."""
    import tokenizers

    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words))}
    model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer: Any = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    values = {"pad_token_id": PAD, "vocab_size": len(vocabulary)} | config
    (directory / "config.json").write_text(json.dumps(values))
    return {name: directory / name for name in ("tokenizer.json", "config.json")}


def spec_of(
    outputs: Mapping[str, tuple[int, ...]],
    length: int = 8,
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
    task: str = "any",
) -> ModelSpec:
    """A spec with inputs of that many tokens."""
    taken = tuple(TensorSpec(name, "int64", (1, length)) for name in inputs)
    given = tuple(TensorSpec(name, "float32", shape) for name, shape in outputs.items())
    return ModelSpec("m", task, (GraphSpec("main", taken, given),))


class PerToken(nn.Module):
    """Rows of a random table for each token: ``logits`` [1, tokens, values]."""

    def __init__(self, vocabulary: int, values: int, output: str = "logits") -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, values)
        self.output = output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {self.output: self.table(input_ids) * attention_mask.unsqueeze(-1)}


def model_of(
    module: nn.Module,
    assets: Mapping[str, Path],
    length: int,
    sizes: tuple[int, ...] = (),
    inputs: Sequence[str] = ("input_ids", "attention_mask"),
) -> EdgeModel:
    """A model of that many tokens, or of several sizes."""
    example = {name: torch.ones(1, length, dtype=torch.int64) for name in inputs}
    dims = {name: {1: "seq"} for name in inputs}
    fills = {"input_ids": float(PAD)}
    graph = Graph(module, example, dims=dims, fills=fills)
    made = with_buckets(from_graphs({"main": graph}, "m"), {"seq": sizes} if sizes else {})
    return replace(made, assets=dict(assets))


def scored(model: EdgeModel, data: TaskData) -> Score:
    """What the float32 source scores, the same after a round trip of the samples as they are sent to a device."""
    score = data.score(Reference(model), data.evaluation, lambda: None)
    assert score is not None
    return score


def sent(model: EdgeModel, data: TaskData, folder: Path) -> Score:
    """The score of samples that were packed and read again."""
    path = folder / "parcel.npz"
    path.write_bytes(pack({}, "", data))
    with unpacked(path) as parcel:
        assert parcel.data is not None
        score = parcel.data.score(Reference(model), parcel.samples, lambda: None)
    assert score is not None
    return score


def on_onnxruntime(model: EdgeModel, data: TaskData, folder: Path) -> Score:
    """The score of the model on an engine."""
    from edgeattn.converters.onnx import export_onnx
    from edgeattn.runtimes import open_session

    with open_session("onnxruntime", export_onnx(model, folder), model.spec) as session:
        score = data.score(session, data.evaluation, lambda: None)
    assert score is not None
    return score
