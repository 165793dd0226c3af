"""Tries every model class that the Auto classes of transformers know: built small, read, converted for every target.

    python -m benchmarks.sweep [--only CLASS ...] [--read] [--resume] [--minutes N]

Each class is built with random weights from a config that :mod:`benchmarks.shrink` made of its defaults, saved as a
directory, read by ``edgeattn.sources`` and converted in float32; the bundles run on inputs that they have not seen, and
the oracle is the module that was saved. Bundles for a Jetson are replayed with ONNX Runtime. Each class has a process
of its own, so that a crash costs one row. ``--read`` stops after reading.

Writes docs/sweep.jsonl, an object per class, and docs/sweep.md, the table made of it. ``--resume`` keeps the rows
that are there if the tools are the same; the most used architectures come first. Exit code 1 if a bundle was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cases import BOUND, REPLAY, TARGETS, share
from benchmarks.support import DOCS, versions
from benchmarks.sweep_page import render

ROWS = DOCS / "sweep.jsonl"
SECONDS, CPU_SECONDS = 900.0, 120  # a class may take, on the wall and of the processor
LARGEST = 30_000_000  # weights of what counts as small
NO_HEAD = ("BACKBONE", "PRETRAINING")
LAST = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")

USED = """
bert roberta distilbert gpt2 t5 vit swin whisper llama wav2vec2 clip bart convnext resnet detr segformer deberta-v2
gemma3_text mixtral patchtst time_series_transformer longformer xlnet funnel big_bird fnet canine tapas reformer
yolos dpt depth_anything mask2former rt_detr deformable_detr owlvit sam hiera swinv2 beit dinov2 efficientnet
mobilevit cvt levit videomae timesformer encodec speecht5 vits clap hubert wav2vec2-conformer
audio-spectrogram-transformer speech_to_text informer autoformer patchtsmixer timesfm modernbert albert electra
mpnet mobilebert squeezebert nystromformer convbert luke layoutlm layoutlmv3 led m2m_100 mamba mamba2 falcon bloom
opt phi mistral qwen2 qwen3 gemma gemma2 jamba rwkv qwen3_moe qwen3_next deepseek_v3 gpt_oss deit xlm-roberta
camembert siglip phi3 gpt_neox mbart pegasus marian blip mobilevitv2 wavlm data2vec-audio sew deberta xlm flaubert
bigbird_pegasus mt5 umt5 blenderbot gpt_neo gptj codegen stablelm starcoder2 olmo cohere smollm3 granite glm pvt
poolformer mobilenet_v2 regnet bit focalnet glpn maskformer conditional_detr table-transformer dab-detr vit_mae
vit_msn dinov2_with_registers dinov3_vit wav2vec2-bert unispeech-sat moonshine esm rembert roformer ernie
megatron-bert xmod ibert splinter data2vec-text data2vec-vision ijepa vitdet groupvit clipseg altclip chinese_clip
git blip-2 perceiver visual_bert vilt lxmert upernet superpoint trocr
""".split()  # noqa: SIM905 - 160 names, most used first and every kind early


@dataclass(frozen=True)
class Row:
    """One class.

    Attributes:
        name: of the class.
        model_type: of its config.
        heads: Auto classes that know it, as transformers calls their lists.
        modality: what it reads; "several" for more than one kind.
        apart: why it could not be built small; empty if it could.
        code: exit code of reading, 0 if it was read.
        reason: of the refusal to read.
        targets: target -> outcome ("right", "refused", "wrong", "failed"), share or code and reason.
        parameters: of the small model.
        seconds: wall-clock time of all.
    """

    name: str
    model_type: str
    heads: tuple[str, ...]
    modality: str = ""
    apart: str = ""
    code: int = 0
    reason: str = ""
    targets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    parameters: int = 0
    seconds: float = 0.0

    @property
    def built(self) -> bool:
        """Whether it could be built small."""
        return not self.apart

    @property
    def converted(self) -> bool:
        """Whether targets were tried."""
        return bool(self.targets)

    @property
    def right(self) -> bool:
        """On every target."""
        return all(self.targets.get(target, {}).get("outcome") == "right" for target in TARGETS)

    @property
    def wrong(self) -> bool:
        """On some target: worse than any refusal."""
        return any(outcome["outcome"] == "wrong" for outcome in self.targets.values())


# --- which classes ----------------------------------------------------------------------------------------------------


def classes() -> list[tuple[str, str, tuple[str, ...]]]:
    """Every class of the Auto lists, once: name, model type, lists; in the order of :func:`_rank`."""
    import transformers.models.auto.modeling_auto as auto

    heads: dict[tuple[str, str], list[str]] = {}
    for listed in sorted(dir(auto)):
        found = re.fullmatch(r"MODEL_(?:FOR_)?(?:(\w+)_)?MAPPING_NAMES", listed)
        if found is None or found[1] in NO_HEAD:
            continue
        for model_type, names in getattr(auto, listed).items():
            for name in names if isinstance(names, (tuple, list)) else (names,):
                heads.setdefault((name, model_type), []).append(found[1] or "BASE")
    owners: dict[str, tuple[str, list[str]]] = {}
    for (name, model_type), lists in heads.items():  # classes that several model types share are tried once
        owners.setdefault(name, (model_type, lists))
    return [(name, *owners[name][:1], tuple(owners[name][1])) for name in sorted(owners, key=_rank(owners))]


def _rank(owners: Mapping[str, tuple[str, list[str]]]) -> Any:
    """The order of classes: one of every model type that is much used, their others, then the other model types."""
    several = {model_type for model_type, lists in owners.values() if set(lists) & set(LAST)}
    seen: dict[str, int] = {}
    order: dict[str, tuple[int, int, str]] = {}
    for name in sorted(owners, key=lambda name: ("BASE" in owners[name][1], name)):  # a head says more than its base
        model_type = owners[name][0]
        seen[model_type] = seen.get(model_type, -1) + 1
        used = USED.index(model_type) if model_type in USED else len(USED)
        order[name] = (
            seen[model_type] + (2 if model_type not in USED else 0) + 100 * (model_type in several),
            used,
            name,
        )
    return order.__getitem__


def modality_of(kind: Any) -> str:
    """What a class reads, by what transformers says of it."""
    given = getattr(kind, "input_modalities", ())
    given = {given} if isinstance(given, str) else set(given)
    main = getattr(kind, "main_input_name", "")
    if main in ("input_features", "input_values") and given <= {"audio", "text"}:
        return "audio"
    names = {"text": "text", "image": "vision", "video": "vision", "audio": "audio", "time": "time series"}
    found = {names.get(one, "several") for one in given}
    if main in ("states", "past_values"):
        return "time series"
    return found.pop() if len(found) == 1 else "several"


# --- one class, in a process of its own -------------------------------------------------------------------------------


def measure(name: str, model_type: str, heads: tuple[str, ...], targets: Sequence[str]) -> Row:
    """Build, read, convert and compare one class."""
    import transformers

    row = Row(name, model_type, heads)
    try:
        config, kind = transformers.CONFIG_MAPPING[model_type], getattr(transformers, name)
    except Exception as error:  # noqa: BLE001 - what a class needs is not there
        return _with(row, apart=_told(error))
    row = _with(row, modality=modality_of(kind))
    with tempfile.TemporaryDirectory() as directory:
        made = _readable(kind, config, Path(directory))
        if isinstance(made, str):
            return _with(row, apart=made)
        network, _, model, refusal = made
        row = _with(row, parameters=sum(one.numel() for one in network.parameters()))
        if model is None:
            return _with(row, code=_code(refusal), reason=_told(refusal, directory))
        return _with(row, targets=dict(_converted(network, model, Path(directory), targets)))


def _with(row: Row, **changes: Any) -> Row:
    from dataclasses import replace

    return replace(row, **changes)


def _told(error: BaseException, directory: str = "/tmp") -> str:
    from edgeattn.errors import EdgeattnError

    said = " ".join(str(error).split())
    said = re.sub(rf"{re.escape(directory)}/?[\w/]*", "", said).lstrip(": ")
    return (said if isinstance(error, EdgeattnError) else f"{type(error).__name__}: {said}")[:400]


def _code(error: BaseException) -> int:
    from edgeattn.errors import EdgeattnError

    return error.exit_code if isinstance(error, EdgeattnError) else 70


def _readable(kind: Any, config: Any, directory: Path) -> Any:
    """The first small model that edgeattn reads: the module, its directory, the EdgeModel, None.

    Where none is read, the first that was built and the reason; where none can be built, that reason as a string.
    """
    from benchmarks.shrink import shrunk
    from edgeattn.sources import read_model

    first: Any = None
    apart = ""
    try:
        for index, small in enumerate(shrunk(config)):
            reference = directory / f"model{index}"
            try:
                network = _built(kind, small.config, reference)
            except Exception as error:  # noqa: BLE001 - each class fails in its own way on sizes that do not fit
                apart = apart or _told(error, str(directory))
                continue
            try:
                return network, reference, read_model(str(reference)), None
            except Exception as error:  # noqa: BLE001 - what the command line would tell
                first = first or (network, reference, None, error)
    except Exception as error:  # noqa: BLE001 - the class of the config refuses its own defaults
        apart = apart or _told(error)
    return first or apart or "no small config"


def _built(kind: Any, config: Any, reference: Path) -> Any:
    """A model with random weights that tell right from wrong, saved."""
    import torch

    from_config = getattr(kind, "_from_config")  # noqa: B009  # what AutoModel.from_config calls
    with torch.device("meta"):
        size = sum(one.numel() for one in from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} M weights when small; at most {LARGEST / 1e6:.0f} M are tried")
    torch.manual_seed(0)
    network = from_config(config).eval().requires_grad_(False).float()
    for name, weight in network.named_parameters():
        if weight.ndim >= 2 and name.endswith("weight"):
            weight.normal_(std=min(1.0, (weight.numel() / weight.shape[0]) ** -0.5))
        else:
            weight.add_(0.02 * torch.randn_like(weight))
    network.save_pretrained(reference)
    return network


def _converted(
    network: Any, model: Any, directory: Path, targets: Sequence[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What became of each target, in one conversion; one by one where that ends in an error of another kind."""
    from edgeattn.errors import EdgeattnError, exit_code_of

    if not targets:
        return
    try:
        results = _convert(model, directory / "all", targets)
    except Exception as error:  # noqa: BLE001 - what the command line would tell as exit code 70
        if len(targets) > 1 and not (isinstance(error, EdgeattnError) and _code(error) == 2):
            for target in targets:
                yield from _converted(network, model, directory / target, [target])
            return
        outcome = "refused" if _code(error) == 4 else "failed"
        for target in targets:
            yield target, {"outcome": outcome, "code": _code(error), "reason": _told(error, str(directory))}
        return
    for result in results:
        if result.error is not None:
            code = exit_code_of(result.error)
            outcome = "refused" if code == 4 else "failed"
            reason = " ".join(result.error["message"].split())[:400]
            yield result.target, {"outcome": outcome, "code": code, "reason": reason}
        elif result.bundle is None:
            failed = "; ".join(str(gate) for gate in result.gates if gate.verdict == "failed")
            yield result.target, {"outcome": "failed", "code": 1, "reason": f"nothing was published: {failed}"[:400]}
        else:
            worst = max(_compared(network, model, result))
            outcome = "right" if worst <= BOUND else "wrong"
            yield result.target, {"outcome": outcome, "share": float(f"{worst:.1e}")}


