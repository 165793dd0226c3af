"""The archive of a torch.export program (``.pt2``), looked at and written anew before torch sees it.

A .pt2 looks like data and is not: ``torch.export.load`` writes names of the file into Python source and executes it
(arguments, inputs, nodes, keys of trees, paths of modules), evaluates the strings of symbolic shapes and guards,
unpickles constants and example inputs without ``weights_only``, loads compiled libraries, imports the modules that a
tree of inputs names, and calls whatever attribute of torch a node names. So torch gets another archive than the user's:
:func:`clean_archive` copies what a plain program needs, field by field of torch's own schema, each string held to a
rule of :data:`STRINGS`. A string without a rule is refused; free text (stack traces, metadata, guards) is left out.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import io
import json
import keyword
import math
import re
import stat
import types
import typing
import unicodedata
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from edgeattn.errors import ModelError, load_extra
from edgeattn.guards.silence import silenced

MAX_FILES = 100_000
MAX_JSON_BYTES = 512 * 2**20  # the graph of a model with thousands of layers
MAX_BYTES = 16 * 2**30  # read into memory as a whole
SPARE_BYTES = 64 * 2**20  # of a tensor that repeats a few stored numbers
MAX_ELEMENTS = 2**31  # of one tensor
MAX_CREATED = 2**28  # of one that the program makes itself
MAX_RANK = 64
MAX_NAME = 1_000  # characters
MAX_TEXT = 10_000
MAX_SYMBOLIC = 2_000

GRAPH_FILE = "models/model.json"
WEIGHTS = "data/weights/"
CONSTANTS = "data/constants/"
SAMPLES = "data/sample_inputs/model.pt"
PLAIN = re.compile(r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)")
ROOT = "program/"

EXPORT = "torch.export.save(torch.export.export(module.eval(), inputs), 'model.pt2')"

# Operators that read and write numbers. aten.from_file opens a file of its own choice.
OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed|torchvision)\.(?!from_file\b)"
    r"(?:_?[a-zA-Z0-9]\w*|__i?(?:and|or|xor|lshift|rshift)__)(\.[a-zA-Z]\w*)?"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond|while_loop|scan|map_impl)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|abs|pow|eq|ne|lt|le|gt|ge|and_|or_|xor|not_|getitem|index"
    r"|lshift|rshift|itruediv|iadd|isub|imul)"
    r"|math\.(ceil|floor|trunc|sqrt)"
    r"|torch\._?sym_\w+",
    re.ASCII,
)
CREATES = re.compile(
    r"\.(new_)?(full|zeros|ones|empty|rand|randn|randint|arange|linspace|eye|tril_indices|triu_indices)\b"
)
# Sizes as sympy writes them: Mul(Integer(2), Symbol('s27', positive=True, integer=True)), or 2*s27.
SYMBOL = re.compile(r"Symbol\('([a-z]{1,4}[0-9]{1,9})'(?:, [a-z_]+=(?:True|False))*\)")
SYMBOLIC = re.compile(
    r"(?:\s|[-+*/%(),<>=&|~!]|\b\d{1,20}(?:\.\d{1,20})?\b|\b(?:[a-z]{1,4}\d{1,9}|int_oo|oo|True|False"
    r"|Integer|Rational|Add|Mul|Pow|Max|Min|Eq|Ne|Ge|Gt|Le|Lt|And|Or|Not|Abs|floor|ceiling|sqrt"
    r"|FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|FloorToInt|CeilDiv|PowByNatural"
    r"|FloatPow|FloatTrueDiv|IntTrueDiv|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|RoundToInt"
    r"|RoundDecimal|ToFloat|Identity)\b)*",
    re.ASCII,
)
POWER = re.compile(r"\*\*|Pow")
SMALL_POWER = re.compile(
    r"\b[a-z]{1,4}\d+\*\*\d\b|\bPow(?:ByNatural)?\([a-z]{1,4}\d+, ?(?:Integer\(\d\)|\d)\)", re.ASCII
)
PART = re.compile(r"[\w@-]+")  # of a module's path; a ModuleDict's key may hold a hyphen
KEY = re.compile(r"[\w@.:/ -]+")  # of a dict among inputs or outputs
TREES = (
    "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict",
    "torch.fx.immutable_collections.immutable_list", "torch.fx.immutable_collections.immutable_dict",
)  # fmt: skip
OUTPUTS = re.compile(r"(transformers\.(?:modeling_outputs|cache_utils|models\.\w+\.modeling_\w+))\.\w+", re.ASCII)
CODE = (".so", ".o", ".cpp", ".cubin", ".ptx", ".py", ".pkl")
STACK = re.compile(r"(?P<key>[\w@.-]*),(?P<path>[\w@.-]*),(?P<type>.*)")  # one module of nn_module_stack
STACK_END = ";"
MODULE = "torch.nn.modules.module.Module"  # what every class of a stack is called: nothing reads which it was


@dataclasses.dataclass(frozen=True)
class Archive:
    """A program that is safe to load.

    Attributes:
        graph: its graph as the file has it, JSON.
        data: an archive of torch.export.save that was written here, see :func:`clean_archive`.
    """

    graph: bytes
    data: io.BytesIO


def clean_archive(path: Path) -> Archive:
    """Read a .pt2 once, refuse one that does anything but describe a program, and write that program anew.

    Raises:
        ModelError: naming what is wrong.
    """
    made = io.BytesIO()
    try:
        with _opened(path) as file, zipfile.ZipFile(file) as archive:
            files = _files(path, archive)
            _check_kind(path, files)
            graph = archive.read(files[GRAPH_FILE])
            program = _json(path, GRAPH_FILE, graph)
            _check_version(path, program)
            kept = {GRAPH_FILE: _dumped(path, program, "ExportedProgram")}
            stored = []
            for folder in (WEIGHTS, CONSTANTS):
                name = f"{folder}model_{PurePosixPath(folder).name}_config.json"
                if name in files:
                    config = _json(path, name, archive.read(files[name]))
                    stored += _check_tensors(path, folder, config, files)
                    kept[name] = _dumped(path, config, "PayloadConfig")
            if SAMPLES in files:
                kept[SAMPLES] = archive.read(files[SAMPLES])
                _check_samples(path, kept[SAMPLES])
            stored += [name for name in files if PLAIN.fullmatch(name)]
            with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as clean:
                for name, content in kept.items():
                    clean.writestr(ROOT + name, content)
                for name in dict.fromkeys(stored):
                    clean.writestr(ROOT + name, archive.read(files[name]))
    except (
        zipfile.BadZipFile, OSError, EOFError, NotImplementedError, LookupError, ValueError, TypeError, RuntimeError,
        ArithmeticError, MemoryError,
    ) as error:  # fmt: skip
        # An encrypted member is a RuntimeError, a path with NUL a ValueError, nesting without end a RecursionError.
        raise ModelError(
            f"{path}: truncated, or no file of torch.export.save: {_said(error)}; write it again"
        ) from error
    made.seek(0)
    return Archive(graph, made)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _shown(text: Any) -> str:
    return ascii(str(text))[1:-1][:80]


def _opened(path: Path) -> io.BufferedReader:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device would never end
        raise ModelError(f"{path}: not a regular file")
    if found.st_size > MAX_BYTES:
        raise ModelError(f"{path}: {found.st_size / 2**30:.1f} GiB; at most {MAX_BYTES // 2**30} GiB are read")
    return path.open("rb")


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
            raise ModelError(f"{path}: holds {ascii(info.filename)[:80]}, which no program does")
        roots.add(parts[0])
        name = "/".join(parts[1:])
        if name in files:
            raise ModelError(f"{path}: holds {ascii(name)[:80]} twice")
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
            f"{path}: holds code ({_shown(compiled[0])}), which is never run; write the program alone: {EXPORT}"
        )
    programs = [name for name in files if name.startswith("models/")]
    if programs != [GRAPH_FILE]:
        shown = ", ".join(map(_shown, programs[:3]))
        raise ModelError(f"{path}: must hold one program, {GRAPH_FILE}; got {shown or 'none'}")
    legacy = [name for name in (f"{WEIGHTS}model.pt", f"{CONSTANTS}model.pt") if name in files]
    if legacy:
        raise ModelError(f"{path}: {legacy[0]} is a pickle of an older torch; write it again: {EXPORT}")
    for name, info in files.items():
        if name.endswith(".json") and info.file_size > MAX_JSON_BYTES:
            raise ModelError(
                f"{path}: {ascii(name)[:80]} has {info.file_size} bytes, at most {MAX_JSON_BYTES} are read"
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
            f"{path}: has schema version {shown[:40]}, torch {torch.__version__} reads {known}; use the torch "
            "that wrote it, or export again with this one"
        )


# --- every field by torch's schema ------------------------------------------------------------------------------------


class Refused(Exception):  # noqa: N818 - becomes a ModelError that names the file
    """What a field may not hold."""


def _dumped(path: Path, value: Mapping[str, Any], kind: str) -> bytes:
    """An object of torch's schema with what it may hold, and nothing else, as JSON."""
    schema = importlib.import_module("torch._export.serde.schema")
    try:
        return json.dumps(_object(getattr(schema, kind), value), allow_nan=False).encode()
    except Refused as refused:
        raise ModelError(f"{path}: {refused}") from refused


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    schema = importlib.import_module("torch._export.serde.schema")
    return typing.get_type_hints(kind, globalns=vars(schema))


