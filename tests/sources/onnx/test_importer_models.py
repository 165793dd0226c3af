"""ONNX -> torch, whole models: both of torch's exporters, several opsets, quantized files; the source is the oracle."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the models are transformers' own classes: edgeattn[hf]")
pytest.importorskip("onnxruntime", reason="ONNX sources need edgeattn[convert]")

import onnx
import torch

from edgeattn.converters.trace import named_wrapper
from edgeattn.graphs.layers import is_quantized
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.sources import from_module, load_model
from edgeattn.sources.onnx.imported import ImportedModel
from tests.architectures import named

SHAPE_OPS = {"Shape", "ConstantOfShape", "Range", "NonZero", "If", "Loop", "Constant", "Identity", "Dropout"}
Export = Callable[..., tuple[EdgeModel, str]]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export an architecture of the catalogue, its example inputs beside it; the source and the reference."""
    root = tmp_path_factory.mktemp("exported")

    def make(name: str, exporter: str, opset: int) -> tuple[EdgeModel, str]:
        module, inputs = named(name).build()
        if hasattr(module, "set_attn_implementation") and opset < 14:
            getattr(module, "set_attn_implementation")("eager")  # noqa: B009  # the exporter has no fused attention before opset 14
        source = from_module(module, inputs, "source")
        graph = source.spec.graphs[0]
        path = root / f"{name.replace(' ', '-')}-{exporter}-{opset}.onnx"
        options: dict[str, Any] = {"dynamo": exporter == "dynamo", "opset_version": opset}
        if exporter == "script":  # shapes stay open, so that the file is full of arithmetic on them
            options["dynamic_axes"] = {
                t.name: {i: f"{t.name}.{i}" for i in range(len(t.shape))} for t in graph.all_inputs
            }
        example = tuple(torch.from_numpy(source.example["main"][name].copy()) for name in graph.input_names)
        wrapper = named_wrapper(source.modules["main"], graph)
        with silenced(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            torch.onnx.export(
                wrapper, example, str(path), input_names=list(graph.input_names),
                output_names=list(graph.output_names), **options,
            )  # fmt: skip
        np.savez(path.with_suffix(".npz"), allow_pickle=False, **source.example["main"])
        return source, str(path)

    return make


CASES = [
    *(("BERT", "script", opset) for opset in (11, 13, 17)),
    ("BERT", "dynamo", 18),
    ("GPT-2", "script", 14),
    ("GPT-2", "dynamo", 18),
    ("ViT", "dynamo", 20),
    ("T5", "script", 17),
    ("Wav2Vec2", "script", 17),
    ("LSTM + additive attention", "script", 11),
    ("LSTM + additive attention", "dynamo", 18),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "exporter", "opset"), CASES, ids=str)
def test_an_exported_model_computes_what_its_source_does(export: Export, name: str, exporter: str, opset: int) -> None:
    # Two exports of float32 arithmetic in another order: 2e-5 on values of a few units.
    source, reference = export(name, exporter, opset)
    loaded = load_model(reference)
    assert isinstance(loaded.modules["main"], ImportedModel)
    assert not {node.op_type for node in loaded.onnx["main"].graph.node} & SHAPE_OPS
    example = source.example["main"]
    expected, got = source.run(example), loaded.run(example)
    for key, array in expected.items():
        np.testing.assert_allclose(got[key], array, atol=2e-5, rtol=2e-5)


def test_an_imported_model_is_traced_without_branches_on_values(export: Export) -> None:
    _, reference = export("BERT", "dynamo", 18)
    loaded = load_model(reference)
    inputs = tuple(torch.from_numpy(a) for a in loaded.example["main"].values())
    wrapper = named_wrapper(loaded.modules["main"], loaded.spec.graphs[0])
    program = torch.export.export(wrapper, inputs, strict=False)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [t for t in targets if "item" in t or "sym_" in t]
    assert {"aten.linear.default", "aten.layer_norm.default", "aten.embedding.default"} <= targets


class Feed:
    """Calibration data for onnxruntime.quantization."""

    def __init__(self, sample: dict[str, np.ndarray]) -> None:
        self.samples = [sample] * 2

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.samples.pop() if self.samples else None


@pytest.mark.parametrize("form", ["dynamic", "QDQ", "QOperator"])
def test_a_quantized_file_computes_what_onnx_runtime_does(export: Export, tmp_path: Path, form: str) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization", reason="it makes the files")
    from edgeattn.sources.onnx.reference import runtime_session

    source, reference = export("BERT", "script", 17)
    path = tmp_path / f"{form}.onnx"
    example = dict(source.example["main"])
    with silenced():
        if form == "dynamic":
            quantization.quantize_dynamic(reference, path)
        else:
            quantization.quantize_static(
                reference, path, Feed(example), quant_format=quantization.QuantFormat[form], per_channel=form == "QDQ"
            )
    np.savez(path.with_suffix(".npz"), allow_pickle=False, **example)
    loaded = load_model(str(path))
    assert isinstance(loaded.modules["main"], ImportedModel)
    assert is_quantized(loaded.onnx["main"])
    names = [value.name for value in loaded.onnx["main"].graph.output]
    expected = runtime_session(onnx.load(path)).run(names, example)
    got = loaded.run(example)
    for name, array in zip(names, expected, strict=True):
        # Values on the edge of two quanta may fall to either side: 40 dB, where a wrong scale or zero-point leaves 10.
        noise = np.square(got[name] - array).sum()
        assert 10 * np.log10(np.square(array).sum() / max(noise, 1e-30)) > 40
