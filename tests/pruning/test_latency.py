"""The latency table: what is measured is attributed to units and layers, kept, and estimated where nothing runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pipeline.steps.baseline import Baseline
from edgeattn.pipeline.steps.candidates import open_artifact, time_candidates
from edgeattn.pipeline.steps.exports import Exports
from edgeattn.pipeline.steps.recipes import build
from edgeattn.pruning.anatomy import Prunable
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.knapsack import predict
from edgeattn.pruning.latency import Curve, LatencyTable, Timing, falling, timings
from edgeattn.pruning.latency_estimated import estimate_table
from edgeattn.pruning.latency_measured import (
    MAX_TABLES,
    MeasureOptions,
    cache_directory,
    half_of_layers,
    measure_table,
    table_key,
    unit_classes,
)
from edgeattn.pruning.trials import prunable
from edgeattn.runtimes import Session
from edgeattn.sources import from_module
from edgeattn.spec import from_json, to_json
from edgeattn.targets import get_target
from edgeattn.targets.roofline import CPU

DIM, HEADS, NEURONS, LAYERS, TOKENS = 16, 4, 64, 4, 6


class Layer(nn.Module):
    """One of an encoder: attention as Bart names it, and a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.fc1, self.fc2 = nn.Linear(DIM, NEURONS), nn.Linear(NEURONS, DIM)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x = hidden_states + self.self_attn(hidden_states)
        y: torch.Tensor = x + self.fc2(torch.relu(self.fc1(x)))
        return y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = HEADS, DIM // HEADS
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        y: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return y


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def model(tokens: int = TOKENS) -> EdgeModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return from_module(Encoder().eval(), (torch.randn(1, tokens, DIM),), "encoder")


@pytest.fixture(scope="module")
def encoder() -> Prunable:
    return prunable(model())


HEAD_MS, NEURON_MS, LAYER_MS, FIXED_MS = 0.5, 0.01, 0.2, 3.0
FULL_MS = FIXED_MS + LAYERS * (LAYER_MS + HEADS * HEAD_MS + NEURONS * NEURON_MS)


