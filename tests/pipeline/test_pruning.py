"""The prune step: budgets on a clock that counts weights, so that what must come out is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="pruning needs edgeattn[convert]")

from edgeattn.errors import DataError, InputError, UnsupportedError
from edgeattn.evaluation.arrays import ArrayData
from edgeattn.model import EdgeModel
from edgeattn.pipeline import convert as pipeline
from edgeattn.pipeline.convert import convert
from edgeattn.pipeline.steps.baseline import baseline
from edgeattn.pipeline.steps.candidates import PAYS
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.options import ConvertOptions, Effort
from edgeattn.pipeline.steps.pruning import Outcome, Setting, for_target, forget, latency_table, prune_task
from edgeattn.pipeline.steps.pruning.facts import promise
from edgeattn.pipeline.steps.pruning.plan import REACHED
from edgeattn.pipeline.steps.pruning.task import importance_of, state_file
from edgeattn.pruning import FORMS, Cut, Prunable, Recovery, Request, Timing, parse_request, prune, write_pruned
from edgeattn.results.gates import Failure, Gates
from edgeattn.results.report import Pruning
from edgeattn.sources import load_data, load_model
from edgeattn.targets import get_target
from tests.conversions import QUICK, Watch
from tests.prunable import HEADS, LAYERS, NEURONS, block_weights, unlabelled, write_prunable
from tests.pruning.forms.unbiased import UNBIASED

TIMES = "edgeattn.pipeline.steps.pruning.timing.time_models"
Clock = Callable[[EdgeModel], float]


def weights(model: EdgeModel) -> float:
    """A clock: a microsecond for every weight of the layers."""
    return 1e-3 * block_weights(model)


def ticking(clock: Clock) -> Callable[..., Any]:
    """What stands for the measurements of an engine."""
    return lambda _, models: {name: Timing(clock(models[name])) for name in models}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[EdgeModel, ArrayData]:
    reference, path = write_prunable(tmp_path_factory.mktemp("prunable"))
    model = load_model(reference)
    data = load_data(reference, model.spec, path, None, 60)
    assert isinstance(data, ArrayData)
    return model, data


def shop_of(model: EdgeModel, data: ArrayData | None, folder: Path) -> Exports:
    room = folder / "scratch"
    room.mkdir()
    return Exports(model, baseline(model, data, Watch()), room)


@pytest.fixture
def exports(source: tuple[EdgeModel, ArrayData], tmp_path: Path) -> Exports:
    return shop_of(*source, tmp_path)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(TIMES, ticking(weights))


def setting(target: str = "cpu", backend: str = "openvino") -> Setting:
    return Setting(target=get_target(target), backend=backend, threads=1, progress=Watch())


def compressed(exports: Exports, request: Request, target: str = "cpu", backend: str = "openvino") -> Outcome:
    return for_target(prune_task(exports, request), setting(target, backend))


def test_an_asked_speed_is_reached_and_foreseen_as_it_is_measured(exports: Exports) -> None:
    made = compressed(exports, Request(speedup=1.6))
    facts = made.pruning.facts
    assert not made.pruning.failures
    assert facts["kind"] == "measured"
    assert weights(exports.model) / weights(made.model) == pytest.approx(facts["speedup"])
    assert facts["speedup"] >= REACHED * 1.6
    # The clock adds up what the blocks weigh, as the table does: nothing but rounding is between the two.
    assert abs(facts["difference_percent"]) < 5
    assert facts["parameters"]["pruned"] < facts["parameters"]["original"]


def test_a_deadline_is_a_speed(exports: Exports) -> None:
    full = weights(exports.model)
    made = compressed(exports, Request(deadline_ms=full / 1.6))
    assert not made.pruning.failures
    assert made.pruning.facts["pruned_ms"] <= full / 1.6 / REACHED


def test_a_clock_that_is_slower_than_its_table_is_corrected(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed cost appears once the table is made: the first cut misses, a stricter one does not."""
    calls = []

    def drifting(_: Setting, models: Mapping[str, EdgeModel]) -> dict[str, Timing]:
        calls.append(len(models))
        fixed = 0.0 if len(calls) == 1 else 0.4 * weights(exports.model)
        return {name: Timing(weights(models[name]) + fixed) for name in models}

    monkeypatch.setattr(TIMES, drifting)
    made = compressed(exports, Request(speedup=1.5))
    assert len(calls) > 3  # the table, at least two cuts, the result
    assert not made.pruning.failures
    assert made.pruning.facts["speedup"] >= REACHED * 1.5


