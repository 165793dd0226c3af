"""Quantizers and pruners of other projects, each with its own plain settings, as models that our runtimes time.

    python -m benchmarks.peers --setup
    python -m benchmarks.peers --model streaming|DIR [--data DIR] [--peer NAME ...] [--room DIR]

Every peer runs in a fresh interpreter with a time limit, from the same float32 export and on the same samples as ours.
Those that cannot share the project's environment have one each, which ``--setup`` makes. A model counts if it has the
names, shapes and dtypes of the float32 one and gives finite outputs; what an interface forces on a peer is said with
it in :data:`PEERS`. A peer that gives none is a row with the reason.

DIR is a Hugging Face directory of a text classifier or encoder, taken at 128 tokens; ``--data`` is for it a folder with
train.tsv[.gz] and dev.tsv, for the streaming model what ``edgeattn convert`` takes. Prints size, median milliseconds on
one thread in interleaved rounds, signal to noise ratio against the float32 source on samples that no quantizer saw
(the first output, then the worst of all, next states included), and the dtypes that the engine executed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from benchmarks.convert_cost import TOKENS
from benchmarks.peer_scripts.job import VERSIONS, write_samples
from edgeattn.errors import EdgeattnError, InputError, unknown_name
from edgeattn.evaluation.parity import Parity, ParityMeter
from edgeattn.model import Arrays, EdgeModel, ReferenceStep, one_thread
from edgeattn.profiling.measure import time_step
from edgeattn.runtimes import Session, open_session
from edgeattn.spec import DType, GraphSpec, ModelSpec, TensorSpec

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ROOT / "out" / "peers"
TIMEOUT_S = 900
REASON_LENGTH = 300  # characters
CALIBRATION, EVALUATION = 128, 16  # samples of the command line
ROUNDS, RUNS = 8, 25  # models take turns, so that a slow moment of the host meets all of them

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "optimum-intel": (
        *("torch==2.13.0", "optimum==2.3.0", "optimum-intel[nncf,openvino]==2.2.0"),
        *("transformers==5.5.4", "nncf==3.4.0", "openvino==2026.4.1"),
    ),
    "olive": (
        *("torch==2.13.0", "olive-ai==0.13.0", "onnxruntime==1.31.1", "nncf==3.4.0", "openvino==2026.4.1"),
        "requests",  # imported by Olive, not among what it asks for
    ),
    "torch-pruning": ("torch==2.13.0", "transformers==5.23.0", "torch-pruning==1.6.1"),
}
"""Environment -> the releases that were found to work together."""

UNWANTED = ("torchvision",)
"""Comes along with optimum-intel; beside a torch without CUDA it does not load, and transformers then fails with it."""


@dataclass(frozen=True)
class Peer:
    """One quantizer of another project.

    Attributes:
        name: as rows call it.
        engine: backend of :func:`~edgeattn.runtimes.open_session` that runs what it makes.
        script: in ``benchmarks/peer_scripts``.
        recipe: which of the script's ways.
        source: what it starts from.
        suffix: of the file that it writes.
        environment: a key of :data:`PACKAGES`; empty for the project's own.
    """

    name: str
    engine: str
    script: str
    recipe: str
    source: Literal["onnx", "tflite", "huggingface"]
    suffix: str
    environment: str = ""


PEERS: tuple[Peer, ...] = (
    Peer("nncf default", "openvino", "nncf_quantize", "default", "onnx", ".xml"),
    Peer("nncf TRANSFORMER", "openvino", "nncf_quantize", "TRANSFORMER", "onnx", ".xml"),
    # Inputs and outputs stay float: alone, the recipe makes them int8. Their conversion is inside the timing.
    Peer("ai-edge-quantizer static_wi8_ai8", "litert", "ai_edge_quantize", "static_wi8_ai8", "tflite", ".tflite"),
    Peer("onnxruntime quantize_static", "onnxruntime", "onnxruntime_quantize", "static", "onnx", ".onnx"),
    Peer("onnxruntime quantize_dynamic", "onnxruntime", "onnxruntime_quantize", "dynamic", "onnx", ".onnx"),
    # Exported by optimum with free sizes, then given those of the float32 ONNX: our runtimes take static shapes.
    Peer("optimum-intel static", "openvino", "optimum_quantize", "static", "huggingface", ".xml", "optimum-intel"),
    Peer("optimum-intel weights", "openvino", "optimum_quantize", "weights", "huggingface", ".xml", "optimum-intel"),
    Peer(
        *("Olive OnnxStaticQuantization", "onnxruntime", "olive_quantize", "OnnxStaticQuantization"),
        *("onnx", ".onnx", "olive"),
    ),
    Peer("Olive OpenVINOQuantization", "openvino", "olive_quantize", "OpenVINOQuantization", "onnx", ".xml", "olive"),
)
ALL: tuple[str, ...] = tuple(peer.name for peer in PEERS)

PRUNERS: tuple[Peer, ...] = tuple(
    Peer(f"Torch-Pruning {recipe}", "openvino", "torch_prune", recipe, "huggingface", ".safetensors", "torch-pruning")
    for recipe in ("magnitude-uniform", "magnitude-bottleneck", "taylor-bottleneck", "taylor-isomorphic")
)
"""Of these a recipe needs ``:RATIO`` behind it, and what they write are the tensors that are left."""


@dataclass(frozen=True)
class PeerResult:
    """What a peer made.

    Attributes:
        peer: its name.
        engine: backend that runs it.
        model: file for the single graph; its side files lie beside it, and nothing else. None if there is none.
        reason: why there is none, empty otherwise.
        versions: of the packages that made it; empty if they are not installed.
    """

    peer: str
    engine: str
    model: Path | None
    reason: str
    versions: str


class PeerError(Exception):
    """Why a peer gives no model, in words for its row."""


def run_peers(
    shop_onnx: Path,
    tflite: Path,
    hf_directory: Path | None,
    samples: Sequence[Mapping[str, np.ndarray]],
    room: Path,
    peers: Collection[str] = ALL,
    environments: Path = ENVIRONMENTS,
) -> tuple[PeerResult, ...]:
    """The models of the peers, in the order of :data:`PEERS`.

    Args:
        shop_onnx: float32 ONNX of a graph, static shapes.
        tflite: float32 TFLite of the same graph.
        hf_directory: what the model came from, None if that is no Hugging Face directory.
        samples: full input sets by name, states included, to calibrate with.
        room: directory for all that they write; one folder per peer, emptied first.
        peers: names from :data:`ALL`.
        environments: what ``--setup`` made.

    Raises:
        InputError: for an unknown name, or without samples.
    """
    for name in peers:
        if name not in ALL:
            raise InputError(unknown_name("peer", name, ALL))
    if not samples:
        raise InputError("static quantizers need samples to calibrate with, got none")
    room.mkdir(parents=True, exist_ok=True)
    stored = (room / "samples.npz").resolve()
    write_samples([dict(sample) for sample in samples], stored)
    sources = {"onnx": shop_onnx, "tflite": tflite, "huggingface": hf_directory}
    return tuple(
        _result(peer, sources[peer.source], stored, room, shop_onnx, samples[0], environments)
        for peer in PEERS
        if peer.name in peers
    )


def _result(
    peer: Peer,
    source: Path | None,
    stored: Path,
    room: Path,
    onnx: Path,
    sample: Mapping[str, np.ndarray],
    environments: Path,
) -> PeerResult:
    folder = room.resolve() / re.sub(r"\W+", "-", peer.name.lower())
    shutil.rmtree(folder, ignore_errors=True)
    work = folder / "work"  # what a peer leaves besides its model must not lie beside that
    work.mkdir(parents=True)
    model, reason = folder / f"model{peer.suffix}", ""
    try:
        made = run_script(peer, source, stored, work, environments)
        _take_over(made, onnx, model)
        _check(peer, model, onnx, sample)
    except PeerError as error:
        reason = str(error)
    return PeerResult(peer.name, peer.engine, None if reason else model, reason, _versions(work))


def run_script(peer: Peer, source: Path | None, stored: Path, work: Path, environments: Path = ENVIRONMENTS) -> Path:
    """Run the peer's script; what it prints stays in ``work``.

    Raises:
        PeerError: if it cannot be run, fails, writes nothing or takes too long.
    """
    if source is None:
        raise PeerError("starts from a Hugging Face directory, and this model is none")
    python = environments / peer.environment / "bin" / "python" if peer.environment else Path(sys.executable)
    if not python.is_file():
        raise PeerError("its environment is missing: python -m benchmarks.peers --setup")
    made = work / f"model{peer.suffix}"
    command = [str(python), "-m", f"benchmarks.peer_scripts.{peer.script}", peer.recipe]
    # One thread as everywhere else; no hub, no reports home.
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    settings |= {"OLIVE_DISABLE_TELEMETRY": "1", "ORT_DISABLE_TELEMETRY": "1"}
    with (work / "stdout.txt").open("wb") as said, (work / "stderr.txt").open("wb") as complaints:
        try:
            ended = subprocess.run(
                [*command, str(source.resolve()), str(stored), str(made)],
                stdout=said,
                stderr=complaints,
                env={**os.environ, **settings},
                cwd=ROOT,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise PeerError(f"not done after {TIMEOUT_S} s") from None
    if ended.returncode < 0:
        raise PeerError(f"ended by signal {-ended.returncode}")
    if ended.returncode or not made.is_file():
        raise PeerError(_complaint((work / "stderr.txt").read_text(errors="replace")) or "wrote no model")
    return made


def _complaint(text: str) -> str:
    """The exception that ended a script: the last line that names one, and what follows it."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    starts = [index for index, line in enumerate(lines) if re.match(r"[\w.]+(Error|Exception|Exit)\b", line)]
    return " ".join(" ".join(lines[starts[-1] if starts else -1 :]).split())[:REASON_LENGTH]


