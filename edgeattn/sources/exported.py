"""MODEL as a torch.export program (``.pt2``); a pickle (``.pt``, ``.pth``) is told what it is, and refused.

A .pt2 looks like data and is not: ``torch.export.load`` unpickles constants and example inputs without
``weights_only``, evaluates the strings of symbolic shapes and guards as Python, loads compiled libraries, imports the
modules that a tree of inputs names, and calls whatever attribute of torch a node names. So everything that such a
file holds is looked at first (:func:`check_archive`), and only what a plain program needs is let through.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeattn.errors import EdgeattnError, ModelError, load_extra
from edgeattn.model import EdgeModel, Graph
from edgeattn.silence import silenced
from edgeattn.sources.code import FORM
from edgeattn.sources.modules import GRAPH, from_graphs, name_outputs

if TYPE_CHECKING:
    import torch

PROGRAM = ".pt2"
PICKLES = (".pt", ".pth")

MAX_FILES = 100_000
MAX_JSON_BYTES = 512 * 2**20  # the graph of a model with thousands of layers
SPARE_BYTES = 64 * 2**20  # of a tensor that repeats a few stored numbers
MAX_ELEMENTS = 2**31  # of one tensor
MAX_CREATED = 2**28  # of one that the program makes itself

GRAPH_FILE = "models/model.json"
WEIGHTS = "data/weights/"
CONSTANTS = "data/constants/"
SAMPLES = "data/sample_inputs/model.pt"

EXPORT = "torch.export.save(torch.export.export(module.eval(), inputs), 'model.pt2')"

# Operators that read and write numbers. aten.from_file opens a file of its own choice.
OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.(?!from_file\b)\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|scan|map_impl)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|abs|pow|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem|index"
    r"|lshift|rshift|itruediv|iadd|isub|imul)"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|torch\._?sym_\w+"
)
CREATES = re.compile(
    r"\.(new_)?(full|zeros|ones|empty|rand|randn|randint|arange|linspace|eye|tril_indices|triu_indices)\b"
)
# Sizes as sympy writes them: Mul(Integer(2), Symbol('s27', positive=True, integer=True)), or 2*s27.
SYMBOL = re.compile(r"Symbol\('([a-z]{1,4}\d{1,9})'(?:, [a-z_]+=(?:True|False))*\)")
SYMBOLIC = re.compile(
    r"(?:\s|[-+*/%(),<>=&|~!]|\b\d{1,20}(?:\.\d{1,20})?\b|\b(?:[a-z]{1,4}\d{1,9}|int_oo|oo|True|False"
    r"|Integer|Rational|Add|Mul|Pow|Max|Min|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not|Abs|floor|ceiling|sqrt"
    r"|FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|PowByNatural"
    r"|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt"
    r"|RoundDecimal|ToFloat|Identity)\b)*"
)
POWER = re.compile(r"\*\*|Pow")
SMALL_POWER = re.compile(r"\b[a-z]{1,4}\d+\*\*\d\b|\bPow(?:ByNatural)?\([a-z]{1,4}\d+, ?(?:Integer\(\d\)|\d)\)")
MAX_SYMBOLIC = 2_000  # characters
TREES = ("builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", "torch.fx.", "transformers.")
CODE = (".so", ".o", ".cpp", ".cubin", ".ptx", ".py", ".pkl")


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
    graph = check_archive(path)
    program = _program(path)
    try:
        module, inputs, dims, notes = _module(program)
    except EdgeattnError as error:
        raise ModelError(f"{path}: {error}") from error
    with silenced():
        try:
            made = from_graphs({GRAPH: Graph(module, inputs, dims=dims)}, path.stem, graph)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
    return EdgeModel(
        made.spec, made.modules, made.example, made.source_sha256, made.source_size_bytes, made.dims, notes=notes
    )


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


# --- what a file holds ------------------------------------------------------------------------------------------------


def check_archive(path: Path) -> bytes:
    """Refuse a .pt2 that does anything but describe a program.

    Returns:
        its graph, as JSON.

    Raises:
        ModelError: naming what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            files = _files(path, archive)
            _check_kind(path, files)
            graph = archive.read(files[GRAPH_FILE])
            program = _json(path, GRAPH_FILE, graph)
            _check_version(path, program)
            _check_graph(path, program)
            for folder in (WEIGHTS, CONSTANTS):
                name = f"{folder}model_{PurePosixPath(folder).name}_config.json"
                if name in files:
                    _check_tensors(path, folder, _json(path, name, archive.read(files[name])), files)
            if SAMPLES in files:
                _check_samples(path, archive.read(files[SAMPLES]))
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, KeyError, ValueError) as error:
        raise ModelError(
            f"{path}: truncated, or no file of torch.export.save: {_said(error)}; write it again"
        ) from error
    return graph


