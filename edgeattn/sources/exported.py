"""MODEL as a torch.export program (``.pt2``); a pickle (``.pt``, ``.pth``) is told what it is, and refused.

A .pt2 looks like data and is not; torch gets what :mod:`edgeattn.sources.program` lets through.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import EdgeattnError, ModelError, load_extra
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel, Graph
from edgeattn.sources.code import FORM
from edgeattn.sources.modules import GRAPH, from_graphs
from edgeattn.sources.outputs import name_outputs
from edgeattn.sources.program import EXPORT, GRAPH_FILE, Archive, clean_archive

if TYPE_CHECKING:
    import torch

PROGRAM = ".pt2"
PICKLES = (".pt", ".pth")


def owns(reference: str) -> bool:
    """Whether a reference is a .pt2, .pt or .pth file."""
    return Path(reference).suffix in (PROGRAM, *PICKLES)


def load(reference: str) -> EdgeModel:
    """Read a program that ``torch.export.save`` wrote.

    Inputs are named after forward's parameters, also those that were given by position; parts of a tuple or dict are
    dotted (``cache.0``, ``batch.tokens``). Outputs are named as those of a module. An axis whose size is a symbol of
    the program may vary; its dimension is called ``seq`` if it is the only one (axis 0, the batch, apart), else
    ``INPUT_AXIS`` after the first input that has it, for the file keeps no names of dimensions.

    Raises:
        ModelError: if the file is truncated, hostile, of another version, or holds what only running it would tell; if
            it is a pickle, saying what it holds and what to write.
    """
    path = Path(reference)
    if not path.is_file():
        raise ModelError(f"{path}: no such file. {FORM}")
    load_extra("torch", "convert")
    if path.suffix in PICKLES:
        raise ModelError(f"{path}: {_pickle(path)}")
    archive = clean_archive(path)
    graph = archive.graph
    module, inputs, dims, notes = _program(path, archive)
    del archive
    try:
        with silenced():
            made = from_graphs({GRAPH: Graph(module, inputs, dims=dims)}, path.stem, graph)
    except EdgeattnError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # whatever running a damaged graph raises
        raise ModelError(f"{path}: cannot be run: {_said(error)}") from error
    return EdgeModel(
        made.spec,
        made.modules,
        made.example,
        made.source_sha256,
        made.source_size_bytes,
        made.dims,
        notes=(*made.notes, *notes),
    )


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# --- the program ----------------------------------------------------------------------------------------------------


def _program(
    path: Path, archive: Archive
) -> tuple[torch.nn.Module, dict[str, np.ndarray], dict[str, dict[int, str]], tuple[str, ...]]:
    """As :func:`_module`, of a file."""
    import torch

    try:
        with silenced():
            program = torch.export.load(archive.data)
            program._guards_code = []  # noqa: SLF001 - .module() would run them as Python
            return _module(program)
    except EdgeattnError as error:
        raise ModelError(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged graph makes of the reader
        raise ModelError(f"{path}: torch {torch.__version__} cannot read it: {_said(error)}") from error


def _module(
    program: torch.export.ExportedProgram,
) -> tuple[torch.nn.Module, dict[str, np.ndarray], dict[str, dict[int, str]], tuple[str, ...]]:
    """The program as a module of named tensors, its example inputs, its dimensions, and what to know of them."""
    import torch
    from torch.utils import _pytree as pytree

    if program.example_inputs is None:
        raise ModelError(f"holds no example inputs; write it again: {EXPORT}")
    leaves, spec = pytree.tree_flatten_with_path(program.example_inputs)
    parameters = _parameters(program)
    names = [_leaf_name(path, parameters) for path, _ in leaves]
    values = [value for _, value in leaves]
    tensors = {n: v.detach().cpu().numpy() for n, v in zip(names, values, strict=True) if isinstance(v, torch.Tensor)}
    if len(tensors) != sum(isinstance(value, torch.Tensor) for value in values):
        raise ModelError(f"two inputs have one name: {', '.join(names)}")
    called = _callable(program)

    class Program(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program = called

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            given = [inputs.get(name, value) for name, value in zip(names, values, strict=True)]
            args, named = pytree.tree_unflatten(given, spec)
            outputs = name_outputs(self.program(*args, **named))
            return {f"output_{name}" if name in tensors else name: value for name, value in outputs.items()}

    dims, notes = _dims(program, names, values)
    return Program().eval().requires_grad_(False), tensors, dims, notes


def _parameters(program: torch.export.ExportedProgram) -> list[str]:
    """Names of forward's parameters, in its order."""
    signature = program.module_call_graph[0].signature
    named = list(getattr(signature, "forward_arg_names", None) or [])
    args = len(program.example_inputs[0]) if program.example_inputs else 0
    return named if len(named) >= args else [f"input_{index}" for index in range(args)]


def _leaf_name(path: tuple[Any, ...], parameters: list[str]) -> str:
    """(args | kwargs, parameter, parts...) as ``parameter.part``."""
    keys: list[Any] = [getattr(key, "idx", getattr(key, "key", getattr(key, "name", None))) for key in path]
    where, head, *parts = keys
    first = parameters[head] if where == 0 else head
    return ".".join(str(part) for part in (first, *parts))