def _versions(work: Path) -> str:
    path = work / "stdout.txt"
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line.removeprefix(VERSIONS) for line in lines if line.startswith(VERSIONS)), "")


def _take_over(made: Path, onnx: Path, target: Path) -> None:
    """Move a model to its place; an IR gets the shapes and names of the float32 ONNX.

    Raises:
        PeerError: if an IR has other inputs.
    """
    if made.suffix != ".xml":
        made.rename(target)
        return
    import openvino

    from edgeattn.converters.openvino import forget_inner_names

    model = openvino.Core().read_model(made)
    shapes = {tensor.name: list(tensor.shape) for tensor in _spec(onnx).graphs[0].inputs}
    try:
        model.reshape(shapes)
    except RuntimeError as error:
        raise PeerError(f"does not take the shapes of the float32 model: {error}"[:REASON_LENGTH]) from error
    forget_inner_names(model, onnx)
    openvino.save_model(model, target, compress_to_fp16=False)


def _spec(onnx: Path) -> ModelSpec:
    """The graph of an ONNX file with its states as plain inputs and outputs."""
    import onnx as onnx_module

    def tensors(values: Any) -> tuple[TensorSpec, ...]:
        kinds = [value.type.tensor_type for value in values]
        return tuple(
            TensorSpec(
                value.name,
                cast(DType, str(onnx_module.helper.tensor_dtype_to_np_dtype(kind.elem_type))),
                tuple(dim.dim_value for dim in kind.shape.dim),
            )
            for value, kind in zip(values, kinds, strict=True)
        )

    graph = onnx_module.load(onnx, load_external_data=False).graph
    return ModelSpec(onnx.stem, "", (GraphSpec(onnx.stem, tensors(graph.input), tensors(graph.output)),))


