"""A MODEL reference becomes an :class:`~edgeattn.model.EdgeModel`, and ``--data`` its samples.

One loader per kind of reference, in the order of :data:`LOADERS`; each says whether a reference is its own. A new
source is one function and one line there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import itertools
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import DataError, EdgeattnError, ModelError, UnsupportedError, load_extra, unknown_name
from edgeattn.evaluation.data import TRANSCRIPTS, ArrayData, Data, SpeechData, array_data, load_arrays, load_speech
from edgeattn.model import Arrays, EdgeModel, check_finite, graph_from_example
from edgeattn.models import MODELS
from edgeattn.spec import ModelSpec

if TYPE_CHECKING:
    import torch

DEFAULT_FACTORY = "model"
GRAPH = "main"
LATER = {".pt2": "torch.export programs", ".onnx": "ONNX files", ".pt": "pickled modules", ".pth": "pickled modules"}
FORM = "MODEL is a built-in name, file.py[:factory] or package.module:factory"


def load_model(reference: str) -> EdgeModel:
    """Load a MODEL reference and check that it is usable: finite weights, finite and repeatable outputs.

    Args:
        reference: a built-in name, ``file.py[:factory]`` (default factory: ``model``) or ``package.module:factory``.

    Raises:
        ModelError: if it is missing, raises, returns the wrong thing, or its weights or outputs are not finite.
        UnsupportedError: for a kind of source that is not read yet.
    """
    load_extra("torch", "convert")
    for owns, load in LOADERS:
        if owns(reference):
            model = load(reference)
            with _users_code(reference):  # an EdgeModel made by hand may not do what its spec says
                check_finite(model)
            return model
    near = unknown_name("model", reference, MODELS)
    raise ModelError(f"{near}. {FORM}")


def load_data(reference: str, spec: ModelSpec, source: str | None, split: str | None, limit: int) -> Data | None:
    """Load ``--data`` for a model.

    Args:
        reference: the MODEL that it is for; a built-in knows the layout of its own data and brings a sample.
        source: a directory with transcripts.tsv, an npz, a directory that a built-in trains on, ``file.py:function``
            yielding dicts of arrays, or None.
        split: what to measure on, where the data has splits.
        limit: at most so many samples to measure on.

    Raises:
        DataError: if it is missing or not of a form that the model can use.
    """
    if source is None:
        return None if reference not in MODELS else _builtin_data(reference, None, split, limit)
    name, _ = _split(source)
    path = Path(name)
    if not path.exists():
        raise DataError(f"{path}: no such data")
    if path.suffix == ".py":
        return _load_samples(source, spec, limit)
    if path.suffix == ".npz":
        return load_arrays(path, spec.graphs[0])
    if spec.stream is not None and (path / TRANSCRIPTS).is_file():
        return load_speech(path, spec.stream.frontend.sample_rate, split, limit)
    if reference in MODELS:
        return _builtin_data(reference, path, split, limit)
    raise DataError(f"{path}: expected a directory with {TRANSCRIPTS}, an npz, or file.py:function")


def _builtin_data(reference: str, directory: Path | None, split: str | None, limit: int) -> SpeechData:
    module, _, function = MODELS[reference].data.partition(":")
    data: SpeechData = getattr(importlib.import_module(module), function)(directory, split, limit)
    return data


def _load_samples(source: str, spec: ModelSpec, limit: int) -> ArrayData:
    path, function = _split(source)
    module = _run_file(Path(path), source, DataError)
    make = getattr(module, function, None)
    if not callable(make):
        raise DataError(f"{source}: {unknown_name('function', function, _functions(module))}")
    with _import_path(Path(path).resolve().parent), _users_code(source, DataError):
        yielded = make()
        samples = list(itertools.islice(yielded, limit)) if isinstance(yielded, Iterable) else []
    if not samples or not all(isinstance(sample, Mapping) for sample in samples):
        raise DataError(f"{source}: must yield dicts of arrays named like the model's inputs")
    try:
        arrays = {name: np.stack([np.asarray(sample[name]) for sample in samples]) for name in samples[0]}
    except (KeyError, ValueError) as error:
        raise DataError(f"{source}: all samples need the same names and shapes ({error})") from error
    return array_data(arrays, source, spec.graphs[0])


def _is_builtin(reference: str) -> bool:
    return reference in MODELS


def _load_builtin(reference: str) -> EdgeModel:
    module, _, factory = MODELS[reference].factory.partition(":")
    model: EdgeModel = getattr(importlib.import_module(module), factory)()
    return model


def _is_python_file(reference: str) -> bool:
    return _split(reference)[0].endswith(".py")


def _load_python_file(reference: str) -> EdgeModel:
    name, factory = _split(reference)
    path = Path(name)
    if not path.is_file():
        raise ModelError(f"{path}: no such file. {FORM}")
    module = _run_file(path, reference)
    with _import_path(path.resolve().parent):  # a factory may import when it is called
        return _call_factory(reference, module, factory, path.stem, path.read_bytes())


def _run_file(path: Path, reference: str, kind: type[EdgeattnError] = ModelError) -> ModuleType:
    name = f"_edgeattn_source_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses in the file look themselves up there
    with _import_path(path.resolve().parent), _users_code(reference, kind):
        spec.loader.exec_module(module)
    return module


def _is_module(reference: str) -> bool:
    name, _ = _split(reference)
    return ":" in reference and all(part.isidentifier() for part in name.split("."))


def _load_module(reference: str) -> EdgeModel:
    name, factory = _split(reference)
    with _import_path(Path.cwd()), _users_code(reference):  # finding a module runs the packages around it
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ModelError(f"{reference}: there is no module {name}. {FORM}")
        module = importlib.import_module(name)
    source = Path(found.origin).read_bytes() if found.origin and Path(found.origin).is_file() else b""
    with _import_path(Path.cwd()):
        return _call_factory(reference, module, factory, name.rpartition(".")[2], source)


def _is_later(reference: str) -> bool:
    return Path(reference).suffix in LATER or (Path(reference) / "config.json").is_file()


def _load_later(reference: str) -> EdgeModel:
    kind = LATER.get(Path(reference).suffix, "Hugging Face directories")
    if not Path(reference).exists():
        raise ModelError(f"{reference}: no such file. {FORM}")
    raise UnsupportedError(f"{reference}: {kind} are not read yet; write a factory that builds the module. {FORM}")


def _is_path(reference: str) -> bool:
    return "/" in reference or Path(reference).suffix != "" or Path(reference).exists()


def _load_unknown_path(reference: str) -> EdgeModel:
    path = Path(_split(reference)[0])
    if not path.exists():
        raise ModelError(f"{path}: no such file. {FORM}")
    raise ModelError(f"{path}: suffix {path.suffix or 'none'} is not a model that edgeattn reads. {FORM}")


LOADERS: tuple[tuple[Callable[[str], bool], Callable[[str], EdgeModel]], ...] = (
    (_is_builtin, _load_builtin),
    (_is_python_file, _load_python_file),
    (_is_module, _load_module),
    (_is_later, _load_later),
    (_is_path, _load_unknown_path),
)


def _split(reference: str) -> tuple[str, str]:
    """``file.py:factory`` -> both parts; the factory defaults. A drive letter is no factory."""
    name, colon, factory = reference.rpartition(":")
    if not colon or not factory.isidentifier():
        return reference, DEFAULT_FACTORY
    return name, factory


@contextlib.contextmanager
def _import_path(directory: Path) -> Iterator[None]:
    """Let the user's code import what lies beside it, as ``python file.py`` would."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(directory))


