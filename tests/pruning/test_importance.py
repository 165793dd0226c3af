"""Importance of groups and layers against Jacobians, finite differences and the removal itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pruning needs edgeattn[convert]")
from torch import Tensor  # noqa: E402
from torch.nn import functional  # noqa: E402

from edgeattn.errors import DataError  # noqa: E402
from edgeattn.model import Arrays, Graph  # noqa: E402
from edgeattn.pruning.anatomy import Prunable, masked  # noqa: E402
from edgeattn.pruning.apply import prune  # noqa: E402
from edgeattn.pruning.calls import batches  # noqa: E402
from edgeattn.pruning.cut import Cut  # noqa: E402
from edgeattn.pruning.graph_loss import GraphLoss, distance, graph_loss, surrogate  # noqa: E402
from edgeattn.pruning.importance import ImportanceOptions, leave_out, magnitude, measure_importance, shrunk  # noqa: E402
from edgeattn.pruning.trials import prunable  # noqa: E402
from edgeattn.sources import from_graphs  # noqa: E402
from tests.pruning.blocks import CLASSES, HEAD_DIM, HEADS, LAYERS, Classifier, classifier, rows  # noqa: E402


def nothing(_: float) -> None:
    """Progress that nobody looks at."""


def jacobian(given: Prunable, row: Arrays) -> dict[str, np.ndarray]:
    """Unit's key -> d logits / d mask, (classes, groups)."""
    masks = {unit.key: torch.ones(unit.groups, requires_grad=True) for unit in given.anatomy.units}
    with masked(given.network, given.anatomy, masks):
        logits = given.model.modules["main"](x=torch.from_numpy(row["x"]))["logits"][0]
    found = [torch.autograd.grad(value, list(masks.values()), retain_graph=True) for value in logits]
    return {key: np.stack([own[place].numpy() for own in found]) for place, key in enumerate(masks)}


def exact_fisher(given: Prunable, samples: list[Arrays]) -> dict[str, np.ndarray]:
    """J' (diag(p) - p p') J, averaged over samples."""
    total: dict[str, np.ndarray] = {}
    for row in samples:
        logits = given.model.run(row)["logits"][0].astype(np.float64)
        p = np.exp(logits - logits.max())
        p /= p.sum()
        for key, own in jacobian(given, row).items():
            total[key] = total.get(key, 0.0) + own.T @ (np.diag(p) - np.outer(p, p)) @ own / len(samples)
    return total


def test_scores_and_interactions_are_the_gauss_newton_matrix_of_the_masks() -> None:
    given, samples = classifier(), rows(4)
    many = {"main": samples["main"] * 1_000}
    found = measure_importance(
        given, many, ImportanceOptions(samples=4_000, layer_samples=1, batch=100, draws=1), nothing
    )
    for key, wanted in exact_fisher(given, samples["main"]).items():
        np.testing.assert_allclose(found.scores[key], 0.5 * np.diag(wanted), rtol=0.15)  # of 4,000 draws of signs
        assert np.abs(found.interactions[key] - wanted).max() <= 0.1 * np.abs(wanted).max()
    assert found.method == "fisher"
    assert found.samples == 4_000


def test_the_direction_drawn_for_a_softmax_has_its_covariance() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0]])
    rng = torch.Generator().manual_seed(0)
    loss = GraphLoss("main", ("logits",))
    total = np.zeros((4, 4))
    for _ in range(3_000):
        leaf = logits.clone().requires_grad_()
        (u,) = torch.autograd.grad(surrogate(loss, {"logits": leaf}, 1, rng), leaf)
        total += np.outer(u[0], u[0]) / 3_000
    p = torch.softmax(logits[0], -1).numpy()
    np.testing.assert_allclose(total, np.diag(p) - np.outer(p, p), atol=0.02)


def test_several_draws_at_a_sample_count_as_much_as_several_copies_of_it() -> None:
    given, samples = classifier(), rows(4)
    found = measure_importance(given, samples, ImportanceOptions(samples=4, layer_samples=1, draws=2_000), nothing)
    for key, wanted in exact_fisher(given, samples["main"]).items():
        np.testing.assert_allclose(found.scores[key], 0.5 * np.diag(wanted), rtol=0.15)
    assert found.samples == 4


