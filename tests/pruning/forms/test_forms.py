"""Merged heads, low rank, 2:4 and less context together, in every family, and the check that refuses what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Anatomy, Prunable
from edgeattn.pruning.apply import prune, reshape, shape
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms import reshaping
from edgeattn.pruning.forms.form import Change, with_weights
from edgeattn.pruning.forms.low_rank import LowRank, rank_for
from edgeattn.pruning.linear import dense
from edgeattn.pruning.surgery import copied
from tests.pruning.families import FAMILIES, prunable_of

TIGHT = 1e-5
QUICK = ("nn.TransformerEncoder", "BERT", "GPT-2", "streaming Conformer")
NO_NEURONS = ("nn.MultiheadAttention", "RelativeBiasAttention", "a stream by hand")


def layers_of(given: Prunable, kind: str) -> tuple[str, ...]:
    """Every linear layer of the units of a kind."""
    found = [
        path for unit in given.anatomy.units if unit.kind == kind for path in (*unit.entries, unit.exit, *unit.tied)
    ]
    return tuple(dict.fromkeys(found))


def halved(given: Prunable, paths: Sequence[str]) -> dict[str, int]:
    return {path: rank_for(given.network.get_submodule(path), 0.5) for path in paths}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_takes_every_form(name: str) -> None:
    given = prunable_of(name)
    attention, neurons = layers_of(given, "attention"), layers_of(given, "feedforward")
    assert attention
    assert neurons or name in NO_NEURONS
    if name.startswith("T5"):  # reads the dtype of that weight; see test_low_rank
        neurons = tuple(path for path in neurons if not path.endswith(".wo"))
    heads = {unit.key: unit.groups // 2 for unit in given.anatomy.units if unit.kind == "attention"}
    cuts = [
        Cut(forms={"ranks": halved(given, attention)}),
        Cut(forms={"ranks": halved(given, neurons)}),
        Cut(forms={"sparse": (*attention, *neurons)}),
    ]
    if name != "GPT-2":  # packed
        cuts.append(Cut(forms={"merged": heads}))
    for cut in cuts:
        if cut.empty:
            continue
        made = reshape(given.model, given.anatomy, cut, tolerance=TIGHT)
        network = cast(nn.Module, made.network)
        assert all(isinstance(network.get_submodule(path), LowRank) for path in cut.forms.get("ranks", ()))
        assert all(
            (dense(network.get_submodule(p)).reshape(-1, 4) == 0).sum(1).ge(2).all()
            for p in cut.forms.get("sparse", ())
        )
        assert "sparse" in cut.forms or made.source_size_bytes < given.model.source_size_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "GPT-2"])
def test_every_family_merges_heads_in_another_order(name: str) -> None:
    given = prunable_of(name)
    units = [unit for unit in given.anatomy.units if unit.kind == "attention"]
    orders = {unit.key: (*range(1, unit.groups), 0) for unit in units}
    reshape(
        given.model, given.anatomy, Cut(forms={"merged": {unit.key: 2 for unit in units}}), {"kv-heads": orders}, TIGHT
    )


def everything(given: Prunable) -> Cut:
    """Every kind of cut in one, of the small streaming Conformer with three blocks."""
    first, second, third = (unit for unit in given.anatomy.units if unit.kind == "attention")
    neurons = [unit for unit in given.anatomy.units if unit.kind == "feedforward"]
    return Cut(
        {first.key: (0, 2, 3), second.key: (1, 2), neurons[0].key: tuple(range(0, 48, 2))},
        {"blocks": (0, 2)},
        forms={
            "merged": {first.key: 1, second.key: 1, third.key: 2},
            "ranks": {neurons[1].entries[0]: 5, third.entries[1]: 4, "blocks.1.attention.query": 3},
            "sparse": (neurons[0].exit, neurons[0].entries[0], third.exit),
        },
    )


def test_all_kinds_of_cut_together_and_loaded_again() -> None:
    given = prunable_of("streaming Conformer")
    cut = everything(given)
    made = prune(given, cut)
    assert given.model.rebuild is not None
    network = copied(given.network)
    with torch.no_grad():
        for parameter in network.parameters():  # what is loaded into knows nothing of the weights
            parameter.uniform_(-1, 1)
    shape(network, given.anatomy, cut)
    network.load_state_dict(cast(nn.Module, made.network).state_dict())
    again = given.model.rebuild(network)
    assert again.spec == made.spec
    for name, value in made.run(made.example["step"]).items():
        np.testing.assert_array_equal(again.run(made.example["step"])[name], value)
    shapes = {state.input: state.shape[1] for state in made.spec.graphs[0].states if state.input.startswith("kv")}
    assert shapes == {"kv_cache_0": 1, "kv_cache_1": 2}


def test_forms_that_a_cut_does_not_have_are_not_applied() -> None:
    anatomy = prunable_of("BERT").anatomy
    unit = next(unit for unit in anatomy.units if unit.kind == "attention")
    assert reshaping(anatomy, Cut({unit.key: (0,)})) == []
    parts = {"merged": ({unit.key: 1}, "kv-heads"), "ranks": ({"a": 1}, "rank"), "sparse": (("a",), "sparsity")}
    for name, (part, key) in (parts | {"left": (8, "left")}).items():
        assert [form.key for form in reshaping(anatomy, Cut(forms={name: part}))] == [key]
    everything = Cut(forms={name: part for name, (part, _) in parts.items()})
    assert [form.key for form in reshaping(anatomy, everything)] == ["kv-heads", "rank", "sparsity"]


def test_the_model_before_keeps_its_weights() -> None:
    given = prunable_of("BERT")
    before = copy.deepcopy(given.network.state_dict())
    paths = layers_of(given, "feedforward")
    reshape(
        given.model, given.anatomy, Cut(forms={"ranks": halved(given, paths), "sparse": layers_of(given, "attention")})
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in given.network.state_dict().items())


def test_weights_come_back_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    before = copy.deepcopy(network.state_dict())
    other = {"0": (torch.ones(4, 4), torch.full((4,), 2.0))}

    def interrupted() -> None:
        with with_weights(network, Anatomy(()), Cut(), Change(other)):
            assert network(torch.ones(1, 4)).tolist() == [[6.0, 6.0, 6.0, 6.0]]
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("form_of", ["rank", "sparse", "merged", "left"])
def test_a_network_that_computes_something_else_is_refused(form_of: str) -> None:
    given = prunable_of("streaming Conformer")
    unit = next(unit for unit in given.anatomy.units if unit.kind == "attention")
    cuts: Mapping[str, Cut] = {
        "rank": Cut(forms={"ranks": {unit.exit: 4}}),
        "sparse": Cut(forms={"sparse": (unit.exit,)}),
        "merged": Cut(forms={"merged": {unit.key: 2}}),
        "left": Cut(forms={"left": 4}),
    }
    model = _longer() if form_of == "left" else given.model

    def wrong(before: EdgeModel, network: nn.Module) -> EdgeModel:
        assert before.rebuild is not None
        with torch.no_grad():
            cast(nn.Parameter, network.get_submodule("blocks.1.ffn1.contract").weight)[0, 0] += 0.5
        return before.rebuild(network)

    assert model.rebuild is not None
    changed = _with_rebuild(model, lambda network: wrong(model, network))
    reshape(model, given.anatomy, cuts[form_of])
    with pytest.raises(UnsupportedError, match=r"outputs differ by .* leave that out"):
        reshape(changed, given.anatomy, cuts[form_of])


def _longer() -> EdgeModel:
    import edgeattn.models.streaming_conformer as streaming
    from edgeattn.models.streaming_conformer.model import ConformerConfig, StreamingConformer

    config = ConformerConfig(dim=32, num_blocks=3, head_dim=8, ffn_dim=48, channels=(4, 4), left_chunks=2, chunk=4)
    return streaming.edge_model(StreamingConformer(config).eval(), "0" * 64)


def _with_rebuild(model: EdgeModel, rebuild: object) -> EdgeModel:
    changed = copy.copy(model)
    object.__setattr__(changed, "rebuild", rebuild)
    return changed


def test_a_class_that_does_not_take_fewer_key_value_heads_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeattn.pruning.forms.kv_heads.KEYS_BY_HEADS", ())
    given = prunable_of("Whisper")
    units = [unit for unit in given.anatomy.units if unit.kind == "attention"]
    # Half of the rows viewed as all heads are half of the keys: alone the encoder runs, and computes something else.
    with pytest.raises(UnsupportedError, match=r"once key/value heads of .* \(WhisperAttention\) .* differ"):
        reshape(given.model, given.anatomy, Cut(forms={"merged": {units[0].key: 2}}), tolerance=TIGHT)
    with pytest.raises(UnsupportedError, match=r"does not run once key/value heads of .* \(WhisperAttention\)"):
        reshape(given.model, given.anatomy, Cut(forms={"merged": {unit.key: 2 for unit in units}}), tolerance=TIGHT)
