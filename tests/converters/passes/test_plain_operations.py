"""Passes that write an operation by others: nothing of it is left, and the program computes what torch does.

Outputs may differ by 1e-6 of numbers around 1: sums are taken in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeattn.converters.passes import FX_PASSES
from edgeattn.converters.passes.masked_writes import masked_writes
from edgeattn.converters.passes.plain_bags import plain_bags
from edgeattn.converters.passes.plain_bilinear import plain_bilinear
from edgeattn.converters.passes.plain_cumulations import plain_cumulations
from edgeattn.converters.passes.plain_functions import plain_functions
from edgeattn.converters.passes.plain_interleaves import plain_interleaves
from edgeattn.converters.passes.plain_pools import plain_pools
from edgeattn.converters.passes.plain_scatters import plain_scatters
from edgeattn.converters.passes.plain_writes import plain_writes
from edgeattn.converters.passes.repeated_heads import repeated_heads
from tests.converters.passes.tracing import Pass, operators, run, traced

Function = Callable[..., Any]
TOLERANCE = 1e-6


class Apply(nn.Module):
    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def drawn(seed: int, *kinds: Any) -> dict[str, Tensor]:
    """Inputs of a seed: a shape is of floats, a pair of a shape and a bound of whole numbers below it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(kind: Any) -> Tensor:
        if isinstance(kind[0], tuple):
            return torch.randint(0, kind[1], kind[0], generator=generator)
        return torch.randn(kind, generator=generator)

    return {f"x{number}": draw(kind) for number, kind in enumerate(kinds)}


def check(function: Function, kinds: tuple[Any, ...], rewrites: tuple[Pass, ...], gone: str) -> None:
    module = function if isinstance(function, nn.Module) else Apply(function)
    program, counts = traced(module, drawn(0, *kinds), *rewrites)
    assert counts[rewrites[-1].__name__] >= 1
    assert gone not in operators(program)
    for seed in range(3):  # what is traced knows no values
        expected = module(*drawn(seed, *kinds).values())  # drawn again: a function may write into its inputs
        got = run(program, drawn(seed, *kinds))
        torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=TOLERANCE, equal_nan=True)


# In-place forms ------------------------------------------------------------------------------------------------------


def in_a_view(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0].add_(1).mul_(x[:, 1])
    y.view(-1)[3:5].zero_()
    return y