def test_a_busy_moment_does_not_remove_more_than_was_asked(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut is a tenth too slow when first timed; timed beside a stricter one it is as fast as foreseen, and stays."""
    calm = compressed(exports, Request(speedup=1.5)).cut
    calls: list[tuple[str, ...]] = []

    def hiccup(_: Setting, models: Mapping[str, EdgeModel]) -> dict[str, Timing]:
        calls.append(tuple(models))
        late = {"0": 1.1} if len(calls) == 1 else {}
        return {name: Timing(late.get(name, 1.0) * weights(model)) for name, model in models.items()}

    monkeypatch.setattr(TIMES, hiccup)
    made = compressed(exports, Request(speedup=1.5))
    assert calls[:2] == [("unpruned", "0"), ("unpruned", "0", "1")]  # the table is kept from before
    assert made.cut == calm


def test_trials_by_the_metric_share_the_minutes_of_recovery(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many cuts are tried, all of their distillation together takes no longer than was given."""
    spent: list[float] = []

    def trained(*args: Any) -> Recovery:
        model, options = args[2], args[4]
        spent.append(options.seconds)
        return Recovery(
            model=model, losses=(), seconds=options.seconds, before=1.0, after=1.0, history=(), together=True, note=""
        )

    monkeypatch.setattr("edgeattn.pipeline.steps.pruning.work.recover", trained)
    for allowed in (4.0, 60.0):
        spent.clear()
        asked = Request(max_drop=allowed, recover_seconds=40.0)
        made = for_target(prune_task(exports, asked, accept_unproved=True), setting())
        assert made.pruning.facts["recovery"] is not None
        assert len(spent) > 1
        assert sum(spent) <= 40.0
    spent.clear()
    compressed(exports, Request(speedup=1.5, recover_seconds=40.0))
    assert spent == [40.0]  # one cut alone


def test_a_table_of_a_busy_moment_is_measured_anew(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept table says that removing saves next to nothing; the first cut shows that it is wrong."""
    busy = True

    def times(_: Setting, models: Mapping[str, EdgeModel]) -> dict[str, Timing]:
        full = weights(exports.model)
        flat = 0.8 * full if busy else 0.0
        return {name: Timing(flat + (0.2 if busy else 1.0) * weights(models[name])) for name in models}

    monkeypatch.setattr(TIMES, times)
    task = prune_task(exports, Request(speedup=1.05))
    importance_of(task, Watch())
    wrong = latency_table(task, setting())
    busy = False
    assert latency_table(task, setting()) == wrong  # kept
    facts = for_target(task, setting()).pruning.facts
    assert latency_table(task, setting()) != wrong
    assert abs(facts["difference_percent"]) < 5


def test_what_cannot_be_reached_names_the_nearest(exports: Exports) -> None:
    made = compressed(exports, Request(speedup=1000.0))
    (failure,) = made.pruning.failures
    assert failure.gate == "speedup"
    assert failure.wanted == "1000x by pruning"
    nearest = float(failure.got.partition("x at most")[0])
    assert 1.0 < nearest < 1000.0
    assert "foreseen to rise by" in failure.got
    assert made.pruning.facts["kept"]  # the best so far


def test_milliseconds_of_a_phone_are_not_judged_by_this_machines_clock(exports: Exports) -> None:
    full = weights(exports.model)
    reached = compressed(exports, Request(deadline_ms=full / 1.6), "mobile", "litert").pruning
    missed = compressed(exports, Request(deadline_ms=full / 1000), "mobile", "litert").pruning
    faster = compressed(exports, Request(speedup=1.6), "mobile", "litert").pruning
    for pruning, gate in ((reached, "deadline"), (missed, "deadline"), (faster, "speedup")):
        assert pruning.failures == ()
        (row,) = pruning.gates
        assert (row.gate, row.verdict, row.asked) == (gate, "not measured", "flag")
        assert "this machine is not android-arm64" in row.why
    (row,) = compressed(exports, Request(deadline_ms=full / 1.6)).pruning.gates
    assert (row.gate, row.verdict) == ("deadline", "passed")
    (failure,) = compressed(exports, Request(deadline_ms=full / 1000)).pruning.failures
    assert failure.gate == "deadline"


def test_the_most_that_keeps_the_metric_is_found(exports: Exports) -> None:
    made = for_target(prune_task(exports, Request(max_drop=4.0), accept_unproved=True), setting())
    score = made.pruning.facts["score"]
    assert score["drop"] <= 4.0
    # A larger drop allows no slower model.
    looser = for_target(prune_task(exports, Request(max_drop=60.0), accept_unproved=True), setting())
    assert looser.pruning.facts["speedup"] >= made.pruning.facts["speedup"] > 1.0


def test_nothing_goes_where_the_samples_are_too_few_to_show_that_it_may(exports: Exports) -> None:
    made = compressed(exports, Request(max_drop=4.0))
    assert made.model is exports.model
    assert made.base is exports.base
    assert made.cut == Cut()
    assert not made.pruning.facts["kept"]
    assert made.pruning.facts["order"] == []
    assert made.pruning.facts["score"]["drop"] == 0.0
    assert any("is not surely within 4 points" in note and "nothing is removed" in note for note in made.pruning.notes)
    assert not any(note.startswith("cpu") for note in made.pruning.notes)  # the result says whose they are


def test_shares_are_removed_from_every_unit(exports: Exports) -> None:
    made = compressed(exports, parse_request("heads=0.34,neurons=0.5"))
    kept = {row["unit"]: (row["kept"], row["groups"]) for row in made.pruning.facts["units"]}
    assert kept["blocks.0.attention"] == (HEADS - 1, HEADS)
    assert made.pruning.facts["predicted_speedup"] is None


def test_the_layer_that_costs_least_is_left_out(exports: Exports) -> None:
    task = prune_task(exports, parse_request("layers=1"))
    found = importance_of(task, Watch())
    assert found is not None
    least = int(np.nanargmin(found.layers["blocks"]))
    made = for_target(task, setting())
    assert made.cut.layers == {"blocks": tuple(n for n in range(LAYERS) if n != least)}
    with pytest.raises(InputError, match=f"layers=9: only {LAYERS - 1} layers"):
        compressed(exports, parse_request("layers=9"))


def test_pruning_that_does_not_pay_is_left_out(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TIMES, ticking(lambda _: 1.0))
    made = compressed(exports, parse_request("heads=0.5"))
    assert made.model is exports.model
    assert made.base is exports.base
    assert not made.pruning.facts["kept"]
    assert f"less than the {PAYS}x that it must pay" in made.pruning.notes[-1]


def test_a_target_whose_engine_is_not_here_is_estimated_and_says_so(exports: Exports) -> None:
    made = compressed(exports, Request(speedup=1.2), "jetson", "tensorrt")
    facts = made.pruning.facts
    assert facts["kind"] == "estimated"
    assert facts["speedup"] is None
    assert facts["pruned_ms"] is None


def test_a_model_is_pruned_once_for_targets_that_ask_the_same(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = prune_task(exports, parse_request("neurons=0.5"))
    cuts = []

    def counted(given: Prunable, cut: Cut) -> EdgeModel:
        cuts.append(cut)
        return prune(given, cut)

    monkeypatch.setattr("edgeattn.pipeline.steps.pruning.work.prune", counted)
    for target, backend in (("cpu", "openvino"), ("cpu", "litert")):
        for_target(task, setting(target, backend))
    assert len(cuts) == 1


def test_metrics_are_compared_with_the_original(exports: Exports) -> None:
    made = compressed(exports, parse_request("heads=0.5,neurons=0.5"))
    assert made.base.score is exports.base.score
    record = made.base.records["main"][0]
    np.testing.assert_allclose(made.model.run(record.inputs)["scores"], record.outputs["scores"], atol=1e-6)


def test_a_budget_needs_data(source: tuple[EdgeModel, ArrayData], tmp_path: Path) -> None:
    exports = shop_of(source[0], None, tmp_path)
    with pytest.raises(DataError, match="give --data"):
        compressed(exports, Request(speedup=1.5))
    with pytest.raises(DataError, match="give --data"):
        compressed(exports, parse_request("layers=1"))
    with pytest.raises(InputError, match="recovery trains on --data"):
        prune_task(exports, parse_request("heads=0.5", 5.0))
    made = compressed(exports, parse_request("neurons=0.5"))
    assert made.pruning.facts["importance"] == {"method": "magnitude", "samples": 0}


def test_a_metric_is_needed_to_keep_one(source: tuple[EdgeModel, ArrayData], tmp_path: Path) -> None:
    exports = shop_of(source[0], unlabelled(source[1]), tmp_path)
    with pytest.raises(DataError, match="no targets"):
        compressed(exports, Request(max_drop=1.0))


def test_two_in_four_is_for_targets_that_have_it(exports: Exports) -> None:
    with pytest.raises(UnsupportedError, match="no kernels for 2:4"):
        compressed(exports, parse_request("sparsity=2:4"))
    made = compressed(exports, parse_request("sparsity=2:4"), "jetson", "tensorrt")
    assert made.cut.forms["sparse"]


def test_a_form_that_is_added_is_planned_beside_a_budget(exports: Exports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, UNBIASED.key, UNBIASED)
    made = compressed(exports, parse_request("speedup=1.2,unbiased=exits"))
    assert made.cut.groups or made.cut.layers
    assert made.cut.forms["unbiased"]
    assert "forms" in made.pruning.facts["order"]
    assert made.pruning.facts["cut"]["unbiased"] == list(made.cut.forms["unbiased"])


@pytest.mark.slow
def test_recovery_trains_and_keeps_its_state_where_it_is_told(exports: Exports, tmp_path: Path) -> None:
    request = parse_request("heads=0.7,neurons=0.9,layers=1", 8.0)
    task = prune_task(exports, request, tmp_path / "new" / "state")
    made = for_target(task, setting())
    recovery = made.pruning.facts["recovery"]
    assert recovery["steps"] > 0 or "before the first step" in recovery["note"]  # on a busy host
    assert recovery["loss_after"] <= recovery["loss_before"]
    assert made.pruning.facts["order"] == ["prune", "reconstruct", "recover", "quantize"]
    state = state_file(task, made.cut)
    assert state is not None
    assert state.is_file()
    assert state_file(task, Cut()) != state  # another target may have another cut
    forget(task)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_saved_model_is_applied_as_it_was(exports: Exports, tmp_path: Path) -> None:
    first = compressed(exports, parse_request("neurons=0.5"))
    directory = write_pruned(tmp_path / "x.pruned", first.model, exports.model, first.cut, "x.py", first.pruning.facts)
    again = compressed(exports, Request(saved=directory))
    example = exports.model.example["main"]
    np.testing.assert_allclose(again.model.run(example)["scores"], first.model.run(example)["scores"], atol=1e-6)
    assert again.pruning.facts["units"] == first.pruning.facts["units"]


def test_a_promise_is_compared_in_percent() -> None:
    found = promise("measured", 5.0, 10.0, {"unpruned": Timing(20.0), "pruned": Timing(8.0)})
    # Foreseen: half of 20 ms, 10; measured: 8.
    assert found.difference_percent == pytest.approx(25.0)
    assert found.speedup == pytest.approx(2.5)


@pytest.mark.slow
def test_convert_ships_the_pruned_model_and_says_so(source: tuple[EdgeModel, ArrayData], tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the cpu target needs edgeattn[openvino]")
    chosen = ConvertOptions(
        (get_target("cpu"),), "fp32", out=tmp_path / "out", gates=Gates(max_drop=100.0), measure=QUICK,
        prune=parse_request("neurons=0.5"),
    )  # fmt: skip
    report = convert(*source, chosen, Watch())
    (result,) = report.results
    assert result.passed, result.failures
    assert result.pruning is not None
    assert result.pruning["kept"]
    assert result.parity is not None
    assert result.parity.reference == "pruned float32 model in torch"
    manifest = json.loads((Path(str(result.bundle)) / "manifest.json").read_text())
    assert manifest["provenance"]["pruning"]["asked"] == "neurons=0.5"
    kept = manifest["provenance"]["pruning"]["cut"]["groups"]
    assert [len(groups) for groups in kept.values()] == [NEURONS // 2] * LAYERS
    json.dumps(report.to_json(), allow_nan=False)


def test_what_missed_its_budget_is_not_searched_for_better_plans(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Seen(Exception):  # noqa: N818 - no error
        """With the effort that was to be made."""

    def look(_: Exports, __: object, options: ConvertOptions, *___: object) -> None:
        raise Seen(options.effort)

    monkeypatch.setattr(pipeline, "try_recipes", look)
    options = ConvertOptions((get_target("cpu"),), effort=Effort(600.0, 60.0))
    for failures, effort in (((), Effort(600.0, 60.0)), ((Failure("speedup", "9x", "2x"),), Effort(0.0))):
        pruned = Exports(exports.model, exports.base, exports.new_directory(f"{len(failures)}"), Pruning({}, failures))
        with pytest.raises(Seen) as seen:
            pipeline.convert_target(pruned, get_target("cpu"), options, Watch())
        assert seen.value.args == (effort,)
