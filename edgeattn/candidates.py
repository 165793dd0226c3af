"""Candidates for a target: each precision built by its engine's converter, verified, timed, and one of them chosen."""

from __future__ import annotations

import functools
import shutil
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeattn.baseline import Baseline, Progress, replay_baseline, score_of, whole_parity
from edgeattn.evaluation.accuracy import Score, accuracy
from edgeattn.evaluation.parity import Parity
from edgeattn.gates import Failure, Gates, accuracy_failures, executed_failures, parity_failures
from edgeattn.model import Artifact, EdgeModel
from edgeattn.profiling.measure import time_step
from edgeattn.report import Candidate
from edgeattn.runtimes import Session
from edgeattn.runtimes.engines import SUBSTITUTES
from edgeattn.targets import Precision as Name
from edgeattn.targets import Target

PRECISIONS: tuple[Name, ...] = ("fp32", "fp16", "int8")
DEFAULT_CAPABILITY = "8.7"  # Orin
PAYS = 1.05  # int8 ships only if it is at least this much faster than the best float
TIMING_ROUNDS, TIMING_RUNS = 6, 25  # candidates take turns, so that a slow moment of the host meets all of them


@dataclass(frozen=True)
class Verified:
    """A candidate that was built and measured.

    Attributes:
        parity: of all graphs together; ``graphs`` has it by graph.
        latency_ms: None where this host cannot tell.
    """

    artifact: Artifact
    parity: Parity
    score: Score | None
    latency_ms: float | None
    failures: tuple[Failure, ...]
    size_bytes: int
    graphs: Mapping[str, Parity] = field(default_factory=dict)


class Workshop:
    """The source with its exports, made once and shared by the targets."""

    def __init__(self, model: EdgeModel, base: Baseline, scratch: Path) -> None:
        self.model = model
        self.base = base
        self.scratch = scratch

    @functools.cached_property
    def onnx(self) -> Mapping[str, Path]:
        """fp32 ONNX, one file per graph, equal weights stored once."""
        from edgeattn.converters.onnx import export_onnx
        from edgeattn.converters.shared_weights import share_onnx

        exported = export_onnx(self.model, self.room("onnx"))
        share_onnx(exported)
        return exported

    @functools.cached_property
    def tflite(self) -> Artifact:
        """fp32 TFLite."""
        from edgeattn.converters.tflite import to_tflite

        return to_tflite(self.model, self.room("tflite-fp32"), "fp32")

    def room(self, name: str) -> Path:
        """An empty directory for one artifact."""
        path = self.scratch / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path


def build_openvino(shop: Workshop, precision: Name, _: Target) -> Artifact:
    """ONNX -> OpenVINO IR; int8 by nncf."""
    from edgeattn.converters.shared_weights import share_ir

    room = shop.room(f"openvino-{precision}")
    if precision == "int8":
        from edgeattn.quantize.openvino import int8_openvino

        artifact = int8_openvino(shop.onnx, shop.base.calibration, room)
    else:
        from edgeattn.converters.openvino import to_openvino

        artifact = to_openvino(shop.onnx, room, precision)
    share_ir(artifact.models)
    return artifact


def build_litert(shop: Workshop, precision: Name, _: Target) -> Artifact:
    """Torch -> TFLite, once; float16 weights or int8 ones with dynamic activations are made of that file."""
    if precision == "fp32":
        return shop.tflite
    room = shop.room(f"tflite-{precision}")
    if precision == "int8":
        from edgeattn.quantize.tflite import int8_tflite

        return int8_tflite(shop.tflite, shop.base.calibration, room)
    from edgeattn.converters.tflite import halve_tflite

    return halve_tflite(shop.model, shop.tflite, room)


def build_tensorrt(shop: Workshop, precision: Name, target: Target) -> Artifact:
    """ONNX and build recipe for the device; int8 as explicit Q/DQ. Parsed and built here as far as this host can."""
    from edgeattn.converters.shared_weights import share_onnx
    from edgeattn.converters.tensorrt import to_tensorrt

    onnx = shop.onnx
    if precision == "int8":
        from edgeattn.quantize.qdq import quantize_onnx

        onnx = quantize_onnx(onnx, shop.base.calibration, shop.room("qdq")).models
    capability = target.compute_capability or DEFAULT_CAPABILITY
    artifact = to_tensorrt(onnx, shop.room(f"tensorrt-{precision}"), precision, capability)
    share_onnx(artifact.models)
    return artifact


def build_onnxruntime(shop: Workshop, precision: Name, target: Target) -> Artifact:
    """The exported ONNX as it is; int8 as Q/DQ, fp16 as for TensorRT."""
    if precision == "fp32":
        return Artifact("onnxruntime", precision, shop.onnx, "ONNX, float32")
    return replace(build_tensorrt(shop, precision, target), backend="onnxruntime", build=None)


