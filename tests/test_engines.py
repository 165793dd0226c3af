"""An engine is a row, a file in each of three rooms and an entry in each of three tables: nothing else has to know it.

The made-up engine is added to a copy of the sources, as a contributor would add it: ``abacus`` runs ONNX node by node
in numpy, by the evaluator that comes with onnx.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import pytest

from edgeattn.converters.engines import CONVERTERS
from edgeattn.engines import ENGINES, LITERT, TREATMENT, Engine, Files
from edgeattn.graphs.files import READERS
from edgeattn.guards.plain import read_toml
from edgeattn.quantize.engines import QUANTIZERS
from edgeattn.runtimes.engines import OPENERS
from edgeattn.targets import cpu_features, get_target
from tests.conversions import write_model_and_data
from tests.wheels import ROOMS, ROOT, copy_sources

EXTRAS = read_toml(ROOT / "pyproject.toml", "project")["project"]["optional-dependencies"]
TABLES = {
    "converters": ("CONVERTERS", CONVERTERS),
    "quantize": ("QUANTIZERS", QUANTIZERS),
    "runtimes": ("OPENERS", OPENERS),
}

ROW = """\
ABACUS = Engine(
    name="abacus",
    title="Abacus",
    packages=(("onnx", "onnx"),),
    install="pip install onnx",
    extra="convert",
    files="onnx",
    recipes=("fp32", "int8-static"),
    tried=("int8-static",),
    products=frozenset({"Beads"}),
)