def _callable(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """The program with its modules where they were, so that messages name them; flat if it does not come apart."""
    import torch
    from torch.utils import _pytree as pytree

    args, named = program.example_inputs or ((), {})
    kept = {name: tensor.detach().clone() for name, tensor in program.named_buffers()}
    with silenced(), torch.no_grad():  # tensors of inference mode cannot be written afterwards
        flat: torch.nn.Module = program.module(check_guards=False)
        flat.train = lambda mode=True: flat  # type: ignore[method-assign] # noqa: ARG005 - it has no modes, and says so
        flat.training = False
        expected = pytree.tree_leaves(flat(*args, **named))
        _put_back(flat, kept)  # a program may write its buffers
        try:
            modules: torch.nn.Module = torch.export.unflatten(program)
            got = pytree.tree_leaves(modules(*args, **named))
            _put_back(modules, kept)
        except Exception:  # noqa: BLE001 - a program that shares modules in some ways does not come apart
            return flat
    tensors = [(a, b) for a, b in zip(expected, got, strict=True) if isinstance(a, torch.Tensor)]
    same = all(torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True) for a, b in tensors)
    return modules if same else flat


def _put_back(module: torch.nn.Module, kept: Mapping[str, torch.Tensor]) -> None:
    """The buffers as the file holds them."""
    for name, tensor in module.named_buffers():
        if name in kept:
            tensor.copy_(kept[name])


def _dims(
    program: torch.export.ExportedProgram, names: list[str], values: list[Any]
) -> tuple[dict[str, dict[int, str]], tuple[str, ...]]:
    """Axes that are one symbol of the program, and the ranges of the symbols."""
    import torch

    metas = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    inputs = [str(name) for name in program.graph_signature.user_inputs]
    axes: list[tuple[str, int, str]] = []
    if len(inputs) != len(names):
        return {}, ()
    for name, placeholder, value in zip(names, inputs, values, strict=True):
        shape = getattr(metas.get(placeholder), "shape", ()) if isinstance(value, torch.Tensor) else ()
        for axis, size in enumerate(shape):
            symbol = getattr(getattr(size, "node", None), "expr", None)
            if symbol is not None and symbol.is_Symbol:
                axes.append((name, axis, str(symbol)))
            elif symbol is not None and not symbol.is_number:  # 2 * s0: varies, but not on its own
                return {}, (f"input {name} has an axis of size {symbol}, which cannot be chosen alone: no buckets",)
    named = _dimension_names(axes)
    dims: dict[str, dict[int, str]] = {}
    for name, axis, symbol in axes:
        dims.setdefault(name, {})[axis] = named[symbol]
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    notes = tuple(
        f"{dim} may be {ranges[symbol].lower} to {ranges[symbol].upper}"
        for symbol, dim in named.items()
        if symbol in ranges
    )
    return dims, notes


def _dimension_names(axes: Sequence[tuple[str, int, str]]) -> dict[str, str]:
    """Symbol -> name: ``INPUT_AXIS`` where it is met first; a lone one beside the first axis is the sequence."""
    first = {symbol: (name, axis) for name, axis, symbol in reversed(axes)}
    along = set(first) - {symbol for _, axis, symbol in axes if axis == 0}
    return {
        symbol: "seq" if along == {symbol} else f"{name.replace('.', '_')}_{axis}"
        for symbol, (name, axis) in first.items()
    }


# --- pickles --------------------------------------------------------------------------------------------------------


def _pickle(path: Path) -> str:
    """What a .pt or .pth holds, and what to write instead; nothing in it is run."""
    import torch

    names: list[str] = []
    compressed = False
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            names = [PurePosixPath(info.filename).name for info in infos]
            whole = [info.filename.partition("/")[2] for info in infos]
            compressed = sum(info.file_size for info in infos) > path.stat().st_size
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        whole = []  # torch's format before 1.6 is no zip
    if GRAPH_FILE in whole:
        return f"is a program of torch.export; call it {path.stem}{PROGRAM}"
    if "constants.pkl" in names:
        return f"is TorchScript, which is not read: export the module that it was made from: {EXPORT}"
    if compressed:
        return "is compressed, which torch.save never does; it is not opened"
    try:
        with silenced():
            held = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # noqa: BLE001 - the unpickler raises what it likes, and all of it is told
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"objects of {found.group(1)}" if found else f"more than tensors ({_said(error)})"
        return (
            f"holds {what}; unpickling them would run code, so it is refused. Save a program: {EXPORT}; or write a "
            "factory, file.py"
        )
    if isinstance(held, Mapping) and held and all(isinstance(value, torch.Tensor) for value in held.values()):
        return (
            f"holds weights without a model ({len(held)} tensors, {', '.join(map(str, list(held)[:3]))} ...); write "
            f"file.py with def model(): net = YourNet(); net.load_state_dict(torch.load({path.name!r})); "
            "return net, inputs"
        )
    return f"holds a {type(held).__name__} and no model; save a program: {EXPORT}"
