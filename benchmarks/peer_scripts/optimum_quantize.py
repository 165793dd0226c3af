"""optimum-intel's defaults from a Hugging Face directory: export, then recipe "static" (int8) or "weights" (int8)."""

from __future__ import annotations

import json

import nncf
from optimum.intel import (  # type: ignore[import-not-found,unused-ignore]
    OVConfig,
    OVModelForFeatureExtraction,
    OVModelForSequenceClassification,
    OVQuantizationConfig,
    OVQuantizer,
    OVWeightQuantizationConfig,
)

from benchmarks.peer_scripts.job import read_job


def main() -> None:
    job = read_job("optimum-intel", "optimum", "transformers", "nncf", "openvino")
    named = json.loads((job.source / "config.json").read_text())["architectures"][0]
    classes = {"ForSequenceClassification": OVModelForSequenceClassification, "Model": OVModelForFeatureExtraction}
    task = next((task for ending, task in classes.items() if named.endswith(ending)), None)
    if task is None:
        raise ValueError(f"{named} is neither a sequence classifier nor a bare encoder")
    model = task.from_pretrained(job.source, export=True, compile=False)
    static = job.recipe == "static"
    OVQuantizer.from_pretrained(model).quantize(
        calibration_dataset=nncf.Dataset(job.samples) if static else None,
        ov_config=OVConfig(
            quantization_config=OVQuantizationConfig() if static else OVWeightQuantizationConfig(bits=8)
        ),
        save_directory=job.target.parent,
    )
    for suffix in (".xml", ".bin"):
        (job.target.parent / f"openvino_model{suffix}").rename(job.target.with_suffix(suffix))


if __name__ == "__main__":
    main()