def _check(peer: Peer, model: Path, onnx: Path, sample: Mapping[str, np.ndarray]) -> None:
    """Open the model as a caller will and run it once.

    Raises:
        PeerError: if a name, shape or dtype differs from the float32 ONNX, the engine refuses it, or an output is not
            finite.
    """
    spec = _spec(onnx)
    try:
        with open_session(peer.engine, {spec.graphs[0].name: model}, spec, threads=1) as session:
            outputs = session.run(sample)
    except EdgeattnError as error:
        raise PeerError(str(error)[:REASON_LENGTH]) from error
    broken = [name for name, array in outputs.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if broken:
        raise PeerError(f"output {broken[0]!r} is NaN or infinite")


def set_up(directory: Path) -> None:
    """Make the environments of :data:`PACKAGES` under ``directory``; those that are there are brought up to date."""
    for name, packages in PACKAGES.items():
        environment = directory / name
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *packages], check=True)
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *UNWANTED], check=True)
        print(f"{environment}: {', '.join(packages)}", flush=True)


@dataclass(frozen=True)
class Case:
    """A model to compare on: one graph.

    Attributes:
        directory: that it came from, None for the built-in one.
        calibration: full input sets.
        evaluation: others.
    """

    model: EdgeModel
    directory: Path | None
    calibration: Sequence[Arrays]
    evaluation: Sequence[Arrays]


