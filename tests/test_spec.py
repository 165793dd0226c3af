"""Specs: they go through JSON unchanged, and what does not fit is refused at its place."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from fractions import Fraction
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import InputError
from edgeattn.spec import (
    DTYPES,
    BucketSpec,
    CtcGreedy,
    CutAxis,
    FbankConfig,
    GraphSpec,
    ModelSpec,
    PaddedAxis,
    StateSpec,
    StreamSpec,
    TensorSpec,
    from_json,
    to_json,
)
from tests.small import small_spec

names = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1, max_size=8)
shapes = st.lists(st.integers(1, 9), max_size=4).map(tuple)
dtypes = st.sampled_from(DTYPES)
finite = st.floats(allow_nan=False, allow_infinity=False)
tensors = st.builds(TensorSpec, names, dtypes, shapes)
states = st.builds(StateSpec, names, names, shapes, dtypes, finite)


@st.composite
def graphs(draw: st.DrawFn, name: str) -> GraphSpec:
    """Any graph whose names differ."""
    parts = draw(st.lists(tensors, max_size=3)), draw(st.lists(tensors, max_size=3)), draw(st.lists(states, max_size=3))
    inputs, outputs, kept = parts
    return GraphSpec(
        name,
        tuple(replace(tensor, name=f"i{n} {tensor.name}") for n, tensor in enumerate(inputs)),
        tuple(replace(tensor, name=f"o{n} {tensor.name}") for n, tensor in enumerate(outputs)),
        tuple(replace(s, input=f"s{n} {s.input}", output=f"n{n} {s.output}") for n, s in enumerate(kept)),
    )


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Any model that is no stream."""
    count = draw(st.integers(1, 3))
    return ModelSpec(draw(names), draw(names), tuple(draw(graphs(f"graph{n}")) for n in range(count)))


@given(models())
def test_any_model_comes_back_from_json_as_it_was(model: ModelSpec) -> None:
    assert from_json(ModelSpec, json.loads(json.dumps(to_json(model)))) == model


def test_a_streaming_model_comes_back_from_json_as_it_was() -> None:
    assert from_json(ModelSpec, json.loads(json.dumps(to_json(small_spec())))) == small_spec()


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in items for place in places(item, (*path, key)))]


