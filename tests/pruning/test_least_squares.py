"""Least squares after removal, against numpy's and against what can be recovered exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pruning needs edgeattn[convert]")
from torch import Tensor, nn  # noqa: E402

from edgeattn.errors import DataError  # noqa: E402
from edgeattn.model import Arrays, EdgeModel  # noqa: E402
from edgeattn.pruning.anatomy import Prunable, exits  # noqa: E402
from edgeattn.pruning.apply import prune  # noqa: E402
from edgeattn.pruning.cut import Cut  # noqa: E402
from edgeattn.pruning.importance import magnitude  # noqa: E402
from edgeattn.pruning.least_squares import ReconstructOptions, path_after, reconstruct  # noqa: E402
from edgeattn.pruning.trials import prunable  # noqa: E402
from edgeattn.sources import from_module  # noqa: E402
from tests.pruning.blocks import HEAD_DIM, HIDDEN, TIME, classifier, rows, uniform_cut  # noqa: E402

EXACT = ReconstructOptions(ridge=0.0, weighted=False)


def nothing(_: float) -> None:
    """Progress that nobody looks at."""


def exit_inputs(given: Prunable, model: EdgeModel, key: str, path: str, samples: list[Arrays]) -> np.ndarray:
    """What reaches an exit, (rows, inputs), float64."""
    found: list[np.ndarray] = []
    unit = replace(given.anatomy.unit(key), exit=path)
    assert model.network is not None
    with exits(model.network, {key: unit}, lambda _, x: found.append(x.reshape(-1, x.shape[-1]).double().numpy())):
        for row in samples:
            model.run(row)
    return np.concatenate(found)


def affine(model: EdgeModel, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight (inputs, outputs) and bias of a layer, float64."""
    assert model.network is not None
    layer: Any = model.network.get_submodule(path)
    weight = layer.weight.detach().double().numpy()
    return weight.T if isinstance(layer, nn.Linear) else weight, layer.bias.detach().double().numpy()


def test_the_first_unit_that_is_cut_gets_the_weights_of_numpys_least_squares() -> None:
    given, samples = classifier(), rows(40)
    key, path = "attention:blocks.0.attention", "blocks.0.attention.output"
    cut = Cut({key: (0, 2), "feedforward:blocks.1.feedforward": (1, 2, 3)})
    pruned = prune(given, cut)
    weight, bias = affine(given.model, path)
    wanted = exit_inputs(given, given.model, key, path, samples["main"]) @ weight + bias
    x = exit_inputs(given, pruned, key, path, samples["main"])
    solved = np.linalg.lstsq(np.c_[x, np.ones(len(x))], wanted, rcond=None)[0]
    old_weight, old_bias = affine(pruned, path)
    before = ((x @ old_weight + old_bias - wanted) ** 2).sum() / (wanted**2).sum()
    found = reconstruct(given, cut, pruned, samples, EXACT, nothing)
    new_weight, new_bias = affine(pruned, path)
    np.testing.assert_allclose(new_weight, solved[:-1], atol=1e-4)
    np.testing.assert_allclose(new_bias, solved[-1], atol=1e-4)
    assert [one.key for one in found] == list(cut.groups)
    assert found[0].rows == 40 * TIME
    assert found[0].before == pytest.approx(before, rel=1e-4)
    after = ((np.c_[x, np.ones(len(x))] @ solved - wanted) ** 2).sum() / (wanted**2).sum()
    assert found[0].after == pytest.approx(after, rel=1e-4)


def test_later_units_see_what_the_earlier_ones_give_now() -> None:
    given, samples = classifier(), rows(40)
    key, path = "feedforward:blocks.2.feedforward", "blocks.2.feedforward.contract"
    cut = Cut({"attention:blocks.0.attention": (0,), key: (1, 2, 5, 7)})
    pruned = prune(given, cut)
    reconstruct(given, cut, pruned, samples, EXACT, nothing)
    weight, bias = affine(given.model, path)
    wanted = exit_inputs(given, given.model, key, path, samples["main"]) @ weight + bias
    x = exit_inputs(given, pruned, key, path, samples["main"])  # with the attention as it is now
    solved = np.linalg.lstsq(np.c_[x, np.ones(len(x))], wanted, rcond=None)[0]
    new_weight, new_bias = affine(pruned, path)
    np.testing.assert_allclose(new_weight, solved[:-1], atol=1e-3)
    np.testing.assert_allclose(new_bias, solved[-1], atol=1e-3)