def _object(kind: type, value: Any) -> dict[str, Any]:
    """A dataclass of the schema; a union is one with a single field."""
    if not isinstance(value, dict):
        raise Refused(f"{kind.__name__} must be an object, got {type(value).__name__}")
    if kind.__name__ in CUSTOM:
        raise Refused("it holds an object of its own class, which only a pickle restores")
    hints = _hints(kind)
    if kind.__base__ is not object and len([name for name in value if name in hints]) != 1:
        raise Refused(f"{kind.__name__} must hold one of its forms, got {len(value)}")
    found: dict[str, Any] = {}
    for name, hint in hints.items():
        place = f"{kind.__name__}.{name}"
        if name in value and place not in DROPPED:
            found[name] = _field(hint, value[name], place)
    check = CHECKS.get(kind.__name__)
    if check is not None:
        check(found)
    return found


def _field(hint: Any, value: Any, place: str) -> Any:
    """A value of a field, held to its type and, where it is text, to its rule."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _field(inner[0], value, place)
    if origin is list and isinstance(value, list):
        return [_field(inner[0], item, place) for item in value]
    if origin is dict and isinstance(value, dict):
        named = KEYS.get(place)
        if named is None:
            raise Refused(f"{place} of this torch is not known; use another version of torch")
        if place == "Node.metadata":
            return _metadata(value)
        return {_text(named, key, place): _field(inner[1], item, place) for key, item in value.items()}
    if hint is str and isinstance(value, str):
        rule = STRINGS.get(place)
        if rule is None:
            raise Refused(f"{place} of this torch is not known; use another version of torch")
        return _text(rule, value, place)
    if isinstance(hint, type):
        return _scalar(hint, value, place)
    raise Refused(f"{place} must be {_called(hint)}, got {type(value).__name__}")


def _scalar(hint: type, value: Any, place: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _object(hint, value)
    plain = isinstance(value, int) and not isinstance(value, bool)
    if issubclass(hint, enum.Enum) and plain and value in {member.value for member in hint}:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and plain:
        if abs(value) >= 2**63:
            raise Refused(f"{place} {str(value)[:24]}... fits no integer of 64 bits")
        return value
    # NaN and infinity stand in words, which json does not write.
    if hint is float and (plain or isinstance(value, float) or value in ("Infinity", "-Infinity", "NaN")):
        return value if not isinstance(value, float) or math.isfinite(value) else str(value)
    raise Refused(f"{place} must be {_called(hint)}, got {type(value).__name__}")


def _called(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _text(rule: Callable[[str], str | None], value: Any, place: str) -> str:
    kept = rule(value) if isinstance(value, str) else None
    if kept is None:
        raise Refused(f"{'operator' if rule is _operator else place} {ascii(value)[:80]} is {WANTED[rule]}")
    return kept


# --- rules: what a string may be, None for refused --------------------------------------------------------------------


def _name(text: str) -> str | None:
    """A name that torch writes into Python source as it stands."""
    same = len(text) <= MAX_NAME and text.isidentifier() and unicodedata.normalize("NFKC", text) == text
    return text if same and not keyword.iskeyword(text) and not text.startswith("__") else None


def _argument(text: str) -> str | None:
    """The name of an operator's argument; those of higher order have none."""
    return _name(text) if text else text


