"""Pruned models on disk: smaller weights, and the cuts that say what their shapes are.

A directory holds ``pruning.json`` and safetensors. Of a Hugging Face source it is a Hugging Face directory again: where
config.json can say all sizes, ``cuts`` is empty and transformers alone loads it; else config.json is the original's and
``cuts`` lead from it to the weights. Of an ONNX file it holds an ONNX file again, for inputs of one size. Of any other
source it is the weights, to be put into what the source makes: a directory is data and never decides which code runs.

    {"format": 1, "source": MODEL as given, "source_sha256": ..., "weights_sha256": ..., "cuts": [...], "facts": {...}}
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from edgeattn.bundle import sha256_of, write_atomically, writing
from edgeattn.errors import EdgeattnError, InputError, ModelError, OutputError, UnsupportedError, load_extra
from edgeattn.guards.confined import confined_file
from edgeattn.guards.scratch import Room, put_in_place
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Prunable
from edgeattn.pruning.apply import shape
from edgeattn.pruning.configs import plain_config
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.families import find_anatomy
from edgeattn.pruning.forms import cut_from_json, cut_to_json
from edgeattn.pruning.surgery import copied
from edgeattn.pruning.trials import prunable
from edgeattn.spec import from_json, to_json

FORMAT = 1
PRUNING = "pruning.json"
WEIGHTS = "weights.safetensors"
PROGRAM = "model.pt2"
GRAPH = "model.onnx"
EXAMPLE = "model.npz"  # inputs for it
CONFIG = "config.json"  # that of transformers, and its weights
HF_WEIGHTS = "model.safetensors"

MAX_JSON_BYTES = 64 * 2**20
MAX_CUTS = 100
BLOCK = 2**20  # bytes hashed at a time
SAME = 1e-6  # largest difference of an output of the model that was written and the one that was read back

# How configs of transformers call what pruning changes; a field counts only if the shapes that follow are those cut.
SIZE = re.compile(r"(^|_)(layers?|depth|heads?|ffn_dim|d_ff|intermediate_size|hidden_dim|n_inner|ffn_hidden_size)$")


SOURCE_KEYS = ("stack_trace", "source_fn_stack", "torch_fn", "from_node", "custom")  # of a node's metadata
MODULE = "torch.nn.modules.module.Module"  # what every class is called in a program that is written
FOLDERS = re.compile(r"(?<![\w.:/])(?:~|\.{1,2})?/(?:[^/\s'\",;:()<>]+/)+(?=[^/\s])|(?<![\w.:/])~/(?=[^/\s])")

Export = Callable[[EdgeModel, Path], Mapping[str, Path]]


@dataclass(frozen=True)
class Saved:
    """pruning.json.

    Attributes:
        source: MODEL that was pruned, as it was given.
        source_sha256: of that model.
        weights_sha256: of the weights file.
        cuts: applied to the source one after the other; each names what the one before left.
        facts: what was measured, for people.
    """

    source: str
    source_sha256: str
    weights_sha256: str
    cuts: tuple[Cut, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, ``format`` included."""
        return {
            "format": FORMAT,
            "source": self.source,
            "source_sha256": self.source_sha256,
            "weights_sha256": self.weights_sha256,
            "cuts": [cut_to_json(cut) for cut in self.cuts],
            "facts": to_json(self.facts),
        }


