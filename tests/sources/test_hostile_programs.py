"""A .pt2 whose strings are code: every string of real programs, one after the other, and nothing of it is run."""

from __future__ import annotations

import dataclasses
import importlib
import io
import itertools
import json
import typing
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import EdgeattnError, ModelError
from edgeattn.sources import exported
from edgeattn.sources.program import clean_archive, rules, wholes

torch = pytest.importorskip("torch", reason="programs are torch's: edgeattn[convert]")

GRAPH = "models/model.json"
MARK = b"exec(bytes"
Place = tuple[Any, ...]


class Block(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Parameters, a buffer that is saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.register_buffer("shift", torch.ones(8))
        self.register_buffer("scale", torch.ones(8), persistent=False)

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.gelu(self.linear(x) + self.shift, approximate="tanh") * self.scale


class Nested(torch.nn.Module):  # type: ignore[misc,name-defined]
    """All that a program's JSON can say of one model: trees of inputs, states, symbols, text, constants, calls."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.blocks = torch.nn.ModuleList([Block(), Block()])
        self.named = torch.nn.ModuleDict({"my-head": torch.nn.Linear(8, 8)})
        self.three = torch.ones(3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Any, pair: Any, batch: Any, *, flag: Any = None, word: str = "a") -> dict[str, Any]:
        y = self.block(self.block(x))
        for block in self.blocks:
            y = self.named["my-head"](block(y))
        self.calls.add_(1)
        parts = torch.split(pair[0], 1)
        with torch.autocast("cpu", enabled=False):
            y = torch.einsum("bij,bkj->bik", y, y)
        literal = torch.tensor([1.0, 2.0, 3.0])
        return {
            "hidden": y[:, : x.shape[1] - 1],
            "others": (parts[0] * self.three, batch["tokens"] + pair[1]),
            "literal": literal + self.three,
            "flat": y.view(-1, 1).sum() + float("inf"),
        }


class Choice(torch.nn.Module):  # type: ignore[misc,name-defined]
    """Graphs inside the graph."""

    def forward(self, x: Any) -> Any:
        return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))


def program(name: str) -> Any:
    torch.manual_seed(0)
    if name == "choice":
        return torch.export.export(Choice().eval(), (torch.ones(2),))
    args = (torch.randn(1, 5, 8), (torch.ones(3), torch.ones(3, dtype=torch.int64)), {"tokens": torch.arange(3)})
    length = torch.export.Dim("length", min=3, max=64)
    shapes = {"x": {1: length}, "pair": (None, None), "batch": {"tokens": None}, "flag": None, "word": None}
    return torch.export.export(
        Nested().eval(),
        args,
        {"flag": None, "word": "a"},
        dynamic_shapes=shapes,
        preserve_module_call_signature=("block", "blocks.0"),
        strict=False,
    )


def files_of(made: Any) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.export.save(made, buffer)
    with zipfile.ZipFile(buffer) as opened:
        return {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}


@pytest.fixture(scope="module", params=["nested", "choice"])
def files(request: pytest.FixtureRequest) -> dict[str, bytes]:
    return files_of(program(request.param))


def write(files: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in files.items():
            opened.writestr(f"net/{name}", data)
    return path


def places(value: Any, at: Place = ()) -> Iterator[Place]:
    """Of every string and every key of nested JSON, also of JSON inside its strings; a key is ``(..., key, "key")``."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*at, key, "key")
            yield from places(item, (*at, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from places(item, (*at, index))
    elif isinstance(value, str):
        yield at
        if value[:1] in ("[", "{"):
            yield from places(json.loads(value), (*at, "json"))


def kind_of(place: Place, value: Any) -> Place:
    """Places that torch reads alike: without indices and names."""
    kinds = []
    for part in place:
        named = isinstance(value, dict) and part not in FIELDS
        kinds.append("" if named or isinstance(part, int) else part)
        if part == "json":
            value = json.loads(value)
        elif part != "key":
            value = value[part]
    return tuple(kinds)


def changed(value: Any, place: Place, text: str) -> Any:
    """A copy with another string, or key, at a place."""
    if not place:
        return text
    if place[0] == "json":
        return json.dumps(changed(json.loads(value), place[1:], text))
    if isinstance(value, list):
        return [changed(item, place[1:], text) if index == place[0] else item for index, item in enumerate(value)]
    if place[1:] == ("key",):
        return {text if key == place[0] else key: item for key, item in value.items()}
    return {key: changed(item, place[1:], text) if key == place[0] else item for key, item in value.items()}


def schema_fields() -> Iterator[tuple[type, str, Any]]:
    schema = importlib.import_module("torch._export.serde.schema")
    waiting = [schema.ExportedProgram, schema.PayloadConfig]
    seen = set()
    while waiting:
        kind = waiting.pop()
        if kind in seen:
            continue
        seen.add(kind)
        for name, hint in typing.get_type_hints(kind, globalns=vars(schema)).items():
            yield kind, name, hint
            parts = [hint]
            while parts:
                part = parts.pop()
                parts += typing.get_args(part)
                if dataclasses.is_dataclass(part):
                    waiting.append(typing.cast(type, part))


FIELDS = {name for _, name, _ in schema_fields()} | {"type", "context", "children_spec", "stack_trace",
          "nn_module_stack", "torch_fn", "source_fn_stack", "custom", "from_node"}  # fmt: skip


def payloads(made: Path, old: str) -> Iterator[str]:
    """Text that runs code where it becomes Python: as a default, a statement, out of quotes, without dots."""
    statement = f"open({str(made)!r}, 'w')"
    code = f"{MARK.decode()}({list(statement.encode())}))"
    yield f"{old}={code}"
    yield f"{old}\n    {code}\n    #"
    yield f'{old}");{code};("'
    yield f"{old}'+str({code})+'"
    yield code


@pytest.mark.slow
def test_code_in_any_string_of_a_program_is_never_run(files: dict[str, bytes], tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = tmp_path / "bad.pt2"
    tried = 0
    for name in [name for name in files if name.endswith(".json")]:
        whole = json.loads(files[name])
        chosen: dict[Place, Place] = {}
        for place in places(whole):
            chosen.setdefault(kind_of(place, whole), place)
        for place in chosen.values():
            old = str(place[-2] if place[-1] == "key" else place[-1])
            tries = payloads(made, old if old.isidentifier() else "x")
            for payload in itertools.islice(tries, 1 if place[-1] == "key" and old in FIELDS else None):
                write({**files, name: json.dumps(changed(whole, place, payload)).encode()}, path)
                said = ""
                try:
                    if MARK in clean_archive(path).data.getvalue():  # else torch does not see it
                        exported.load(str(path))
                except EdgeattnError as error:
                    said = str(error)
                assert "\n" not in said, place
                assert len(said) < 1_000, place
                assert not made.exists(), (place, payload)
                tried += 1
    assert tried > 200


@pytest.mark.parametrize(
    "name",
    ["y=__import__('os').system('')", "lambda", "a b", "", "x\n", "1x", "__class__", "x.y", "\uff58", "x" * 5_000],
)
@pytest.mark.parametrize("where", ["argument", "input", "node", "output"])
def test_a_name_that_is_no_identifier_is_refused(where: str, name: str, tmp_path: Path) -> None:
    files = files_of(program("choice"))
    graph = json.loads(files[GRAPH])
    inner = graph["graph_module"]["graph"]
    if where == "argument":
        graph["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [name]
    elif where == "input":
        inner["inputs"][0]["as_tensor"]["name"] = name
    elif where == "node":
        inner["nodes"][0]["name"] = name
    else:
        inner["outputs"][0]["as_tensor"]["name"] = name
    files[GRAPH] = json.dumps(graph).encode()
    with pytest.raises(ModelError, match="is no name"):
        exported.load(str(write(files, tmp_path / "bad.pt2")))


@pytest.mark.parametrize(
    "damage",
    [
        ("as_int", 10**400, "fits no integer of 64 bits"),
        ("as_int", True, "SymInt.as_int must be int, got bool"),
        ("sizes", [{"as_int": 2**60}] * 20_000, "no part of a model for an edge device"),
        ("sizes", [{"as_int": 1}] * 100, "no part of a model for an edge device"),
        ("sizes", {}, "TensorMeta.sizes must be list"),
        ("unknown", None, "must hold one of its forms"),
    ],
    ids=["huge", "bool", "endless product", "axes", "no list", "no form"],
)
def test_numbers_and_forms_are_held_to_torchs_schema(damage: tuple[str, Any, str], tmp_path: Path) -> None:
    field, value, message = damage
    files = files_of(program("choice"))
    graph = json.loads(files[GRAPH])
    meta = next(iter(graph["graph_module"]["graph"]["tensor_values"].values()))
    if field == "sizes":
        meta["sizes"] = value
    else:
        meta["sizes"][0] = {field: value}
    files[GRAPH] = json.dumps(graph).encode()
    with pytest.raises(ModelError, match=message):
        exported.load(str(write(files, tmp_path / "bad.pt2")))


def test_every_text_of_torchs_schema_has_a_rule() -> None:
    """A field that a newer torch adds is refused until it has one."""
    for kind, name, hint in schema_fields():
        place = f"{kind.__name__}.{name}"
        if place in rules.DROPPED or kind.__name__ in (*wholes.CUSTOM, "NamedTupleDef"):  # in what is dropped
            continue
        parts = [hint]
        while parts:
            part = parts.pop()
            if typing.get_origin(part) is dict:
                assert place in rules.KEYS
                parts.append(typing.get_args(part)[1])
                continue
            parts += typing.get_args(part)
            if part is str and place != "Node.metadata":
                assert place in rules.STRINGS, place


def test_an_attribute_of_an_operators_namespace_is_no_operator(tmp_path: Path) -> None:
    for target in (
        "torch.ops.aten.add.overloads",
        "torch.ops.aten.__class__",
        "torch.ops.aten.add",
        "torch.ops.aten.__init_subclass__",
        "torch.ops.aten.relu.default.__call__",
    ):
        files = files_of(program("choice"))
        graph = json.loads(files[GRAPH])
        graph["graph_module"]["graph"]["nodes"][0]["target"] = target
        files[GRAPH] = json.dumps(graph).encode()
        with pytest.raises(ModelError, match=r"operator .* is none that is read"):
            exported.load(str(write(files, tmp_path / "bad.pt2")))
