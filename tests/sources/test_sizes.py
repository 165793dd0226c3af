"""A model in several sizes: which axes, which sizes, and the proof that padding changes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgeattn.converters.litert import to_tflite as to_litert
from edgeattn.converters.onnx import export_onnx
from edgeattn.converters.openvino import to_openvino
from edgeattn.errors import InputError
from edgeattn.model import EdgeModel, Graph
from edgeattn.runtimes import open_session
from edgeattn.sources import from_graphs
from edgeattn.sources.sizes import MAX_GRAPHS, checked_buckets, parse_buckets, parse_fills, with_buckets
from edgeattn.spec import CutAxis, PaddedAxis
from tests.small import small_spec

if TYPE_CHECKING:
    import torch as torch_module

torch = pytest.importorskip("torch", reason="buckets need edgeattn[convert]")

POSITIONS = 40
SEQ = {"ids": {1: "seq"}, "mask": {1: "seq"}}


def encoder(kind: str = "masked", smallest: int = 1) -> torch_module.nn.Module:
    """Ids [1, n], mask [1, n] -> hidden [1, n, 8] and pooled [1, 3], with a table of 40 positions.

    Args:
        kind: "masked" hides where mask is 0, "inverse" where it is True, "blind" hides nothing.
    """
    nn = torch.nn

    class Encoder(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.place = nn.Embedding(20, 8), nn.Embedding(POSITIONS, 8)
            self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, ids: Any, mask: Any) -> Any:
            if ids.shape[1] < smallest:
                raise ValueError(f"needs at least {smallest} tokens")
            seen = {"masked": mask != 0, "inverse": ~mask.bool(), "blind": torch.ones_like(mask, dtype=torch.bool)}[
                kind
            ]
            x = self.embed(ids) + self.place(torch.arange(ids.shape[1]))
            q, k, v = self.qkv(x).chunk(3, -1)
            x = x + torch.softmax(q @ k.transpose(1, 2) + ~seen[:, None] * -1e4, -1) @ v
            weight = seen[..., None].float()
            return {"hidden": x, "pooled": self.head((x * weight).sum(1) / weight.sum(1))}

    built: torch_module.nn.Module = Encoder().eval()
    return built


def model(kind: str = "masked", dims: Mapping[str, Any] | None = None, length: int = 10, **graph: Any) -> EdgeModel:
    mask = torch.zeros(1, length, dtype=torch.bool) if kind == "inverse" else torch.ones(1, length, dtype=torch.int64)
    example = {"ids": torch.randint(0, 20, (1, length)), "mask": mask}
    module = encoder(kind, graph.pop("smallest", 1))
    return from_graphs({"main": Graph(module, example, dims=SEQ if dims is None else dims, **graph)}, "enc")


def test_a_graph_becomes_one_per_size_on_the_same_weights() -> None:
    source = model()
    made = with_buckets(source, {"seq": (16, 8)})
    assert [graph.name for graph in made.spec.graphs] == ["main_8", "main_16"]
    assert made.modules["main_8"] is made.modules["main_16"] is source.modules["main"]
    bucket = made.spec.bucket("main")
    assert bucket is not None
    assert bucket.pad == (PaddedAxis("ids", 1, "seq"), PaddedAxis("mask", 1, "seq"))
    assert bucket.cut == (CutAxis("hidden", 1, "ids", 1),)  # pooled has no axis that follows


def test_examples_of_every_size_hold_values_of_the_first_example_only() -> None:
    source = model()
    made = with_buckets(source, {"seq": (8, 16)})
    np.testing.assert_array_equal(made.example["main_8"]["ids"], source.example["main"]["ids"][:, :8])
    np.testing.assert_array_equal(made.example["main_16"]["ids"][:, 10:], source.example["main"]["ids"][:, :6])
    assert made.example["main_16"]["mask"].all()


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16])
def test_the_reference_of_a_bucket_is_the_source_at_the_input_s_own_length(length: int) -> None:
    source, rng = model(), np.random.default_rng(length)
    inputs = {"ids": rng.integers(0, 20, (1, length)), "mask": np.ones((1, length), np.int64)}
    plain = source.modules["main"](**{name: torch.from_numpy(value) for name, value in inputs.items()})
    got = with_buckets(source, {"seq": (8, 16)}).run(inputs)
    for name, value in got.items():
        np.testing.assert_allclose(value, plain[name].detach().numpy(), rtol=0, atol=1e-5)  # sums in another order


@pytest.mark.parametrize(
    ("dims", "options"),
    [
        ({}, ["seq=8,16"]),  # an undeclared name: axis 1 of all inputs of the same length
        ({}, ["ids.1+mask.1=8,16"]),
        (SEQ, ["ids.1+mask.1=8,16"]),
    ],
)
def test_axes_can_be_named_where_the_model_declares_none(dims: Mapping[str, Any], options: Sequence[str]) -> None:
    made = with_buckets(model(dims=dims), parse_buckets(options))
    assert [graph.name for graph in made.spec.graphs] == ["main_8", "main_16"]


def test_two_dimensions_give_every_combination_smallest_first() -> None:
    class Cross(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, query: Any, memory: Any, mask: Any) -> Any:
            scores = query @ memory.transpose(1, 2) + (1 - mask[:, None]) * -1e4
            return {"mixed": torch.softmax(scores, -1) @ memory, "scores": scores}

    dims = {"query": {1: "tgt"}, "memory": {1: "src"}, "mask": {1: "src"}}
    example = {"query": torch.randn(1, 5, 4), "memory": torch.randn(1, 5, 4), "mask": torch.ones(1, 5)}
    made = with_buckets(from_graphs({"main": Graph(Cross(), example, dims=dims)}, "x"), {"src": (8, 16), "tgt": (8, 4)})
    assert [graph.name for graph in made.spec.graphs] == ["main_4_8", "main_4_16", "main_8_8", "main_8_16"]
    bucket = made.spec.bucket()
    assert bucket is not None
    assert set(bucket.cut) == {
        CutAxis("mixed", 1, "query", 1), CutAxis("scores", 1, "query", 1), CutAxis("scores", 2, "memory", 1),
    }  # fmt: skip


def test_a_factory_declares_sizes_and_fills_itself_and_the_caller_s_win() -> None:
    source = model("inverse", buckets={"seq": (8,)}, fills={"mask": 1})
    assert [graph.name for graph in with_buckets(source, {}).spec.graphs] == ["main_8"]
    assert [graph.name for graph in with_buckets(source, {"seq": (4, 6)}).spec.graphs] == ["main_4", "main_6"]
    with pytest.raises(InputError, match="padding changes output"):
        with_buckets(source, {}, {"mask": 0})


def test_a_model_without_buckets_stays_as_it_is() -> None:
    source = model()
    assert with_buckets(source, {}) is source


def test_a_fill_without_any_bucket_is_refused() -> None:
    with pytest.raises(InputError, match="--fill mask: nothing is padded without --bucket"):
        with_buckets(model(), {}, {"mask": 1})


def test_a_stream_takes_no_bucket() -> None:
    source = model(dims={})
    graph = small_spec().graphs[0]
    example = {t.name: np.zeros(t.shape, np.float32) for t in graph.all_inputs}
    stream = replace(source, spec=small_spec(), modules={"main": source.modules["main"]}, example={"main": example})
    with pytest.raises(InputError, match="small is a stream: its chunk has one size, and it takes no bucket"):
        with_buckets(stream, {"feats.1": (8,)})


def test_a_model_that_does_not_hide_padding_is_refused() -> None:
    with pytest.raises(InputError, match=r"padding changes output 'hidden' by .*mask must hide padded positions"):
        with_buckets(model("blind"), {"seq": (8, 16)})


def test_a_fill_that_would_hide_padding_is_named_and_not_taken() -> None:
    with pytest.raises(InputError, match="it does not if 'mask' is filled with 1: pass --fill mask=1"):
        with_buckets(model("inverse"), {"seq": (8, 16)})
    made = with_buckets(model("inverse"), {"seq": (8, 16)}, {"mask": 1})
    assert made.spec.buckets[0].pad[1] == PaddedAxis("mask", 1, "seq", 1.0)


def test_a_model_without_any_mask_is_told_to_take_one() -> None:
    class Plain(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return torch.softmax(x @ x.transpose(1, 2), -1) @ x

    source = from_graphs({"main": Graph(Plain(), (torch.randn(1, 6, 4),))}, "plain")
    with pytest.raises(InputError, match=r"give forward a mask input \(attention_mask\)"):
        with_buckets(source, {"seq": (8,)})


@pytest.mark.parametrize(
    ("buckets", "smallest", "message"),
    [
        ({"seq": (4, 8)}, 6, "bucket seq=4: forward of graph 'main' refuses it: needs at least 6 tokens.* less than"),
        ({"seq": (8, 64)}, 1, "bucket seq=64: forward of graph 'main' refuses it: index out of range.* more than"),
        ({"seq": (8,)}, 8, "takes no shorter seq, so nothing can be padded"),
        ({"sec": (8,)}, 1, "unknown dimension 'sec', did you mean 'seq'.*ids.1"),
        ({"ids.2": (8,)}, 1, "input 'ids' has shape .*, and no axis 2"),
        ({"idz.1": (8,)}, 1, "there is no such input. Inputs: ids"),
        ({"ids.1": (8,)}, 1, "Inputs mask keep their size; name axes that go along, such as ids.1.mask.1"),
        ({"seq": (8,), "ids.1": (8,)}, 1, "axis 1 of input 'ids' is in two dimensions"),
        ({"seq": tuple(range(1, MAX_GRAPHS + 2))}, 1, "65 combinations of bucket sizes for graph .main.: 64 at most"),
    ],
)
def test_buckets_that_the_model_cannot_take_are_refused(buckets: Any, smallest: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_buckets(model(smallest=smallest), buckets)


def test_a_fill_of_an_unknown_input_or_of_another_type_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown input 'idz', did you mean 'ids'\?"):
        with_buckets(model(), {"seq": (8,)}, {"idz": 1})
    with pytest.raises(InputError, match=r"'ids' is int64 and cannot be filled with 0\.5"):
        with_buckets(model(), {"seq": (8,)}, {"ids": 0.5})


def test_a_state_keeps_its_size() -> None:
    class Step(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any, cache: Any) -> Any:
            return {"y": x.sum(1) + cache.sum(1), "next": torch.cat([cache, x], 1)[:, -cache.shape[1] :]}

    graph = Graph(Step(), {"x": torch.randn(1, 4, 2), "cache": torch.randn(1, 4, 2)}, {"cache": "next"})
    source = from_graphs({"main": replace(graph, dims={"cache": {1: "past"}})}, "step")
    with pytest.raises(InputError, match="past is axis 1 of the state 'cache': a state keeps its size"):
        with_buckets(source, {"past": (8,)})


def test_an_output_that_follows_no_input_is_refused() -> None:
    class Halves(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x[:, ::2]

    source = from_graphs({"main": Graph(Halves(), (torch.randn(1, 6, 4),))}, "halves")
    with pytest.raises(InputError, match=r"axis 1 of output 'output' has the sizes .* no input is as long"):
        with_buckets(source, {"seq": (8, 16)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["seq"], "expected NAME=SIZE,SIZE such as seq=64,128,256"),
        (["=64"], "expected NAME=SIZE"),
        (["seq="], "expected NAME=SIZE"),
        (["seq=64,"], "'' is not a whole number"),
        (["seq=6.5"], "'6.5' is not a whole number"),
        (["seq=many"], "'many' is not a whole number"),
        (["seq=0"], "whole numbers from 1 to .*, got 0"),
        (["seq=-64"], "whole numbers from 1 to .*, got -64"),
        (["seq=" + "9" * 18], "whole numbers from 1 to"),
        (["seq=64", "seq=128"], "--bucket seq is given twice; list all its sizes in one"),
    ],
)
def test_options_of_another_form_are_refused(options: Sequence[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_buckets(options)


def test_sizes_are_sorted_and_each_taken_once() -> None:
    assert parse_buckets(["seq=256, 64,64", "tgt=8"]) == {"seq": (64, 256), "tgt": (8,)}


@pytest.mark.parametrize("sizes", [(), 64, (64.0,), (True,), "64"])
def test_sizes_of_a_factory_are_checked_too(sizes: Any) -> None:
    with pytest.raises(InputError, match="bucket seq"):
        checked_buckets({"seq": sizes})


def test_fills_are_read_and_what_is_none_is_refused() -> None:
    assert parse_fills(["mask=1", "ids = -100"]) == {"mask": 1.0, "ids": -100.0}
    for option in ("mask", "mask=", "=1", "mask=x", "mask=nan", "mask=inf"):
        with pytest.raises(InputError, match="expected INPUT=NUMBER such as mask=1"):
            parse_fills([option])
    with pytest.raises(InputError, match="--fill mask is given twice"):
        parse_fills(["mask=1", "mask=0"])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "litert"])
def test_a_batch_is_a_bucket_like_others(engine: str, tmp_path: Path) -> None:
    built = encoder()
    sized = with_buckets(model(dims={}), {"batch": (1, 4)})
    assert [graph.inputs[0].shape for graph in sized.spec.graphs] == [(1, 10), (4, 10)]
    if engine == "openvino":
        made = to_openvino(export_onnx(sized, tmp_path), tmp_path, "fp32")
    else:
        made = to_litert(sized, tmp_path, "fp32")
    with open_session(engine, made.models, sized.spec) as session:
        for rows in (1, 3, 4):
            ids, mask = torch.arange(rows * 10).reshape(rows, 10) % 20, torch.ones(rows, 10, dtype=torch.int64)
            mask[-1, 6:] = 0
            with torch.no_grad():
                expected = built(ids, mask)
            got = session.run({"ids": ids.numpy(), "mask": mask.numpy()})
            for name, value in expected.items():
                np.testing.assert_allclose(got[name], value.numpy(), atol=1e-5)
