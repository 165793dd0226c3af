"""What is found in a network, by the names of its layers."""

from __future__ import annotations

from collections import Counter
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edgeattn.attention.relative_bias import RelativeBiasAttention
from edgeattn.pruning.anatomy import Anatomy, Unknown, layer_of
from edgeattn.pruning.apply import prune
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.families import find_anatomy
from edgeattn.pruning.prepare import prepare
from edgeattn.pruning.trials import prunable
from edgeattn.sources import from_module
from tests.architectures import BLOCKS, FFN, HEADS, TRANSFORMERS, named
from tests.pruning.families import OWN, architecture, parameters, prunable_of


def need_transformers() -> None:
    pytest.importorskip(TRANSFORMERS, reason="the classes are those of transformers")


def found_in(name: str) -> Anatomy:
    network = architecture(name).build()[0]
    prepare(network)
    return find_anatomy(network)


# Attention blocks, those of them that read another sequence, feed-forwards, and lists of layers.
COUNTS = {
    "nn.MultiheadAttention": (1, 0, 0, 0),
    "nn.TransformerEncoder": (2, 0, 2, 1),
    "nn.TransformerDecoder": (4, 2, 2, 1),
    "nn.Transformer": (6, 2, 4, 2),
    "BERT": (2, 0, 2, 1),
    "RoBERTa": (2, 0, 2, 1),
    "DistilBERT": (2, 0, 2, 1),
    "ELECTRA": (2, 0, 2, 1),
    "MPNet": (2, 0, 2, 1),
    "ModernBERT": (2, 0, 2, 1),
    "ALBERT": (1, 0, 1, 0),
    "GPT-2": (2, 0, 2, 1),
    "Llama": (2, 0, 2, 1),
    "ViT": (2, 0, 2, 1),
    "DeiT": (2, 0, 2, 1),
    "BEiT": (2, 0, 2, 1),
    "Swin": (4, 0, 4, 3),
    "CLIP": (4, 0, 4, 2),
    "Wav2Vec2": (2, 0, 2, 1),
    "HuBERT": (2, 0, 2, 1),
    "Wav2Vec2-Conformer": (2, 0, 4, 1),
    "Wav2Vec2-Conformer (rotary)": (2, 0, 4, 1),
    "Whisper": (6, 2, 4, 2),
    "T5": (6, 2, 4, 2),
    "T5 (gated)": (6, 2, 4, 2),
    "BART": (6, 2, 4, 2),
    "Marian": (6, 2, 4, 2),
    "AST": (2, 0, 2, 1),
    "VideoMAE": (2, 0, 2, 1),
    "PatchTST": (2, 0, 2, 1),
}


@pytest.mark.parametrize("name", COUNTS)
def test_blocks_feed_forwards_and_layers_of_a_family_are_all_found(name: str) -> None:
    need_transformers()
    anatomy = found_in(name)
    kinds = Counter(unit.kind for unit in anatomy.units)
    crossing = sum(unit.cross for unit in anatomy.units)
    assert (kinds["attention"], crossing, kinds["feedforward"], len(anatomy.stacks)) == COUNTS[name]
    assert not anatomy.unknown
    for unit in anatomy.units:
        if unit.kind == "attention" and name not in ("Swin", "Llama"):
            assert (unit.groups, unit.heads) == (HEADS, HEADS)
        assert unit.key == f"{unit.kind}:{unit.path}"
    assert len({unit.key for unit in anatomy.units}) == len(anatomy.units)


@pytest.mark.parametrize("name", OWN)
def test_edgeattns_own_modules_are_found(name: str) -> None:
    anatomy = prunable_of(name).anatomy
    layers = anatomy.stacks[0].layers
    kinds = Counter(unit.kind for unit in anatomy.units)
    assert kinds["attention"] == layers
    assert kinds["feedforward"] == (2 * layers if name == "streaming Conformer" else 0)


def test_the_convolution_of_a_conformer_is_no_unit() -> None:
    need_transformers()
    for anatomy in (prunable_of("streaming Conformer").anatomy, found_in("Wav2Vec2-Conformer")):
        assert not [unit for unit in anatomy.units if "conv" in unit.path]