ENGINES: Mapping[str, Engine] = {row.name: row for row in (ABACUS, """
CONVERTER = '''\
"""The exported ONNX as it is."""

from dataclasses import replace

from edgeattn.converters.conversion import Conversion
from edgeattn.engines import ABACUS
from edgeattn.model import Artifact


def convert(work: Conversion) -> Artifact:
    """Float or quantized."""
    if work.quantized is not None:
        return replace(work.quantized, backend=ABACUS.name)
    return Artifact(ABACUS.name, "fp32", work.source.onnx, "ONNX on an abacus")
'''
RUNTIME = '''\
"""ONNX, node by node in numpy."""

import numpy as np

from edgeattn.engines import ABACUS
from edgeattn.runtimes.session import Session
from edgeattn.runtimes.step import HostStep


class AbacusStep(HostStep):
    def __init__(self, evaluator, graph):
        super().__init__(graph)
        self.evaluator = evaluator

    def infer(self):
        read, write = self.bindings(self.parity)
        names = list(write)
        for name, value in zip(names, self.evaluator.run(names, read), strict=True):
            np.copyto(write[name], value)

    def free(self):
        self.evaluator = None


class AbacusSession(Session):
    backend = ABACUS.name

    def __init__(self, evaluators, spec, threads):
        super().__init__(spec, "1", threads)
        self.evaluators = evaluators

    def new_step(self, graph):
        return AbacusStep(self.evaluators[graph.name], graph)

    def census(self):
        counts = {}
        for evaluator in self.evaluators.values():
            graph = evaluator.proto_.graph
            quantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
            for node in graph.node:
                if node.op_type in ("MatMul", "Gemm"):
                    dtype = "int8" if quantized.intersection(node.input) else "float32"
                    counts[dtype] = counts.get(dtype, 0) + 1
        return {"Beads": counts}

    def layer_times(self, inputs, runs, graph):
        return None

    def release(self):
        self.evaluators = {}


def open_abacus(models, spec, threads):
    """A session on the files."""
    onnx = ABACUS.load()
    from onnx.reference import ReferenceEvaluator

    evaluators = {}
    for graph, path in models.items():
        model = onnx.load(path)
        model.opset_import[0].version = 19  # the first for which numpy has Q/DQ; the rest is as in 18
        evaluators[graph] = ReferenceEvaluator(model)
    return AbacusSession(evaluators, spec, threads)
'''
TARGET = """\
name = "desk"
title = "a desk with an abacus"
backends = ["abacus"]

[precisions]
abacus = ["fp32", "int8"]

[cpu]
arch = "other"
cores = 1
isa = []
source = "counted"

[memory]
source = "counted"
"""


def missing_parts(engine: str) -> list[str]:
    """What an engine lacks to be converted to, quantized for and run, in the words of someone who adds it."""
    if engine not in ENGINES:
        return ["edgeattn/engines.py: a row in ENGINES"]
    row = ENGINES[engine]
    parts = []
    for room, (name, table) in TABLES.items():
        shared = room == "quantize" and row.files == "onnx"  # quantize/onnx.py
        if not shared and importlib.util.find_spec(f"edgeattn.{room}.{engine}") is None:
            parts.append(f"{room}/{engine}.py")
        if engine not in table:
            parts.append(f"{room}/engines.py: an entry in {name}")
    if row.files not in READERS:
        parts.append(f"edgeattn/graphs/files.py: a reader of {row.files} in READERS")
    return parts


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Engine]:
    """Puts a row into the table, made of LiteRT's."""

    def add(name: str, **facts: Any) -> Engine:
        row = replace(LITERT, name=name, **facts)
        monkeypatch.setitem(cast("dict[str, Engine]", ENGINES), name, row)
        return row

    return add


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources with the made-up engine in it, and a model, its data and a target beside it."""
    root = copy_sources(tmp_path_factory.mktemp("abacus"))
    row, files = root / "edgeattn/engines.py", "ENGINES: Mapping[str, Engine] = {row.name: row for row in ("
    assert row.read_text().count(files) == 1
    row.write_text(row.read_text().replace(files, ROW))
    (root / "converters/abacus.py").write_text(CONVERTER)
    (root / "runtimes/abacus.py").write_text(RUNTIME)
    entries = {
        "converters": "    from edgeattn.converters.abacus import convert\n\n    return convert(work)\n",
        "quantize": "    return _onnx(work)\n",
        "runtimes": "    from edgeattn.runtimes.abacus import open_abacus\n\n    return open_abacus(*work[:3])\n",
    }
    for room, body in entries.items():
        file, (name, _) = root / room / "engines.py", TABLES[room]
        star = "*" if room == "runtimes" else ""
        entry = f'\n\ndef _abacus({star}work):\n{body}\n\n{name}["abacus"] = _abacus\n'
        file.write_text(file.read_text() + entry)
    write_model_and_data(root)
    (root / "desk.toml").write_text(TARGET)
    return root


def in_copy(copy: Path, *words: str) -> str:
    """What Python prints there; its own sources come before those of this tree."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(copy), str(ROOT)))}
    done = subprocess.run([sys.executable, *words], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_has_all_its_parts(engine: str) -> None:
    assert missing_parts(engine) == []


@pytest.mark.parametrize("room", TABLES)
def test_no_entry_is_left_of_an_engine_that_is_gone(room: str) -> None:
    assert TABLES[room][1].keys() == ENGINES.keys()


def test_what_a_new_engine_lacks_is_named(added: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_parts("abacus") == ["edgeattn/engines.py: a row in ENGINES"]
    added("abacus", files="clay")
    assert missing_parts("abacus") == [
        "converters/abacus.py",
        "converters/engines.py: an entry in CONVERTERS",
        "quantize/abacus.py",
        "quantize/engines.py: an entry in QUANTIZERS",
        "runtimes/abacus.py",
        "runtimes/engines.py: an entry in OPENERS",
        "edgeattn/graphs/files.py: a reader of clay in READERS",
    ]


def test_an_engine_that_loads_onnx_needs_no_quantizer_of_its_own(added: Callable[..., Engine]) -> None:
    added("abacus", files="onnx")
    assert "quantize/abacus.py" not in missing_parts("abacus")


@pytest.mark.slow
def test_an_engine_with_a_row_three_files_and_three_entries_is_converted_to_and_runs(copy: Path) -> None:
    pytest.importorskip("onnxscript", reason="the conversion needs edgeattn[convert]")
    parts = "from tests.test_engines import missing_parts; print(missing_parts('abacus'))"
    assert in_copy(copy, "-c", parts) == "[]\n"
    report = json.loads(
        in_copy(
            copy, "-m", "edgeattn", "convert", "small_attention.py", "--target", "desk.toml", "--out", "out",
            "--data", "small_attention.npz", "--json", "--paced-seconds", "1", "--max-drop", "100",
        )
    )  # fmt: skip
    (result,) = report["results"]
    assert (result["backend"], result["passed"]) == ("abacus", True)
    candidates = {row["scheme"]: row["accuracy"] for row in result["precision"]["candidates"]}
    assert set(candidates) == {"fp32", "int8-static"}
    assert all(metric is not None for metric in candidates.values())
    assert result["latency"]["kind"] == "measured"
    run = (
        "import json, numpy as np; from edgeattn.runtimes import load; from edgeattn.sources import load_model\n"
        "tokens = np.load('small_attention.npz')['tokens'][:1]\n"
        f"session = load({result['bundle']!r})\n"
        "got, wanted = (r.run({'tokens': tokens})['scores'] for r in (session, load_model('small_attention.py')))\n"
        "print(json.dumps([session.backend, float(np.abs(got - wanted).max())]))"
    )
    backend, difference = json.loads(in_copy(copy, "-c", run))
    assert backend == "abacus"
    assert difference < 1e-4
    assert "abacus" in in_copy(copy, "-m", "edgeattn", "doctor")


@pytest.mark.parametrize("row", ENGINES.values(), ids=ENGINES)
def test_a_row_names_what_is_there(row: Engine) -> None:
    assert {*row.tried, *row.fallback} <= set(row.recipes)
    assert set(row.recipes) - {"fp32", "fp16"} <= TREATMENT.keys()
    assert row.recipes[0] == "fp32"
    assert set(row.substitutes) <= ENGINES.keys()
    assert row.extra in EXTRAS
    assert row.always_integer <= row.products
    assert row.files in get_args(Files)


def test_every_format_that_an_engine_loads_can_be_read_as_a_graph() -> None:
    assert READERS.keys() == set(get_args(Files))


def test_only_an_engine_of_a_device_has_another_run_its_files_here() -> None:
    assert {name: row.here for name, row in ENGINES.items()} == {
        **{name: name for name in ("openvino", "litert", "onnxruntime")},
        "tensorrt": "onnxruntime",
    }


@pytest.mark.parametrize(
    ("arch", "backends"),
    [("x86_64", ("openvino", "onnxruntime", "litert")), ("aarch64", ("litert", "openvino", "onnxruntime"))],
)
def test_this_machine_prefers_engines_by_its_architecture(
    arch: str, backends: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = replace(cpu_features(), arch=arch)
    monkeypatch.setattr("edgeattn.targets.host.cpu_features", lambda: features)
    assert get_target("cpu").backends == backends


def test_the_name_of_an_engine_is_a_literal_in_few_files() -> None:
    quoted = tuple(f"{mark}{name}{mark}" for name in ENGINES for mark in "\"'")
    files = [
        file.relative_to(ROOT).as_posix()
        for room in ("edgeattn", *ROOMS)
        for file in sorted((ROOT / room).rglob("*.py"))
        if not file.is_symlink() and any(name in file.read_text(encoding="utf-8") for name in quoted)
    ]
    assert len(set(files)) <= 8, files