def _convert(model: Any, out: Path, targets: Sequence[str]) -> Any:
    from edgeattn.pipeline import convert
    from edgeattn.pipeline.steps.options import ConvertOptions
    from edgeattn.profiling.contract import MeasureOptions
    from edgeattn.progress import Quiet
    from edgeattn.targets import get_target

    measure = MeasureOptions(runs=3, paced_seconds=0, spread_seconds=0)
    known = tuple(get_target(target) for target in targets)
    options = ConvertOptions(targets=known, precision="fp32", out=out, measure=measure)
    return convert.convert(model, None, options, Quiet()).results


def _compared(network: Any, model: Any, result: Any) -> Iterator[float]:
    """How far each output of each call is from the saved module's; from the graphs' in torch where there are two."""
    import torch

    from edgeattn.runtimes import load
    from edgeattn.sources.outputs import name_outputs
    from tests.acceptance.cells import like

    whole = len(model.spec.graphs) == 1
    with load(result.bundle, backend=REPLAY.get(result.target)) as session:
        for graph, example in model.example.items():
            for inputs in (example, *like(dict(example), 2, seed=1)):
                if whole:
                    with torch.inference_mode():
                        outputs = network(**{name: torch.from_numpy(array.copy()) for name, array in inputs.items()})
                    expected = {name: tensor.numpy() for name, tensor in name_outputs(outputs).items()}
                else:
                    expected = model.run(inputs, graph)
                got = session.run(inputs, graph)
                for name, value in got.items():
                    yield share(expected[name.removeprefix("output_") if name not in expected else name], value)


