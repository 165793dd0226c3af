"""Conversions that several tests look at, each made once per run: a small attention module, and the built-in model.

Nobody writes into their folders: other workers read them at the same time.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from edgeattn.evaluation.arrays import ArrayData
from edgeattn.model import Artifact, EdgeModel
from edgeattn.pipeline.convert import convert
from edgeattn.pipeline.steps import candidates
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.recipes import QuantizeOptions, build
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.results.report import Report
from edgeattn.sources import load_data, load_model
from edgeattn.targets import Target, get_target
from tests.once import made_once

QUICK = MeasureOptions(runs=10, paced_seconds=0)
TARGETS = ("cpu", "mobile", "jetson")
BUNDLES = {name: f"{get_target(name).name}.edge" for name in TARGETS}
FACTORY = '''\
import torch
from torch import nn


class Attention(nn.Module):
    """One pre-norm attention block and a classifier, (1, 8, 16) -> (1, 4)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 32)
        self.norm = nn.LayerNorm(32)
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)
        self.head = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = (t.reshape(1, 8, 4, 8).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))
        seen = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(1, 8, 32))
        return {"scores": self.head(x.mean(1))}


def model():
    torch.manual_seed(0)
    return Attention(), {"tokens": torch.randn(1, 8, 16)}
'''


class Watch:
    """A Progress that remembers the phases, and can raise in one of them."""

    def __init__(self, raise_at: int = -1) -> None:
        self.phases: list[str] = []
        self._raise_at = raise_at

    def begin(self, what: str, total: int | None = None) -> None:
        self.phases.append(what)
        if len(self.phases) == self._raise_at + 1:
            raise KeyboardInterrupt

    def advance(self) -> None:
        pass


@dataclass
class Converted:
    """What one conversion for every target in every precision gave.

    Attributes:
        reference: of the model; ``data`` of its npz.
        artifacts: (backend, recipe) -> what the converters made, kept.
        phases: what the progress was told.
    """

    reference: str
    data: str
    out: Path
    report: Report
    phases: list[str]
    artifacts: dict[tuple[str, str], Artifact] = field(default_factory=dict)

    @property
    def model(self) -> EdgeModel:
        return load_model(self.reference)

    @property
    def samples(self) -> ArrayData:
        data = load_data(self.reference, self.model.spec, self.data, None, 60)
        assert isinstance(data, ArrayData)
        return data

    def build(self, backend: str, exports: Exports, recipe: str, *_: object) -> Artifact:
        """Hands out the kept artifacts: the pipeline without a minute of conversion."""
        return _copied(self.artifacts[backend, recipe], exports.new_directory(f"{backend}-{recipe}"))


def _copied(artifact: Artifact, room: Path) -> Artifact:
    for path in {path.parent for path in artifact.models.values()}:
        shutil.copytree(path, room, dirs_exist_ok=True)
    return replace(artifact, models={graph: room / path.name for graph, path in artifact.models.items()})


def write_model_and_data(directory: Path) -> tuple[str, str]:
    """The factory, and an npz of 40 samples whose labels are the model's own."""
    reference, data = directory / "small_attention.py", directory / "small_attention.npz"
    reference.write_text(FACTORY)
    model = load_model(str(reference))
    tokens = np.random.default_rng(0).standard_normal((40, 8, 16)).astype(np.float32)
    labels = np.array([model.run({"tokens": sample[None]})["scores"].argmax() for sample in tokens])
    np.savez(data, allow_pickle=False, tokens=tokens, target_scores=labels)
    return str(reference), str(data)


def small_conversion(root: Path) -> Converted:
    """The small attention module for all three targets, precision "auto"; needs every converter.

    Args:
        root: :func:`tests.once.shared_root`.
    """
    for module in ("torch", "onnxscript", "openvino", "nncf", "litert_torch", "ai_edge_quantizer", "onnxruntime"):
        pytest.importorskip(module, reason="the conversions need edgeattn[convert,openvino,tflite]")
    return made_once(root, "small-conversion", _convert_small)


def _convert_small(home: Path) -> Converted:
    reference, data = write_model_and_data(home)
    watch = Watch()
    artifacts: dict[tuple[str, str], Artifact] = {}

    def keeping(
        backend: str, exports: Exports, recipe: str, target: Target, quantize_options: QuantizeOptions
    ) -> Artifact:
        made = build(backend, exports, recipe, target, quantize_options)
        artifacts[backend, recipe] = _copied(made, home / f"kept-{backend}-{recipe}")
        return made

    model = load_model(reference)
    options = ConvertOptions(tuple(map(get_target, TARGETS)), out=home / "out", measure=QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "build", keeping)
        report = convert(model, load_data(reference, model.spec, data, None, 60), options, watch)
    return Converted(reference, data, home / "out", report, watch.phases, artifacts)


def speech_conversion(root: Path) -> tuple[Report, Path]:
    """The built-in streaming model for all three targets in fp32, measured on four utterances; report and folder.

    Args:
        root: :func:`tests.once.shared_root`.
    """
    for module in ("torch", "onnxscript", "openvino", "litert_torch", "onnxruntime"):
        pytest.importorskip(module, reason="the conversions need edgeattn[convert,openvino,tflite]")
    return made_once(root, "speech-conversion", _convert_speech)


def _convert_speech(home: Path) -> tuple[Report, Path]:
    model = load_model("streaming-conformer")
    data = load_data("streaming-conformer", model.spec, None, None, 4)
    out, measure = home / "out", replace(QUICK, paced_seconds=1)
    options = ConvertOptions(tuple(map(get_target, TARGETS)), "fp32", out=out, measure=measure)
    return convert(model, data, options, Watch()), out
