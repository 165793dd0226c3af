"""With other weights a check against the source fails, whatever an output holds beside its values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeattn.evaluation.parity import ParityMeter
from edgeattn.pipeline.check import CheckOptions, check
from edgeattn.pipeline.convert import convert
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.progress import Quiet
from edgeattn.results.gates import parity_failures
from edgeattn.results.report import Report
from edgeattn.sources import load_model
from edgeattn.targets import get_target
from tests.conversions import QUICK

pytestmark = pytest.mark.slow

SOURCE = '''\
import torch
from torch import nn

LOWEST = torch.finfo(torch.float32).min


class Conventions(nn.Module):
    """One head; outputs that hold marks beside their values, as people return them."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x, mask):
        y = self.embed(x)
        weights = (y @ y.transpose(-1, -2)).masked_fill(~mask[:, None], -1e4).softmax(-1)
        logits = self.head(weights @ y)
        hidden = ~mask[..., None]
        best = logits.argmax(-1)
        return {
            "nine": logits.masked_fill(hidden, -1e9),
            "thirty": logits.masked_fill(hidden, -1e30),
            "lowest": logits.masked_fill(hidden, LOWEST),
            "added": logits + hidden * -1e9,
            "nested": (logits.log_softmax(-1), {"weights": weights, "tiny": weights * 1e-5}),
            "ids": torch.where(mask, best, -100),
            "far_ids": torch.where(mask, best, 2**31 - 1),
            "chosen": (logits > 0) & ~hidden,
        }


def make(seed):
    torch.manual_seed(seed)
    mask = torch.ones(1, 32, dtype=torch.bool)
    mask[:, 20:] = False
    model = Conventions().eval()
    torch.manual_seed(0)
    return model, {"x": torch.randn(1, 32, 16), "mask": mask}


def own():
    return make(0)


def other():
    return make(1)
'''
OUTPUTS = {
    *("nine", "thirty", "lowest", "added"),
    *("nested_0", "nested_1.weights", "nested_1.tiny"),
    *("ids", "far_ids", "chosen"),
}


def checked(bundle: Path, source: str) -> Report:
    return check(bundle, CheckOptions(measure=QUICK, model=source), Quiet())


@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
def test_each_output_convention_fails_with_other_weights(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "marks.py").write_text(SOURCE)
    options = ConvertOptions((get_target("cpu"),), precision, out=tmp_path, measure=QUICK, keep_failed=True)
    (made,) = convert(load_model("marks.py:own"), None, options, Quiet()).results
    assert made.bundle is not None
    assert made.parity is not None
    assert set(made.parity.outputs) == OUTPUTS
    assert made.parity.outputs["nine"].left_out == pytest.approx(12 / 32)
    (right,) = checked(Path(made.bundle), "marks.py:own").results
    assert [f for f in right.failures if f.gate in ("parity", "golden")] == []
    (wrong,) = checked(Path(made.bundle), "marks.py:other").results
    named = {failure.wanted.split()[0] for failure in wrong.failures if failure.gate == "parity"}
    if precision == "fp32":
        assert right.passed
        assert named == OUTPUTS
    assert not wrong.passed
    assert named


@pytest.mark.parametrize("hidden", [-1e4, -1e9, -1e30, float(np.finfo(np.float32).min), -np.inf])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_hidden_log_probabilities_of_other_weights_fail_the_gate(hidden: float, precision: str) -> None:
    meter = ParityMeter()
    for seed in range(3):
        rng = np.random.default_rng(seed)
        expected, got = np.log(rng.dirichlet(np.ones(9), (2, 4))).astype(np.float32)
        expected[:, 5:] = got[:, 5:] = hidden
        meter.add({"y": expected}, {"y": got})
    assert parity_failures(meter.result("x"), precision)


def test_a_quantized_bundle_is_held_to_what_its_own_source_gave() -> None:
    meter = ParityMeter()
    meter.add({"y": np.array([1.0, 2.0])}, {"y": np.array([1.1, 1.9])})
    now = meter.result("x")
    recorded = ParityMeter()
    recorded.add({"y": np.array([1.0, 2.0])}, {"y": np.array([1.001, 2.0])})
    assert parity_failures(now, "int8") == []
    assert parity_failures(now, "int8", now) == []
    (failure,) = parity_failures(now, "int8", recorded.result("x"))
    assert failure.wanted == "y within 10 dB of the 67.0 dB that its own source gave"


def test_a_step_of_marks_alone_is_part_of_the_same_figure() -> None:
    meter = ParityMeter()
    meter.add({"y": np.full(4, -1e9)}, {"y": np.full(4, -1e9)})
    meter.add({"y": np.array([1.0, 2.0, 3.0, 4.0])}, {"y": np.array([4.0, 3.0, 2.0, 1.0])})
    figures = meter.result("x").outputs["y"]
    assert (figures.max_abs, figures.left_out) == (3.0, 0.5)
    assert figures.sqnr_db == pytest.approx(10 * np.log10(30 / 20))
