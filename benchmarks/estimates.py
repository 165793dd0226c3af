"""Whether estimates hold: ten attention models of real sizes, estimated by a fresh calibration and then measured.

    python -m benchmarks.estimates [--engine NAME ...] [--only NAME ...] [--json]

The shapes are those of the published models; weights are random where they are not here, as times depend on shapes
alone. Each is converted in float32 and int8 by the product's own recipes, estimated by a calibration of the same run
and measured as a profile is (warmed up until it settles, then the median), on one thread, in float32 and int8 by turns.
None of them is among the models that calibration measures.

Bars, for each engine and precision: the range contains the measurement for at least 8 of 10, and the median error of
its middle is at most 30 %. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.errors import EdgeattnError
from edgeattn.graphs.counting import computes_int8, file_figures
from edgeattn.model import EdgeModel, one_thread
from edgeattn.pipeline.calibrate import calibrate
from edgeattn.pipeline.steps.baseline import example_calls, recorded
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.profiling.measure import time_step
from edgeattn.progress import Quiet
from edgeattn.runtimes import Session, open_session
from edgeattn.sources import from_module
from edgeattn.targets import Target, host_target
from edgeattn.targets.calibration import Calibration, with_measured
from edgeattn.targets.roofline import Estimate, estimate

ENGINES = ("openvino", "litert", "onnxruntime")
PRECISIONS = ("fp32", "int8")
CONTAINED, ERROR = 0.8, 0.3
ROUNDS = 3
LEAST_RUNS, MOST_RUNS, ROUND_SECONDS = 5, 60, 0.5
KWT1 = Path("../shared/data/kwt1")


@dataclass(frozen=True)
class Row:
    """One model on one engine in one precision.

    Attributes:
        error: of the middle, as a share of what was measured.
        binds: the slowest operation and what bounds it.
    """

    model: str
    engine: str
    precision: str
    measured_ms: float
    low_ms: float
    mid_ms: float
    high_ms: float
    contained: bool
    error: float
    binds: str


@dataclass(frozen=True)
class Bar:
    """What was to be reached, and whether it was."""

    wanted: str
    got: str
    passed: bool


# --- models -----------------------------------------------------------------------------------------------------------


class Called(nn.Module):
    """A network of transformers of which one output is taken."""

    def __init__(self, network: nn.Module, output: str = "last_hidden_state", **fixed: Any) -> None:
        super().__init__()
        self.network = network
        self.output = output
        self.fixed = fixed


class OfText(Called):
    """Token ids and their mask."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        found = self.network(input_ids=input_ids, attention_mask=attention_mask, **self.fixed)
        return {"y": cast(Tensor, getattr(found, self.output))}