def test_query_heads_that_share_keys_and_values_are_one_group() -> None:
    need_transformers()
    unit = next(unit for unit in found_in("Llama").units if unit.kind == "attention")
    assert (unit.heads, unit.groups, unit.width) == (4, 2, 2 * unit.head_dim)


def test_a_layer_that_runs_several_times_is_one_unit_in_all_of_them() -> None:
    need_transformers()
    module, inputs = named("ALBERT").build()
    given = prunable(from_module(module, inputs, "albert"))
    assert BLOCKS == 2  # the one layer runs twice
    attention = next(unit for unit in given.anatomy.units if unit.kind == "attention")
    pruned = prune(given, Cut({attention.key: (1, 2)}))  # refused if one of the calls had kept its heads
    assert parameters(pruned.network) < parameters(given.network)


def test_a_block_that_reads_a_sequence_of_another_length_reads_another_sequence() -> None:
    module, inputs = named("cross attention of two modalities").build()
    given = prunable(from_module(module, inputs, "two"))
    assert [(unit.path, unit.cross) for unit in given.anatomy.units] == [("to_image", True), ("to_words", True)]


def test_the_layer_of_a_unit_is_the_innermost() -> None:
    need_transformers()
    anatomy = found_in("Swin")
    places = {layer_of(anatomy, unit) for unit in anatomy.units}
    assert places == {(f"swin.encoder.layers.{stage}.blocks", n) for stage in (0, 1) for n in (0, 1)}
    (lone,) = find_anatomy(RelativeBiasAttention(8, 2, 4, 3, 3)).units
    assert layer_of(anatomy, lone) is None


# --- what has other names -------------------------------------------------------------------------------------------


class CarAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wheel, self.door, self.motor, self.road = (nn.Linear(8, 8) for _ in range(4))