def cost(made: EdgeModel) -> float:
    """Milliseconds by a law that the table must find: so much per head, neuron and layer that is there."""
    assert made.network is not None
    layers = list(made.network.get_submodule("layers").children())
    heads = sum(layer.get_submodule("self_attn.q_proj").get_parameter("weight").shape[0] for layer in layers)
    neurons = sum(layer.get_submodule("fc1").get_parameter("weight").shape[0] for layer in layers)
    return FIXED_MS + LAYER_MS * len(layers) + HEAD_MS * heads / (DIM // HEADS) + NEURON_MS * neurons


def by_law(variants: Mapping[str, EdgeModel]) -> dict[str, Timing]:
    return {name: Timing(cost(variants[name])) for name in variants}


OPTIONS = MeasureOptions("law 1.0", "fp32", "a test", channels=16)


def keyed(given: Prunable, kind: str) -> list[str]:
    return [unit.key for unit in given.anatomy.units if unit.kind == kind]


def test_units_that_cost_the_same_are_one_class_and_know_their_rows(encoder: Prunable) -> None:
    classes = {one.kind: one for one in unit_classes(encoder)}
    assert {kind: len(one.units) for kind, one in classes.items()} == {"attention": LAYERS, "feedforward": LAYERS}
    assert classes["attention"].rows == ((TOKENS,),) * 4
    assert classes["feedforward"].rows == ((TOKENS,),) * 2


def test_every_head_neuron_and_layer_gets_the_milliseconds_that_it_costs(encoder: Prunable) -> None:
    table = measure_table(encoder, by_law, OPTIONS)
    assert table.full_ms == pytest.approx(FULL_MS)
    assert table.kind == "measured"
    for key in keyed(encoder, "attention"):
        assert [table.saving(key, kept) for kept in range(1, HEADS + 1)] == pytest.approx(
            [HEAD_MS * (HEADS - kept) for kept in range(1, HEADS + 1)]
        )
    for key in keyed(encoder, "feedforward"):
        assert [table.saving(key, kept) for kept in range(1, NEURONS + 1)] == pytest.approx(
            [NEURON_MS * (NEURONS - kept) for kept in range(1, NEURONS + 1)]
        )
    assert table.layer("layers") == pytest.approx(LAYER_MS + HEADS * HEAD_MS + NEURONS * NEURON_MS)


def test_a_mixed_cut_is_predicted_and_what_lies_in_a_dropped_layer_counts_once(encoder: Prunable) -> None:
    table = measure_table(encoder, by_law, OPTIONS)
    attention, feedforward = keyed(encoder, "attention"), keyed(encoder, "feedforward")
    cut = Cut(
        {attention[0]: (0,), attention[1]: (1, 2, 3), feedforward[2]: tuple(range(10)), feedforward[1]: (5,)},
        {"layers": (0, 2, 3)},
    )
    left = (LAYERS - 1) * (LAYER_MS + HEADS * HEAD_MS + NEURONS * NEURON_MS)
    wanted = FIXED_MS + left - 3 * HEAD_MS - (NEURONS - 10) * NEURON_MS
    assert predict(encoder.anatomy, table, cut) == pytest.approx(wanted)
    assert predict(encoder.anatomy, table, Cut()) == pytest.approx(FULL_MS)


def test_the_variants_are_really_smaller_and_keep_multiples_that_kernels_like(encoder: Prunable) -> None:
    seen: dict[str, tuple[int, ...]] = {}

    def times(variants: Mapping[str, EdgeModel]) -> dict[str, Timing]:
        for name in variants:
            network = variants[name].network
            assert network is not None
            shapes = [network.get_submodule(f"layers.0.{path}").get_parameter("weight") for path in ("fc1", "fc2")]
            seen[name] = (shapes[0].shape[0], shapes[1].shape[1])
        return by_law(variants)

    measure_table(encoder, times, replace(OPTIONS, channels=24))
    assert {sizes[0] for sizes in seen.values()} == {24, 48, NEURONS}
    assert all(first == second for first, second in seen.values())


def test_noise_makes_no_saving_negative_or_larger_for_more_groups(encoder: Prunable) -> None:
    noise = iter([0.0, 0.4, -1.0, 0.9, 0.5, 0.0, -20.0, 5.0, 0.1, 0.3])

    def times(variants: Mapping[str, EdgeModel]) -> dict[str, Timing]:
        return {name: Timing(FULL_MS + next(noise), 0.2) for name in variants}

    table = measure_table(encoder, times, OPTIONS)
    for unit in encoder.anatomy.units:
        savings = [table.saving(unit.key, kept) for kept in range(1, unit.groups + 1)]
        assert savings == sorted(savings, reverse=True)
        assert savings[-1] == 0
    assert table.layer("layers") >= 0
    assert table.spread_ms == 0.2


def test_a_unit_that_is_not_there_and_a_count_out_of_range_are_refused(encoder: Prunable) -> None:
    table = measure_table(encoder, by_law, OPTIONS)
    key = keyed(encoder, "attention")[0]
    with pytest.raises(KeyError):
        table.saving("attention:nowhere", 1)
    for count in (0, HEADS + 1):
        with pytest.raises(ValueError, match=f"expected 1 to {HEADS} groups, got {count}"):
            table.saving(key, count)


@pytest.mark.parametrize(
    ("layers", "pinned", "kept"), [(4, (), (0, 1)), (4, (0,), (0, 1)), (2, (1,), (1,)), (3, (2,), (2,))]
)
def test_half_of_the_layers_stay_and_pinned_ones_always(
    encoder: Prunable, layers: int, pinned: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    assert half_of_layers(replace(encoder.anatomy.stacks[0], layers=layers, pinned=pinned)) == kept


@settings(max_examples=200, deadline=None)
@hypothesis_given(st.lists(st.floats(-10, 10), min_size=1, max_size=7))
def test_the_fit_is_the_closest_sequence_that_never_rises(values: list[float]) -> None:
    # The closed form of isotonic regression: least over starts of the largest over ends of the mean between them.
    wanted = [
        min(max(math.fsum(values[a : b + 1]) / (b + 1 - a) for b in range(i, len(values))) for a in range(i + 1))
        for i in range(len(values))
    ]
    assert falling(values) == pytest.approx(wanted, abs=1e-9)


@settings(max_examples=100, deadline=None)
@hypothesis_given(st.lists(st.tuples(st.integers(1, 99), st.floats(0, 5)), min_size=1, max_size=5), st.integers(1, 100))
def test_a_curve_never_rises_and_passes_through_what_was_measured(points: list[tuple[int, float]], groups: int) -> None:
    counts = sorted({count for count, _ in points})
    saved = sorted((ms for _, ms in points), reverse=True)[: len(counts)]
    curve = Curve((*counts, 100), (*saved, 0.0))
    assert all(curve.at(count) == pytest.approx(ms) for count, ms in zip(counts, saved, strict=True))
    assert curve.at(groups) >= curve.at(min(100, groups + 1)) - 1e-12
    assert curve.at(100) == 0


@pytest.mark.parametrize(
    ("groups", "saved", "message"),
    [
        ((1, 4), (1.0,), "as many times as counts"),
        ((), (), "as many times as counts"),
        ((0, 4), (1.0, 0.0), "must ascend from 1"),
        ((4, 2), (1.0, 0.0), "must ascend from 1"),
        ((1, 4), (1.0, 0.5), "end at 0"),
        ((1, 4), (math.nan, 0.0), "finite"),
        ((1, 2, 4), (1.0, 2.0, 0.0), "must not rise"),
    ],
)
def test_a_curve_that_is_none_is_refused(groups: tuple[int, ...], saved: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Curve(groups, saved)


def test_rounds_of_a_host_that_slows_down_are_brought_to_one_speed() -> None:
    even = {"full": 4.0, "half": 2.0, "third": 1.0}
    slow = [{name: ms * factor for name, ms in even.items()} for factor in (1.0, 3.0, 1.0)]
    found = timings(slow)
    assert {name: timing.ms for name, timing in found.items()} == pytest.approx(even)
    assert max(timing.spread_ms for timing in found.values()) == pytest.approx(0.0, abs=1e-12)
    odd = timings([even, {**even, "half": 3.0}, even])
    assert odd["half"] == Timing(2.0, 0.5)


# --- the cache --------------------------------------------------------------------------------------------------------


def counting(calls: list[int]) -> Callable[[Mapping[str, EdgeModel]], dict[str, Timing]]:
    def times(variants: Mapping[str, EdgeModel]) -> dict[str, Timing]:
        calls.append(len(variants))
        return by_law(variants)

    return times


def test_a_second_call_measures_nothing(encoder: Prunable, tmp_path: Path) -> None:
    calls: list[int] = []
    first = measure_table(encoder, counting(calls), OPTIONS, tmp_path / "cache")
    second = measure_table(prunable(model()), counting(calls), OPTIONS, tmp_path / "cache")
    assert calls == [1 + 2 + 3 + 1]  # the whole, heads, neurons, layers
    assert first == second


def test_another_engine_device_thread_precision_or_shape_is_another_table(encoder: Prunable) -> None:
    keys = [
        table_key(encoder, OPTIONS),
        table_key(encoder, replace(OPTIONS, engine="law 1.1")),
        table_key(encoder, replace(OPTIONS, device="another")),
        table_key(encoder, replace(OPTIONS, threads=2)),
        table_key(encoder, replace(OPTIONS, precision="int8")),
        table_key(encoder, replace(OPTIONS, channels=8)),
        table_key(prunable(model(TOKENS + 1)), OPTIONS),
    ]
    assert len(set(keys)) == len(keys)
    assert table_key(prunable(model()), OPTIONS) == keys[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: b"", "damaged"),
        (lambda data: json.dumps(data)[:-9].encode(), "damaged"),
        (lambda data: json.dumps({**data, "full_ms": -1}).encode(), "full_ms must be positive"),
        (lambda data: json.dumps({**data, "kind": "guessed"}).encode(), "expected one of measured, estimated"),
        (lambda data: json.dumps({**data, "kind": "estimated"}).encode(), "damaged"),
        (lambda data: json.dumps({**data, "savings": {}}).encode(), "its units are others"),
        (lambda data: json.dumps({**data, "layers": {}}).encode(), "its layers are others"),
        (lambda _: b" " * (4 * 2**20 + 1), "larger than"),
    ],
)
def test_a_damaged_table_is_measured_anew_and_said(
    encoder: Prunable, tmp_path: Path, change: Callable[[dict[str, object]], bytes], message: str
) -> None:
    calls: list[int] = []
    said: list[str] = []
    first = measure_table(encoder, counting(calls), OPTIONS, tmp_path)
    path = tmp_path / f"{table_key(encoder, OPTIONS)}.json"
    path.write_bytes(change(json.loads(path.read_text(encoding="utf-8"))))
    assert measure_table(encoder, counting(calls), OPTIONS, tmp_path, said.append) == first
    assert len(calls) == 2
    assert any(message in line for line in said)
    assert from_json(LatencyTable, json.loads(path.read_text(encoding="utf-8"))) == first


def test_the_cache_stays_bounded_and_a_table_is_kept_whole(encoder: Prunable, tmp_path: Path) -> None:
    for number in range(MAX_TABLES + 3):
        (tmp_path / f"{number}.json").write_text("{}", encoding="utf-8")
    measure_table(encoder, by_law, OPTIONS, tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == MAX_TABLES
    assert f"{table_key(encoder, OPTIONS)}.json" in kept


def test_a_cache_that_cannot_be_written_costs_time_and_is_no_error(encoder: Prunable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    said: list[str] = []
    table = measure_table(encoder, by_law, OPTIONS, tmp_path / "file" / "cache", said.append)
    assert table.full_ms == pytest.approx(FULL_MS)
    assert any("not kept" in line for line in said)


def test_the_cache_lies_where_the_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "edgeattn" / "latency"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "edgeattn" / "latency"


def test_a_table_goes_through_json_unchanged(encoder: Prunable) -> None:
    table = measure_table(encoder, by_law, OPTIONS)
    assert from_json(LatencyTable, json.loads(json.dumps(to_json(table)))) == table


# --- the estimate -----------------------------------------------------------------------------------------------------


def test_an_estimate_is_called_one_and_never_saves_more_than_there_is(encoder: Prunable) -> None:
    table = estimate_table(encoder, get_target("jetson"), "fp16")
    assert (table.kind, table.engine, table.precision) == ("estimated", "roofline", "fp16")
    for unit in encoder.anatomy.units:
        savings = [table.saving(unit.key, kept) for kept in range(1, unit.groups + 1)]
        assert savings == sorted(savings, reverse=True)
    most = sum(table.saving(unit.key, 1) for unit in encoder.anatomy.units)
    assert 0 < most < table.full_ms
    assert LAYERS * table.layer("layers") == pytest.approx(table.full_ms)  # there is nothing but layers


def test_an_estimate_of_long_sequences_is_the_operations_over_the_rate() -> None:
    tokens = 512
    given = prunable(model(tokens))
    target = get_target("raspberry-pi-5")
    assert target.peaks is not None
    slow = replace(
        target,
        cpu=replace(target.cpu, clusters=()),
        peaks=replace(target.peaks, fp32=1e9),
        memory=replace(target.memory, bytes_per_second=1e15),
    )
    table = estimate_table(given, slow)
    rate = CPU.eta.mid * 1e9 / 4  # of one core of four
    neuron = 2 * 2 * tokens * DIM / rate * 1e3
    key = keyed(given, "feedforward")[0]
    assert table.saving(key, 16) == pytest.approx((NEURONS - 16) * neuron, rel=1e-6)
    head = (4 * 2 * tokens * DIM + 4 * tokens * tokens) * (DIM // HEADS) / rate * 1e3
    assert table.saving(keyed(given, "attention")[0], 1) == pytest.approx((HEADS - 1) * head, rel=1e-6)


def test_more_threads_and_fewer_bytes_take_less_time(encoder: Prunable) -> None:
    target = get_target("raspberry-pi-5")
    one, four = (estimate_table(encoder, target, threads=threads).full_ms for threads in (1, 4))
    assert four < one
    assert estimate_table(encoder, target, "int8").full_ms < one


def test_a_precision_without_a_rate_of_its_own_counts_as_float32(encoder: Prunable) -> None:
    target = get_target("raspberry-pi-4")
    assert target.peaks is not None
    assert target.peaks.fp16 is None
    half, single = (estimate_table(encoder, target, precision).full_ms for precision in ("fp16", "fp32"))
    assert half == single


def test_a_target_without_rates_is_refused_with_what_to_give(encoder: Prunable) -> None:
    told = r"x86-avx2: its latency cannot be estimated, \[peaks\] fp32.*; or prune by a share instead of a time"
    with pytest.raises(UnsupportedError, match=told):
        estimate_table(encoder, replace(get_target("x86-avx2"), memory=get_target("jetson").memory))
    target = get_target("jetson")
    without = replace(target, memory=replace(target.memory, bytes_per_second=None))
    with pytest.raises(UnsupportedError, match=r"\[memory\] bytes_per_second is not known; give it in a target file"):
        estimate_table(encoder, without)


def test_a_table_without_time_is_refused() -> None:
    with pytest.raises(InputError, match="full_ms must be positive"):
        from_json(
            LatencyTable,
            {
                "full_ms": 0, "savings": {}, "layers": {}, "kind": "measured", "engine": "", "precision": "",
                "device": "", "threads": 1,
            },
        )  # fmt: skip


# --- an engine --------------------------------------------------------------------------------------------------------


def engine_times(scratch: Path, engine: str, rounds: int) -> Callable[[Mapping[str, EdgeModel]], dict[str, Timing]]:
    """Variants built for an engine of this host and timed in turns."""

    def times(variants: Mapping[str, EdgeModel]) -> dict[str, Timing]:
        with ExitStack() as stack:
            sessions: dict[str, Session] = {}
            for number, name in enumerate(variants):
                room = scratch / str(number)
                room.mkdir()
                exports = Exports(variants[name], Baseline({}, {}, None, None), room)
                artifact = build(engine, exports, "fp32", get_target("cpu"))
                sessions[name] = stack.enter_context(open_artifact(artifact, exports, 1))
            return timings([time_candidates(sessions) for _ in range(rounds)])

    return times


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_a_table_is_measured_on_an_engine_and_a_smaller_model_is_never_predicted_slower(
    encoder: Prunable, tmp_path: Path, engine: str
) -> None:
    pytest.importorskip(engine)
    (tmp_path / "scratch").mkdir()
    said: list[str] = []
    options = replace(OPTIONS, engine=engine)
    table = measure_table(encoder, engine_times(tmp_path / "scratch", engine, 2), options, tmp_path, said.append)
    assert said == ["timing 7 variants for the latency table"]
    assert 0 < table.full_ms < 1e4
    smaller = [Cut(dict.fromkeys(keyed(encoder, kind), (0,))) for kind in ("attention", "feedforward")]
    assert all(predict(encoder.anatomy, table, cut) <= table.full_ms for cut in smaller)
    assert measure_table(encoder, counting([]), options, tmp_path) == table


def test_a_table_of_a_busy_host_is_not_kept_and_says_so(encoder: Prunable, tmp_path: Path) -> None:
    def jittery(variants: Mapping[str, EdgeModel]) -> dict[str, Timing]:
        return {name: replace(timing, spread_ms=0.5 * timing.ms) for name, timing in law(variants).items()}

    law = counting([])
    first = measure_table(encoder, jittery, OPTIONS, tmp_path / "cache")
    assert "measured on a busy host" in first.notes[-1]
    calls: list[int] = []
    measure_table(encoder, counting(calls), OPTIONS, tmp_path / "cache")
    assert calls  # measured again