def read_saved(directory: Path) -> Saved:
    """pruning.json of a directory.

    Raises:
        ModelError: if it is missing, too large, damaged, or from a newer edgeattn.
    """
    path = directory / PRUNING
    confined_file(path, directory, ModelError)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelError(f"{path}: {path.stat().st_size} bytes; it has at most {MAX_JSON_BYTES}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise ModelError(f"{path}: expected a pruned model of format {FORMAT}, got {found!r:.40}")
    cuts = data.get("cuts")
    if not isinstance(cuts, list) or len(cuts) > MAX_CUTS:
        raise ModelError(f"{path}: cuts must be a list of at most {MAX_CUTS}")
    try:
        read = tuple(cut_from_json(cut, f"{path}: cuts[{number}]") for number, cut in enumerate(cuts))
        plain = {key: value for key, value in data.items() if key not in ("format", "cuts")}
        head = from_json(_Head, plain, str(path))
    except InputError as error:
        raise ModelError(str(error)) from error
    return Saved(head.source, head.source_sha256, head.weights_sha256, read, head.facts)


@dataclass(frozen=True)
class _Head:
    source: str
    source_sha256: str
    weights_sha256: str
    facts: Mapping[str, Any]


def is_saved(directory: Path) -> bool:
    """Whether a directory holds a pruned model."""
    return (directory / PRUNING).is_file()


# --- writing ----------------------------------------------------------------------------------------------------------


def write_pruned(
    directory: Path,
    pruned: EdgeModel,
    source: EdgeModel,
    cut: Cut,
    reference: str,
    facts: Mapping[str, Any],
    force: bool = False,
    export: Export | None = None,
) -> Path:
    """Write a pruned model; the directory appears whole or not at all.

    Args:
        pruned: what :func:`edgeattn.pruning.apply.prune` made, recovered or not.
        source: what ``cut`` was applied to, as it was loaded.
        reference: MODEL that ``source`` was loaded from. Of a pruned directory its cuts come first.
        facts: what was measured, JSON; what the written form is able to do is added: "loads", and "program".
        force: replace a directory that holds a pruned model.
        export: writes ONNX into a directory and tells the file of each graph; used for an ONNX source.

    Raises:
        OutputError: if the directory exists, or cannot be written.
        UnsupportedError: if the pruned model has no network of its own.
    """
    if pruned.network is None or pruned.rebuild is None:
        raise UnsupportedError(f"{pruned.spec.name}: a graph has no weights by name to write; convert it instead")
    # A directory with an ONNX file is read from that file: its layers have the names that the file gives them.
    again = is_saved(Path(reference)) and not (Path(reference) / GRAPH).is_file()
    before = read_saved(Path(reference)) if again else None
    given = (shown_reference(reference), source.source_sha256, ())
    first = (before.source, before.source_sha256, before.cuts) if before else given
    with _draft(directory, force) as draft, writing(directory):
        if (Path(reference) / CONFIG).is_file():
            said = _write_hugging_face(draft, pruned, Path(reference), (*first[2], cut))
            weights, cuts, more = HF_WEIGHTS, *said
        else:
            weights, cuts = WEIGHTS, (*first[2], cut)
            _write_weights(draft / WEIGHTS, pruned.network)
            if source.onnx and export is not None:
                more = _write_graph(draft, pruned, first[0], export)
            else:
                more = {"loads": f"into {first[0]}", **_write_program(draft, pruned)}
        sha256 = file_sha256(draft / weights)
        saved = Saved(first[0], first[1], sha256, cuts, without_folders({**facts, **more}))
        text = json.dumps(saved.to_json(), indent=1, allow_nan=False)
        write_atomically(draft / PRUNING, text.encode() + b"\n")
    return directory


def shown_reference(reference: str) -> str:
    """A MODEL reference without the folders that it lies in: they are the user's own business."""
    return Path(reference).name or reference


def without_folders(value: Any) -> Any:
    """JSON whose texts name files without the folders that they lie in; what tools say is full of those."""
    if isinstance(value, str):
        return FOLDERS.sub("", value)
    if isinstance(value, Mapping):
        return {key: without_folders(item) for key, item in value.items()}
    return [without_folders(item) for item in value] if isinstance(value, (list, tuple)) else value


@contextlib.contextmanager
def _draft(directory: Path, force: bool) -> Iterator[Path]:
    """A sibling to write into, renamed to the directory at the end, or removed if there is an error."""
    if directory.exists() and not force:
        raise OutputError(f"{directory} exists; remove it, choose another name, or pass --force")
    if directory.exists() and not is_saved(directory):
        raise OutputError(f"{directory} exists and holds no pruned model; it is left alone, choose another name")
    with writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        room = Room(directory.parent, f".{directory.name}.")
    with room:
        yield room.files
        with writing(directory):
            put_in_place(room.files, directory)


def _write_weights(path: Path, network: nn.Module) -> None:
    """The state of a network, float32, tensors that several names share once."""
    safetensors: Any = load_extra("safetensors.torch", "convert")
    written: dict[str, Tensor] = {}
    seen: set[tuple[Any, ...]] = set()
    for name, tensor in network.state_dict().items():
        if _place(tensor) not in seen:
            seen.add(_place(tensor))
            kept = tensor.detach().cpu()
            written[name] = kept.to(torch.float32 if kept.is_floating_point() else kept.dtype).contiguous().clone()
    safetensors.save_file(written, path, metadata={"format": "pt"})
    path.chmod(0o644)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """What tells whether two tensors are the same memory; each empty one is its own."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype


def _write_program(draft: Path, pruned: EdgeModel) -> dict[str, str]:
    """The model as a program of torch.export, which loads without the code that made it, where it is one graph."""
    graphs = pruned.spec.graphs
    if len(graphs) != 1 or graphs[0].states:
        return {"program": f"no {PROGRAM}: a program is one graph without states"}
    name = graphs[0].name
    example = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in pruned.example[name].items()}
    path = draft / PROGRAM
    try:
        with silenced(), torch.inference_mode(False), torch.no_grad():
            program = torch.export.export(pruned.modules[name], (), example)
            _forget_source(program)
            torch.export.save(program, path)
    except Exception as error:  # noqa: BLE001 - torch.export raises whatever a forward does that it cannot trace
        path.unlink(missing_ok=True)
        # Not its words: torch quotes lines of the user's source.
        return {"program": f"no {PROGRAM}: torch.export: {type(error).__name__}"}
    return {"program": PROGRAM}


def _forget_source(program: torch.export.ExportedProgram) -> None:
    """Take out of a program what it says of the code that made it: traces with paths and lines, names of classes.

    Where a module stands stays: readers come apart by it, and messages name it.
    """
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in SOURCE_KEYS:
                node.meta.pop(key, None)
            if "nn_module_stack" in node.meta:
                node.meta["nn_module_stack"] = {
                    key: (path, MODULE) for key, (path, _) in node.meta["nn_module_stack"].items()
                }


def _write_graph(draft: Path, pruned: EdgeModel, source: str, export: Export) -> dict[str, str]:
    """The model as an ONNX file and inputs for it, where it is one graph."""
    graphs = pruned.spec.graphs
    if len(graphs) != 1:
        return {"loads": f"into {source}", "program": f"no {GRAPH}: it would be one graph, and these are {len(graphs)}"}
    try:
        made = export(pruned, draft)[graphs[0].name]
    except EdgeattnError as error:
        return {"loads": f"into {source}", "program": f"no {GRAPH}: {' '.join(str(error).split())[:200]}"}
    made.rename(draft / GRAPH)
    with (draft / EXAMPLE).open("wb") as file:
        np.savez(file, **cast(Any, pruned.example[graphs[0].name]))
    return {"loads": "alone", "program": GRAPH}


def file_sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return sha256_of(file)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


def _write_hugging_face(
    draft: Path, pruned: EdgeModel, source: Path, cuts: tuple[Cut, ...]
) -> tuple[tuple[Cut, ...], dict[str, str]]:
    """A Hugging Face directory; the cuts that config.json does not say, and who can load it."""
    network = cast(nn.Module, pruned.network)
    for name, path in pruned.assets.items():
        if Path(name).name == name and path.is_file():
            shutil.copyfile(path, draft / name)
    original = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    said = config_of(network, original)
    if said is not None:
        _write_json(draft / CONFIG, said)
        with silenced():
            cast(Any, network).save_pretrained(draft / "saved", max_shard_size="1TB")
        (draft / "saved" / HF_WEIGHTS).rename(draft / HF_WEIGHTS)
        shutil.rmtree(draft / "saved")
        (draft / HF_WEIGHTS).chmod(0o644)
        if _reads_back(draft, pruned):
            return (), {"loads": "with transformers alone"}
    shutil.copyfile(source / CONFIG, draft / CONFIG)
    _write_weights(draft / HF_WEIGHTS, network)
    return cuts, {"loads": "with edgeattn: config.json cannot say these sizes"}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def config_of(network: nn.Module, original: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json of a pruned network, if its fields can say all sizes; None if they cannot.

    Fields that hold numbers of layers, heads or neurons are set, one at a time, to the number in the network that
    leaves the fewest tensors of another shape, until none is left. Whether a network of the same shapes computes the
    same is seen by loading it.
    """
    config = cast(Any, network).config
    if original.get("model_type") != config.model_type:
        return None
    anatomy = find_anatomy(network)
    sizes = {1, *(stack.layers for stack in anatomy.stacks)}
    sizes |= {size for unit in anatomy.units for size in (unit.groups, unit.heads) if size}
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    best: dict[str, Any] = plain_config(original)  # it is loaded below, and must not name other code or weights
    least = _differing(network, best, wanted)
    while least:
        tried = [
            (_differing(network, changed, wanted), changed)
            for place in _size_fields(config.to_dict())
            for size in sorted(sizes)
            for changed in [_with_field(best, place, size)]
        ]
        wrong, closest = min(tried, key=lambda pair: pair[0], default=(least, best))
        if wrong >= least:
            return None
        least, best = wrong, closest
    return best


def _size_fields(config: Mapping[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The place of every field that is called like a size."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            if "model_type" in value:  # the config of a part
                yield from _size_fields(value, (*place, key))
        elif SIZE.search(key) and (value is None or (isinstance(value, int) and not isinstance(value, bool))):
            yield (*place, key)


def _with_field(config: Mapping[str, Any], place: tuple[str, ...], value: int) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    inner = changed
    for key in place[:-1]:
        inner = inner.setdefault(key, {})
    inner[place[-1]] = value
    return changed


def _differing(network: nn.Module, config: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]) -> float:
    """Tensors whose name or shape is another in a network of this config; infinite if there is none of it."""
    kind: Any = type(network)
    try:
        with silenced(), torch.device("meta"):
            made = kind(type(cast(Any, network).config).from_dict(dict(config)))
    except Exception:  # noqa: BLE001 - each class refuses sizes that do not fit in its own way
        return math.inf
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    return sum(shapes.get(name) != wanted.get(name) for name in {*shapes, *wanted})


def _reads_back(directory: Path, pruned: EdgeModel) -> bool:
    """Whether transformers alone loads a directory, and what it loads computes the same."""
    assert pruned.rebuild is not None, "checked by write_pruned()"
    try:
        with silenced():
            network = cast(Any, type(pruned.network)).from_pretrained(
                str(directory), dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
        network = network.eval().requires_grad_(False)
        # Each its own copy, and as transformers leaves it: a wrong count that no shape shows is in the outputs.
        read = pruned.rebuild(network)
        return read.spec.graphs == pruned.spec.graphs and largest_difference(pruned, read) <= SAME
    except Exception:  # noqa: BLE001 - what does not load is written in the other way
        return False


def largest_difference(one: EdgeModel, other: EdgeModel) -> float:
    """Of all outputs on the first one's example, relative to the largest of each beyond 1."""
    worst = 0.0
    for graph in one.spec.graphs:
        wanted, got = (model.run(one.example[graph.name], graph.name) for model in (one, other))
        for name, value in wanted.items():
            scale = max(1.0, float(np.abs(value).max(initial=0.0)))
            worst = max(worst, float(np.abs(value - got[name]).max(initial=0.0)) / scale)
    return worst


# --- reading ----------------------------------------------------------------------------------------------------------


def apply_saved(model: EdgeModel, directory: Path) -> EdgeModel:
    """The model that was written, from the source that it was pruned from.

    Args:
        model: as its MODEL reference was loaded.

    Raises:
        ModelError: if the directory is damaged, or belongs to another model.
    """
    saved = read_saved(directory)
    if model.source_sha256 != saved.source_sha256:
        raise ModelError(
            f"{directory}: it was pruned from {saved.source} of sha256 {saved.source_sha256[:16]}..., and this model "
            f"is {model.source_sha256[:16]}...: its weights or code have changed since; prune it again"
        )
    path = directory / WEIGHTS
    check_weights(path, saved)
    return with_cuts(model, saved.cuts, read_tensors(path), directory)


def check_weights(path: Path, saved: Saved) -> None:
    """Refuse weights other than those that were written.

    Raises:
        ModelError: if the file is missing or was changed.
    """
    if not path.is_file():
        raise ModelError(f"{path}: the weights are missing; copy the directory again")
    confined_file(path, path.parent, ModelError)
    if file_sha256(path) != saved.weights_sha256:
        raise ModelError(f"{path}: was changed: its sha256 is not the one in {PRUNING}; copy the directory again")


def with_cuts(model: EdgeModel, cuts: tuple[Cut, ...], tensors: Mapping[str, Tensor], where: Path) -> EdgeModel:
    """A model given the shapes that cuts leave, and then the weights.

    Raises:
        ModelError: if a cut or a tensor does not fit.
    """
    if not cuts:
        raise ModelError(f"{where}: {PRUNING} names no cut")
    try:
        for number, cut in enumerate(cuts):
            given = prunable(model)
            network = shaped(given, cut)
            if number + 1 == len(cuts):
                load_tensors(network, tensors)
            assert given.model.rebuild is not None, "checked by prunable()"
            model = given.model.rebuild(network)
    except EdgeattnError as error:
        raise ModelError(f"{where}: {error}") from error
    except Exception as error:  # a forward of sizes that do not fit each other raises what it likes
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{where}: the cuts do not fit this model: {type(error).__name__}: {said}") from error
    return model


def shaped(given: Prunable, cut: Cut) -> nn.Module:
    """A copy of a network with the shapes that a cut leaves, its weights still to be loaded."""
    network = copied(given.network)
    shape(network, given.anatomy, cut)
    return network


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a network, in place; of names that share one tensor, one is enough.

    Raises:
        ModelError: naming the tensor that is missing, unknown, of another shape, or holds NaN or infinity.
    """
    state = network.state_dict(keep_vars=True)
    unknown = sorted(set(tensors) - set(state))
    if unknown:
        raise ModelError(f"the pruned network has no tensor {unknown[0]!r:.100}; these are weights of another one")
    shared: dict[tuple[Any, ...], list[str]] = {}
    for name, tensor in state.items():
        shared.setdefault(_place(tensor), []).append(name)
    with torch.no_grad():
        for names in shared.values():
            there = [name for name in names if name in tensors]
            if not there:
                raise ModelError(f"the weights hold no {names[0]!r}")
            for name in there:
                if tensors[name].shape != state[name].shape:
                    shapes = f"{tuple(state[name].shape)} is wanted, {tuple(tensors[name].shape)} is stored"
                    raise ModelError(f"{name}: {shapes}; cuts and weights do not belong together")
                if tensors[name].is_floating_point() and not torch.isfinite(tensors[name]).all():
                    raise ModelError(f"{name} holds NaN or infinity")
                state[name].copy_(tensors[name])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, copied into memory, float ones as float32.

    The format bounds what is read: a header's offsets must lie in the file and fit the shapes, so no header allocates
    more than four times the file.

    Raises:
        ModelError: if it is truncated or damaged.
    """
    safetensors: Any = load_extra("safetensors", "convert")
    tensors: dict[str, Tensor] = {}
    try:
        with safetensors.safe_open(str(path), "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                tensor = opened.get_tensor(name)
                # A copy: a mapped file that is written again later would take the process down.
                kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
                tensors[name] = tensor.to(kind, copy=True)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: truncated or no safetensors file: {said}; copy it again") from error
    return tensors