def streaming_case(data: str | None) -> Case:
    """The built-in model on speech, with the states that its stream carried."""
    from edgeattn.evaluation.replay import record_utterances
    from edgeattn.evaluation.speech import SpeechData
    from edgeattn.sources import load_data, load_model

    name = "streaming-conformer"
    model = load_model(name)
    found = load_data(name, model.spec, data, None, EVALUATION)
    if not isinstance(found, SpeechData) or model.spec.stream is None:
        sys.exit(f"{data}: the streaming model takes recordings")
    step = ReferenceStep(model)
    sets = []
    for utterances, limit in ((found.calibration, CALIBRATION), (found.evaluation, EVALUATION)):
        records = record_utterances(step, model.spec.stream, (one.samples for one in utterances), limit)
        sets.append([{**record.inputs, **record.states} for record in records])
    return Case(model, None, *sets)


def text_case(directory: Path, data: Path | None) -> Case:
    """A text model on sentences, padded to one size."""
    from benchmarks.classifier import read_split, read_tokenizer
    from edgeattn.runtimes.buckets import pad_inputs
    from edgeattn.sources import load_model
    from edgeattn.sources.sizes import with_buckets
    from tests.acceptance.sentences import SENTENCES

    model = with_buckets(load_model(str(directory)), {"seq": (TOKENS,)})
    (bucket,), (graph,) = model.spec.buckets, model.spec.graphs
    tokenizer = read_tokenizer(directory)

    def inputs(text: str) -> Arrays:
        encoded = tokenizer.encode(text)
        named = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
        given = {tensor.name: np.array([named[tensor.name]], np.int64) for tensor in graph.inputs}
        return pad_inputs(bucket, graph, given)

    splits = [[text for text, _ in read_split(data, split)] for split in ("train", "dev")] if data else [SENTENCES] * 2
    calibration, evaluation = (
        [inputs(text) for text in texts[:limit]] for texts, limit in zip(splits, (CALIBRATION, EVALUATION), strict=True)
    )
    return Case(model, directory, calibration, evaluation)


def timed(sessions: Mapping[str, Session], sample: Arrays) -> dict[str, float]:
    """Median milliseconds of one call with the inputs of ``sample``, the sessions taking turns."""
    steps = {name: session.step() for name, session in sessions.items()}
    for step in steps.values():
        for name, buffer in step.inputs.items():
            np.copyto(buffer, sample[name])
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            times[name] += time_step(step, RUNS)[1]
    return {name: 1e3 * statistics.median(taken) for name, taken in times.items()}