def after_a_view(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    row = y[0]
    y.add_(1)  # the row sees it
    return y, row + 1


def after_a_read(x: Tensor) -> tuple[Tensor, Tensor]:
    y = x * 2
    total = y.sum()
    y.add_(1)
    return y, total


def of_another_type(x: Tensor) -> Tensor:
    return torch.zeros(4, 9, dtype=torch.float64).add_(x).float()


@pytest.mark.parametrize(
    ("function", "gone"),
    [
        (lambda x: functional.relu(x + 0, inplace=True).mul_(2).clamp_(max=1), "mul_"),
        (in_a_view, "add_"),
        (after_a_view, "add_"),
        (after_a_read, "add_"),
        (of_another_type, "add_"),
        (lambda x: (x * 1).masked_fill_(x > 0, -5.0), "masked_fill_"),
    ],
)
def test_a_write_in_place_is_one_no_more(function: Function, gone: str) -> None:
    check(function, ((4, 9),), (plain_writes,), gone)


def test_only_what_shares_memory_is_copied() -> None:
    for function, copies in ((after_a_read, 0), (after_a_view, 1), (in_a_view, 3)):
        program, _ = traced(Apply(function), drawn(0, (4, 9)), plain_writes)
        assert operators(program).count("copy_") == copies


def test_a_write_at_random_stays() -> None:
    program, counts = traced(Apply(lambda x: (x * 1).uniform_()), drawn(0, (4,)), plain_writes)
    assert counts == {"plain_writes": 0}
    assert "uniform_" in operators(program)


# Writes under a mask -------------------------------------------------------------------------------------------------


def hidden(x: Tensor) -> Tensor:
    scores = x.clone()
    scores[x > 0] = -1e9
    return scores


def image_tokens(x: Tensor, values: Tensor) -> Tensor:
    y = x.clone()
    y[torch.arange(8).reshape(1, 8) % 3 == x.shape[0] - 1] = values
    return y


def columns(x: Tensor, values: Tensor) -> Tensor:
    y = x.clone()
    y[:, x[0, :, 0] > 0] = values
    return y


@pytest.mark.parametrize(
    ("function", "kinds", "gone"),
    [
        (hidden, ((4, 9),), "index_put"),
        (lambda x: x.index_put((x[:, 0] > 0,), torch.ones(9)), ((4, 9),), "index_put"),
        (lambda x: x.index_put((x > 0,), x[0, :1], accumulate=True), ((4, 9),), "index_put"),
        (columns, ((2, 4, 9), (2, 1, 9)), "index_put"),
        (image_tokens, ((1, 8, 4), (3, 4)), "index_put"),
        (lambda x, y: x.masked_scatter(x > 0, y), ((4, 9), (40,)), "masked_scatter"),
        (lambda x, y: x.clone().masked_scatter_(x[..., :1] > 0, y), ((1, 4, 9), (4, 9)), "masked_scatter"),
    ],
)
def test_a_write_under_a_mask_is_a_choice(function: Function, kinds: tuple[Any, ...], gone: str) -> None:
    check(function, kinds, (plain_writes, masked_writes), gone)


def test_a_mask_beside_an_index_stays() -> None:
    def both(x: Tensor) -> Tensor:
        return x.index_put((x[:, 0] > 0, torch.tensor([1])), torch.tensor(0.0))

    _, counts = traced(Apply(both), drawn(0, (4, 9)), masked_writes)
    assert counts == {"masked_writes": 0}


# Sums by index -------------------------------------------------------------------------------------------------------

EDGES = ((6, 8), ((2, 15), 6))  # features of six nodes, and a list of edges


def reduced(reduce: str, include_self: bool) -> Function:
    def function(x: Tensor, edges: Tensor) -> Tensor:
        places = edges[1][:, None].expand(-1, 8)
        return torch.full((7, 8), 0.5).scatter_reduce(0, places, x[edges[0]], reduce, include_self=include_self)

    return function


def indexed(reduce: str, include_self: bool) -> Function:
    def function(x: Tensor, edges: Tensor) -> Tensor:
        return torch.full((7, 8), 0.5).index_reduce(0, edges[1], x[edges[0]], reduce, include_self=include_self)

    return function


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize(
    ("kind", "reduce"), [(reduced, "mean"), (indexed, "mean"), (indexed, "prod"), (indexed, "amax")]
)
@pytest.mark.filterwarnings("ignore:index_reduce.* is in beta:UserWarning")
def test_a_reduction_by_index_is_one_that_exporters_write(
    kind: Callable[[str, bool], Function], reduce: str, include_self: bool
) -> None:
    module = kind(reduce, include_self)
    check(module, EDGES, (plain_scatters,), "index_reduce")
    program, _ = traced(Apply(module), drawn(0, *EDGES), plain_scatters)
    assert not [node for node in program.graph.nodes if "mean" in node.args]


@pytest.mark.parametrize(
    ("function", "kinds", "gone"),
    [
        (lambda x, e: torch.zeros(6, 8).index_add_(0, e[1], x[e[0]]), EDGES, "index_add"),
        (lambda x, e: x.index_add(-2, e[1], x[e[0]], alpha=0.5), EDGES, "index_add"),
        (lambda x, i: torch.zeros(6, 8).index_put((i,), x[i], accumulate=True), ((6, 8), ((15,), 6)), "index_put"),
        (
            lambda x, i, j: torch.zeros(6, 8, 2).index_put((i, j - 8), x[i], accumulate=True),
            ((6, 2), ((15,), 6), ((15,), 8)),
            "index_put",
        ),
        (lambda x, i: x.scatter(1, i, x, reduce="add"), ((6, 8), ((6, 3), 8)), "scatter"),
        (lambda x, i: x.scatter(0, i, 2.0, reduce="multiply"), ((6, 8), ((4, 3), 6)), "scatter"),
        (lambda x, i: x.scatter_reduce(0, i, x, "mean"), ((6, 8), ((4, 3), 6)), "mean"),
        (lambda x, i: x.scatter_reduce(1, i, x, "sum", include_self=False), ((6, 8), ((4, 3), 8)), "scatter_reduce"),
    ],
)
@pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter:UserWarning")
def test_a_sum_by_index_is_a_scatter_add(function: Function, kinds: tuple[Any, ...], gone: str) -> None:
    check(function, kinds, (plain_writes, plain_scatters), gone)


def test_a_scatter_goes_as_far_as_its_index() -> None:
    program, _ = traced(Apply(lambda x, i: x.scatter_add(1, i, x)), drawn(0, (4, 9, 5), ((2, 6, 3), 9)), plain_scatters)
    (node,) = [node for node in program.graph.nodes if "scatter_add" in str(node.target)]
    shapes = [tuple(argument.meta["val"].shape) for argument in (node.args[0], *node.args[2:])]
    assert shapes == [(2, 9, 3), (2, 6, 3), (2, 6, 3)]  # what ONNX asks for
    check(lambda x, i: x.scatter_add(1, i, x), ((4, 9, 5), ((2, 6, 3), 9)), (plain_scatters,), "")


# Pooling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: functional.adaptive_max_pool1d(x, 4), (2, 3, 12)),
        (lambda x: functional.adaptive_max_pool1d(x, 5), (3, 12)),
        (lambda x: functional.adaptive_max_pool2d(x, 1), (1, 4, 10, 12)),
        (nn.AdaptiveMaxPool2d((3, None)), (1, 4, 10, 12)),
        (lambda x: functional.adaptive_max_pool2d(x, 7), (1, 2, 3, 5)),  # more than there is
        (lambda x: functional.adaptive_max_pool3d(x, (3, 1, 5)), (1, 2, 4, 6, 7)),
        (lambda x: functional.adaptive_avg_pool3d(x, (4, 1, 1)), (1, 2, 4, 6, 6)),
        (lambda x: functional.adaptive_avg_pool3d(x, (2, 3, 3)), (1, 2, 4, 6, 6)),
        (lambda x: functional.adaptive_avg_pool3d(x, (3, 1, 5)), (1, 2, 4, 6, 7)),
        (lambda x: functional.adaptive_avg_pool3d(x, 1), (2, 4, 6, 7)),
    ],
)
def test_adaptive_pooling_is_pooling(function: Function, shape: tuple[int, ...]) -> None:
    check(function, (shape,), (plain_pools,), "adaptive")