def test_a_plain_output_counts_by_its_squared_error_relative_to_its_mean_square() -> None:
    loss = GraphLoss("main", (), {"a": 2.0, "b": 0.5})
    wanted = {"a": torch.full((1, 4), 2.0), "b": torch.full((1, 2), 0.5)}
    got = {"a": torch.full((1, 4), 3.0), "b": torch.full((1, 2), 0.5)}
    assert distance(loss, wanted, got) == pytest.approx(0.5 * (1.0 / 4.0) / 2)
    rng = torch.Generator().manual_seed(0)
    leaf = torch.ones((1, 4), requires_grad=True)
    (u,) = torch.autograd.grad(surrogate(loss, {"a": leaf, "b": wanted["b"]}, 1, rng), leaf)
    np.testing.assert_allclose(u.numpy() ** 2, 1.0 / (4 * 2 * 2.0**2), rtol=1e-6)


def test_a_group_whose_exit_is_zero_is_worth_nothing_and_one_alone_is_worth_its_removal() -> None:
    given = classifier()
    exit_: Any = given.network.get_submodule("blocks.1.feedforward.contract")
    with torch.no_grad():
        exit_.weight[:, 4] = 0.0
    found = measure_importance(given, rows(32), ImportanceOptions(samples=32), nothing)
    scores = found.scores["feedforward:blocks.1.feedforward"]
    assert scores[4] == 0.0
    assert (np.delete(scores, 4) > 0).all()


def test_layers_are_measured_by_leaving_them_out() -> None:
    given, samples = classifier(), rows(6)
    found = measure_importance(given, samples, ImportanceOptions(samples=6, layer_samples=6, batch=4), nothing)
    for layer in range(LAYERS):
        without = prune(given, Cut({}, {"blocks": tuple(n for n in range(LAYERS) if n != layer)}))
        total = 0.0
        for row in samples["main"]:
            p, q = (
                functional.softmax(torch.from_numpy(m.run(row)["logits"][0]).double(), -1).numpy()
                for m in (given.model, without)
            )
            total += float((p * np.log(p / q)).sum()) / 6
        assert found.layers["blocks"][layer] == pytest.approx(total, rel=1e-4)


def test_a_layer_that_must_stay_has_no_figure() -> None:
    from dataclasses import replace

    given = classifier()
    stack = replace(given.anatomy.stack("blocks"), pinned=(1,))
    pinned = Prunable(given.model, replace(given.anatomy, stacks=(stack,)))
    found = measure_importance(pinned, rows(2), ImportanceOptions(samples=2), nothing)
    assert np.isnan(found.layers["blocks"]).tolist() == [False, True, False]