def put(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy with another value at that place."""
    if not path:
        return new
    changed = copy.deepcopy(value)
    holder = changed
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    return changed


def written(path: tuple[str | int, ...]) -> str:
    """A place as messages write it."""
    return "spec" + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    """The value at that place."""
    for key in path:
        value = value[key]
    return value


SMALL = to_json(small_spec())
EVERYWHERE = places(SMALL)
OBJECTS = [path for path in EVERYWHERE if isinstance(at(SMALL, path), dict)]


@pytest.mark.parametrize("path", EVERYWHERE, ids=written)
def test_a_value_of_the_wrong_type_is_refused_at_its_place(path: tuple[str | int, ...]) -> None:
    wrong: Any = ["a list"] if isinstance(at(SMALL, path), dict) else {"an": "object"}
    with pytest.raises(InputError) as caught:
        from_json(ModelSpec, put(SMALL, path, wrong), "spec")
    assert str(caught.value).startswith(f"{written(path)}: expected ")


@pytest.mark.parametrize("path", OBJECTS, ids=written)
def test_an_unknown_field_is_refused_at_its_place_and_the_known_ones_are_listed(path: tuple[str | int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        from_json(ModelSpec, put(SMALL, path, {**at(SMALL, path), "colour": 1}), "spec")
    known = ", ".join(at(SMALL, path))
    assert str(caught.value) == f"{written(path)}: unknown field 'colour'; known: {known}"


@pytest.mark.parametrize("path", [path for path in OBJECTS if path[-1:] != ("frontend",)], ids=written)
def test_a_missing_field_is_refused_at_its_place(path: tuple[str | int, ...]) -> None:
    whole = at(SMALL, path)
    first = next(iter(whole))  # no class but FbankConfig, whose fields all have defaults, starts with an optional one
    with pytest.raises(InputError) as caught:
        from_json(ModelSpec, put(SMALL, path, {key: whole[key] for key in whole if key != first}), "spec")
    assert str(caught.value) == f"{written(path)}: field {first!r} is missing"


def test_a_truth_value_is_no_number_and_a_number_too_large_is_told() -> None:
    with pytest.raises(InputError, match=r"spec\.stream\.window: expected int, got True"):
        from_json(ModelSpec, put(SMALL, ("stream", "window"), True), "spec")
    with pytest.raises(InputError, match=r"preemphasis: the number is too large"):
        from_json(ModelSpec, put(SMALL, ("stream", "frontend", "preemphasis"), 10**400), "spec")


def test_a_whole_number_stands_for_a_float() -> None:
    spec = from_json(ModelSpec, put(SMALL, ("stream", "frontend", "low_hz"), 20))
    assert spec.stream is not None
    assert isinstance(spec.stream.frontend.low_hz, float)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TensorSpec("x", cast("Any", "float64"), (1,)), "dtype must be one of float32"),
        (lambda: TensorSpec("x", "float32", (1, 0)), "sizes must be positive"),
        (lambda: StateSpec("s", "t", (0,)), "sizes must be positive"),
        (lambda: StateSpec("s", "t", (1,), initial=float("nan")), "initial must be finite"),
        (lambda: GraphSpec("g", (TensorSpec("x", "float32", ()),), (), (StateSpec("x", "y", ()),)), "twice: x"),
        (lambda: GraphSpec("g", (), (TensorSpec("y", "float32", ()),), (StateSpec("x", "y", ()),)), "twice: y"),
        (lambda: ModelSpec("m", "t", ()), "needs graphs"),
        (lambda: ModelSpec("m", "t", (GraphSpec("g", (), ()),) * 2), "different names"),
        (lambda: CtcGreedy(("a",), blank=1), "blank must be an index of the 1 tokens"),
        (lambda: CtcGreedy(("a",), hidden=("b",)), "'b' is none"),
        (lambda: FbankConfig(hop_length=0), "hop_length"),
        (lambda: FbankConfig(frame_length=1), "frame_length"),
        (lambda: FbankConfig(sample_rate=0), "sample_rate"),
        (lambda: FbankConfig(num_mel=0), "num_mel"),
        (lambda: FbankConfig(high_hz=4_001.0), "low_hz < high_hz <= 4000"),
        (lambda: FbankConfig(preemphasis=float("nan")), "preemphasis"),
        (
            lambda: StreamSpec(frontend=FbankConfig(), decoder=CtcGreedy(("a",)), window=6, shift=0, chunk=2, left=2),
            "at least 1",
        ),
        (
            lambda: StreamSpec(frontend=FbankConfig(), decoder=CtcGreedy(("a",)), window=6, shift=7, chunk=2, left=2),
            "shift must be at",
        ),
    ],
)
def test_a_spec_that_makes_no_sense_cannot_be_built(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("field", "value"), [("window", 7), ("left", 3), ("chunk", 1), ("features", "x"), ("scores", "y")]
)
def test_a_stream_that_does_not_fit_its_graph_cannot_be_built(field: str, value: Any) -> None:
    spec = small_spec()
    assert spec.stream is not None
    with pytest.raises(ValueError, match="a stream needs"):
        replace(spec, stream=replace(spec.stream, **{field: value}))


def test_input_and_state_names_come_in_the_order_of_the_engine() -> None:
    graph = small_spec().graph()
    assert graph.input_names == ("feats", "att_bias", "cache") == tuple(t.name for t in graph.all_inputs)
    assert graph.output_names == ("log_probs", "next_cache") == tuple(t.name for t in graph.all_outputs)


def test_states_start_fresh_at_their_initial_value() -> None:
    graph = GraphSpec("g", (), (), (StateSpec("s", "t", (2, 3), "float16", initial=-1.0),))
    first, second = graph.initial_states(), graph.initial_states()
    np.testing.assert_array_equal(first["s"], np.full((2, 3), -1, np.float16))
    assert first["s"].dtype == np.float16
    assert first["s"] is not second["s"]


def test_a_graph_is_found_by_name_and_the_first_one_without() -> None:
    spec = ModelSpec("m", "t", (GraphSpec("encoder", (), ()), GraphSpec("decoder", (), ())))
    assert spec.graph().name == "encoder"
    assert spec.graph("decoder").name == "decoder"
    with pytest.raises(InputError, match="has no graph 'joiner'; it has encoder, decoder"):
        spec.graph("joiner")


def sized(size: int, extra: int = 0) -> GraphSpec:
    """``x`` [1, size] and ``y`` [size] -> ``z`` [size, 2]."""
    inputs = (TensorSpec("x", "int64", (1, size)), TensorSpec("y", "bool", (size,)))
    return GraphSpec(f"main_{size}", inputs, (TensorSpec("z", "float32", (size, 2 + extra)),))


PAD = (PaddedAxis("x", 1, "seq", 3.0), PaddedAxis("y", 0, "seq", 1.0))
CUT = (CutAxis("z", 0, "x", 1),)
BUCKET = BucketSpec("main", ("main_4", "main_8"), PAD, CUT)


def test_a_bucket_stands_for_its_graphs_and_survives_json() -> None:
    spec = ModelSpec("m", "t", (sized(4), sized(8), GraphSpec("other", (), ())), buckets=(BUCKET,))
    assert from_json(ModelSpec, json.loads(json.dumps(to_json(spec)))) == spec
    assert spec.bucket() == spec.bucket("main") == BUCKET
    assert spec.bucket("main_4") is None
    assert spec.bucket("other") is None
    assert BUCKET.sizes(spec.graph("main_8")) == {"seq": 8}
    with pytest.raises(InputError, match="'main' has several sizes here; name one of main_4, main_8"):
        spec.graph("main")


@pytest.mark.parametrize(
    ("bucket", "graphs", "message"),
    [
        (replace(BUCKET, name="main_4"), (4, 8), "buckets and graphs need different names"),
        (replace(BUCKET, graphs=("main_4", "main_9")), (4, 8), "names the graphs"),
        (replace(BUCKET, graphs=()), (4, 8), "names the graphs"),
        (replace(BUCKET, graphs=("main_4", "main_4")), (4, 8), "one bucket at most"),
        (replace(BUCKET, graphs=("main_8", "main_4")), (4, 8), "smallest first"),
        (replace(BUCKET, pad=()), (4, 8), "pads no axis"),
        (replace(BUCKET, pad=PAD[:1]), (4, 8), "differ in more than the sizes"),
        (replace(BUCKET, pad=(*PAD, PAD[0])), (4, 8), "names an axis twice"),
        (replace(BUCKET, pad=(PaddedAxis("x", 2, "seq"),)), (4, 8), "names axis 2 of 'x'"),
        (replace(BUCKET, pad=(PAD[0], replace(PAD[1], fill=2.0))), (4, 8), "'y' is bool and cannot be filled with 2.0"),
        (replace(BUCKET, pad=(replace(PAD[0], fill=0.5), PAD[1])), (4, 8), "'x' is int64 and cannot be filled"),
        (replace(BUCKET, pad=(replace(PAD[0], fill=float("nan")), PAD[1])), (4, 8), "cannot be filled with nan"),
        (replace(BUCKET, cut=(CutAxis("z", 0, "x", 0),)), (4, 8), "'z' is cut like axis 0 of 'x', unpadded"),
        (replace(BUCKET, cut=(CutAxis("z", 5, "x", 1),)), (4, 8), "names axis 5 of 'z'"),
        (replace(BUCKET, cut=()), (4, 8), "differ in more than the sizes"),
        (replace(BUCKET, cut=(*CUT, CutAxis("z", 1, "x", 1))), (4, 8), "'z' is not as long as 'x'"),
    ],
)
def test_a_bucket_that_does_not_fit_its_graphs_cannot_be_built(
    bucket: BucketSpec, graphs: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ModelSpec("m", "t", tuple(map(sized, graphs)), buckets=(bucket,))


def test_graphs_of_a_bucket_differ_in_its_sizes_alone() -> None:
    with pytest.raises(ValueError, match="differ in more than the sizes of its axes"):
        ModelSpec("m", "t", (sized(4), sized(8, extra=1)), buckets=(BUCKET,))


def test_times_of_a_stream_are_exact() -> None:
    stream = small_spec().stream
    assert stream is not None
    assert stream.hop_seconds == Fraction(4, 100)
    assert stream.encoder_frame_seconds == Fraction(2, 100)


@pytest.mark.parametrize(
    ("wanted", "given", "fits"),
    [
        ("float32", "float32", True),
        ("float32", "float16", True),
        ("float32", "float64", False),
        ("float32", "int8", False),
        ("float32", "bool", False),
        ("int64", "int32", True),
        ("int32", "int64", False),
        ("int16", "uint8", False),
        ("bool", "bool", True),
    ],
)
def test_an_input_is_widened_within_its_kind_and_never_otherwise(wanted: Any, given: str, fits: bool) -> None:
    spec = TensorSpec("x", wanted, (2, 3))
    value = np.ones((3, 2), given).T
    if fits:
        checked = spec.check(value)
        assert checked.dtype == wanted
        assert checked.flags.c_contiguous
        np.testing.assert_array_equal(checked, value)
    else:
        with pytest.raises(InputError, match=f"input 'x' must be {wanted}, got {given}"):
            spec.check(value)


def test_an_input_of_another_shape_is_refused_and_a_scalar_stays_one() -> None:
    with pytest.raises(InputError, match=r"must have shape \(2,\), got \(2, 1\)"):
        TensorSpec("x", "float32", (2,)).check(np.ones((2, 1), np.float32))
    assert TensorSpec("x", "float32", ()).check(np.array(1, np.float32)).shape == ()


@given(tensors)
def test_sizes_are_those_of_numpy(tensor: TensorSpec) -> None:
    assert tensor.nbytes == np.zeros(tensor.shape, tensor.dtype).nbytes
