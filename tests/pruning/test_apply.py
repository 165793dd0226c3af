"""A pruned model equals the original with what was removed masked to zero, in every family."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.attention.relative_bias import RelativeBiasAttention
from edgeattn.errors import InputError, UnsupportedError
from edgeattn.model import Arrays, EdgeModel, Graph
from edgeattn.pruning.anatomy import Anatomy, Prunable, skipped
from edgeattn.pruning.apply import oracle_difference, prune
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.families import find_anatomy
from edgeattn.pruning.trials import prunable
from edgeattn.sources import from_module
from edgeattn.sources.modules import from_graphs
from tests.architectures import TRANSFORMERS, named
from tests.pruning.families import (
    FAMILIES,
    OWN,
    architecture,
    directory_of,
    hand_written_stream,
    model_of,
    parameters,
    prunable_of,
    shallower,
    unequal,
    zeroed,
)

TOLERANCE = 1e-5  # of float32, relative to the largest output beyond 1
STEPS = 4  # of a stream: its cache is full, and then moves

both = pytest.mark.parametrize("family", FAMILIES)


def need(family: str) -> None:
    if family not in OWN and architecture(family).needs:
        pytest.importorskip(TRANSFORMERS, reason="a class of transformers")


def outputs_of(model: EdgeModel) -> dict[str, np.ndarray]:
    """Outputs of the example, states apart; a stream starts with empty states and takes some steps."""
    made: dict[str, np.ndarray] = {}
    for graph in model.spec.graphs:
        states = {state.input: state.output for state in graph.states}
        inputs = model.example[graph.name] | graph.initial_states()
        for step in range(STEPS if states else 1):
            result = model.run(inputs, graph.name)
            made |= {f"{graph.name} {step} {out.name}": result[out.name] for out in graph.outputs}
            inputs = inputs | {name: result[output] for name, output in states.items()}
    return made


def difference(one: Arrays, other: Arrays) -> float:
    assert one.keys() == other.keys()
    worst = 0.0
    for name, value in one.items():
        if value.shape == other[name].shape and value.dtype.kind == "f":
            worst = max(worst, float(np.abs(value - other[name]).max() / max(1.0, np.abs(value).max())))
    return worst


def without_averages(model: EdgeModel) -> set[str]:
    """Outputs that are no function of the exits: the mean of attention weights over heads has a test of its own."""
    return (
        {"main 0 output_1"} if model.spec.name == "small" and "output_1" in model.spec.graphs[0].output_names else set()
    )


def check_against_zeroed(given: Prunable, cut: Cut) -> EdgeModel:
    pruned = prune(given, cut)
    masked = zeroed(given, cut)
    assert masked.network is not None
    # Layers are skipped in the module that is run; it is found under the same path in the rebuilt model.
    left_out = {
        path: tuple(n for n in range(given.anatomy.stack(path).layers) if n not in kept)
        for path, kept in cut.layers.items()
    }
    with skipped(masked.network, left_out):
        wanted = outputs_of(masked)
    hidden = without_averages(given.model)
    got = {name: value for name, value in outputs_of(pruned).items() if name not in hidden}
    wanted = {name: value for name, value in wanted.items() if name not in hidden}
    assert difference(wanted, got) <= TOLERANCE
    # The control: without the masks the original computes something else, so that the oracle sees what is removed.
    original = {name: value for name, value in outputs_of(given.model).items() if name not in hidden}
    assert difference(original, got) > 10 * TOLERANCE
    assert parameters(pruned.network) < parameters(given.network)
    return pruned


@both
def test_heads_removed_unequally_equal_heads_masked(family: str) -> None:
    need(family)
    given = prunable_of(family)
    cut = unequal(given.anatomy, "attention")
    pruned = check_against_zeroed(given, cut)
    left = {unit.key: unit.groups for unit in find_anatomy(pruned.network).units}  # type: ignore[arg-type]
    assert {key: left[key] for key in cut.groups} == {key: len(kept) for key, kept in cut.groups.items()}


@both
def test_neurons_removed_equal_neurons_masked(family: str) -> None:
    need(family)
    given = prunable_of(family)
    cut = unequal(given.anatomy, "feedforward")
    if not cut.groups:
        assert not [unit for unit in given.anatomy.units if unit.kind == "feedforward"]
        pytest.skip(f"{family} has no feed-forward")
    check_against_zeroed(given, cut)


@both
def test_layers_left_out_equal_layers_that_pass_on_what_they_got(family: str) -> None:
    need(family)
    given = prunable_of(family)
    cut = shallower(given.anatomy)
    if not cut.layers:
        assert family == "nn.MultiheadAttention"
        pytest.skip("one block has no layers")
    check_against_zeroed(given, cut)


@both
def test_heads_neurons_and_layers_can_go_together(family: str) -> None:
    need(family)
    given = prunable_of(family)
    heads, neurons = unequal(given.anatomy, "attention"), unequal(given.anatomy, "feedforward")
    cut = Cut({**heads.groups, **neurons.groups}, shallower(given.anatomy).layers)
    pruned = check_against_zeroed(given, cut)
    assert pruned.spec.name == given.model.spec.name


@both
def test_a_family_is_understood_whole(family: str) -> None:
    need(family)
    anatomy = prunable_of(family).anatomy
    assert not anatomy.unknown
    assert any(unit.kind == "attention" for unit in anatomy.units)


@both
def test_a_subject_computes_what_its_model_computes(family: str) -> None:
    need(family)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        wanted = outputs_of(model_of(family))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert difference(wanted, outputs_of(prunable_of(family).model)) <= 1e-6


def test_a_pruned_model_can_be_pruned_again() -> None:
    need("T5")
    for family in ("T5", "nn.TransformerEncoder", "a stream by hand"):
        once = prunable(prune(prunable_of(family), unequal(prunable_of(family).anatomy, "attention")))
        assert not once.anatomy.unknown
        check_against_zeroed(once, unequal(once.anatomy, "attention"))


# --- weights of attention -------------------------------------------------------------------------------------------


def test_averaged_attention_weights_are_the_mean_over_the_heads_that_stay() -> None:
    given = prunable_of("nn.MultiheadAttention")
    (unit,) = given.anatomy.units
    kept = (0, 3)
    pruned = prune(given, Cut({unit.key: kept}))
    module = named("nn.MultiheadAttention").build()[0]
    example = {name: torch.from_numpy(value) for name, value in given.model.example["main"].items()}
    with torch.inference_mode():
        _, weights = module.attention(  # type: ignore[operator]
            example["query"], example["memory"], example["memory"], average_attn_weights=False
        )
    wanted = weights[:, list(kept)].mean(1).numpy()
    assert np.abs(pruned.run(given.model.example["main"])["output_1"] - wanted).max() <= 1e-6


# --- encoder-decoders as two graphs ---------------------------------------------------------------------------------

STEPPED = ("T5", "Whisper", *(pytest.param(family, marks=pytest.mark.slow) for family in ("BART", "Marian")))


@pytest.mark.slow
@pytest.mark.parametrize("family", STEPPED)
def test_caches_of_an_encoder_decoder_follow_its_heads_and_layers(family: str, tmp_path: Path) -> None:
    need(family)
    given = prunable(directory_of(family, tmp_path / "saved"))
    assert not given.anatomy.unknown
    heads = unequal(given.anatomy, "attention")
    pruned = check_against_zeroed(given, heads)
    states = {state.input: state.shape for state in pruned.spec.graph("decoder_step").states}
    for unit in given.anatomy.units:
        if unit.kind == "attention" and "decoder" in unit.path and not unit.cross:
            number = unit.exit.split(".")[[step.isdigit() for step in unit.exit.split(".")].index(True)]
            for kind in ("key", "value"):
                shape = states[f"self_{kind}_{number}"]
                assert shape == (1, len(heads.groups[unit.key]), shape[2], unit.head_dim)
    fewer = prune(given, Cut({}, shallower(given.anatomy).layers))
    assert [state.input for state in fewer.spec.graph("decoder_step").states] == ["self_key_0", "self_value_0"]
    crossing = [tensor.name for tensor in fewer.spec.graph("encoder").outputs]
    assert sorted(crossing) == ["cross_key_0", "cross_value_0"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["GPT-2", "Llama"])
def test_caches_of_a_causal_model_follow_its_heads_and_layers(family: str, tmp_path: Path) -> None:
    need(family)
    given = prunable(directory_of(family, tmp_path / "saved"))
    assert [graph.name for graph in given.model.spec.graphs] == ["prefill", "step"]
    assert not given.anatomy.unknown
    heads = unequal(given.anatomy, "attention")
    pruned = check_against_zeroed(given, heads)
    states = {state.input: state.shape for state in pruned.spec.graph("step").states}
    units = [unit for unit in given.anatomy.units if unit.kind == "attention"]
    for number, unit in enumerate(units):
        for kind in ("key", "value"):  # grouped queries: a group is a head of keys with its queries
            assert states[f"{kind}_{number}"][1] == len(heads.groups[unit.key])
    fewer = prune(given, Cut({}, shallower(given.anatomy).layers))
    assert [state.input for state in fewer.spec.graph("step").states] == ["key_0", "value_0"]
    assert [tensor.name for tensor in fewer.spec.graph("prefill").outputs] == ["logits", "key_0", "value_0"]


def test_configs_tell_how_many_layers_are_left() -> None:
    need("BART")
    given = prunable_of("BART")
    network: Any = prune(given, Cut({}, {"model.decoder.layers": (1,)})).network
    assert (network.config.encoder_layers, network.config.decoder_layers) == (2, 1)
    given = prunable_of("T5")
    network = prune(given, Cut({}, {"encoder.block": (1,)})).network
    assert (network.config.num_layers, network.encoder.config.num_layers) == (1, 1)
    assert (network.config.num_decoder_layers, network.decoder.config.num_layers) == (2, 2)


def test_lists_with_an_entry_per_layer_keep_those_of_the_layers_that_stay() -> None:
    need("ModernBERT")
    module, inputs = named("ModernBERT").build()
    given = prunable(from_module(module, inputs, "modern"))
    before = list(given.network.config.layer_types)  # type: ignore[union-attr, arg-type]
    assert before[0] != before[1]
    pruned: Any = prune(given, Cut({}, {"layers": (1,)})).network
    assert list(pruned.config.layer_types) == before[1:]


# --- states of a user's graph ---------------------------------------------------------------------------------------


def test_states_of_a_graph_by_hand_follow_its_heads() -> None:
    given = prunable_of("a stream by hand")
    first, second = given.anatomy.units
    pruned = prune(given, Cut({first.key: (1, 2), second.key: (3,)}))
    shapes = {state.input: state.shape for state in pruned.spec.graphs[0].states}
    assert shapes == {"last": (1, 1, 32), "cache_0": (1, 2, 6, 16), "cache_1": (1, 1, 6, 16)}
    assert {name: pruned.example["step"][name].shape for name in shapes} == shapes


def test_states_of_layers_that_are_left_out_go_with_them() -> None:
    given = prunable_of("a stream by hand")
    pruned = prune(given, Cut({given.anatomy.units[1].key: (0, 2, 3)}, {"layers": (1,)}))
    shapes = {state.input: state.shape for state in pruned.spec.graphs[0].states}
    assert shapes == {"last": (1, 1, 32), "cache_0": (1, 3, 6, 16)}


class PackedCaches(nn.Module):
    """One state for the caches of two layers, which cannot have unequal numbers of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(RelativeBiasAttention(16, 4, 4, 7, 1) for _ in range(2))
        self.project = nn.Linear(16, 16)

    def forward(self, x: Tensor, caches: Tensor) -> dict[str, Tensor]:
        after = []
        for layer, cache in zip(self.layers, caches, strict=True):
            assert isinstance(layer, RelativeBiasAttention)
            mixed, next_cache = layer.step(x, cache[None], layer.relative_bias(2, 6)[None])
            x = x + mixed
            after.append(next_cache[0])
        return {"y": self.project(x), "next_caches": torch.stack(after)}


