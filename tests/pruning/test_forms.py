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
from edgeattn.pruning.apply import Subject, copied, prune
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms import Guide, form, has_forms, shape_forms, with_weights
from edgeattn.pruning.linear import dense
from edgeattn.pruning.lowrank import LowRank, rank_for
from edgeattn.pruning.surgery import remove
from tests.pruning.families import FAMILIES, subject_of

TIGHT = 1e-5
QUICK = ("nn.TransformerEncoder", "BERT", "GPT-2", "streaming Conformer")
NO_NEURONS = ("nn.MultiheadAttention", "RelativeBiasAttention", "a stream by hand")


def layers_of(given: Subject, kind: str) -> tuple[str, ...]:
    """Every linear layer of the units of a kind."""
    found = [
        path for unit in given.anatomy.units if unit.kind == kind for path in (*unit.entries, unit.exit, *unit.tied)
    ]
    return tuple(dict.fromkeys(found))


def halved(given: Subject, paths: Sequence[str]) -> dict[str, int]:
    return {path: rank_for(given.network.get_submodule(path), 0.5) for path in paths}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_takes_every_form(name: str) -> None:
    given = subject_of(name)
    attention, neurons = layers_of(given, "attention"), layers_of(given, "feedforward")
    assert attention
    assert neurons or name in NO_NEURONS
    if name.startswith("T5"):  # reads the dtype of that weight; see test_lowrank
        neurons = tuple(path for path in neurons if not path.endswith(".wo"))
    heads = {unit.key: unit.groups // 2 for unit in given.anatomy.units if unit.kind == "attention"}
    cuts = [Cut(ranks=halved(given, attention)), Cut(ranks=halved(given, neurons)), Cut(sparse=(*attention, *neurons))]
    if name != "GPT-2":  # packed
        cuts.append(Cut(merged=heads))
    for cut in cuts:
        if cut.empty:
            continue
        made = form(given.model, given.anatomy, cut, tolerance=TIGHT)
        network = cast(nn.Module, made.network)
        assert all(isinstance(network.get_submodule(path), LowRank) for path in cut.ranks)
        assert all((dense(network.get_submodule(p)).reshape(-1, 4) == 0).sum(1).ge(2).all() for p in cut.sparse)
        assert bool(cut.sparse) or made.source_size_bytes < given.model.source_size_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "GPT-2"])
def test_every_family_merges_heads_in_another_order(name: str) -> None:
    given = subject_of(name)
    units = [unit for unit in given.anatomy.units if unit.kind == "attention"]
    orders = {unit.key: (*range(1, unit.groups), 0) for unit in units}
    form(given.model, given.anatomy, Cut(merged={unit.key: 2 for unit in units}), Guide(orders=orders), TIGHT)


def everything(given: Subject) -> Cut:
    """Every kind of cut in one, of the small streaming Conformer with three blocks."""
    first, second, third = (unit for unit in given.anatomy.units if unit.kind == "attention")
    neurons = [unit for unit in given.anatomy.units if unit.kind == "feedforward"]
    return Cut(
        {first.key: (0, 2, 3), second.key: (1, 2), neurons[0].key: tuple(range(0, 48, 2))},
        {"blocks": (0, 2)},
        {first.key: 1, second.key: 1, third.key: 2},
        {neurons[1].entries[0]: 5, third.entries[1]: 4, "blocks.1.attention.query": 3},
        (neurons[0].exit, neurons[0].entries[0], third.exit),
    )


def test_all_kinds_of_cut_together_and_loaded_again() -> None:
    given = subject_of("streaming Conformer")
    cut = everything(given)
    made = prune(given, cut)
    assert given.model.rebuild is not None
    network = copied(given.network)
    with torch.no_grad():
        for parameter in network.parameters():  # what is loaded into knows nothing of the weights
            parameter.uniform_(-1, 1)
    remove(network, given.anatomy, cut)
    shape_forms(network, given.anatomy, cut)
    network.load_state_dict(cast(nn.Module, made.network).state_dict())
    again = given.model.rebuild(network)
    assert again.spec == made.spec
    for name, value in made.run(made.example["step"]).items():
        np.testing.assert_array_equal(again.run(made.example["step"])[name], value)
    shapes = {state.input: state.shape[1] for state in made.spec.graphs[0].states if state.input.startswith("kv")}
    assert shapes == {"kv_cache_0": 1, "kv_cache_1": 2}


def test_a_cut_without_forms_has_none() -> None:
    assert not has_forms(Cut({"a": (0,)}, {"b": (0,)}))
    for cut in (Cut(merged={"a": 1}), Cut(ranks={"a": 1}), Cut(sparse=("a",)), Cut(left=8)):
        assert has_forms(cut)


def test_the_model_before_keeps_its_weights() -> None:
    given = subject_of("BERT")
    before = copy.deepcopy(given.network.state_dict())
    paths = layers_of(given, "feedforward")
    form(given.model, given.anatomy, Cut(ranks=halved(given, paths), sparse=layers_of(given, "attention")))
    assert all(torch.equal(before[name], tensor) for name, tensor in given.network.state_dict().items())


def test_weights_come_back_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(4, 4))
    before = copy.deepcopy(network.state_dict())
    other = {"0": (torch.ones(4, 4), torch.full((4,), 2.0))}

    def interrupted() -> None:
        with with_weights(network, other):
            assert network(torch.ones(1, 4)).tolist() == [[6.0, 6.0, 6.0, 6.0]]
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("form_of", ["rank", "sparse", "merged", "left"])
def test_a_network_that_computes_something_else_is_refused(form_of: str) -> None:
    given = subject_of("streaming Conformer")
    unit = next(unit for unit in given.anatomy.units if unit.kind == "attention")
    cuts: Mapping[str, Cut] = {
        "rank": Cut(ranks={unit.exit: 4}),
        "sparse": Cut(sparse=(unit.exit,)),
        "merged": Cut(merged={unit.key: 2}),
        "left": Cut(left=4),
    }
    model = _longer() if form_of == "left" else given.model

    def wrong(before: EdgeModel, network: nn.Module) -> EdgeModel:
        assert before.rebuild is not None
        with torch.no_grad():
            cast(nn.Parameter, network.get_submodule("blocks.1.ffn1.contract").weight)[0, 0] += 0.5
        return before.rebuild(network)

    assert model.rebuild is not None
    changed = _with_rebuild(model, lambda network: wrong(model, network))
    form(model, given.anatomy, cuts[form_of])
    with pytest.raises(UnsupportedError, match=r"outputs differ by .* leave that out"):
        form(changed, given.anatomy, cuts[form_of])


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
    monkeypatch.setattr("edgeattn.pruning.grouped.KEYS_BY_HEADS", ())
    given = subject_of("Whisper")
    units = [unit for unit in given.anatomy.units if unit.kind == "attention"]
    # Half of the rows viewed as all heads are half of the keys: alone the encoder runs, and computes something else.
    with pytest.raises(UnsupportedError, match=r"once key/value heads of .* \(WhisperAttention\) .* differ"):
        form(given.model, given.anatomy, Cut(merged={units[0].key: 2}), tolerance=TIGHT)
    with pytest.raises(UnsupportedError, match=r"does not run once key/value heads of .* \(WhisperAttention\)"):
        form(given.model, given.anatomy, Cut(merged={unit.key: 2 for unit in units}), tolerance=TIGHT)
