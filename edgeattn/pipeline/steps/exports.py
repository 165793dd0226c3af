"""The source with its exports, made once and shared by the targets."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edgeattn.evaluation.data import spread
from edgeattn.model import Arrays, Artifact, EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.results.report import Pruning

SCANNED_SAMPLES = 32  # whose values decide which nodes stay float32 in float16


class Exports:
    """The source with its exports, made once and shared by the targets.

    Args:
        base: what its artifacts are compared with.
        scratch: directory for artifacts.
        pruning: how the model came about, where it is a pruned one.
    """

    def __init__(self, model: EdgeModel, base: Baseline, scratch: Path, pruning: Pruning | None = None) -> None:
        self.model = model
        self.base = base
        self.scratch = scratch
        self.pruning = pruning

    @functools.cached_property
    def onnx(self) -> Mapping[str, Path]:
        """fp32 ONNX, one file per graph, equal weights stored once."""
        from edgeattn.converters.onnx import export_onnx
        from edgeattn.converters.shared_weights import share_onnx

        exported = export_onnx(self.model, self.new_directory("onnx"))
        share_onnx(exported)
        return exported

    @functools.cached_property
    def tflite(self) -> Artifact:
        """fp32 TFLite."""
        from edgeattn.converters.litert import to_tflite

        return to_tflite(self.model, self.new_directory("tflite-fp32"), "fp32")

    @functools.cached_property
    def islands(self) -> Mapping[str, tuple[str, ...]]:
        """Graph -> nodes whose values do not fit float16, found on the inputs at hand."""
        from edgeattn.quantize.ranges import half_islands

        return {
            graph: tuple(island.node for island in half_islands(path, self.seen(graph)))
            for graph, path in self.onnx.items()
        }

    def fit(self, engine: str) -> Exports:
        """These exports where an engine takes every graph's own ONNX as it is, else those of the torch modules."""
        from edgeattn.converters.onnx_operators import takes

        whole = all(not hasattr(module, "unsupported") for module in self.model.modules.values())
        taken = all(takes(engine, graph) for graph in self.model.onnx.values())
        return self if taken or not whole else self._of_modules

    @functools.cached_property
    def _of_modules(self) -> Exports:
        return Exports(replace(self.model, onnx={}), self.base, self.new_directory("of-modules"), self.pruning)

    @property
    def calibration(self) -> Mapping[str, Sequence[Arrays]]:
        """Graph -> full input sets, states included; empty without data."""
        return self.base.calibration

    def seen(self, graph: str) -> Sequence[Mapping[str, np.ndarray]]:
        """Full input sets of a graph: samples to calibrate with, else the recorded calls."""
        samples = self.base.calibration.get(graph) or tuple(
            {**record.inputs, **record.states} for record in self.base.records.get(graph, ())
        )
        return spread(samples, SCANNED_SAMPLES)

    def new_directory(self, name: str) -> Path:
        """An empty directory for one artifact."""
        path = self.scratch / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path
