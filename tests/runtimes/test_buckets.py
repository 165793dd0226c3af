"""One call of any length on graphs of fixed sizes, against plain numpy slicing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import InputError
from edgeattn.runtimes.buckets import cut_inputs, pad_inputs, route, run_padded
from edgeattn.spec import BucketSpec, CutAxis, GraphSpec, ModelSpec, PaddedAxis, TensorSpec

FILL = 7


def bucketed(sizes: list[tuple[int, int]]) -> ModelSpec:
    """``ids`` [1, seq] and ``memory`` [1, 3, src] -> ``hidden`` [1, seq, src] and ``pooled`` [4]."""
    graphs = tuple(
        GraphSpec(
            f"main_{seq}_{src}",
            (TensorSpec("ids", "int64", (1, seq)), TensorSpec("memory", "float32", (1, 3, src))),
            (TensorSpec("hidden", "float32", (1, seq, src)), TensorSpec("pooled", "float32", (4,))),
        )
        for seq, src in sizes
    )
    pad = (PaddedAxis("ids", 1, "seq", FILL), PaddedAxis("memory", 2, "src"))
    cut = (CutAxis("hidden", 1, "ids", 1), CutAxis("hidden", 2, "memory", 2))
    bucket = BucketSpec("main", tuple(graph.name for graph in graphs), pad, cut)
    return ModelSpec("m", "t", graphs, buckets=(bucket,))


def of(spec: ModelSpec) -> BucketSpec:
    found = spec.bucket("main")
    assert found is not None
    return found


def call(seq: int, src: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seq * 100 + src)
    return {"ids": rng.integers(0, 9, (1, seq)), "memory": rng.standard_normal((1, 3, src)).astype(np.float32)}


grids = st.sets(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6).map(
    lambda pairs: sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair))
)


@given(grids, st.integers(1, 14), st.integers(1, 14))
def test_a_call_goes_to_the_smallest_graph_that_it_fits_into_and_comes_back_as_long(
    sizes: list[tuple[int, int]], seq: int, src: int
) -> None:
    spec, inputs = bucketed(sizes), call(seq, src)
    fitting = [(a, b) for a, b in sizes if a >= seq and b >= src]
    if not fitting:
        with pytest.raises(InputError, match=r"longer than the largest bucket of 'main'|has room for"):
            route(spec, of(spec), inputs)
        return
    graph = route(spec, of(spec), inputs)
    assert bucketed_sizes(graph) == fitting[0]
    outputs = {t.name: np.arange(np.prod(t.shape), dtype=np.float32).reshape(t.shape) for t in graph.outputs}
    calls: list[Mapping[str, np.ndarray]] = []

    def run(given: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        calls.append(given)
        return outputs

    cut = run_padded(of(spec), graph, inputs, run)
    (padded,) = calls
    assert [padded[t.name].shape for t in graph.inputs] == [t.shape for t in graph.inputs]
    assert all(t.check(padded[t.name]).dtype == t.dtype for t in graph.inputs)
    np.testing.assert_array_equal(padded["ids"][:, :seq], inputs["ids"])
    np.testing.assert_array_equal(padded["ids"][:, seq:], FILL)
    np.testing.assert_array_equal(padded["memory"][..., :src], inputs["memory"])
    np.testing.assert_array_equal(padded["memory"][..., src:], 0)
    np.testing.assert_array_equal(cut["hidden"], outputs["hidden"][:, :seq, :src])
    np.testing.assert_array_equal(cut["pooled"], outputs["pooled"])


def bucketed_sizes(graph: GraphSpec) -> tuple[int, int]:
    return graph.inputs[0].shape[1], graph.inputs[1].shape[2]


@given(grids, st.integers(1, 14), st.integers(1, 14))
def test_calibration_inputs_of_any_length_take_the_shape_of_every_graph(
    sizes: list[tuple[int, int]], seq: int, src: int
) -> None:
    spec, inputs = bucketed(sizes), call(seq, src)
    for graph in spec.graphs:
        taken = cut_inputs(of(spec), graph, inputs)
        shared = min(seq, graph.inputs[0].shape[1])
        assert taken["ids"].shape == graph.inputs[0].shape
        np.testing.assert_array_equal(taken["ids"][:, :shared], inputs["ids"][:, :shared])


def test_what_fits_already_is_handed_through_uncopied() -> None:
    spec, inputs = bucketed([(4, 5)]), call(4, 5)
    assert pad_inputs(of(spec), spec.graphs[0], inputs)["ids"] is inputs["ids"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": np.zeros((1, 9), np.int64)}, "seq is 9, longer than the largest bucket of 'main', 8; shorten"),
        ({"ids": np.zeros((1, 0), np.int64)}, "input 'ids' has size 0 on axis 1"),
        ({"ids": np.zeros(3, np.int64)}, r"input 'ids' must have shape \(1, 8\) or be shorter, got \(3,\)"),
        (
            {"ids": np.zeros((1, 8), np.int64), "memory": np.zeros((1, 3, 9), np.float32)},
            "no bucket of 'main' has room for seq 8, src 9; it has main_4_9, main_8_8",
        ),
    ],
)
def test_a_call_that_fits_nowhere_is_refused(change: dict[str, Any], message: str) -> None:
    spec = bucketed([(4, 9), (8, 8)])
    with pytest.raises(InputError, match=message):
        route(spec, of(spec), call(2, 2) | change)


def test_inputs_of_one_dimension_must_be_equally_long() -> None:
    graph = GraphSpec("g", tuple(TensorSpec(name, "int64", (1, 8)) for name in ("ids", "mask")), ())
    bucket = BucketSpec("main", ("g",), tuple(PaddedAxis(name, 1, "seq") for name in ("ids", "mask")))
    spec = ModelSpec("m", "t", (graph,), buckets=(bucket,))
    with pytest.raises(InputError, match="seq is 5 in input 'ids' and 6 on axis 1 of 'mask'; give both"):
        route(spec, bucket, {"ids": np.zeros((1, 5)), "mask": np.zeros((1, 6))})