class Wrapper(nn.Module):
    """Named after attention, with a layer of its own, around a block that is understood."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = RelativeBiasAttention(8, 2, 4, 3, 3)
        self.gate = nn.Linear(8, 8)


Wrapper.__name__ = "GatedAttention"


def test_attention_with_names_of_its_own_is_reported() -> None:
    network = nn.Sequential(CarAttention())
    assert find_anatomy(network).unknown == (
        Unknown("0", "CarAttention", "its projections have names that no family uses"),
    )
    assert not find_anatomy(network).units


def test_a_wrapper_of_a_block_that_is_found_is_not_reported() -> None:
    anatomy = find_anatomy(nn.Sequential(Wrapper()))
    assert [unit.path for unit in anatomy.units] == ["0.inner"]
    assert not anatomy.unknown


def test_attention_whose_projections_are_parameters_is_reported() -> None:
    need_transformers()
    anatomy = found_in("XLNet")
    assert {one.kind for one in anatomy.unknown} == {"XLNetRelativeAttention"}
    assert {unit.kind for unit in anatomy.units} == {"feedforward"}


class Counted(nn.Module):
    """Tells how many heads it has, not how wide they are."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.query, self.key, self.value, self.output = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for p in (self.query, self.key, self.value))
        mixed: Tensor = self.output(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


def test_a_block_that_only_counts_its_heads_is_found() -> None:
    torch.manual_seed(0)
    given = prunable(from_module(Counted(), {"x": torch.randn(1, 5, 16)}, "counted"))
    (unit,) = given.anatomy.units
    assert (unit.groups, unit.head_dim) == (4, 4)
    pruned = prune(given, Cut({unit.key: (0, 2, 3)}))
    assert cast(Counted, pruned.network).num_heads == 3


@pytest.mark.parametrize("change", [{"head_dim": 5}, {"head_dim": 0}, {"num_heads": 3}])
def test_sizes_that_do_not_fit_the_number_of_heads_are_no_unit(change: dict[str, int]) -> None:
    block = Counted()
    for name, value in change.items():
        setattr(block, name, value)
    if "head_dim" in change and change["head_dim"] == 0:
        block.num_heads = 0
    assert not find_anatomy(block).units


# --- shared weights -------------------------------------------------------------------------------------------------


class TwoFeedForwards(nn.Module):
    def __init__(self, narrow: int = 24) -> None:
        super().__init__()
        self.first, self.second = Feed(24), Feed(narrow)
        self.head = nn.Linear(16, 24, bias=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.second(self.first(x))
        return {"y": y, "scores": self.head(y)}


class Feed(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(16, width), nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.fc2(torch.relu(self.fc1(x))))


def test_units_that_share_a_weight_are_one_and_are_cut_and_masked_together() -> None:
    torch.manual_seed(0)
    network = TwoFeedForwards()
    network.second.fc1.weight = network.first.fc1.weight
    given = prunable(from_module(network, {"x": torch.randn(1, 5, 16)}, "tied"))
    (unit,) = given.anatomy.units
    assert (unit.path, unit.exit, unit.tied) == ("first", "first.fc2", ("second.fc2",))
    pruned = cast(TwoFeedForwards, prune(given, Cut({unit.key: tuple(range(5, 24))})).network)
    assert pruned.first.fc1.weight is pruned.second.fc1.weight
    assert pruned.first.fc1.weight.shape == (19, 16)
    assert pruned.second.fc2.weight.shape == (16, 19)
    assert torch.equal(pruned.second.fc2.weight, network.second.fc2.weight[:, 5:])


def test_a_weight_that_is_also_something_else_keeps_its_unit_whole() -> None:
    network = TwoFeedForwards()
    network.head.weight = network.first.fc1.weight
    anatomy = find_anatomy(network)
    assert [unit.path for unit in anatomy.units] == ["second"]
    assert anatomy.unknown == (
        Unknown("first", "Feed", "first.fc1.weight is also head.weight, which is none of its layers"),
    )


def test_units_of_other_sizes_that_share_a_tensor_are_left_whole() -> None:
    network = TwoFeedForwards(narrow=16)
    shared = network.first.fc1.bias
    network.second.fc2 = nn.Linear(16, 16)
    network.second.register_parameter("bias", None)
    network.second.fc1.bias = shared
    anatomy = find_anatomy(network)
    assert not anatomy.units
    assert {one.path for one in anatomy.unknown} == {"first", "second"}
    assert all("shares a weight with second, which has other sizes" in one.why for one in anatomy.unknown)


def test_a_weight_that_is_its_units_entry_and_exit_is_left_whole() -> None:
    network = TwoFeedForwards()
    square = nn.Parameter(torch.randn(16, 16))
    network.first = Feed(16)
    network.first.fc1.weight = network.first.fc2.weight = square
    # Cutting rows for one end would cut the other end's outputs.
    why = find_anatomy(network).unknown
    assert [(one.path, "at different places" in one.why) for one in why] == [("first", True)]


def test_a_weight_that_is_computed_keeps_its_unit_whole() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    network = TwoFeedForwards()
    parametrize.register_parametrization(network.first.fc1, "weight", Doubled())
    anatomy = find_anatomy(network)
    assert [unit.path for unit in anatomy.units] == ["second"]
    assert anatomy.unknown[0].why == "first.fc1.weight is computed from others at every call"


def test_layers_that_are_one_module_several_times_are_no_stack() -> None:
    network = nn.Module()
    block = RelativeBiasAttention(8, 2, 4, 3, 3)
    network.layers = nn.ModuleList([block, block])
    assert not find_anatomy(network).stacks
    network.layers = nn.ModuleList([block, RelativeBiasAttention(8, 2, 4, 3, 3)])
    assert find_anatomy(network).stacks


def test_the_first_layer_must_stay_while_it_makes_the_bias_of_all() -> None:
    need_transformers()
    network = named("T5").build()[0]
    assert [stack.pinned for stack in find_anatomy(network).stacks] == [(0,), (0,)]
    assert prepare(network)
    assert [stack.pinned for stack in find_anatomy(network).stacks] == [(), ()]
    assert not prepare(network)


def test_feed_forwards_have_their_neurons() -> None:
    need_transformers()
    for name in ("BERT", "T5 (gated)", "ModernBERT"):
        units = [unit for unit in found_in(name).units if unit.kind == "feedforward"]
        assert {(unit.groups, unit.width) for unit in units} == {(FFN, 1)}