def test_a_pool_whose_places_are_read_stays() -> None:
    pool = nn.AdaptiveMaxPool2d(2, return_indices=True)
    _, counts = traced(pool, drawn(0, (1, 2, 4, 4)), plain_pools)
    assert counts == {"plain_pools": 0}


# Bags ----------------------------------------------------------------------------------------------------------------


def bag(mode: str, **options: Any) -> nn.EmbeddingBag:
    torch.manual_seed(0)
    return nn.EmbeddingBag(30, 8, mode=mode, **options)


@pytest.mark.parametrize("padding", [None, 0])
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_a_bag_is_an_embedding_and_a_reduction(mode: str, padding: int | None) -> None:
    module = bag(mode, padding_idx=padding)
    check(module, (((2, 5), 2),), (plain_bags,), "embedding_bag")
    offsets = torch.tensor([0, 3, 3, 7])  # the second is empty
    check(lambda ids, some: module(ids, offsets + some), (((12,), 3), ((1,), 1)), (plain_bags,), "embedding_bag")
    check(lambda ids: module(ids, torch.tensor([0, 4, 8])), (((12,), 3),), (plain_bags,), "embedding_bag")


def test_a_bag_with_weights_or_a_last_offset() -> None:
    module, last = bag("sum"), bag("mean", include_last_offset=True)
    ends = torch.tensor([0, 4, 9])
    check(lambda i, w: module(i, per_sample_weights=w), (((2, 5), 30), (2, 5)), (plain_bags,), "embedding_bag")
    check(lambda i, w: module(i, ends, w), (((12,), 30), (12,)), (plain_bags,), "embedding_bag")
    check(lambda i: last(i, ends + i[:1] * 0), (((9,), 30),), (plain_bags,), "embedding_bag")


# Cumulations, and Bilinear -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "gone"),
    [
        (lambda x: torch.cumprod(torch.relu(x), 1), "cumprod"),  # zeros, after which all are zero
        (lambda x: torch.cumprod(x, -2), "cumprod"),
        (lambda x: torch.cumprod((x > -1).int(), 1), "cumprod"),
        (lambda x: torch.cummax(x.round(), 1), "cummax"),  # equal values: the last is named
        (lambda x: torch.cummin(x, 0), "cummin"),
        (lambda x: torch.cummin((x * 5).long(), 1)[0], "cummin"),
    ],
)
def test_a_running_product_or_extreme(function: Function, gone: str) -> None:
    check(function, ((4, 19),), (plain_cumulations,), gone)


def test_bilinear_is_two_products() -> None:
    torch.manual_seed(0)
    check(nn.Bilinear(6, 5, 3), ((2, 4, 6), (2, 4, 5)), (plain_bilinear,), "bilinear")
    check(nn.Bilinear(6, 6, 1, bias=False), ((6,), (6,)), (plain_bilinear,), "bilinear")


def test_the_passes_run_in_an_order_that_lets_each_see_the_forms_it_knows() -> None:
    def attention(x: Tensor, edges: Tensor) -> Tensor:
        source, target = edges
        scores = x[source].sum(-1)
        highest = torch.full((6,), -1e30).scatter_reduce_(0, target, scores, "amax", include_self=False)
        weights = (scores - highest[target]).exp()
        total = torch.zeros(6).index_add_(0, target, weights)
        return torch.zeros(6, 8).index_add_(0, target, (weights / total[target])[:, None] * x[source])

    program, counts = traced(Apply(attention), drawn(0, *EDGES), *FX_PASSES)
    assert {"index_add", "index_add_", "scatter_reduce_"}.isdisjoint(operators(program))
    assert counts["plain_writes"] == 3
    inputs = drawn(1, *EDGES)
    np.testing.assert_allclose(run(program, inputs), attention(*inputs.values()), atol=TOLERANCE)