BUILDERS: Mapping[str, Callable[[Workshop, Name, Target], Artifact]] = {
    "openvino": build_openvino,
    "litert": build_litert,
    "tensorrt": build_tensorrt,
    "onnxruntime": build_onnxruntime,
}
SUBSTITUTE = {backend: others[0] for backend, others in SUBSTITUTES.items()}
"""Engine that needs a device -> the one that runs the same files on this host."""


def verify(
    shop: Workshop, artifact: Artifact, session: Session, gates: Gates, label: str, progress: Progress
) -> Verified:
    """Parity over the recorded steps and the metric over the data, on the runtime that ships."""
    progress.begin(f"{label}: parity", sum(len(records) for records in shop.base.records.values()))
    graphs = replay_baseline(shop.base, session, progress)
    parity = whole_parity(session.spec, graphs)
    score = None
    if shop.base.score is not None and shop.base.data is not None:
        score = score_of(session, shop.base.data, label, progress)
    failures = parity_failures(parity, artifact.precision)
    failures += executed_failures(artifact.precision, session.executed())
    if score is not None and shop.base.score is not None:
        failures += accuracy_failures(accuracy(shop.base.score, score, ""), gates.max_drop)
    size = sum(path.stat().st_size for path in artifact_files(artifact).values())
    return Verified(artifact, parity, score, None, tuple(failures), size, graphs)


def time_candidates(sessions: Mapping[str, Session]) -> dict[str, float]:
    """Median milliseconds of one call of every graph, added up; the candidates take turns in one run.

    A graph that stands in several sizes counts with its largest, the worst case of a call.
    """
    totals = dict.fromkeys(sessions, 0.0)
    units = next(iter(sessions.values())).spec.units() if sessions else {}
    for graphs in units.values():
        steps = {name: session.step(graphs[-1].name) for name, session in sessions.items()}
        samples: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(TIMING_ROUNDS):
            for name, step in steps.items():
                samples[name] += time_step(step, TIMING_RUNS)[1]
        for name, times in samples.items():
            totals[name] += 1e3 * statistics.median(times)
    return totals


def choose(verified: Mapping[str, Verified], source: Score | None, asked: str) -> tuple[Candidate, ...]:
    """The fastest candidate that keeps the metric, and why each of the others is not it.

    int8 must be :data:`PAYS` times faster than the best float, and its metric must be known; among floats that are
    equally fast the smaller one ships. Where the time is only known on the device, fp16 ships.
    """
    passing = {p: v for p, v in verified.items() if not v.failures}
    floats = {p: v for p, v in passing.items() if p != "int8"}
    kept = _best_float(floats)
    why = dict.fromkeys(floats, "slower or larger than the float that ships")
    int8 = passing.get("int8")
    if int8 is not None:
        why["int8"] = _why_not_int8(int8, floats.get(kept or ""), source)
        if not why["int8"]:
            kept = "int8"
            why |= dict.fromkeys(floats, f"int8 is at least {PAYS}x faster")
    if kept is None:  # nothing passed: the safest one is reported with its failures
        kept = next(iter(verified))
    why[kept] = "fastest that keeps the metric" if asked == "auto" else "asked for"
    if verified[kept].latency_ms is None and asked == "auto":
        why[kept] = "the float default where time is only known on the device"
    return tuple(
        Candidate(
            p,
            v.latency_ms,
            None if v.score is None else 100.0 * v.score.value,
            v.size_bytes,
            p == kept,
            "; ".join(str(f) for f in v.failures) or why[p],
        )
        for p, v in verified.items()
    )


def _best_float(floats: Mapping[str, Verified]) -> str | None:
    if not floats:
        return None
    timed = {p: v.latency_ms for p, v in floats.items() if v.latency_ms is not None}
    if len(timed) < len(floats):
        return "fp16" if "fp16" in floats else next(iter(floats))
    fastest = min(timed.values())
    return min((p for p in timed if timed[p] <= PAYS * fastest), key=lambda p: floats[p].size_bytes)


def _why_not_int8(int8: Verified, best: Verified | None, source: Score | None) -> str:
    """Empty if int8 should ship."""
    if best is None:
        return ""
    if source is None:
        return "no data with a metric: its loss is unknown"
    if int8.latency_ms is None or best.latency_ms is None:
        return "its gain must be measured on the device"
    gain = best.latency_ms / int8.latency_ms
    if gain < PAYS:
        return f"{gain:.2f}x the speed of {best.artifact.precision}, less than the {PAYS}x that it must pay"
    return ""


def artifact_files(artifact: Artifact) -> dict[str, Path]:
    """Every file of an artifact, by the name that it has in the bundle: its models and what lies beside them."""
    rooms = {path.parent for path in artifact.models.values()}
    return {file.name: file for room in rooms for file in sorted(room.iterdir()) if file.is_file()}
