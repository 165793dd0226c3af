"""Which layers a quantized model would lose by, and what becomes of its attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeattn.converters.onnx import export_onnx
from edgeattn.engines import ONNXRUNTIME
from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import accuracy
from edgeattn.evaluation.data import Data
from edgeattn.guards.scratch import scratch_directory
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline, baseline, score_of
from edgeattn.progress import Progress, Quiet
from edgeattn.quantize.attention_maps import AttentionReport, diagnose
from edgeattn.quantize.sensitivity import (
    Evaluate,
    SensitivityOptions,
    SensitivityReport,
    measure,
    quantize_all,
    rank,
    steps,
)
from edgeattn.runtimes import open_session
from edgeattn.spec import to_json

ENGINE = ONNXRUNTIME.name  # executes Q/DQ as it stands, on every host


@dataclass(frozen=True, kw_only=True)
class ModelSensitivity:
    """What :func:`model_sensitivity` found.

    Attributes:
        data: what calibrated and measured.
        metric: the task's, None where the data has no targets; ``source`` is the float32 source's, in percent.
        scored: samples that the metric was measured on.
    """

    data: str
    metric: str | None
    source: float | None
    scored: int
    report: SensitivityReport
    attention: AttentionReport


def model_sensitivity(
    model: EdgeModel, data: Data | None, samples: int, progress: Progress, chosen: SensitivityOptions | None = None
) -> ModelSensitivity:
    """Quantize one layer after the other, and look at the attention maps with all layers quantized.

    The metric is measured for every layer and every block where the data has targets: what that takes is the number
    of layers times the evaluation of the data.

    Args:
        samples: at most this many to measure the metric on, spread evenly.

    Raises:
        DataError: without data: ranges of made-up values are those of another model.
        EdgeattnError: if the model cannot be exported or quantized.
    """
    if data is None:
        raise DataError(
            "sensitivity quantizes with the ranges that your inputs give and got no data: give --data with inputs like "
            "those of use (npz, labelled texts, recordings with transcripts.tsv, or file.py:function)"
        )
    chosen = chosen or SensitivityOptions()
    base = baseline(model, data.limited(samples), progress)
    with scratch_directory() as scratch:
        rooms = [scratch / name for name in ("float", "quantized")]
        for room in rooms:
            room.mkdir()
        progress.begin("sensitivity: exporting")
        onnx = export_onnx(model, rooms[0])
        progress.begin("sensitivity: calibrating")
        quantized = quantize_all(onnx, base.calibration, rooms[1], chosen)
        progress.begin("sensitivity: layers and blocks", steps(quantized))
        report = measure(onnx, quantized, base.calibration, chosen, _metric_loss(model, base), progress.advance)
        progress.begin("sensitivity: attention maps")
        attention = diagnose(onnx, quantized.models, base.calibration)
    score = base.score
    return ModelSensitivity(
        data=data.origin,
        metric=None if score is None else score.metric,
        source=None if score is None else score.told,
        scored=0 if score is None else score.samples,
        report=report,
        attention=attention,
    )


def sensitivity_json(found: ModelSensitivity) -> dict[str, Any]:
    """The object behind the key ``sensitivity`` of ``inspect --json``."""
    facts = {"data": found.data, "metric": found.metric, "source": found.source, "scored": found.scored}
    return {
        **facts,
        **to_json(found.report),
        "ranking": list(rank(found.report)),
        "attention": to_json(found.attention),
    }


def _metric_loss(model: EdgeModel, base: Baseline) -> Evaluate | None:
    """Points that quantized ONNX files lose against the source, as the engine executes them."""
    source, data = base.score, base.data
    if source is None or data is None:
        return None

    def lost(files: Mapping[str, Path]) -> float:
        with open_session(ENGINE, files, model.spec, threads=1) as session:
            score = score_of(session, data, "sensitivity", Quiet())
        assert score is not None, "the source was scored on this data"
        drop = accuracy(source, score, data.origin).drop
        assert drop is not None
        return drop + 0.0  # never -0.0

    return lost