def test_what_depends_linearly_on_what_stays_is_recovered_exactly() -> None:
    given = classifier()
    expand: Any = given.network.get_submodule("blocks.1.feedforward.expand")
    value: Any = given.network.get_submodule("blocks.2.attention.value")
    query: Any = given.network.get_submodule("blocks.2.attention.query")
    key: Any = given.network.get_submodule("blocks.2.attention.key")
    with torch.no_grad():
        expand.weight[3], expand.bias[3] = -expand.weight[8], -expand.bias[8]  # tanh is odd
        expand.weight[4], expand.bias[4] = expand.weight[1], expand.bias[1]
        for layer, factor in ((query, 1.0), (key, 1.0), (value, 0.5)):
            layer.weight[:HEAD_DIM] = factor * layer.weight[HEAD_DIM : 2 * HEAD_DIM]
            layer.bias[:HEAD_DIM] = factor * layer.bias[HEAD_DIM : 2 * HEAD_DIM]
    cut = Cut(
        {
            "feedforward:blocks.1.feedforward": tuple(n for n in range(HIDDEN) if n not in (3, 4)),
            "attention:blocks.2.attention": (1, 2),
        }
    )
    pruned = prune(given, cut)
    fresh = rows(5, seed=9)["main"]
    before = max(float(np.abs(pruned.run(row)["logits"] - given.model.run(row)["logits"]).max()) for row in fresh)
    found = reconstruct(given, cut, pruned, rows(60), EXACT, nothing)
    after = max(float(np.abs(pruned.run(row)["logits"] - given.model.run(row)["logits"]).max()) for row in fresh)
    assert before > 0.05
    assert after < 1e-4
    assert max(one.after for one in found) < 1e-8


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [2, 30])
def test_the_error_on_the_samples_never_rises(weighted: bool, count: int) -> None:
    given = classifier()
    cut = uniform_cut(given.anatomy, magnitude(given), 0.4, 0.5)
    pruned = prune(given, cut)
    options = ReconstructOptions(ridge=0.0, weighted=weighted)
    found = reconstruct(given, cut, pruned, rows(count), options, nothing)
    assert {one.key for one in found} == set(cut.groups)
    assert all(one.after <= one.before for one in found)
    assert all(np.isfinite(p.detach().numpy()).all() for p in pruned.network.parameters())  # type: ignore[union-attr]


def test_a_strong_pull_leaves_the_weights_as_they_were() -> None:
    given = classifier()
    cut = Cut({"feedforward:blocks.1.feedforward": (0, 1, 2, 3)})
    pruned = prune(given, cut)
    before, _ = affine(pruned, "blocks.1.feedforward.contract")
    reconstruct(given, cut, pruned, rows(30), ReconstructOptions(ridge=1e9), nothing)
    after, _ = affine(pruned, "blocks.1.feedforward.contract")
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_rows_that_no_output_depends_on_do_not_count() -> None:
    given = classifier(1)  # only the first place in time reaches the logits
    cut = Cut({"feedforward:blocks.0.feedforward": (0, 1, 2)})
    found = reconstruct(given, cut, prune(given, cut), rows(50), ReconstructOptions(), nothing)
    assert found[0].rows == 50
    found = reconstruct(given, cut, prune(given, cut), rows(50), replace(EXACT, samples=20), nothing)
    assert found[0].rows == 20 * TIME


def test_layers_left_out_shift_the_paths_and_are_not_solved() -> None:
    given = classifier()
    cut = Cut({"attention:blocks.0.attention": (0,), "feedforward:blocks.2.feedforward": (1, 4)}, {"blocks": (1, 2)})
    pruned = prune(given, cut)
    untouched, _ = affine(pruned, "blocks.0.feedforward.contract")
    found = reconstruct(given, cut, pruned, rows(40), EXACT, nothing)
    assert [one.key for one in found] == ["feedforward:blocks.2.feedforward"]
    unit = given.anatomy.unit("feedforward:blocks.2.feedforward")
    assert path_after(given.anatomy, cut, unit, unit.exit) == "blocks.1.feedforward.contract"
    np.testing.assert_array_equal(affine(pruned, "blocks.0.feedforward.contract")[0], untouched)
    x = exit_inputs(given, pruned, unit.key, "blocks.1.feedforward.contract", rows(40)["main"])
    weight, bias = affine(given.model, unit.exit)
    wanted = exit_inputs(given, given.model, unit.key, unit.exit, rows(40)["main"]) @ weight + bias
    solved = np.linalg.lstsq(np.c_[x, np.ones(len(x))], wanted, rcond=None)[0]
    np.testing.assert_allclose(affine(pruned, "blocks.1.feedforward.contract")[0], solved[:-1], atol=1e-3)