@contextlib.contextmanager
def _users_code(reference: str, kind: type[EdgeattnError] = ModelError) -> Iterator[None]:
    """Name the user's line when the user's code raises; what it prints goes to stderr, stdout is for results."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except EdgeattnError:
        raise
    except (Exception, SystemExit) as error:  # a script that parses arguments when imported exits
        said = " ".join(str(error).split())  # one line, as every error
        raise kind(f"{reference} raised {type(error).__name__}: {said}{_users_line(error)}") from error


def _users_line(error: BaseException) -> str:
    """The deepest line that is neither edgeattn's nor an installed package's; without one the deepest of all."""
    foreign = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))]
    lines = []
    trace = error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        users = path.is_absolute() and not any(path.is_relative_to(folder) for folder in foreign)
        lines.append((users, f" ({path.name}:{trace.tb_lineno})"))
        trace = trace.tb_next
    return next((line for users, line in reversed(lines) if users), lines[-1][1])


def _call_factory(reference: str, module: ModuleType, name: str, stem: str, source: bytes) -> EdgeModel:
    factory = getattr(module, name, None)
    if not callable(factory):
        raise ModelError(f"{reference}: {unknown_name('factory', name, _functions(module))}")
    with _users_code(reference):
        made = factory()
    if isinstance(made, EdgeModel):
        return made
    return from_module(*_module_and_inputs(reference, made), name=stem, source=source)


def _functions(module: ModuleType) -> list[str]:
    return [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]


def _module_and_inputs(reference: str, made: Any) -> tuple[torch.nn.Module, Arrays]:
    import torch

    expected = "a factory returns an EdgeModel, or (nn.Module, example inputs as a tuple or a dict of tensors)"
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], torch.nn.Module):
        raise ModelError(f"{reference}: {expected}; got {_describe(made)}")
    module, given = made
    if isinstance(given, torch.Tensor):
        given = (given,)
    names = list(inspect.signature(module.forward).parameters)
    if isinstance(given, Mapping):
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ModelError(f"{reference}: forward has no parameter {unknown[0]!r}; it has {', '.join(names)}")
        named = dict(given)
    elif isinstance(given, (tuple, list)) and len(given) <= len(names):
        named = dict(zip(names, given, strict=False))
    else:
        raise ModelError(f"{reference}: {expected}; forward takes {', '.join(names)}, got {_describe(given)}")
    for key, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"{reference}: example input {key!r} must be a tensor, got {type(value).__name__}")
    try:
        return module, {key: value.detach().cpu().numpy() for key, value in named.items()}
    except TypeError as error:  # bfloat16 and others that numpy does not have
        raise ModelError(f"{reference}: an example input has no numpy dtype: {error}") from error


def _describe(value: object) -> str:
    if isinstance(value, tuple):
        return f"a tuple of ({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__


def from_module(module: torch.nn.Module, inputs: Arrays, name: str, source: bytes = b"") -> EdgeModel:
    """A plain torch module and one set of inputs as a model of one stateless graph.

    Inputs are named after forward's parameters; outputs after the keys of a dict or ModelOutput, ``output`` for a
    single tensor, ``output_0``, ``output_1`` ... for a tuple.

    Raises:
        ModelError: if forward rejects the inputs, or its outputs are no tensors or change between two calls.
    """
    import torch

    named = _named_outputs(module.eval())
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in inputs.items()}
    with _users_code(f"{type(module).__name__}.forward"), torch.inference_mode():
        first = {key: value.numpy().copy() for key, value in named(**tensors).items()}
        second = {key: value.numpy() for key, value in named(**tensors).items()}
    for key, value in first.items():
        if not np.array_equal(value, second[key], equal_nan=True):
            raise ModelError(
                f"output {key!r} of {type(module).__name__} changes between two calls on the same inputs: "
                "dropout or another random op is active in eval mode"
            )
    digest = hashlib.sha256(source)
    size = 0
    for key, tensor in module.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        size += tensor.numel() * tensor.element_size()
    try:
        spec = ModelSpec(name.replace("_", "-"), "generic", (graph_from_example(GRAPH, inputs, first),))
    except ValueError as error:
        raise ModelError(f"{type(module).__name__}: {error}") from error
    return EdgeModel(spec, {GRAPH: named}, {GRAPH: dict(inputs)}, digest.hexdigest(), size)


def _named_outputs(module: torch.nn.Module) -> torch.nn.Module:
    """A module that takes keyword tensors and returns a dict of tensors, whatever ``module`` returns."""
    import torch

    class NamedOutputs(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            return _name_outputs(self.inner(**inputs))

    return NamedOutputs(module).eval()


def _name_outputs(result: Any) -> dict[str, torch.Tensor]:
    import torch

    if isinstance(result, torch.Tensor):
        return {"output": result}
    if isinstance(result, Mapping):
        items = {str(key): value for key, value in result.items()}
    elif isinstance(result, (tuple, list)):
        items = {f"output_{index}": value for index, value in enumerate(result)}
    else:
        raise ModelError(f"forward must return a tensor, or a dict or tuple of tensors; got {type(result).__name__}")
    tensors = {key: value for key, value in items.items() if value is not None}
    for key, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise ModelError(f"output {key!r} of forward must be a tensor, got {type(value).__name__}")
    if not tensors:
        raise ModelError("forward returned no tensor")
    return tensors
