"""NNCF's own defaults on OpenVINO: recipe "default" (no model type) or "TRANSFORMER"."""

from __future__ import annotations

import nncf
import openvino

from benchmarks.peer_scripts.job import read_job


def main() -> None:
    job = read_job("nncf", "openvino")
    model = openvino.convert_model(job.source)  # NNCF 3.4 fails on BERT as read_model() gives it, before its clean-up
    kind = None if job.recipe == "default" else nncf.ModelType[job.recipe]
    quantized = nncf.quantize(model, nncf.Dataset(job.samples), model_type=kind)
    openvino.save_model(quantized, job.target, compress_to_fp16=False)  # as NNCF's examples do


if __name__ == "__main__":
    main()
