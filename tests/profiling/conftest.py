"""A small real bundle for ONNX Runtime, and the same made for TensorRT, which only a substitute can run here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeattn.bundle import BundleDraft, Golden, Manifest
from edgeattn.runtimes import open_session
from edgeattn.runtimes.selftest import make_golden
from edgeattn.runtimes.tensorrt_build import BuildRecipe, recipe_to_build
from tests.runtimes.tiny import tiny_spec, write_onnx

STEPS = 3


def write_tiny_bundle(path: Path, backend: str = "onnxruntime", streams: bool = True) -> Path:
    """The tiny streaming model of tests/runtimes as a bundle that runs; or its graph alone, to be called."""
    spec = tiny_spec() if streams else replace(tiny_spec(), stream=None)
    rng = np.random.default_rng(0)
    inputs = [
        {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in spec.graphs[0].inputs} for _ in range(STEPS)
    ]
    with BundleDraft(path) as draft:
        model = write_onnx(draft.path / "main.onnx")
        with open_session("onnxruntime", {"main": model}, spec) as session:
            golden = make_golden(session, {"main": inputs})
        np.savez(draft.path / "golden.npz", allow_pickle=False, **golden)
        manifest = Manifest(
            name="tiny",
            target="cpu",
            backend="onnxruntime",
            spec=spec,
            models={"main": "main.onnx"},
            precision={"asked": "fp32", "shipped": "fp32", "executed": None, "candidates": []},
            provenance={"source_sha256": "0" * 64, "recipe": "none"},
            measured={},
            golden=Golden("golden.npz", STEPS, "test", 60.0),
        )
        build = recipe_to_build(BuildRecipe()) if backend == "tensorrt" else None
        draft.write_manifest(replace(manifest, backend=backend, build=build))
        return draft.publish()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="runs the tiny bundle")
    pytest.importorskip("onnx", reason="writes the tiny model")
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny.cpu.edge")


@pytest.fixture(scope="session")
def tiny_calls_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="runs the tiny bundle")
    pytest.importorskip("onnx", reason="writes the tiny model")
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "calls.cpu.edge", streams=False)


@pytest.fixture(scope="session")
def tiny_tensorrt_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime", reason="runs the tiny bundle")
    pytest.importorskip("onnx", reason="writes the tiny model")
    return write_tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny.jetson.edge", backend="tensorrt")