# --- all of them ------------------------------------------------------------------------------------------------------


def apart(one: tuple[str, str, tuple[str, ...]], targets: Sequence[str]) -> Row:
    """:func:`measure` in a process forked from this one, which a class may crash or fill."""
    begin = time.monotonic()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(there, one, targets))
    child.start()
    there.close()
    row = Row(*one, code=124, reason=f"not done within {SECONDS:.0f} s")
    if here.poll(SECONDS):
        try:
            row = here.recv()
        except EOFError:
            child.join()
            late = child.exitcode == -signal.SIGXCPU
            reason = f"not done within {CPU_SECONDS} s of processor time" if late else f"ended with {child.exitcode}"
            row = Row(*one, code=124 if late else 70, reason=reason)
    if child.is_alive():
        child.join(2)
        child.kill()
    child.join()
    return _with(row, seconds=round(time.monotonic() - begin, 1))


def _child(there: Any, one: tuple[str, str, tuple[str, ...]], targets: Sequence[str]) -> None:
    from edgeattn.guards.silence import silenced

    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 10))
    with silenced():
        row = measure(*one, targets)
    there.send(row)


def warm(converting: bool) -> None:
    """Import what every class needs, once."""
    import importlib

    for module in (
        *("torch", "transformers", "transformers.models.auto.modeling_auto", "transformers.generation.utils"),
        *("onnxscript", "onnxruntime", "openvino", "litert_torch", "edgeattn.pipeline.convert", "edgeattn.sources"),
    ):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    import torch

    torch.set_num_threads(1)
    if converting:
        _rehearse()