def _files(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The files of a torch archive by their names below its one folder."""
    infos = archive.infolist()
    if not infos or len(infos) > MAX_FILES:
        raise ModelError(f"{path}: {len(infos)} files, a program has 1 to {MAX_FILES}")
    roots = set()
    files = {}
    for info in infos:
        parts = PurePosixPath(info.filename).parts
        if len(parts) < 2 or ".." in parts or "\\" in info.filename or info.filename.startswith("/"):
            if info.filename == "version":
                raise ModelError(f"{path}: written by torch 2.7 or older; write it again: {EXPORT}")
            raise ModelError(f"{path}: holds {info.filename!r:.80}, which no program does")
        roots.add(parts[0])
        name = "/".join(parts[1:])
        if name in files:
            raise ModelError(f"{path}: holds {name!r:.80} twice")
        files[name] = info
    # torch stores without compressing, so that weights can be mapped; what grows when it is read was made to.
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or (
        sum(info.file_size for info in infos) > path.stat().st_size
    ):
        raise ModelError(f"{path}: is compressed, or larger than its file; torch.export.save writes neither")
    if len(roots) != 1:
        raise ModelError(f"{path}: holds {len(roots)} folders, a program is one")
    return files


def _check_kind(path: Path, files: Mapping[str, zipfile.ZipInfo]) -> None:
    compiled = [name for name in files if name.startswith("data/aotinductor/") or name.endswith(CODE)]
    if compiled:
        raise ModelError(
            f"{path}: holds code ({compiled[0]:.80}), which is never run; write the program alone: {EXPORT}"
        )
    programs = [name for name in files if name.startswith("models/")]
    if programs != [GRAPH_FILE]:
        raise ModelError(f"{path}: must hold one program, {GRAPH_FILE}; got {', '.join(programs)[:200] or 'none'}")
    legacy = [name for name in (f"{WEIGHTS}model.pt", f"{CONSTANTS}model.pt") if name in files]
    if legacy:
        raise ModelError(f"{path}: {legacy[0]} is a pickle of an older torch; write it again: {EXPORT}")
    if files[GRAPH_FILE].file_size > MAX_JSON_BYTES:
        raise ModelError(
            f"{path}: its graph has {files[GRAPH_FILE].file_size} bytes, at most {MAX_JSON_BYTES} are read"
        )


def _json(path: Path, name: str, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: {name} is not readable as JSON: {_said(error)}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: {name} must hold a JSON object, got {type(value).__name__}")
    return value


def _check_version(path: Path, program: Mapping[str, Any]) -> None:
    import torch
    from torch._export.serde.schema import SCHEMA_VERSION

    found = program.get("schema_version")
    version = (found.get("major"), found.get("minor")) if isinstance(found, dict) else (None, None)
    if not all(isinstance(part, int) for part in version):
        raise ModelError(f"{path}: tells no schema version; write it again: {EXPORT}")
    if version[0] != SCHEMA_VERSION[0] or version > SCHEMA_VERSION:
        shown, known = (".".join(map(str, v)) for v in (version, SCHEMA_VERSION))
        raise ModelError(
            f"{path}: has schema version {shown}, torch {torch.__version__} reads {known}; use the torch "
            "that wrote it, or export again with this one"
        )


def _check_graph(path: Path, program: Mapping[str, Any]) -> None:
    ranges = program.get("range_constraints") or {}
    for symbol in ranges if isinstance(ranges, dict) else ("",):
        _check_symbolic(path, symbol)
    for key, value, holder in _entries(program):
        if key == "expr_str":
            _check_symbolic(path, value)
        elif key == "as_operator" or (key == "target" and "outputs" in holder):
            if not isinstance(value, str) or not OPERATOR.fullmatch(value):
                raise ModelError(
                    f"{path}: operator {value!r:.80} is none that is read; aten's are: decompose it "
                    "(program.run_decompositions()) or write a factory"
                )
            if CREATES.search(value):
                _check_created(path, holder)
        elif key == "as_custom_obj":
            raise ModelError(f"{path}: holds an object of its own class, which only a pickle restores")
        elif key in ("in_spec", "out_spec") and isinstance(value, str):
            _check_tree(path, value)
        elif key == "sizes" and isinstance(value, list):
            _elements(path, value)


def _check_created(path: Path, node: Mapping[str, Any]) -> None:
    """Nothing is made that is larger than what a model for an edge device holds."""
    for key, value, _ in _entries(node.get("inputs")):
        numbers = value if key == "as_ints" and isinstance(value, list) else [value] if key == "as_int" else []
        if math.prod(abs(number) for number in numbers if isinstance(number, int)) > MAX_CREATED:
            raise ModelError(f"{path}: {node['target']} of {str(numbers)[:80]} is larger than an edge device's memory")


def _entries(root: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every key and value of nested JSON, with the object that holds it."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for key, item in value.items():
                yield key, item, value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_symbolic(path: Path, text: Any) -> None:
    """Sympy evaluates these as Python."""
    plain = SYMBOL.sub(r"\1", text) if isinstance(text, str) and len(text) <= MAX_SYMBOLIC else "?"
    # A power of powers takes years: symbols alone may be raised, to one digit.
    if not SYMBOLIC.fullmatch(plain) or POWER.search(SMALL_POWER.sub("", plain)):
        raise ModelError(f"{path}: {str(text)[:80]!r} is no size of a tensor")


def _check_tree(path: Path, text: str) -> None:
    """How inputs and outputs nest. Contexts of other classes are imported by the names that they give."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: the tree of inputs or outputs is damaged: {_said(error)}") from error
    for key, value, _ in _entries(tree):
        if key == "type" and value is not None and not str(value).startswith(TREES):
            raise ModelError(
                f"{path}: inputs or outputs are a {str(value)[:80]}; export with tuples and dicts of tensors"
            )
        if "__enum__" in key or (isinstance(value, str) and "__enum__" in value):
            raise ModelError(
                f"{path}: the tree of inputs or outputs names a class; export with tuples and dicts of tensors"
            )
        if key == "type" and str(value).startswith("transformers."):
            _register(path, str(value))