# Functions -----------------------------------------------------------------------------------------------------------

BOUNDARIES = torch.tensor([-1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("function", "gone"),
    [
        (lambda x: torch.logaddexp(x * 200, -x * 200), "logaddexp"),
        (lambda x: torch.logaddexp(x / torch.relu(x - 1), x / torch.relu(x - 1)), "logaddexp"),  # infinities
        (lambda x: torch.fmax(torch.log(x), x.flip(0)), "fmax"),
        (lambda x: torch.fmin(x, torch.log(x)), "fmin"),
        (lambda x: torch.hypot(x, x + 1), "hypot"),
        (lambda x: torch.copysign(x, torch.relu(x.flip(0)) * -1.0), "copysign"),  # -0.0 among them
        (lambda x: torch.kthvalue(x, 3, 0, keepdim=True)[0], "kthvalue"),
        (lambda x: (x.median(), x.median(-1)[0]), "median"),
        (lambda x: torch.searchsorted(BOUNDARIES, x.round(), right=True), "searchsorted"),
        (lambda x: torch.searchsorted(x[:, :5].sort(-1)[0], x, side="left", out_int32=True), "searchsorted"),
        (lambda x: torch.bucketize(x.round(), BOUNDARIES), "bucketize"),
        (lambda x: (torch.cdist(x, x[:2], 1.0), torch.cdist(x, x, torch.inf), torch.cdist(x, x * 2, 3.0)), "cdist"),
        (lambda x: (torch.cdist(x, x, 0.0), functional.pdist(x)), "pdist"),
        (lambda x: (torch.hstack([x, x]), torch.hstack([x[0], x[0]]), torch.column_stack([x, x[:, 0]])), "hstack"),
        (functional.rrelu, "rrelu"),
        (lambda x: (torch.relu(x).all(), torch.relu(x).any(-1, keepdim=True), (x * 2).long().all(0)), "none"),
        (lambda x: x[:, :4].diagonal_scatter(torch.ones(3), 1), "diagonal_scatter"),
        (lambda x: x.reshape(1, 6, 6).diagonal_scatter(torch.ones(1, 5), 1, 2, 1), "diagonal_scatter"),
    ],
)
def test_a_function_is_said_in_others(function: Function, gone: str) -> None:
    check(function, ((4, 9),), (plain_functions,), gone)


def test_a_median_whose_place_is_read_stays() -> None:
    _, counts = traced(Apply(lambda x: x.median(-1)), drawn(0, (4, 9)), plain_functions)
    assert counts == {"plain_functions": 0}


REGULATED: tuple[tuple[Function, str], ...] = (
    (lambda x, n: x.repeat_interleave(n, 1, output_size=12), "an axis"),
    (lambda x, n: x[:, torch.repeat_interleave(n, output_size=12)], "places"),
    (lambda x, n: (x * n[:, None]).flatten()[:6].repeat_interleave(n, output_size=12), "no axis"),
)


@pytest.mark.parametrize("repeats", [[1, 2, 0, 4, 3, 2], [0, 0, 12, 0, 0, 0], [0, 0, 0, 0, 0, 12], [2] * 6], ids=str)
@pytest.mark.parametrize("function", [row[0] for row in REGULATED], ids=[row[1] for row in REGULATED])
def test_a_length_regulator_of_a_known_size_has_no_interleave_left(function: Function, repeats: list[int]) -> None:
    example = {"x": torch.randn(2, 6, 8), "n": torch.tensor([2, 2, 1, 0, 5, 2])}
    program, counts = traced(Apply(function), example, plain_interleaves)
    assert counts == {"plain_interleaves": 1}
    assert "repeat_interleave" not in operators(program)
    other = {"x": torch.randn(2, 6, 8), "n": torch.tensor(repeats)}
    torch.testing.assert_close(run(program, other), function(*other.values()), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(2, 1, 5, 4), (2, 3, 5, 4)], ids=str)
@pytest.mark.parametrize("dim", [1, -2, None], ids=str)
def test_heads_are_interleaved_by_concat(shape: tuple[int, ...], dim: int | None) -> None:
    check(lambda x: x.repeat_interleave(3, dim), (shape,), (repeated_heads,), "repeat_interleave")
    check(lambda x: x.repeat_interleave(3, dim=dim), (shape,), (repeated_heads,), "repeat_interleave")


def test_repeats_without_a_size_stay_for_preflight_to_refuse() -> None:
    module = Apply(lambda x, n: x.repeat_interleave(n, 1))
    _, counts = traced(module, {"x": torch.randn(2, 3), "n": torch.tensor([1, 2, 0])}, plain_interleaves)
    assert counts == {"plain_interleaves": 0}