def _path(text: str) -> str | None:
    """A path of modules: names and indices with dots between. Torch writes it into source, the parts in quotes."""
    if len(text) > MAX_NAME:
        return None
    parts = text.split(".") if text else []
    plain = all(PART.fullmatch(part) and not part.startswith("__") and not keyword.iskeyword(part) for part in parts)
    return text if plain else None


def _known(pattern: str) -> Callable[[str], str | None]:
    compiled = re.compile(pattern, re.ASCII)
    return lambda text: text if compiled.fullmatch(text) else None


def _operator(text: str) -> str | None:
    if len(text) > MAX_NAME or not OPERATOR.fullmatch(text):
        return None
    import torch

    found: Any = torch
    for part in text.split(".")[1:] if text.startswith("torch.ops.") else ():
        found = getattr(found, part, None)  # unknown ones are told by torch
    attribute = callable(found) and not isinstance(found, (types.ModuleType, torch._ops.OperatorBase))  # noqa: SLF001
    return None if attribute else text


def _symbolic(text: str) -> str | None:
    """Sympy evaluates these as Python."""
    if len(text) > MAX_SYMBOLIC:
        return None
    plain = SYMBOL.sub(r"\1", text)
    # A power of powers takes years: symbols alone may be raised, to one digit.
    return text if SYMBOLIC.fullmatch(plain) and not POWER.search(SMALL_POWER.sub("", plain)) else None


