"""ONNX Runtime's own quantizers with their defaults: recipe "static" (Q/DQ) or "dynamic"."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peer_scripts.job import read_job


class Reader(CalibrationDataReader):  # type: ignore[misc,unused-ignore]
    """The samples in the form that the calibrator asks for."""

    def __init__(self, samples: list[dict[str, np.ndarray]]) -> None:
        self._samples: Iterator[dict[str, np.ndarray]] = iter(samples)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._samples, None)


def prepared(source: Path, target: Path) -> Path:
    """The file after the pre-processing that ONNX Runtime's guide asks for before either quantizer."""
    path = target.with_name("prepared.onnx")
    try:
        quant_pre_process(str(source), str(path))
    except TypeError:  # its symbolic shape inference (1.31) fails on BERT; the shapes are static and stand in the file
        quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
    return path


def main() -> None:
    job = read_job("onnxruntime", "onnx")
    path = prepared(job.source, job.target)
    if job.recipe == "static":
        quantize_static(str(path), str(job.target), Reader(job.samples))
    else:
        quantize_dynamic(str(path), str(job.target))


if __name__ == "__main__":
    main()