class OfValues(Called):
    """Pixels, a spectrogram, sound or a series, by position."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": cast(Tensor, getattr(self.network(x, **self.fixed), self.output))}


def library() -> Any:
    return importlib.import_module("transformers")


def drawn(name: str, **options: Any) -> nn.Module:
    """A network of transformers with random weights; without options it is what the authors published."""
    transformers = library()
    config = getattr(transformers, f"{name}Config")(**options)
    network: nn.Module = getattr(transformers, f"{name}Model")(config).eval()
    return network


def of_text(network: nn.Module, name: str, tokens: int, output: str = "last_hidden_state", **fixed: Any) -> EdgeModel:
    ids = torch.randint(1000, 20_000, (1, tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones(1, tokens, dtype=torch.int64)}
    return from_module(OfText(network, output, **fixed).eval(), inputs, name)


def of_values(network: nn.Module, name: str, shape: tuple[int, ...], output: str = "last_hidden_state") -> EdgeModel:
    return from_module(OfValues(network, output).eval(), {"x": torch.randn(shape)}, name)


def streaming_conformer() -> EdgeModel:
    from edgeattn.models.streaming_conformer import build as built_in

    return built_in()


def kwt1() -> EdgeModel:
    """KWT-1 (Berg et al. 2021), with its weights where they are."""
    from tests.kwt1 import CEPSTRA, FRAMES, Kwt1, kwt1_edge_model

    if KWT1.is_dir():
        return kwt1_edge_model(KWT1)
    return from_module(Kwt1().eval(), {"features": torch.randn(1, FRAMES, CEPSTRA)}, "kwt1")


def minilm() -> EdgeModel:
    """all-MiniLM-L6-v2: six layers of 384."""
    network = drawn("Bert", hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return of_text(network, "minilm-l6", 128)


def whisper_encoder() -> EdgeModel:
    """Of Whisper tiny: 30 seconds of 80 bands."""
    network = drawn("Whisper", encoder_layers=4, decoder_layers=1, d_model=384, encoder_attention_heads=6,
                    decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536)  # fmt: skip
    encoder: nn.Module = cast(Any, network).get_encoder()
    return of_values(encoder, "whisper-tiny-encoder", (1, 80, 3000))


def t5_encoder() -> EdgeModel:
    """Of T5 small."""
    network = drawn("T5", num_decoder_layers=1, use_cache=False)
    return of_text(cast(Any, network).get_encoder(), "t5-small-encoder", 128)


def patchtst() -> EdgeModel:
    """PatchTST/42 as published for Electricity and Traffic: 336 steps in patches of 16, here of ETT's 7 channels."""
    network = drawn(
        "PatchTST", num_input_channels=7, context_length=336, patch_length=16, patch_stride=8, d_model=128,
        num_attention_heads=16, num_hidden_layers=3, ffn_dim=256,
    )  # fmt: skip
    return of_values(network, "patchtst", (1, 336, 7))


MODELS: Mapping[str, Callable[[], EdgeModel]] = {
    "streaming-conformer": streaming_conformer,
    "kwt1": kwt1,
    "minilm-l6": minilm,
    "distilbert-base": lambda: of_text(drawn("DistilBert"), "distilbert-base", 128),
    "deit-tiny": lambda: of_values(
        drawn("DeiT", hidden_size=192, num_attention_heads=3, intermediate_size=768), "deit-tiny", (1, 3, 224, 224)
    ),
    "whisper-tiny-encoder": whisper_encoder,
    "t5-small-encoder": t5_encoder,
    "distilgpt2": lambda: of_text(drawn("GPT2", n_layer=6), "distilgpt2", 64, use_cache=False),
    "wav2vec2-base": lambda: of_values(drawn("Wav2Vec2"), "wav2vec2-base", (1, 16_000)),
    "patchtst": patchtst,
}


# --- measuring --------------------------------------------------------------------------------------------------------


def exports_of(model: EdgeModel, room: Path) -> Exports:
    """With samples for int8 made from the example: ranges decide no time."""
    base = recorded(model, None, Quiet())
    calibration = {
        graph.name: tuple({**model.example[graph.name], **inputs} for inputs in example_calls(model, graph.name))
        for graph in model.spec.graphs
    }
    return Exports(model, replace(base, calibration=calibration), room)


def measured(sessions: Mapping[str, Session], model: EdgeModel) -> dict[str, float]:
    """Milliseconds of a call, the median of all rounds: precisions by turns, a slow moment of the host meets both."""
    graph = model.spec.graphs[0].name
    steps = {name: session.step(graph) for name, session in sessions.items()}
    for step in steps.values():
        for name, buffer in step.inputs.items():
            np.copyto(buffer, model.example[graph][name])
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            began = time.perf_counter()
            step.run()
            runs = int(ROUND_SECONDS / (time.perf_counter() - began))
            times[name] += time_step(step, min(MOST_RUNS, max(LEAST_RUNS, runs)))[1]
    return {name: 1e3 * statistics.median(found) for name, found in times.items()}


def rows_of(name: str, exports: Exports, engine: str, host: Target, calibration: Calibration) -> list[Row]:
    """The model on an engine, measured and estimated in each precision."""
    artifacts = {precision: build(engine, exports, precision, host) for precision in PRECISIONS}
    sessions = {key: open_session(engine, made.models, exports.model.spec, 1) for key, made in artifacts.items()}
    try:
        times = measured(sessions, exports.model)
        efficiency = calibration.engines[engine].efficiency
        found = {
            key: estimate(
                file_figures(engine, artifacts[key].models, computes_int8(session.executed()))[
                    exports.model.spec.graphs[0].name
                ].ops,
                host, engine, 1, efficiency,
            )
            for key, session in sessions.items()
        }  # fmt: skip
    finally:
        for session in sessions.values():
            session.close()
    return [row(name, engine, key, times[key], found[key]) for key in artifacts]


