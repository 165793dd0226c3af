"""Units of imported ONNX graphs: what is found, that removing equals zeroing, and that files and engines take it."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="pruning needs edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="ONNX sources need edgeattn[convert]")

import onnx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from edgeattn.converters.onnx import export_onnx
from edgeattn.engines import ENGINES as ROWS
from edgeattn.errors import ModelError, UnsupportedError
from edgeattn.guards.silence import silenced
from edgeattn.model import Arrays, EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.pruning.anatomy import Prunable
from edgeattn.pruning.apply import prune
from edgeattn.pruning.axes import Lie, MixedError, letters, reshaped
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.imported import find
from edgeattn.pruning.saved import apply_saved
from edgeattn.pruning.trials import prunable
from edgeattn.pruning.writing import write_pruned
from edgeattn.runtimes import open_session
from edgeattn.sources import from_module, load_model
from edgeattn.sources.sizes import with_buckets
from edgeattn.targets import get_target
from tests.acceptance.cells import ENGINES, TARGETS, like
from tests.architectures import TRANSFORMERS, named

SAME = 1e-5
RNG = np.random.default_rng(0)


class Odd(nn.Module):
    """Causal attention with rotated halves, grouped queries and a gate; its layers have names that no family uses."""

    DIM, QUERIES, KEYS, SIZE, HIDDEN = 16, 4, 2, 6, 10

    def __init__(self) -> None:
        super().__init__()
        wide, narrow = self.QUERIES * self.SIZE, self.KEYS * self.SIZE
        self.ask, self.match, self.carry = (nn.Linear(self.DIM, n) for n in (wide, narrow, narrow))
        self.back = nn.Linear(wide, self.DIM)
        self.both, self.down = nn.Linear(self.DIM, 2 * self.HIDDEN), nn.Linear(self.HIDDEN, self.DIM)
        self.norm = nn.LayerNorm(self.DIM)
        self.slope = nn.Parameter(torch.rand(self.QUERIES, 1, 1) + 0.5)

    def heads(self, x: Tensor, layer: nn.Module, count: int) -> Tensor:
        y: Tensor = layer(x).reshape(x.shape[0], x.shape[1], count, self.SIZE).transpose(1, 2)
        return y.repeat_interleave(self.QUERIES // count, 1) if count < self.QUERIES else y

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.heads(x, self.ask, self.QUERIES), self.heads(x, self.match, self.KEYS)
        q, k = (torch.cat((-y[..., 3:], y[..., :3]), -1) + y for y in (q, k))
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        weights = torch.softmax((q @ k.transpose(-1, -2) * self.slope).masked_fill(hidden, -torch.inf), -1)
        mixed = weights @ self.heads(x, self.carry, self.KEYS)
        x = self.norm(x + self.back(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)))
        a, b = self.both(x).chunk(2, -1)
        return x + torch.as_tensor(self.down(a * torch.sigmoid(b)))


class Talking(Odd):
    """Heads that read each other's scores (Shazeer et al. 2020): none can be removed alone."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(self.QUERIES, self.QUERIES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.heads(x, self.ask, self.QUERIES), self.heads(x, self.match, self.KEYS)
        scores = self.mix((q @ k.transpose(-1, -2)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        mixed = torch.softmax(scores, -1) @ self.heads(x, self.carry, self.KEYS)
        x = self.norm(x + self.back(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1)))
        return x + torch.as_tensor(self.down(torch.relu(self.both(x)[..., : self.HIDDEN])))


class Normed(Odd):
    """All queries are normalized as one vector."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("ask", nn.Sequential(self.ask, nn.LayerNorm(self.QUERIES * self.SIZE)))


@functools.cache
def exported(name: str, directory: Path) -> EdgeModel:
    """An architecture of the catalogue as an ONNX file that edgeattn wrote."""
    module, inputs = named(name).build()
    with silenced():
        path = export_onnx(from_module(module, inputs, "source"), directory)["main"]
    return load_model(str(path))


def scripted(module: nn.Module, path: Path, time: int = 7) -> EdgeModel:
    """A module over x (1, time, 16) as torch.onnx.export's older exporter writes it, time open."""
    torch.manual_seed(0)
    module = module.eval()
    x = torch.randn(1, time, 16)
    with silenced(), torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(
            module, (x,), str(path), input_names=["x"], output_names=["y"], dynamo=False,
            dynamic_axes={"x": {1: "time"}, "y": {1: "time"}},
        )  # fmt: skip
    np.savez(path.with_suffix(".npz"), x=x.numpy())
    return load_model(str(path))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> EdgeModel:
    torch.manual_seed(0)
    return scripted(Odd(), tmp_path_factory.mktemp("odd") / "odd.onnx")


def unequal(found: Prunable) -> Cut:
    """Another part of each unit removed, another number in turn."""
    groups = {}
    for number, unit in enumerate(found.anatomy.units):
        gone = {number % unit.groups} if number % 2 or unit.groups == 2 else {number % unit.groups, unit.groups - 1}
        groups[unit.key] = tuple(group for group in range(unit.groups) if group not in gone)
    return Cut(groups)


def zeroed(found: Prunable, cut: Cut) -> EdgeModel:
    """The original with zeros in the weights through which what was removed leaves."""
    network = copy.deepcopy(found.network)
    for unit in found.anatomy.units:
        for path in (unit.exit, *unit.tied):
            weight: Any = network.get_submodule(path).weight
            columns = weight.data.view(weight.shape[0], unit.groups, unit.width)
            columns[:, [g for g in range(unit.groups) if g not in cut.groups[unit.key]]] = 0.0
    assert found.model.rebuild is not None
    return found.model.rebuild(network)


def largest(one: EdgeModel, other: EdgeModel, calls: Sequence[Arrays], graph: str = "main") -> float:
    """The largest difference of an output, of its size, which counts as 1 at least: sums round as large as they are."""
    pairs = ((one.run(inputs, graph), other.run(inputs, graph)) for inputs in calls)
    return max(
        float(np.abs(a[name] - b[name]).max()) / max(1.0, float(np.abs(a[name]).max())) for a, b in pairs for name in a
    )


def check_removal(model: EdgeModel) -> Prunable:
    """Remove an unequal part; the result must equal the original with zeros, on the example and on other inputs."""
    found = prunable(model)
    cut = unequal(found)
    pruned = prune(found, cut)
    example = model.example["main"]
    assert largest(zeroed(found, cut), pruned, [example, *like(example, 2, seed=1)]) <= SAME
    assert pruned.spec.graphs[0].input_names == model.spec.graphs[0].input_names
    assert pruned.spec.graphs[0].output_names == model.spec.graphs[0].output_names
    assert pruned.network is not None
    left = {unit.key: unit.groups for unit in find(pruned.network).units}
    assert left == {key: len(kept) for key, kept in cut.groups.items() if len(kept) > 1}
    return found


# --- what is found ----------------------------------------------------------------------------------------------------

QUICK = ("nn.TransformerEncoder",)
FAMILIES = ("BERT", "DistilBERT", "ViT", "GPT-2", "Whisper encoder", "nn.TransformerEncoder")


def kinds(found: Prunable) -> list[tuple[str, int, int, int, int]]:
    return sorted((u.kind, u.groups, u.width, u.heads, u.head_dim) for u in found.anatomy.units)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_a_graph_has_the_units_that_its_torch_module_has(name: str, tmp_path: Path) -> None:
    if named(name).needs:
        pytest.importorskip(TRANSFORMERS, reason=f"{name} is a class of transformers")
    found = check_removal(exported(name, tmp_path))
    module, inputs = named(name).build()
    by_name = prunable(from_module(module, inputs, name))
    more = [unit for unit in found.anatomy.units if unit.exit == "classifier"]  # the pooler is a layer of neurons too
    assert sorted([*kinds(by_name), *(("feedforward", unit.groups, 1, 0, 0) for unit in more)]) == kinds(found)
    assert not found.anatomy.unknown
    assert not any(unit.tied for unit in found.anatomy.units)


@pytest.mark.slow
def test_blocks_that_share_a_bias_of_positions_are_one_unit(tmp_path: Path) -> None:
    pytest.importorskip(TRANSFORMERS, reason="T5 is a class of transformers")
    found = check_removal(exported("T5", tmp_path))
    encoder = found.anatomy.unit("attention:encoder.block")
    assert (encoder.groups, len(encoder.entries), len(encoder.tied)) == (4, 6, 1)
    bias = {piece.module for piece in encoder.slices} - {*encoder.entries, encoder.exit, *encoder.tied}
    assert len(bias) == 1, "it was folded into a constant, added to the mask once"
    assert sum(unit.cross for unit in found.anatomy.units) == 2


def test_structure_alone_finds_grouped_queries_and_a_gate_under_any_names(odd: EdgeModel) -> None:
    found = check_removal(odd)
    attention, feedforward = found.anatomy.units
    assert (attention.kind, attention.groups, attention.width, attention.heads, attention.head_dim) == (
        "attention", Odd.KEYS, 12, Odd.QUERIES, Odd.SIZE,
    )  # fmt: skip
    assert attention.entries == ("ask", "match", "carry")
    assert (attention.exit, feedforward.exit) == ("back", "down")
    assert any(piece.tensor == "slope" and piece.width == 2 for piece in attention.slices)
    assert (feedforward.kind, feedforward.groups, feedforward.entries) == ("feedforward", Odd.HIDDEN, ("both",))


def test_heads_that_read_each_other_are_unknown_and_left_whole(tmp_path: Path) -> None:
    found = check_removal(scripted(Talking(), tmp_path / "talking.onnx"))
    assert [unit.kind for unit in found.anatomy.units] == ["feedforward"]
    assert {one.path for one in found.anatomy.unknown} == {"mix", "back"}


def test_heads_that_are_normalized_together_are_unknown_and_the_step_is_named(tmp_path: Path) -> None:
    found = check_removal(scripted(Normed(), tmp_path / "normed.onnx"))
    assert [unit.kind for unit in found.anatomy.units] == ["feedforward"]
    (unknown,) = found.anatomy.unknown
    said = r"fewer than two heads can be told apart: node .*ask.* \(LayerNormalization\) mixes them"
    assert re.fullmatch(said, unknown.why)


# --- attention as one operator ----------------------------------------------------------------------------------------


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def one_operator(path: Path, nodes: Sequence[onnx.NodeProto], constants: Arrays, **domains: int) -> EdgeModel:
    """A graph over x (1, 5, 16) whose attended values m leave through a product with weights w_o."""
    graph = helper.make_graph(
        [*nodes, helper.make_node("MatMul", ["m", "w_o"], ["y"])], "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    imports = [helper.make_opsetid(name.replace("_", "."), version) for name, version in domains.items()]
    opset = [] if "" in domains else [helper.make_opsetid("", 23 if not domains else 17)]
    onnx.save(helper.make_model(graph, opset_imports=[*opset, *imports], ir_version=10), path)
    return load_model(str(path))


def products(**columns: int) -> tuple[list[onnx.NodeProto], Arrays]:
    nodes = [helper.make_node("MatMul", ["x", f"w_{name}"], [name]) for name in columns]
    return nodes, {f"w_{name}": normal(16, size) for name, size in columns.items()}


def test_the_attention_operator_of_the_standard_loses_heads(tmp_path: Path) -> None:
    nodes, weights = products(q=32, k=16, v=12)
    attention = helper.make_node("Attention", ["q", "k", "v"], ["m"], q_num_heads=4, kv_num_heads=2)
    found = check_removal(one_operator(tmp_path / "a.onnx", [*nodes, attention], {**weights, "w_o": normal(24, 16)}))
    (unit,) = found.anatomy.units
    assert (unit.groups, unit.width, unit.heads, unit.head_dim) == (2, 12, 4, 6)


def test_a_fused_attention_of_onnx_runtime_loses_heads(tmp_path: Path) -> None:
    nodes, weights = products(q=32, k=32, v=32)
    attention = helper.make_node("MultiHeadAttention", ["q", "k", "v", "b"], ["m"], domain="com.microsoft", num_heads=4)
    held = {**weights, "b": normal(96), "w_o": normal(32, 16)}
    found = check_removal(one_operator(tmp_path / "m.onnx", [*nodes, attention], held, com_microsoft=1))
    (unit,) = found.anatomy.units
    assert (unit.groups, unit.width, len(unit.entries)) == (4, 8, 3)
    assert sum(piece.tensor == "b" for piece in unit.slices) == 3


def test_projections_inside_of_a_fused_attention_are_a_linear_layer(tmp_path: Path) -> None:
    attention = helper.make_node("Attention", ["x", "w", "b"], ["m"], domain="com.microsoft", num_heads=4)
    held = {"w": normal(16, 96), "b": normal(96), "w_o": normal(32, 16)}
    found = check_removal(one_operator(tmp_path / "p.onnx", [attention], held, com_microsoft=1))
    (unit,) = found.anatomy.units
    assert (unit.groups, unit.width, len(unit.entries)) == (4, 8, 1)
    assert unit.entries[0].endswith(".projection")


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_an_operator_that_is_not_imported_is_named_and_what_still_works_is_offered(tmp_path: Path) -> None:
    odd_one = helper.make_node("Unique", ["x"], ["m"], name="odd", axis=1)
    model = one_operator(tmp_path / "u.onnx", [odd_one], {"w_o": normal(16, 16)})
    with pytest.raises(
        UnsupportedError, match=r"node 'odd' \(Unique\).* no layers to prune.*still work; .*torch module"
    ):
        prunable(model)


def test_a_graph_without_attention_or_neurons_is_refused(tmp_path: Path) -> None:
    model = one_operator(tmp_path / "n.onnx", [helper.make_node("Tanh", ["x"], ["m"])], {"w_o": normal(16, 16)})
    with pytest.raises(UnsupportedError, match="no attention block or feed-forward that can be pruned was found"):
        prunable(model)


# --- sizes, files and engines -----------------------------------------------------------------------------------------


def test_buckets_of_a_pruned_file_compute_what_the_zeroed_file_does(odd: EdgeModel) -> None:
    bucketed = with_buckets(odd, {"time": (7, 11)})
    found = prunable(bucketed)
    cut = unequal(found)
    pruned = prune(found, cut)
    assert len(pruned.spec.graphs) == 2
    single = prunable(odd)
    for graph in pruned.spec.graphs:
        shape = graph.inputs[0].shape
        x = {"x": normal(*shape)}
        assert odd.resize is not None
        reference = zeroed(single, cut)
        assert reference.resize is not None
        module, _ = reference.resize("main", x)
        with torch.no_grad():
            wanted = module(x=torch.from_numpy(x["x"]))["y"].numpy()
        np.testing.assert_allclose(pruned.run(x, graph.name)["y"], wanted, atol=SAME)


def test_a_size_that_the_file_does_not_take_is_refused(odd: EdgeModel) -> None:
    pruned = prune(found := prunable(odd), unequal(found))
    assert pruned.resize is not None
    with pytest.raises(ModelError, match=r"does not take x \[1, 7, 15\]"):
        pruned.resize("main", {"x": normal(1, 7, 15)})


def test_a_pruned_file_is_written_as_an_onnx_file_that_loads_alone(odd: EdgeModel, tmp_path: Path) -> None:
    found = prunable(odd)
    cut = unequal(found)
    pruned = prune(found, cut)
    path = write_pruned(tmp_path / "odd.pruned", pruned, odd, cut, "odd.onnx", {}, export=export_onnx)
    assert json.loads((path / "pruning.json").read_text())["facts"] == {"loads": "alone", "program": "model.onnx"}
    read = load_model(str(path))
    calls = [odd.example["main"], *like(odd.example["main"], 2, seed=3)]
    assert read.spec.name == "odd"
    assert largest(pruned, read, calls) <= SAME
    assert largest(pruned, apply_saved(odd, path), calls) <= SAME
    # In memory a Tile stands between the keys and the heads that are left; an export multiplies them as they are, and
    # the two groups, of one head of 6 now, are found again.
    assert kinds(prunable(pruned)) == [("feedforward", 9, 1, 0, 0)]
    assert kinds(prunable(read)) == [("attention", 2, 6, 2, 6), ("feedforward", 9, 1, 0, 0)]


def test_a_file_that_cannot_be_exported_says_why_and_goes_into_its_source(odd: EdgeModel, tmp_path: Path) -> None:
    def refuses(*_: Any) -> dict[str, Path]:
        raise UnsupportedError("no exporter takes it")

    found = prunable(odd)
    cut = unequal(found)
    path = write_pruned(tmp_path / "odd.pruned", prune(found, cut), odd, cut, "odd.onnx", {}, export=refuses)
    facts = json.loads((path / "pruning.json").read_text())["facts"]
    assert facts == {"loads": "into odd.onnx", "program": "no model.onnx: no exporter takes it"}
    with pytest.raises(ModelError, match=r"edgeattn convert odd\.onnx --prune"):
        load_model(str(path))


@pytest.mark.parametrize(
    "engine", [name if name == "onnxruntime" else pytest.param(name, marks=pytest.mark.slow) for name in ENGINES]
)
def test_an_engine_computes_what_the_pruned_file_does(engine: str, odd: EdgeModel, tmp_path: Path) -> None:
    found = prunable(odd)
    pruned = prune(found, unequal(found))
    exports = Exports(pruned, Baseline({}, {}, None, None), tmp_path)
    artifact = build(engine, exports, "fp32", get_target(TARGETS[engine]))
    example = pruned.example["main"]
    backend = ROWS[artifact.backend].here
    with open_session(backend, artifact.models, pruned.spec, threads=1, build=artifact.build) as session:
        for inputs in (example, *like(example, 2, seed=5)):
            np.testing.assert_allclose(session.run(inputs, "main")["y"], pruned.run(inputs)["y"], atol=SAME, rtol=SAME)


# --- how groups are followed ------------------------------------------------------------------------------------------


def group_of(lie: Lie, shape: Sequence[int], groups: int) -> np.ndarray:
    """The group that every entry of a tensor belongs to."""
    along = np.arange(shape[lie.axis]) // lie.inner % groups
    return np.broadcast_to(along.reshape([-1 if i == lie.axis else 1 for i in range(len(shape))]), shape)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 2), st.integers(1, 2), st.integers(2, 4),
    st.integers(1, 3), st.randoms(use_true_random=False),
)  # fmt: skip
def test_groups_are_followed_through_a_reshape_exactly_where_one_axis_holds_them(
    sizes: list[int], axis: int, parts: int, groups: int, inner: int, random: Any
) -> None:
    axis = min(axis, len(sizes) - 1)
    shape = (*sizes[:axis], parts * groups * inner, *sizes[axis + 1 :])
    factors = [p for n in shape for p in _primes(n)]
    random.shuffle(factors)
    wanted = [1] * random.randint(1, 4)
    for factor in factors:
        wanted[random.randrange(len(wanted))] *= factor
    owner = group_of(Lie(axis, parts, inner), shape, groups).reshape(wanted)
    possible = [
        Lie(place, p, size // (p * groups))
        for place, size in enumerate(wanted)
        for p in range(1, size + 1)
        if size % (p * groups) == 0
    ]
    fitting = [lie for lie in possible if np.array_equal(group_of(lie, wanted, groups), owner)]
    try:
        found = reshaped(Lie(axis, parts, inner), shape, tuple(wanted), groups)
    except MixedError:
        assert not fitting
    else:
        assert found in fitting


def _primes(number: int) -> list[int]:
    factor = next((n for n in range(2, number + 1) if number % n == 0), None)
    return [] if factor is None else [factor, *_primes(number // factor)]


@pytest.mark.parametrize(
    ("op", "attributes", "shapes"),
    [
        ("Add", {}, [(2, 3, 4), (3, 1)]),
        ("Transpose", {"perm": (2, 0, 1)}, [(2, 3, 4)]),
        ("MatMul", {}, [(2, 1, 3, 4), (5, 4, 6)]),
        ("Einsum", {"equation": b"bij, bkj -> bik"}, [(2, 3, 4), (2, 5, 4)]),
        ("Softmax", {"axis": 1}, [(2, 3, 4)]),
        ("ReduceMean", {"input_1": (-1,), "keepdims": 0}, [(2, 3, 4)]),
        ("ReduceMax", {"axes": (1,)}, [(2, 3, 4)]),
        ("Concat", {"axis": -2}, [(2, 3, 4), (2, 5, 4)]),
        ("LayerNormalization", {"axis": -2}, [(2, 3, 4)]),
        ("CumSum", {"input_1": (1,)}, [(2, 3, 4)]),
    ],
    ids=str,
)
def test_axes_of_one_letter_run_together_and_no_others(
    op: str, attributes: dict[str, Any], shapes: list[tuple[int, ...]]
) -> None:
    """By experiment: what changes at one place of an axis of an input changes the outputs at that place alone."""
    functions: dict[str, Any] = {
        "Add": torch.add,
        "Transpose": lambda x: x.permute(2, 0, 1),
        "MatMul": torch.matmul,
        "Einsum": lambda a, b: torch.einsum("bij,bkj->bik", a, b),
        "Softmax": lambda x: torch.softmax(x, 1),
        "ReduceMean": lambda x: x.mean(-1),
        "ReduceMax": lambda x: x.amax(1, keepdim=True),
        "Concat": lambda a, b: torch.cat((a, b), -2),
        "LayerNormalization": lambda x: nn.functional.layer_norm(x, x.shape[1:]),
        "CumSum": lambda x: x.cumsum(1),
    }
    torch.manual_seed(0)
    inputs = [torch.rand(shape) for shape in shapes]
    before = functions[op](*inputs)
    given_letters, (made,), mixed = letters(op, attributes, shapes, [tuple(before.shape)])
    for number, axis in ((n, a) for n, shape in enumerate(shapes) for a in range(len(shape)) if shape[a] > 1):
        if number and op == "Concat":
            continue  # its places are shifted
        together = []
        for place in range(shapes[number][axis]):
            changed = [x.clone() for x in inputs]
            changed[number].select(axis, place).add_(
                10.0 * torch.rand(shapes[number][:axis] + shapes[number][axis + 1 :])
            )
            moved = ~torch.isclose(functions[op](*changed), before)
            together.append({a for a in range(moved.ndim) if set(moved.nonzero()[:, a].tolist()) == {place}})
        kept = set.intersection(*together)
        letter = given_letters[number][axis]
        expected = {a for a, name in enumerate(made) if name == letter and letter not in mixed and letter is not None}
        assert expected == {a for a in kept if before.shape[a] == shapes[number][axis]}


def test_an_operator_that_is_not_known_keeps_nothing_apart() -> None:
    with pytest.raises(MixedError, match="not known to keep them apart"):
        letters("TopK", {}, [(2, 3)], [(2, 2)])