def cross_entropy(outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """A user's loss."""
    return functional.cross_entropy(outputs["logits"], inputs["target_logits"])


def labelled(count: int) -> dict[str, list[Arrays]]:
    rng = np.random.default_rng(3)
    return {"main": [{**row, "target_logits": rng.integers(0, CLASSES, 1)} for row in rows(count)["main"]]}


def test_a_loss_of_the_user_gives_the_empirical_fisher_by_finite_differences() -> None:
    given, samples = classifier(), labelled(5)
    options = ImportanceOptions(samples=5, layer_samples=5, loss=cross_entropy)
    found = measure_importance(given, samples, options, nothing)
    key, step = "attention:blocks.0.attention", 1e-2
    gradients = np.zeros((5, HEADS))
    for number, row in enumerate(samples["main"]):
        for head in range(HEADS):
            for sign in (1, -1):
                mask = torch.ones(HEADS)
                mask[head] += sign * step
                with masked(given.network, given.anatomy, {key: mask}), torch.no_grad():
                    outputs = given.model.modules["main"](x=torch.from_numpy(row["x"]))
                    value = cross_entropy(outputs, {"target_logits": torch.from_numpy(row["target_logits"])})
                gradients[number, head] += sign * float(value) / (2 * step)
    np.testing.assert_allclose(found.scores[key], 0.5 * (gradients**2).mean(0), rtol=1e-2, atol=1e-7)
    assert found.method == "empirical fisher"
    without = prune(given, Cut({}, {"blocks": (0, 1)}))
    change = 0.0
    for row in samples["main"]:
        for sign, model in ((1, without), (-1, given.model)):
            logits = torch.from_numpy(model.run({"x": row["x"]})["logits"])
            change += sign * float(functional.cross_entropy(logits, torch.from_numpy(row["target_logits"]))) / 5
    assert found.layers["blocks"][2] == pytest.approx(change, abs=1e-5)


def test_a_gradient_that_is_not_finite_names_sample_and_unit() -> None:
    def broken(outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        zero = (outputs["logits"] * 0.0).sum()
        return zero.sqrt() if bool(inputs["target_logits"][0] == 9) else zero

    samples = {"main": [{**row, "target_logits": np.array([n * 3])} for n, row in enumerate(rows(5)["main"])]}
    with pytest.raises(DataError, match=r"sample 3 of graph 'main': the gradient at blocks\.\S+ is not finite"):
        measure_importance(classifier(), samples, ImportanceOptions(loss=broken), nothing)


def test_a_loss_that_is_not_finite_names_the_sample() -> None:
    samples = rows(3)
    samples["main"][1]["x"][0, 0, 0] = np.nan
    with pytest.raises(DataError, match="sample"):
        measure_importance(classifier(), samples, ImportanceOptions(batch=1), nothing)


def test_no_samples_are_refused() -> None:
    with pytest.raises(DataError, match="--data"):
        measure_importance(classifier(), {"main": []}, ImportanceOptions(), nothing)


@pytest.mark.parametrize("changed", [{"samples": 0}, {"layer_samples": 0}, {"batch": 0}, {"draws": 0}])
def test_counts_below_one_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ImportanceOptions(**changed)


def test_a_model_that_treats_samples_apart_is_given_several_and_another_one_by_one() -> None:
    samples = rows(5)["main"]
    assert batches(classifier(), "main", samples, 2) == [[0, 1], [2, 3], [4]]
    assert batches(classifier(mixed=True), "main", samples, 2) == [[0], [1], [2], [3], [4]]


def test_samples_of_other_sizes_are_not_put_together() -> None:
    samples = [{"x": row["x"][:, : 3 + number // 2]} for number, row in enumerate(rows(4)["main"])]
    assert batches(classifier(), "main", samples, 4) == [[0, 1], [2, 3]]


def test_the_network_and_torch_are_as_before() -> None:
    given = classifier()
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in given.network.named_parameters()}
    torch.backends.mha.set_fastpath_enabled(True)
    progress: list[float] = []
    with torch.inference_mode():
        measure_importance(given, rows(3), ImportanceOptions(), progress.append)
        assert torch.is_inference_mode_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    for name, parameter in given.network.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.grad is None
        assert parameter.requires_grad == before[name][1]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in given.network.modules())
    assert progress == sorted(progress)
    assert progress[-1] == pytest.approx(1.0)


def test_heads_that_give_the_same_are_redundant_and_independent_ones_are_not() -> None:
    given = classifier()
    attention: Any = given.network.get_submodule("blocks.0.attention")
    with torch.no_grad():  # head 1 is head 0 turned, which linear CKA does not see
        turn, _ = torch.linalg.qr(torch.randn(HEAD_DIM, HEAD_DIM, generator=torch.Generator().manual_seed(0)))
        for layer in (attention.query, attention.key):
            layer.weight[HEAD_DIM : 2 * HEAD_DIM] = layer.weight[:HEAD_DIM]
            layer.bias[HEAD_DIM : 2 * HEAD_DIM] = layer.bias[:HEAD_DIM]
        attention.value.weight[HEAD_DIM : 2 * HEAD_DIM] = turn @ attention.value.weight[:HEAD_DIM]
    found = measure_importance(given, rows(40), ImportanceOptions(samples=40), nothing).redundancy
    assert set(found) == {unit.key for unit in given.anatomy.units if unit.kind == "attention"}
    table = found["attention:blocks.0.attention"]
    np.testing.assert_allclose(np.diag(table), 1.0, atol=1e-6)
    assert table[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert table[0, 2] < 0.95
    np.testing.assert_allclose(table, table.T)


def test_several_graphs_add_up() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Classifier(1)
    graphs = {name: Graph(module, {"x": torch.ones(1, 5, 8)}) for name in ("a", "b")}
    both = prunable(from_graphs(graphs, "two"))
    samples = rows(200)["main"]
    options = ImportanceOptions(samples=200)
    one = measure_importance(both, {"a": samples}, options, nothing)
    two = measure_importance(both, {"a": samples, "b": samples}, options, nothing)
    assert len(both.anatomy.units) == 2
    for key in one.scores:
        np.testing.assert_allclose(two.scores[key], 2 * one.scores[key], rtol=0.5)  # other signs
    np.testing.assert_equal(two.samples, 400)


def test_magnitude_is_the_norm_of_what_a_group_owns() -> None:
    given = classifier()
    found = magnitude(given)
    block: Any = given.network.get_submodule("blocks.0")
    for head in range(HEADS):
        own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        parts = [layer.weight[own] for layer in (block.attention.query, block.attention.key, block.attention.value)]
        parts.append(block.attention.output.weight[:, own])
        wanted = np.sqrt(sum(float((part.detach().double() ** 2).sum()) for part in parts))
        assert found["attention:blocks.0.attention"][head] == pytest.approx(wanted, rel=1e-6)
    assert found["feedforward:blocks.2.feedforward"].shape == (10,)


def test_shrinking_keeps_what_many_samples_show_and_drops_what_chance_does() -> None:
    rng = np.random.default_rng(0)
    few = rng.standard_normal((16, 200)).astype(np.float32)
    block = few.T @ few / 16
    small = shrunk(block, few)
    off = ~np.eye(200, dtype=bool)
    np.testing.assert_allclose(np.diag(small), np.diag(block), rtol=1e-6)
    assert np.abs(small[off]).max() < 0.1 * np.abs(block[off]).max()
    related = rng.standard_normal((4_000, 1)) * np.array([1.0, -2.0, 3.0]) + 0.1 * rng.standard_normal((4_000, 3))
    wanted = related.T @ related / 4_000
    np.testing.assert_allclose(shrunk(wanted.astype(np.float32), related.astype(np.float32)), wanted, rtol=0.01)


def test_outputs_that_are_distributions_are_told_by_name_or_value() -> None:
    class Several(Classifier):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            logits = super().forward(x)["logits"]
            return {"logits": logits, "answer": torch.log_softmax(logits, -1), "vector": logits * 3}

    given = prunable(from_graphs({"main": Graph(Several(1), {"x": torch.ones(1, 5, 8)})}, "several"))
    loss = graph_loss(given, "main", rows(3)["main"])
    assert loss.scores == ("logits", "answer")
    logits = [given.model.run(row)["vector"] for row in rows(3)["main"]]
    assert loss.scales == pytest.approx({"vector": float(np.sqrt(np.mean(np.square(logits))))}, rel=1e-5)


def test_a_stream_with_states_has_figures_for_every_unit() -> None:
    from edgeattn.models.streaming_conformer import build

    given = prunable(build())
    example = given.model.example["step"]
    found = measure_importance(
        given, {"step": [example, example]}, ImportanceOptions(batch=2, layer_samples=1), nothing
    )
    for unit in given.anatomy.units:
        assert found.scores[unit.key].shape == (unit.groups,)
        assert np.isfinite(found.scores[unit.key]).all()
        assert found.scores[unit.key].max() > 0
    assert (found.layers["blocks"] > 0).all()


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    measure_importance(classifier(), rows(2), ImportanceOptions(), nothing)
    assert not list(tmp_path.iterdir())


def test_layers_are_left_out_one_after_the_other_as_brute_force_measures_them() -> None:
    """Each time the layer whose absence beside those already gone costs least, measured here by removing for good."""
    given = classifier()
    samples = rows(12)
    options = ImportanceOptions(layer_samples=12)
    loss = graph_loss(given, "main", samples["main"])
    gone: tuple[int, ...] = ()
    for _ in range(2):
        costs = {}
        for layer in range(LAYERS):
            if layer in gone:
                continue
            kept = tuple(n for n in range(LAYERS) if n not in (*gone, layer))
            smaller = prune(given, Cut({}, {"blocks": kept}))
            costs[layer] = 0.0
            for sample in samples["main"]:
                outputs = [
                    {name: torch.from_numpy(value) for name, value in model.run(sample).items()}
                    for model in (given.model, smaller)
                ]
                costs[layer] += distance(loss, *outputs)
        gone = tuple(sorted((*gone, min(costs, key=lambda layer: costs[layer]))))
    assert leave_out(given, samples, 2, options, lambda _: None) == {"blocks": gone}
    # One layer of a stack stays, however many are asked for.
    assert len(leave_out(given, samples, 9, options, lambda _: None)["blocks"]) == LAYERS - 1