def test_the_whole_model_keeps_its_weights() -> None:
    given = classifier()
    before = {name: value.clone() for name, value in given.network.state_dict().items()}
    cut = uniform_cut(given.anatomy, magnitude(given), 0.3, 0.3)
    progress: list[float] = []
    reconstruct(given, cut, prune(given, cut), rows(4), EXACT, progress.append)
    assert all(torch.equal(value, before[name]) for name, value in given.network.state_dict().items())
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


class Transposed(nn.Module):
    """A linear layer whose weight is (inputs, outputs), named as transformers names it."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


Transposed.__name__ = "Conv1D"


def test_a_transposed_weight_is_solved_as_well() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c_fc, self.c_proj = Transposed(12, 6), Transposed(6, 12)

        def forward(self, x: Tensor) -> Tensor:
            projected: Tensor = self.c_proj(torch.tanh(self.c_fc(x)))
            return projected

    torch.manual_seed(0)
    given = prunable(from_module(Net().eval(), {"x": torch.randn(1, 4, 6)}, "transposed"))
    (unit,) = given.anatomy.units
    cut = Cut({unit.key: (0, 2, 3, 7, 9)})
    samples = {"main": [{"x": np.random.default_rng(n).standard_normal((1, 4, 6)).astype("f4")} for n in range(30)]}
    pruned = prune(given, cut)
    reconstruct(given, cut, pruned, samples, EXACT, nothing)
    x = exit_inputs(given, pruned, unit.key, "c_proj", samples["main"])
    wanted = np.concatenate([given.model.run(row)["output"][0] for row in samples["main"]])
    solved = np.linalg.lstsq(np.c_[x, np.ones(len(x))], wanted, rcond=None)[0]
    np.testing.assert_allclose(affine(pruned, "c_proj")[0], solved[:-1], atol=1e-4)


def test_a_layer_that_runs_twice_is_solved_over_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.feedforward: Any = nn.Module()
            self.feedforward.expand, self.feedforward.contract = nn.Linear(6, 10), nn.Linear(10, 6)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = x + self.feedforward.contract(torch.tanh(self.feedforward.expand(x)))
            return x

    torch.manual_seed(0)
    given = prunable(from_module(Twice().eval(), {"x": torch.randn(1, 4, 6)}, "twice"))
    cut = Cut({given.anatomy.units[0].key: (0, 1, 2, 3, 4)})
    samples = {"main": [{"x": np.random.default_rng(n).standard_normal((1, 4, 6)).astype("f4")} for n in range(30)]}
    (found,) = reconstruct(given, cut, prune(given, cut), samples, EXACT, nothing)
    assert found.rows == 2 * 4 * 30
    assert found.after < found.before


def test_the_step_of_a_stream_runs_with_the_new_weights() -> None:
    from edgeattn.models.streaming_conformer import build

    given = prunable(build())
    scores = magnitude(given)
    cut = replace(uniform_cut(given.anatomy, scores, 0.25, 0.5), layers={"blocks": (0, 1, 3)})
    pruned = prune(given, cut)
    rng = np.random.default_rng(0)
    example = given.model.example["step"]
    samples = [
        {name: value if name == "att_bias" else value + 0.5 * rng.standard_normal(value.shape).astype("f4")}
        | {other: array for other, array in example.items() if other != name}
        for name, value in list(example.items())[:3] * 6
    ]
    empty = {state.input: np.zeros(state.shape, "f4") for state in pruned.spec.graph("step").states}
    inputs = {tensor.name: example[tensor.name] for tensor in pruned.spec.graph("step").inputs}
    before = pruned.run({**inputs, **empty})["log_probs"]
    found = reconstruct(given, cut, pruned, {"step": samples}, replace(EXACT, samples=8), nothing)
    assert len(found) == 9
    assert all(one.after < one.before for one in found)
    assert np.abs(pruned.run({**inputs, **empty})["log_probs"] - before).max() > 1e-3


def test_no_samples_are_refused() -> None:
    given = classifier()
    cut = Cut({"feedforward:blocks.0.feedforward": (0, 1)})
    with pytest.raises(DataError, match="--data"):
        reconstruct(given, cut, prune(given, cut), {}, EXACT, nothing)


def test_values_that_are_not_finite_name_the_unit() -> None:
    given = classifier()
    cut = Cut({"feedforward:blocks.0.feedforward": (0, 1)})
    samples = rows(3)
    samples["main"][2]["x"][:] = np.inf
    with pytest.raises(DataError, match=r"blocks\.0\.feedforward"):
        reconstruct(given, cut, prune(given, cut), samples, EXACT, nothing)


@pytest.mark.parametrize("changed", [{"samples": 0}, {"batch": 0}, {"ridge": -1.0}, {"ridge": float("nan")}])
def test_options_without_sense_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least"):
        ReconstructOptions(**changed)
