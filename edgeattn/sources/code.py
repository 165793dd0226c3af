"""MODEL as Python code: ``file.py[:factory]`` and ``package.module:factory``, the user's own code run with care."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeattn.errors import EdgeattnError, InputError, ModelError, UnsupportedError, unknown_name
from edgeattn.model import EdgeModel, Graph
from edgeattn.sources.arguments import as_module
from edgeattn.sources.modules import GRAPH, describe, from_graphs
from edgeattn.sources.usercode import import_path, users_code

DEFAULT_FACTORY = "model"
FORM = (
    "MODEL is a built-in name, file.py[:factory], package.module:factory, a .pt2 of torch.export, an .onnx or .tflite "
    "file, or a Hugging Face directory"
)


def is_python_file(reference: str) -> bool:
    """Whether a reference is ``file.py`` with or without a factory."""
    return split_reference(reference)[0].endswith(".py")


def load_python_file(reference: str) -> EdgeModel:
    """Run the file and call its factory."""
    name, factory = split_reference(reference)
    path = Path(name)
    if not path.is_file():
        raise ModelError(f"{path}: no such file. {FORM}")
    module = run_file(path, reference)
    with import_path(path.resolve().parent):  # a factory may import when it is called
        return _call_factory(reference, module, factory, path.stem, path.read_bytes())


def run_file(path: Path, reference: str, kind: type[EdgeattnError] = ModelError) -> ModuleType:
    """Run a file of the user's as a module of its own."""
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look themselves up there
    with import_path(path.resolve().parent), users_code(reference, kind):
        spec.loader.exec_module(module)
    return module


def load_function(reference: str) -> Callable[..., Any]:
    """A function of a file of the user's, ``file.py:function``; what it raises when it is called names its line.

    Raises:
        InputError: if there is no such file or function.
    """
    called = _users_function(reference)
    directory = Path(split_reference(reference)[0]).resolve().parent

    def guarded(*given: Any) -> Any:
        with import_path(directory), users_code(reference, InputError):
            return called(*given)

    guarded.__dict__.update(getattr(called, "__dict__", {}))  # what the user says of it
    return guarded


def _users_function(reference: str) -> Callable[..., Any]:
    """The function itself, which raises as it likes; see :func:`load_function`."""
    name, function = split_reference(reference)
    path = Path(name)
    if path.suffix != ".py" or not path.is_file() or ":" not in reference:
        raise InputError(f"{reference}: expected file.py:function, and a file that is there")
    found = getattr(run_file(path, reference, InputError), function, None)
    if not callable(found):
        raise InputError(
            f"{reference}: {unknown_name('function', function, functions_of(sys.modules[module_name(path)]))}"
        )
    called: Callable[..., Any] = found
    return called


def module_name(path: Path) -> str:
    """What the module of a file of the user's is called."""
    return f"_edgeattn_source_{path.stem}"


def is_module(reference: str) -> bool:
    """Whether a reference is ``package.module:factory``."""
    name, _ = split_reference(reference)
    return ":" in reference and all(part.isidentifier() for part in name.split("."))


def load_module(reference: str) -> EdgeModel:
    """Import the module and call its factory."""
    name, factory = split_reference(reference)
    with import_path(Path.cwd()), users_code(reference):  # finding a module runs the packages around it
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ModelError(f"{reference}: there is no module {name}. {FORM}")
        module = importlib.import_module(name)
    source = Path(found.origin).read_bytes() if found.origin and Path(found.origin).is_file() else b""
    with import_path(Path.cwd()):
        return _call_factory(reference, module, factory, name.rpartition(".")[2], source)


def split_reference(reference: str) -> tuple[str, str]:
    """``file.py:factory`` -> both parts; the factory defaults. A drive letter is no factory."""
    name, colon, factory = reference.rpartition(":")
    if not colon or not factory.isidentifier():
        return reference, DEFAULT_FACTORY
    return name, factory


def _call_factory(reference: str, module: ModuleType, name: str, stem: str, source: bytes) -> EdgeModel:
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ModelError(f"{reference}: {unknown_name('factory', name, functions_of(module))}")
    with users_code(reference):
        made = factory()
    if isinstance(made, EdgeModel):
        return made
    graphs = _graphs(reference, made)
    try:
        return from_graphs(graphs, stem, source)
    except (ModelError, UnsupportedError) as error:
        raise type(error)(f"{reference}: {error}") from error


def functions_of(module: ModuleType) -> list[str]:
    """Names of the functions that a module defines itself."""
    return [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]


def _graphs(reference: str, made: Any) -> dict[str, Graph]:
    """What a factory returned, as graphs by name."""
    import torch

    if isinstance(made, Mapping) and made:
        return {str(name): _graphs(reference, part)[GRAPH] for name, part in made.items()}
    if isinstance(made, Graph):
        return {GRAPH: made}
    if isinstance(made, tuple) and len(made) in (2, 3) and callable(made[0]) and not isinstance(made[0], type):
        module = made[0] if isinstance(made[0], torch.nn.Module) else as_module(made[0])
        return {GRAPH: Graph(module, made[1], dims=made[2] if len(made) == 3 else {})}
    raise ModelError(
        f"{reference}: a factory returns an EdgeModel, or (nn.Module, example inputs as a tuple or a dict of tensors), "
        f"or a dict of such, one per graph; got {describe(made)}"
    )
