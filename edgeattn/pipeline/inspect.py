"""inspect_sensitivity(): which layers a quantized model would lose by, and what becomes of its attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeattn.converters.onnx import export_onnx
from edgeattn.errors import DataError
from edgeattn.evaluation.accuracy import accuracy
from edgeattn.evaluation.data import Data, limited
from edgeattn.guards.scratch import scratch_room
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline, baseline, score_of
from edgeattn.progress import Progress, Quiet
from edgeattn.quantize.attention_maps import AttentionReport, diagnose
from edgeattn.quantize.sensitivity import Evaluate, SensitivityOptions, SensitivityReport, measure, quantize_all, steps
from edgeattn.runtimes import open_session

ENGINE = "onnxruntime"  # executes Q/DQ as it stands, on every host


@dataclass(frozen=True)
class InspectOptions:
    """What to measure.

    Attributes:
        samples: at most so many samples to measure the metric on, spread evenly: it is measured for every layer.
    """

    sensitivity: SensitivityOptions = field(default_factory=SensitivityOptions)
    samples: int = 60


@dataclass(frozen=True)
class ModelSensitivity:
    """What :func:`inspect_sensitivity` found.

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


def inspect_sensitivity(
    model: EdgeModel, data: Data | None, options: InspectOptions, progress: Progress
) -> ModelSensitivity:
    """Quantize one layer after the other, and look at the attention maps with all layers quantized.

    The metric is measured for every layer and every block where the data has targets: what that takes is the number
    of layers times the evaluation of the data.

    Raises:
        DataError: without data: ranges of made-up values are those of another model.
        EdgeattnError: if the model cannot be exported or quantized.
    """
    if data is None:
        raise DataError(
            "sensitivity quantizes with the ranges that your inputs give and got no data: give --data with inputs like "
            "those of use (npz, labelled texts, recordings with transcripts.tsv, or file.py:function)"
        )
    base = baseline(model, limited(data, options.samples), progress)
    chosen = options.sensitivity
    with scratch_room() as scratch:
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
    if score is None:
        return ModelSensitivity(data.origin, None, None, 0, report, attention)
    return ModelSensitivity(data.origin, score.metric, 100.0 * score.value, score.samples, report, attention)


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