def _register(path: Path, kind: str) -> None:
    """Import the module of transformers that defines an output, which makes it known to torch."""
    found = re.fullmatch(r"(transformers\.(?:modeling_outputs|cache_utils|models\.\w+\.modeling_\w+))\.\w+", kind)
    if found is None:
        raise ModelError(f"{path}: outputs are a {kind[:80]}; export with tuples and dicts of tensors")
    load_extra("transformers", "hf")
    try:
        with silenced():
            importlib.import_module(found.group(1))
    except ImportError as error:
        raise ModelError(f"{path}: outputs are a {kind[:80]}, which this transformers does not have") from error


def _elements(path: Path, sizes: list[Any]) -> int:
    """Numbers in a tensor; symbols count as 1."""
    numbers = [size.get("as_int") for size in sizes if isinstance(size, dict)]
    count = math.prod(number for number in numbers if isinstance(number, int))
    if count > MAX_ELEMENTS or any(isinstance(number, int) and number < 0 for number in numbers):
        raise ModelError(f"{path}: a tensor of {numbers} is no part of a model for an edge device")
    return count


def _check_tensors(path: Path, folder: str, config: Mapping[str, Any], files: Mapping[str, zipfile.ZipInfo]) -> None:
    entries = config.get("config")
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: {folder} lists no tensors")
    for name, entry in entries.items():
        stored = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(stored, str) or not re.fullmatch(r"(weight|tensor)_\d+", stored) or entry.get("use_pickle"):
            raise ModelError(f"{path}: {name!r:.80} is stored as a pickle, which could run code; export it as a tensor")
        meta = entry.get("tensor_meta")
        if folder + stored not in files or not isinstance(meta, dict) or not isinstance(meta.get("sizes"), list):
            raise ModelError(f"{path}: {name!r:.80} is missing or has no shape; write it again: {EXPORT}")
        held = files[folder + stored].file_size
        if _elements(path, meta["sizes"]) > (held + SPARE_BYTES if held else 0):  # one byte a number at least
            raise ModelError(f"{path}: {name!r:.80} is larger than what is stored of it, {held} bytes")


def _check_samples(path: Path, data: bytes) -> None:
    """Torch tries weights_only first and then, if that fails, without."""
    import io

    import torch

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            infos = archive.infolist()
            if any(i.compress_type != zipfile.ZIP_STORED for i in infos) or sum(i.file_size for i in infos) > len(data):
                raise ModelError(f"{path}: its example inputs are compressed, which torch never writes")
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except ModelError:
        raise
    except Exception as error:  # the unpickler raises what it likes
        raise ModelError(
            f"{path}: its example inputs hold more than tensors, which only a pickle restores ({_said(error)}); export "
            "with tuples and dicts of tensors"
        ) from error


# --- the program ----------------------------------------------------------------------------------------------------


def _program(path: Path) -> torch.export.ExportedProgram:
    import torch

    try:
        with silenced():
            program = torch.export.load(str(path))
    except Exception as error:  # whatever a damaged graph makes of the reader
        raise ModelError(f"{path}: torch {torch.__version__} cannot read it: {_said(error)}") from error
    # Strings that .module() would run as Python. They check what the ranges of the program check again.
    program._guards_code = []  # noqa: SLF001
    return program


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
    with silenced(), torch.inference_mode():
        flat: torch.nn.Module = program.module(check_guards=False)
        flat.train = lambda mode=True: flat  # type: ignore[method-assign] # noqa: ARG005 - it has no modes, and says so
        flat.training = False
        expected = pytree.tree_leaves(flat(*args, **named))
        try:
            modules: torch.nn.Module = torch.export.unflatten(program)
            got = pytree.tree_leaves(modules(*args, **named))
        except Exception:  # noqa: BLE001 - a program that shares modules in some ways does not come apart
            return flat
    tensors = [(a, b) for a, b in zip(expected, got, strict=True) if isinstance(a, torch.Tensor)]
    same = all(torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True) for a, b in tensors)
    return modules if same else flat


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