def parity(case: Case, session: Session) -> Parity:
    """Calls of their own against the float32 source, next states included."""
    meter = ParityMeter()
    graph = case.model.spec.graphs[0].name
    for sample in case.evaluation:
        meter.add(case.model.run(sample, graph), session.run(sample, graph))
    return meter.result("float32 source in torch")


def census(session: Session) -> str:
    """How many executed ops there are of each dtype, most first."""
    counts: Counter[str] = Counter()
    for kinds in session.executed().values():
        counts.update(kinds)
    return ", ".join(f"{dtype} {count}" for dtype, count in counts.most_common())


def float_models(model: EdgeModel, room: Path) -> dict[str, Path]:
    """Engine -> the float32 file of our own converters."""
    from edgeattn.converters.litert import to_tflite
    from edgeattn.converters.onnx import export_onnx
    from edgeattn.converters.openvino import to_openvino

    rooms = {engine: room / f"float32-{engine}" for engine in ("onnxruntime", "openvino", "litert")}
    for path in rooms.values():
        path.mkdir(parents=True, exist_ok=True)
    onnx = export_onnx(model, rooms["onnxruntime"])
    made = {
        "onnxruntime": onnx,
        "openvino": to_openvino(onnx, rooms["openvino"], "fp32").models,
        "litert": to_tflite(model, rooms["litert"], "fp32").models,
    }
    return {engine: models[model.spec.graphs[0].name] for engine, models in made.items()}


def compare(case: Case, room: Path, peers: Collection[str]) -> None:
    """Print the table, then the releases and the peers without a model."""
    floats = float_models(case.model, room)
    results = run_peers(floats["onnxruntime"], floats["litert"], case.directory, case.calibration, room, peers)
    rows = {f"float32 {engine}": (engine, path) for engine, path in floats.items()}
    rows |= {result.peer: (result.engine, result.model) for result in results if result.model is not None}
    graph = case.model.spec.graphs[0].name
    print(f"{'':34} {'engine':12} {'MB':>6} {'ms':>8} {'dB':>6} {'worst':>6}  executed")
    with contextlib.ExitStack() as stack:
        sessions = {
            name: stack.enter_context(open_session(engine, {graph: path}, case.model.spec, threads=1))
            for name, (engine, path) in rows.items()
        }
        times = timed(sessions, case.evaluation[0])
        for name, (engine, path) in rows.items():
            size = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file()) / 1e6
            outputs = [figures.sqnr_db for figures in parity(case, sessions[name]).outputs.values()]
            print(
                f"{name:34} {engine:12} {size:6.2f} {times[name]:8.3f} {outputs[0]:6.1f} {min(outputs):6.1f}  "
                f"{census(sessions[name])}"
            )
    for result in results:
        print(f"{result.peer}: {result.reason or 'made'} ({result.versions or 'not run'})")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--setup", nargs="?", type=Path, const=ENVIRONMENTS, metavar="DIR", help="make environments")
    parser.add_argument("--model", default="streaming", help='"streaming" or a Hugging Face directory')
    parser.add_argument("--data", help="see above; built-in samples unless given")
    parser.add_argument("--peer", action="append", choices=ALL, default=[])
    parser.add_argument("--room", type=Path, help="keep the models there")
    chosen = parser.parse_args()
    if chosen.setup:
        set_up(chosen.setup)
        return
    if chosen.model == "streaming":
        case = streaming_case(chosen.data)
    else:
        case = text_case(Path(chosen.model), Path(chosen.data) if chosen.data else None)
    with contextlib.ExitStack() as stack:
        room = chosen.new_directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(one_thread())
        compare(case, room, chosen.peer or ALL)


if __name__ == "__main__":
    main()
