"""A small bundle that is whole, built by the real draft; no engine could load its model, and reading it needs none."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeattn.bundle import BundleDraft, Golden, Manifest
from edgeattn.spec import CtcGreedy, FbankConfig, GraphSpec, ModelSpec, StateSpec, StreamSpec, TensorSpec

STEPS = 3  # golden steps of the small bundle


def small_spec() -> ModelSpec:
    """A streaming contract of a few bytes: W = 6 feature frames of 4 bins, C = 2, L = 2, V = 3."""
    graph = GraphSpec(
        "main",
        inputs=(TensorSpec("feats", "float32", (1, 6, 4)), TensorSpec("att_bias", "float32", (1, 1, 1, 4))),
        outputs=(TensorSpec("log_probs", "float32", (1, 2, 3)),),
        states=(StateSpec("cache", "next_cache", (1, 2, 4)),),
    )
    stream = StreamSpec(
        frontend=FbankConfig(num_mel=4), decoder=CtcGreedy(("<blk>", "yes", "no")), window=6, shift=4, chunk=2, left=2
    )
    return ModelSpec("small", "asr", (graph,), stream)


def small_golden() -> dict[str, np.ndarray]:
    """Golden arrays that fit :func:`small_spec`."""
    rng = np.random.default_rng(0)
    graph = small_spec().graph()
    arrays = {f"main.in.{t.name}": rng.standard_normal((STEPS, *t.shape)).astype(np.float32) for t in graph.inputs}
    return arrays | {
        f"main.out.{t.name}": rng.standard_normal((STEPS, *t.shape)).astype(np.float32) for t in graph.outputs
    }


def small_manifest() -> Manifest:
    """A manifest without its list of files, which the draft fills in."""
    return Manifest(
        name="small",
        target="cpu",
        backend="onnxruntime",
        spec=small_spec(),
        models={"main": "model/main.onnx"},
        precision={"asked": "auto", "shipped": "fp32", "executed": {"MatMul": {"float32": 3}}, "candidates": []},
        provenance={"source_sha256": "0" * 64, "recipe": "none", "versions": {"edgeattn": "0"}},
        measured={"parity": None, "accuracy": None, "latency": None},
        golden=Golden("golden.npz", STEPS, "test", 90.0),
    )


def write_small_bundle(path: Path, overwrite: bool = False) -> Path:
    """A whole bundle with a model that no engine could load; reading it needs none."""
    with BundleDraft(path, overwrite) as draft:
        (draft.path / "model").mkdir()
        (draft.path / "model/main.onnx").write_bytes(bytes(range(256)) * 4)
        np.savez(draft.path / "golden.npz", **small_golden())  # type: ignore[arg-type]
        (draft.path / "tokens.txt").write_bytes(b"<blk>\nyes\nno\n")
        draft.write_manifest(small_manifest())
        return draft.publish()
