"""Olive's passes with their defaults on an ONNX file; the recipe is the name of the pass that quantizes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from olive.data.registry import Registry  # type: ignore[import-not-found,unused-ignore]
from olive.workflows import run  # type: ignore[import-not-found,unused-ignore]

from benchmarks.peer_scripts.job import Job, read_job

BEFORE = {"OpenVINOQuantization": ("OpenVINOConversion",)}
"""Pass -> those that make what it reads; the OpenVINO pass also takes ONNX, and then gives NNCF's ONNX."""


class Samples:
    """A data set as Olive wants it: pairs of inputs and label, without the batch axis, which its loader adds."""

    def __init__(self, samples: list[dict[str, np.ndarray]]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        return {name: array[0] for name, array in self._samples[index].items()}, 0


def workflow(job: Job) -> dict[str, Any]:
    """Olive's configuration: one input model, the passes in a row, the samples under the name "samples"."""
    passes: dict[str, dict[str, Any]] = {name: {"type": name} for name in BEFORE.get(job.recipe, ())}
    passes[job.recipe] = {"type": job.recipe, "data_config": "samples"}
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(job.source)},
        "systems": {
            "host": {
                "type": "LocalSystem",
                "accelerators": [{"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}],
            }
        },
        "target": "host",
        "data_configs": [{"name": "samples", "type": "DataContainer", "load_dataset_config": {"type": "peer_samples"}}],
        "passes": passes,
        "output_dir": str(job.target.parent / "olive"),
        "cache_dir": str(job.target.parent / "cache"),
    }


def main() -> None:
    job = read_job("olive-ai", "onnxruntime", "nncf", "openvino")
    if any(array.shape[:1] != (1,) for array in job.samples[0].values()):
        raise ValueError("Olive's loader adds a batch axis of 1, and this model has an input without one")

    def peer_samples(**_: object) -> Samples:
        return Samples(job.samples)

    Registry.register_dataset("peer_samples")(peer_samples)
    made = run(workflow(job)).get_best_candidate()
    if made is None:  # a failed pass is logged, and the run goes on to its end
        raise RuntimeError(f"{job.recipe} left no model")
    path = Path(made.model_path)
    if path.is_dir():  # an OpenVINO model is known by its folder
        (path,) = path.glob("*.xml")
        shutil.copyfile(path.with_suffix(".bin"), job.target.with_suffix(".bin"))
    shutil.copyfile(path, job.target)


if __name__ == "__main__":
    main()