def _rehearse() -> None:
    """Export once, for the tables that torch's exporter makes at first; nothing runs, since forking ends threads."""
    import torch

    from edgeattn.guards.silence import silenced

    layer = torch.nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval()
    with silenced(), torch.no_grad():
        torch.onnx.export(layer, (torch.zeros(1, 4, 8),), dynamo=True, verbose=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", default=[], help="a class or a model type; the others stay")
    parser.add_argument("--read", action="store_true", help="stop after reading")
    parser.add_argument("--resume", action="store_true", help="leave out what is there")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no class after that")
    parser.add_argument("--out", type=Path, default=ROWS, help="the rows; the page stands beside it")
    chosen = parser.parse_args()
    began = time.monotonic()
    tools = versions()
    before, kept = read(chosen.out) if chosen.out.exists() and (chosen.resume or chosen.only) else (tools, {})
    kept = kept if before == tools else {}
    warm(not chosen.read)
    for one in classes():
        if (chosen.only and not set(chosen.only) & set(one[:2])) or (
            chosen.resume and _done(kept.get(one[0]), chosen.read)
        ):
            continue
        if time.monotonic() - began > 60 * chosen.minutes:
            break
        row = apart(one, () if chosen.read else TARGETS)
        kept[row.name] = row
        print(f"{row.seconds:5.1f}  {row.name:48} {_cell(row)}", flush=True)
        write(chosen.out, tools, list(kept.values()))
    return int(any(row.wrong for row in kept.values()))


def _done(row: Row | None, read_alone: bool) -> bool:
    return row is not None and (read_alone or not row.built or row.code != 0 or row.converted)


def _cell(row: Row) -> str:
    if row.apart:
        return f"apart: {row.apart[:150]}"
    if row.code:
        return f"unread {row.code}: {row.reason[:300]}"
    return "  ".join(
        f"{t}: {o['outcome']} {o.get('share', o.get('reason', ''))!s:.150}" for t, o in row.targets.items()
    )


def read(path: Path) -> tuple[dict[str, str], dict[str, Row]]:
    """The tools' versions, and the rows by class."""
    first, *rest = path.read_text().splitlines()
    rows = [json.loads(line) for line in rest]
    return json.loads(first)["versions"], {row["name"]: Row(**row | {"heads": tuple(row["heads"])}) for row in rows}


def write(path: Path, tools: Mapping[str, str], rows: Sequence[Row]) -> None:
    """The rows, versions on the first line, then a class a line; and the page."""
    known = len(classes())
    path.with_suffix(".md").write_text(render(rows, tools, known, LARGEST))
    head = {"versions": dict(tools), "known": known}
    path.write_text("".join(json.dumps(one) + "\n" for one in (head, *map(asdict, rows))))


if __name__ == "__main__":
    sys.exit(main())