def _value(text: str) -> str | None:
    """Text that a program computes with, "ij,jk->ik"; torch writes its repr into source."""
    return text if len(text) <= MAX_TEXT and (text.isprintable() or not text) else None


def _tree(text: str) -> str | None:
    """How inputs and outputs nest, written anew. Contexts of other classes are imported by the names that they give."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the tree of inputs or outputs is damaged: {_said(error)}") from error
    if not isinstance(tree, list) or len(tree) != 2 or tree[0] != 1 or isinstance(tree[0], bool):
        raise Refused("the tree of inputs or outputs is of another version")
    return json.dumps([1, _branch(tree[1])])


def _branch(node: Any) -> dict[str, Any]:
    """A node of a tree: a leaf, or a container that torch knows and what is in it."""
    if not isinstance(node, dict) or not {"type", "context", "children_spec"} <= set(node):
        named = node.get("type") if isinstance(node, dict) else None
        if named is not None:
            _container(named)
        raise Refused("the tree of inputs or outputs is damaged: a node without type, context and children")
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if kind is not None:
        _container(kind)
    if not isinstance(children, list):
        raise Refused("the tree of inputs or outputs is damaged: children must be a list")
    return {"type": kind, "context": _context(context), "children_spec": [_branch(child) for child in children]}


def _container(kind: Any) -> None:
    if kind in TREES:
        return
    found = OUTPUTS.fullmatch(kind) if isinstance(kind, str) else None
    if found is None:
        raise Refused(f"inputs or outputs are a {_shown(kind)}; export with tuples and dicts of tensors")
    _register(kind, found.group(1))


def _context(context: Any) -> str | None:
    """Keys of a dict, as the JSON of a JSON: text, numbers, lists of them."""
    if context is None:
        return None
    try:
        keys = json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError) as error:
        raise Refused(f"the tree of inputs or outputs is damaged: {_said(error)}") from error
    waiting = [keys]
    while waiting:
        key = waiting.pop()
        if isinstance(key, list):
            waiting.extend(key)
        elif isinstance(key, dict):
            raise Refused("the tree of inputs or outputs names a class; export with tuples and dicts of tensors")
        elif isinstance(key, str):
            if len(key) > MAX_NAME or not KEY.fullmatch(key) or key.startswith("__"):
                raise Refused(f"key {ascii(key)[:80]} of inputs or outputs is no name; export with names as keys")
        elif key is not None and (not isinstance(key, int) or abs(key) >= 2**63):
            raise Refused(f"key {ascii(key)[:80]} of inputs or outputs is no name; export with names as keys")
    return json.dumps(keys)


def _register(kind: str, module: str) -> None:
    """Import the module of transformers that defines an output, which makes it known to torch."""
    load_extra("transformers", "hf")
    try:
        with silenced():
            importlib.import_module(module)
    except Exception as error:  # a module of another extra, or none
        raise Refused(f"outputs are a {kind[:80]}, which this transformers does not have") from error


def _metadata(given: Mapping[str, Any]) -> dict[str, str]:
    """Of what is said of a node, where its module stands; the names of classes are not needed."""
    stack = given.get("nn_module_stack")
    if not stack:
        return {}
    modules = []
    for entry in str(stack).split(STACK_END):
        found = STACK.fullmatch(entry)
        if found is None or _path(found["path"]) is None or len(found["key"]) > MAX_NAME:
            return {}  # where it stands is told to people alone: without it the program runs as well
        modules.append(f"{found['key']},{found['path']},{MODULE}")
    return {"nn_module_stack": STACK_END.join(modules)}


_device = _known("[a-z]{2,16}")
_dialect = _known("[A-Z_]{0,32}")
_version = _known(r"[\w.+<=-]{0,64}")
WANTED: Mapping[Callable[[str], str | None], str] = {
    _name: "no name: names are identifiers and no keywords of Python",
    _argument: "no name of an argument",
    _path: "no path of modules: names and numbers with dots between, no keywords of Python",
    _operator: ("none that is read; aten's are: decompose it (program.run_decompositions()) or write a factory"),
    _symbolic: "no size of a tensor",
    _value: "no printable text",
    _tree: "no tree of inputs or outputs",
    _device: "no device",
    _dialect: "no dialect",
    _version: "no version",
}
STRINGS: Mapping[str, Callable[[str], str | None]] = {
    "Device.type": _device,
    "SymExpr.expr_str": _symbolic,
    "SymIntArgument.as_name": _name,
    "SymFloatArgument.as_name": _name,
    "SymBoolArgument.as_name": _name,
    "TensorArgument.name": _name,
    "TokenArgument.name": _name,
    "GraphArgument.name": _name,
    "Argument.as_string": _value,
    "Argument.as_strings": _value,
    "Argument.as_operator": _operator,
    "NamedArgument.name": _argument,
    "Node.target": _operator,
    "Node.name": _name,
    "ConstantValue.as_string": _value,
    "InputToConstantInputSpec.name": _name,
    "InputToParameterSpec.parameter_name": _path,
    "InputToBufferSpec.buffer_name": _path,
    "InputToTensorConstantSpec.tensor_constant_name": _path,
    "BufferMutationSpec.buffer_name": _path,
    "ParameterMutationSpec.parameter_name": _path,
    "GradientToParameterSpec.parameter_name": _path,
    "GradientToUserInputSpec.user_input_name": _name,
    "UserInputMutationSpec.user_input_name": _name,
    "ModuleCallSignature.in_spec": _tree,
    "ModuleCallSignature.out_spec": _tree,
    "ModuleCallSignature.forward_arg_names": _name,
    "ModuleCallEntry.fqn": _path,
    "ExportedProgram.verifiers": _dialect,
    "ExportedProgram.torch_version": _version,
    "PayloadMeta.path_name": _name,
}
"""Field of torch's schema -> the rule of its text."""
KEYS: Mapping[str, Callable[[str], str | None]] = {
    "Argument.as_string_to_argument": _name,
    "Node.metadata": _name,  # kept by _metadata()
    "Graph.tensor_values": _name,
    "Graph.sym_int_values": _name,
    "Graph.sym_bool_values": _name,
    "Graph.sym_float_values": _name,
    "Graph.custom_obj_values": _name,
    "ExportedProgram.opset_version": _name,
    "ExportedProgram.range_constraints": _symbolic,
    "PayloadConfig.config": _path,
}
"""Field that is a dict -> the rule of its keys."""
DROPPED = frozenset((
    "GraphModule.metadata", "GraphModule.treespec_namedtuple_fields", "ExportedProgram.guards_code",
))  # fmt: skip
"""Free text. The guards check what the ranges of the program check again."""