def test_states_whose_heads_cannot_be_told_keep_the_block_whole() -> None:
    torch.manual_seed(0)
    inputs = {"x": torch.randn(1, 2, 16), "caches": torch.randn(2, 4, 4, 8)}
    model = from_graphs({"step": Graph(PackedCaches(), inputs, {"caches": "next_caches"})}, "packed")
    with pytest.raises(UnsupportedError, match=r"does not take its states any more .*not clear is what caches holds"):
        prunable(model)


# --- what is not understood -----------------------------------------------------------------------------------------


class Shared(nn.Module):
    """Attention with the names that families use, whose scores another module makes for a fixed number of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = 4
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(16, 16) for _ in range(4))
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, 4).reshape(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = (q @ k.transpose(-1, -2)) * self.scale
        mixed: Tensor = self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return mixed


class Mixing(Shared):
    """Runs with any number of heads, but heads mix their values: masking one is not removing it."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        mixed: Tensor = self.out_proj(((q @ k.transpose(-1, -2)).softmax(-1) @ v.cumsum(1)).transpose(1, 2).flatten(2))
        return mixed


class Dividing(Shared):
    """Not finite once heads are gone."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.v_proj(x)
        return torch.as_tensor(self.out_proj(y)) + torch.log(torch.tensor(float(y.shape[-1] - 15)))


class WithFeedForward(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + torch.as_tensor(self.attention(x))
        return x + torch.as_tensor(self.fc2(torch.relu(self.fc1(x))))


@pytest.mark.parametrize(
    ("block", "why"),
    [(Shared, "does not run"), (Mixing, "outputs differ"), (Dividing, "outputs differ .* by inf")],
)
def test_a_block_that_fails_its_trial_is_unknown_and_the_others_are_kept(block: type[nn.Module], why: str) -> None:
    torch.manual_seed(0)
    given = prunable(from_module(WithFeedForward(block()), {"x": torch.randn(1, 5, 16)}, "odd"))
    assert [unit.key for unit in given.anatomy.units] == ["feedforward:"]
    (unknown,) = given.anatomy.unknown
    assert unknown.path == "attention"
    assert re.search(why, unknown.why)


def test_a_cut_that_is_not_the_masking_is_refused() -> None:
    torch.manual_seed(0)
    model = from_module(WithFeedForward(Mixing()), {"x": torch.randn(1, 5, 16)}, "odd")
    assert model.network is not None
    untried = Prunable(model, find_anatomy(model.network))
    with pytest.raises(UnsupportedError, match=r"odd: once attention are cut, outputs differ .* it is left whole"):
        prune(untried, Cut({"attention:attention": (1, 2, 3)}))


def test_what_no_graph_runs_is_unknown() -> None:
    class Idle(WithFeedForward):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.as_tensor(self.fc2(torch.relu(self.fc1(x))))

    given = prunable(from_module(Idle(Shared()), {"x": torch.randn(1, 5, 16)}, "idle"))
    assert [unknown.why for unknown in given.anatomy.unknown] == [
        "nothing leaves through its last layer: no graph runs it, or it uses the weight without the layer"
    ]


def test_stages_of_other_sizes_are_no_stack_but_their_blocks_are() -> None:
    need("ViT")
    module, inputs = named("Swin").build()
    anatomy = prunable(from_module(module, inputs, "swin")).anatomy
    assert {stack.path for stack in anatomy.stacks} == {f"swin.encoder.layers.{n}.blocks" for n in (0, 1)}
    assert [unknown.path for unknown in anatomy.unknown] == ["swin.encoder.layers"]
    assert len(anatomy.units) == 8


@pytest.mark.parametrize(
    ("name", "kept", "unknown"),
    [("Longformer", "feedforward", "LongformerSelfAttention"), ("SegFormer", "attention", "SegformerMixMLP")],
)
def test_a_family_that_is_half_understood_keeps_that_half(name: str, kept: str, unknown: str) -> None:
    need("ViT")
    module, inputs = named(name).build()
    anatomy = prunable(from_module(module, inputs, "half")).anatomy
    assert {unit.kind for unit in anatomy.units} == {kept}
    assert unknown in {one.kind for one in anatomy.unknown}


def test_attention_with_an_extra_key_keeps_its_own_block() -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, add_bias_kv=True, batch_first=True)
            self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.fc2(torch.relu(self.fc1(self.attention(x, x, x, need_weights=False)[0]))))

    given = prunable(from_module(Extra(), {"x": torch.randn(1, 5, 16)}, "extra"))
    assert [unit.kind for unit in given.anatomy.units] == ["feedforward"]
    assert [(one.path, one.kind) for one in given.anatomy.unknown] == [("attention", "MultiheadAttention")]


def test_a_network_that_reads_packed_weights_itself_keeps_them() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
            self.fc1, self.fc2 = nn.Linear(16, 24), nn.Linear(24, 16)

        def forward(self, x: Tensor) -> Tensor:
            mixed = self.attention(x, x, x, need_weights=False)[0] + self.attention.in_proj_weight.sum()
            return torch.as_tensor(self.fc2(torch.relu(self.fc1(mixed))))

    given = prunable(from_module(Reads(), {"x": torch.randn(1, 5, 16)}, "reads"))
    assert isinstance(given.network.get_submodule("attention"), nn.MultiheadAttention)
    assert [unit.kind for unit in given.anatomy.units] == ["feedforward"]
    assert [one.path for one in given.anatomy.unknown] == ["attention"]


def test_a_model_in_which_nothing_is_found_says_what_was_seen() -> None:
    module, inputs = named("hard attention").build()
    with pytest.raises(UnsupportedError, match=r"no attention block .* the network \(HardAttention\): its projections"):
        prunable(from_module(module, inputs, "hard"))


def test_a_model_that_came_as_a_graph_is_refused() -> None:
    model = replace(model_of("a stream by hand"), network=None, rebuild=None)
    with pytest.raises(UnsupportedError, match="came as a graph"):
        prunable(model)


# --- bad cuts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (Cut({"attention:layers.0.attention": ()}), "no head would be left"),
        (Cut({"attention:layers.0.attention": (1, 4)}), "it has heads 0 to 3"),
        (Cut({"attention:layers.0.attention": (2, 1)}), "it has heads 0 to 3"),
        (Cut({"attention:layers.9.attention": (1,)}), "layers.0.attention"),
        (Cut({}, {"layers": ()}), "no layer would be left"),
        (Cut({}, {"layers": (0, 2)}), "it has layers 0 to 1"),
        (Cut({}, {"blocks": (0,)}), "layers"),
    ],
)
def test_a_cut_that_does_not_fit_is_refused(cut: Cut, why: str) -> None:
    with pytest.raises(InputError, match=why):
        prune(prunable_of("RelativeBiasAttention"), cut)


def test_a_layer_that_others_need_must_stay() -> None:
    given = prunable_of("RelativeBiasAttention")
    (stack,) = given.anatomy.stacks
    pinned = replace(given, anatomy=Anatomy(given.anatomy.units, (replace(stack, pinned=(0,)),)))
    with pytest.raises(InputError, match=r"layers\.0: it must stay"):
        prune(pinned, Cut({}, {"layers": (1,)}))


def test_the_original_keeps_its_weights() -> None:
    model = hand_written_stream()
    given = prunable(model)
    before = {name: tensor.clone() for name, tensor in given.network.state_dict().items()}
    prune(given, unequal(given.anatomy, "attention"))
    after = given.network.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_a_pruned_output_that_is_not_finite_is_infinitely_wrong() -> None:
    given = prunable_of("RelativeBiasAttention")
    cut = Cut({given.anatomy.units[0].key: (0, 1)})
    pruned = prune(given, cut)
    assert pruned.network is not None
    with torch.no_grad():
        pruned.network.get_parameter("layers.1.attention.output.bias").fill_(float("nan"))
    assert oracle_difference(given, cut, pruned) == float("inf")