def row(name: str, engine: str, precision: str, measured_ms: float, told: Estimate) -> Row:
    """A measurement beside its estimate."""
    shares = ", ".join(f"{what} {100 * share:.0f} %" for what, share in told.bound_by.items() if share >= 0.005)
    return Row(
        name, engine, precision, measured_ms, told.low_ms, told.mid_ms, told.high_ms,
        told.low_ms <= measured_ms <= told.high_ms, told.mid_ms / measured_ms - 1.0,
        f"{shares}; {told.binds.figures.type}",
    )  # fmt: skip


def bars(rows: Sequence[Row]) -> list[Bar]:
    """For each engine and precision."""
    found = []
    for engine, precision in dict.fromkeys((row.engine, row.precision) for row in rows):
        chosen = [row for row in rows if (row.engine, row.precision) == (engine, precision)]
        held, error = sum(row.contained for row in chosen), statistics.median(abs(row.error) for row in chosen)
        label = f"{engine} {precision}"
        found += [
            Bar(f"{label}: {CONTAINED:.0%} within the range", f"{held} of {len(chosen)}",
                held >= CONTAINED * len(chosen)),
            Bar(f"{label}: median error <= {ERROR:.0%}", f"{error:.1%}", error <= ERROR),
        ]  # fmt: skip
    return found


def show(rows: Sequence[Row], verdicts: Sequence[Bar], calibration: Calibration) -> None:
    """Tables."""
    from rich.console import Console
    from rich.table import Table

    terminal = Console(width=None if sys.stdout.isatty() else 170)
    grid = Table("model", "engine", "precision", "measured ms", "low - mid - high", "in range", "error", "binds")
    for row in rows:
        grid.add_row(
            row.model, row.engine, row.precision, f"{row.measured_ms:.3f}",
            f"{row.low_ms:.3f} - {row.mid_ms:.3f} - {row.high_ms:.3f}", "yes" if row.contained else "NO",
            f"{row.error:+.0%}", row.binds,
        )  # fmt: skip
    terminal.print(grid)
    for name, engine in calibration.engines.items():
        terminal.print(f"{name} {engine.version}: range x/: {engine.spread:.2f}")
    verdict = Table("bar", "got", "")
    for bar in verdicts:
        verdict.add_row(bar.wanted, bar.got, "[green]met[/green]" if bar.passed else "[red]MISSED[/red]")
    terminal.print(verdict)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", action="append", choices=ENGINES, default=[])
    parser.add_argument("--only", action="append", choices=MODELS, default=[])
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    engines = chosen.engine or list(ENGINES)
    print("calibrating", file=sys.stderr, flush=True)
    calibration = calibrate(Quiet(), engines)
    host = with_measured(host_target(), calibration.clock_hz, calibration.bytes_per_second)
    rows: list[Row] = []
    failed = False
    for name in chosen.only or MODELS:
        print(name, file=sys.stderr, flush=True)
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(prefix="edgeattn-") as scratch, one_thread():
            exports = exports_of(MODELS[name](), Path(scratch))
            for engine in engines:
                try:
                    rows += rows_of(name, exports, engine, host, calibration)
                except EdgeattnError as error:  # noqa: PERF203  # the others still tell something
                    print(f"{name} on {engine}: {error}", file=sys.stderr, flush=True)
                    failed = True
    verdicts = bars(rows)
    if chosen.json:
        print(json.dumps({"rows": [asdict(one) for one in rows], "bars": [asdict(bar) for bar in verdicts]}, indent=1))
    else:
        show(rows, verdicts, calibration)
    return int(failed or not all(bar.passed for bar in verdicts))


if __name__ == "__main__":
    sys.exit(main())