# --- objects as wholes ------------------------------------------------------------------------------------------------


def _check_node(node: Mapping[str, Any]) -> None:
    """Nothing is made that is larger than what a model for an edge device holds."""
    target = node.get("target", "")
    if not CREATES.search(target):
        return
    for key, value in _entries(node.get("inputs")):
        numbers = value if key == "as_ints" and isinstance(value, list) else [value] if key == "as_int" else []
        if _product([abs(number) for number in numbers if isinstance(number, int)], MAX_CREATED) > MAX_CREATED:
            raise Refused(f"{target} of {str(numbers)[:80]} is larger than an edge device's memory")


def _entries(root: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of nested JSON."""
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _check_signature(signature: Mapping[str, Any]) -> None:
    """Keyword arguments are parameters of the function that torch writes."""
    tree = json.loads(signature.get("in_spec") or "[1, {}]")[1]
    children = tree.get("children_spec") or []
    named = children[1].get("context") if len(children) == 2 and tree.get("type") == "builtins.tuple" else None
    keys = json.loads(named) if named else []
    for key in keys if isinstance(keys, list) else []:
        _text(_name, key, "a keyword argument")


def _check_meta(meta: Mapping[str, Any]) -> None:
    try:
        _elements(meta.get("sizes", []))
    except ValueError as error:
        raise Refused(str(error)) from error


CHECKS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "Node": _check_node,
    "TensorMeta": _check_meta,
    "ModuleCallSignature": _check_signature,
}
"""Class of torch's schema -> what is held of it as a whole."""
CUSTOM = ("CustomObjArgument", "InputToCustomObjSpec")


def _elements(sizes: list[Any]) -> int:
    """Numbers in a tensor; symbols count as 1.

    Raises:
        ValueError: for too many, or a negative size.
    """
    numbers = [size.get("as_int") for size in sizes if isinstance(size, dict)]
    plain = [number for number in numbers if isinstance(number, int)]
    count = _product(plain, MAX_ELEMENTS)
    if count > MAX_ELEMENTS or len(numbers) > MAX_RANK or any(number < 0 for number in plain):
        raise ValueError(f"a tensor of {str(numbers)[:80]} is no part of a model for an edge device")
    return count


def _product(numbers: list[int], limit: int) -> int:
    """Of sizes, or anything above the limit: a product of a million numbers takes hours."""
    if 0 in numbers:
        return 0
    product = 1
    for number in numbers:
        product *= number
        if abs(product) > limit:
            break
    return product


def _check_tensors(
    path: Path, folder: str, config: Mapping[str, Any], files: Mapping[str, zipfile.ZipInfo]
) -> list[str]:
    """Names of the files that hold the tensors."""
    entries = config.get("config")
    if not isinstance(entries, dict):
        raise ModelError(f"{path}: {folder} lists no tensors")
    stored_in = []
    for name, entry in entries.items():
        stored = entry.get("path_name") if isinstance(entry, dict) else None
        if (
            not isinstance(stored, str)
            or not re.fullmatch(r"(weight|tensor)_[0-9]+", stored)
            or entry.get("use_pickle")
        ):
            raise ModelError(
                f"{path}: {ascii(name)[:80]} is stored as a pickle, which could run code; export it as a tensor"
            )
        meta = entry.get("tensor_meta")
        if folder + stored not in files or not isinstance(meta, dict) or not isinstance(meta.get("sizes"), list):
            raise ModelError(f"{path}: {ascii(name)[:80]} is missing or has no shape; write it again: {EXPORT}")
        held = files[folder + stored].file_size
        try:
            count = _elements(meta["sizes"])
        except ValueError as error:
            raise ModelError(f"{path}: {error}") from error
        if count > (held + SPARE_BYTES if held else 0):  # one byte a number at least
            raise ModelError(f"{path}: {ascii(name)[:80]} is larger than what is stored of it, {held} bytes")
        stored_in.append(folder + stored)
    return stored_in


def _check_samples(path: Path, data: bytes) -> None:
    """Torch tries weights_only first and then, if that fails, without."""
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
