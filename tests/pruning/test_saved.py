"""Pruned models on disk: what is read back computes what was written, and what is damaged is refused."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgeattn.errors import EdgeattnError, ModelError, OutputError
from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.pruning.apply import prune
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.saved import HF_WEIGHTS, PROGRAM, PRUNING, WEIGHTS, apply_saved, largest_difference, read_saved
from edgeattn.pruning.trials import prunable
from edgeattn.pruning.weights import load_tensors
from edgeattn.pruning.writing import write_pruned
from edgeattn.sources import from_module, load_model
from tests.architectures import FURTHER, NAMED, Architecture

SAME = 1e-6


def architecture(name: str) -> Architecture:
    return next(one for one in (*NAMED, *FURTHER) if one.name == name)


class Tied(nn.Module):
    """A feed-forward twice, the second layer's weight tied to the first's."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(2))
        for name in ("fc1", "fc2"):
            getattr(self.layers[1], name).weight = getattr(self.layers[0], name).weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc2(torch.relu(self.fc1(x)))
        return y


def tied() -> EdgeModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return from_module(Tied().eval(), (torch.randn(2, 5, 8),), "tied")


CUT = Cut({"feedforward:layers.0": (0, 3, 5, 6, 11)})  # its weights are the other layer's too


def written(directory: Path, source: EdgeModel, cut: Cut, reference: str = "model.py") -> EdgeModel:
    pruned = prune(prunable(source), cut)
    write_pruned(directory, pruned, source, cut, reference, {"speedup": 1.5})
    return pruned


def saved_source(tmp_path: Path, name: str) -> Path:
    """A Hugging Face directory of a small model."""
    with silenced():
        module, _ = architecture(name).build()
        module.save_pretrained(tmp_path / "source")  # type: ignore[operator]
    return tmp_path / "source"


# --- any module -------------------------------------------------------------------------------------------------------


def test_a_pruned_module_is_read_back_into_what_its_source_makes_and_tied_weights_stay_tied(tmp_path: Path) -> None:
    pruned = written(tmp_path / "x.pruned", tied(), CUT)
    again = apply_saved(tied(), tmp_path / "x.pruned")
    assert largest_difference(pruned, again) <= SAME
    assert again.network is not None
    layers: Any = again.network.get_submodule("layers")
    assert layers[0].fc1.weight is layers[1].fc1.weight
    assert layers[0].fc1.weight.shape == (5, 8)


def test_what_was_measured_is_kept_and_how_it_loads_is_told(tmp_path: Path) -> None:
    written(tmp_path / "x.pruned", tied(), CUT)
    saved = read_saved(tmp_path / "x.pruned")
    assert saved.source == "model.py"
    assert saved.cuts == (CUT,)
    assert saved.facts == {"speedup": 1.5, "loads": "into model.py", "program": PROGRAM}


@pytest.mark.slow
def test_the_program_beside_it_loads_without_the_code_and_computes_the_same(tmp_path: Path) -> None:
    pruned = written(tmp_path / "x.pruned", tied(), CUT)
    program = load_model(str(tmp_path / "x.pruned" / PROGRAM))
    inputs = {name: pruned.example["main"][name] for name in pruned.example["main"]}
    wanted = pruned.run(inputs)
    got = program.run(dict(zip(program.spec.graphs[0].input_names, inputs.values(), strict=True)))
    assert len(wanted) == len(got)
    for one, other in zip(wanted.values(), got.values(), strict=True):
        np.testing.assert_allclose(other, one, atol=SAME)


def test_a_pruned_model_is_pruned_again_and_both_cuts_are_kept(tmp_path: Path) -> None:
    written(tmp_path / "one.pruned", tied(), CUT)
    once = apply_saved(tied(), tmp_path / "one.pruned")
    second = Cut({"feedforward:layers.0": (1, 4)})
    twice = written(tmp_path / "two.pruned", once, second, str(tmp_path / "one.pruned"))
    saved = read_saved(tmp_path / "two.pruned")
    assert (saved.source, saved.cuts) == ("model.py", (CUT, second))
    again = apply_saved(tied(), tmp_path / "two.pruned")
    assert largest_difference(twice, again) <= SAME
    # Groups 1 and 4 of what the first cut kept are 3 and 11 of the source.
    direct = prune(prunable(tied()), Cut(dict.fromkeys(second.groups, (3, 11))))
    assert largest_difference(direct, again) <= SAME


def test_a_model_of_torchs_own_attention_is_read_back(tmp_path: Path) -> None:
    module, inputs = architecture("nn.TransformerEncoder").build()
    source = from_module(module, inputs, "torch")
    given = prunable(source)
    cut = Cut({unit.key: tuple(range(1, unit.groups)) for unit in given.anatomy.units})
    pruned = written(tmp_path / "x.pruned", source, cut)
    again = apply_saved(from_module(*architecture("nn.TransformerEncoder").build(), "torch"), tmp_path / "x.pruned")
    assert largest_difference(pruned, again) <= SAME


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_an_existing_directory_is_left_alone_without_force_and_replaced_with_it(tmp_path: Path) -> None:
    source = tied()
    pruned = written(tmp_path / "x.pruned", source, CUT)
    with pytest.raises(OutputError, match="exists; remove it"):
        write_pruned(tmp_path / "x.pruned", pruned, source, CUT, "model.py", {})
    write_pruned(tmp_path / "x.pruned", pruned, source, CUT, "other.py", {}, force=True)
    assert read_saved(tmp_path / "x.pruned").source == "other.py"
    assert [path.name for path in tmp_path.iterdir()] == ["x.pruned"]


def test_force_replaces_no_directory_of_something_else(tmp_path: Path) -> None:
    source = tied()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(OutputError, match="is not a pruned model; it is left alone"):
        write_pruned(tmp_path / "mine", prune(prunable(source), CUT), source, CUT, "model.py", {}, force=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    source = tied()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_pruned(tmp_path / "x", prune(prunable(source), CUT), source, CUT, "m.py", {"drop": object()})
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_source_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "x.pruned", tied(), CUT)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        other = from_module(Tied().eval(), (torch.randn(2, 5, 8),), "tied")
    with pytest.raises(ModelError, match="its weights or code have changed since; prune it again"):
        apply_saved(other, tmp_path / "x.pruned")


def edited(directory: Path, **fields: Any) -> None:
    path = directory / PRUNING
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


GROUPS = {"format": 1, "groups": {}, "layers": {}, "merged": {}, "ranks": {}, "sparse": [], "left": None}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "expected a pruned model of format 1, got 2"),
        ({"cuts": {}}, "cuts must be a list"),
        ({"cuts": [GROUPS] * 101}, "cuts must be a list of at most 100"),
        ({"cuts": []}, "names no cut"),
        ({"cuts": [{"format": 1}]}, r"cuts\[0\]: not a cut"),
        ({"cuts": [{**GROUPS, "groups": {"feedforward:layers.0": [0, 99]}}]}, "it has neurons 0 to 11"),
        ({"cuts": [{**GROUPS, "groups": {"feedforward:nowhere": [0]}}]}, "unknown unit 'feedforward:nowhere'"),
        ({"cuts": [GROUPS]}, r"is wanted, .* is stored"),
        ({"source": 7}, "expected str, got 7"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"weights_sha256": "0" * 64}, "was changed: its sha256 is not the one"),
    ],
)
def test_a_damaged_pruning_json_is_one_clear_error(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    written(tmp_path / "x.pruned", tied(), CUT)
    edited(tmp_path / "x.pruned", **fields)
    with pytest.raises(ModelError, match=message):
        apply_saved(tied(), tmp_path / "x.pruned")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1]", b"[" * 100_000, b"{"])
def test_a_pruning_json_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    written(tmp_path / "x.pruned", tied(), CUT)
    (tmp_path / "x.pruned" / PRUNING).write_bytes(content)
    with pytest.raises(ModelError, match=PRUNING):
        apply_saved(tied(), tmp_path / "x.pruned")


def test_a_changed_a_truncated_and_a_missing_weights_file_are_refused(tmp_path: Path) -> None:
    written(tmp_path / "x.pruned", tied(), CUT)
    path = tmp_path / "x.pruned" / WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelError, match="was changed"):
        apply_saved(tied(), tmp_path / "x.pruned")
    path.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="was changed"):
        apply_saved(tied(), tmp_path / "x.pruned")
    path.unlink()
    with pytest.raises(ModelError, match="the weights are missing"):
        apply_saved(tied(), tmp_path / "x.pruned")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("fc1.weight", torch.full((12, 8), math.nan), "fc1.weight holds NaN or infinity"),
        ("fc1.weight", torch.zeros(5, 8), r"fc1.weight: \(12, 8\) is wanted, \(5, 8\) is stored"),
        ("fc1.bias", None, "the weights hold no 'fc1.bias'"),
        ("fc3.bias", torch.zeros(1), "has no tensor 'fc3.bias'"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, value: torch.Tensor | None, message: str) -> None:
    block = Block()
    tensors = {**block.state_dict()}
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(ModelError, match=message):
        load_tensors(block, tensors)


# --- Hugging Face directories -----------------------------------------------------------------------------------------


def same_cut(source: EdgeModel, kinds: tuple[str, ...], layers: bool = False) -> Cut:
    """The first quarter of the groups gone in every unit of a kind, and the last layer of every stack."""
    anatomy = prunable(source).anatomy
    groups = {u.key: tuple(range(u.groups // 4, u.groups)) for u in anatomy.units if u.kind in kinds}
    stacks = {stack.path: tuple(range(stack.layers - 1)) for stack in anatomy.stacks if layers}
    return Cut(groups, stacks)


PLAIN = [
    ("BERT", ("feedforward",), True),
    ("GPT-2", ("feedforward",), True),
    *(
        pytest.param(name, kinds, True, marks=pytest.mark.slow)
        for name, kinds in (
            ("DistilBERT", ("feedforward",)),
            ("ViT", ("feedforward",)),
            ("T5", ("attention", "feedforward")),
            ("Llama", ("feedforward",)),
            ("CLIP", ("feedforward",)),
        )
    ),
]
SPELLED = [("BERT", ("attention", "feedforward"), True), ("GPT-2", ("attention",), False)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kinds", "layers"), PLAIN)
def test_a_cut_that_the_config_can_say_loads_with_transformers_alone(
    tmp_path: Path, name: str, kinds: tuple[str, ...], layers: bool
) -> None:
    reference = saved_source(tmp_path, name)
    source = load_model(str(reference))
    pruned = written(tmp_path / "x.pruned", source, same_cut(source, kinds, layers), str(reference))
    saved = read_saved(tmp_path / "x.pruned")
    assert saved.facts["loads"] == "with transformers alone"
    assert saved.cuts == ()
    (tmp_path / "x.pruned" / PRUNING).unlink()
    assert source.network is not None
    assert source.rebuild is not None
    kind: Any = type(source.network)
    with silenced():
        alone, told = kind.from_pretrained(str(tmp_path / "x.pruned"), output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert largest_difference(pruned, source.rebuild(alone.eval())) <= SAME
    assert largest_difference(pruned, load_model(str(tmp_path / "x.pruned"))) <= SAME
    before, after = (sum(t.numel() for t in m.parameters()) for m in (source.network, alone))
    assert after < before


@pytest.mark.parametrize(("name", "kinds", "layers"), SPELLED)
def test_a_cut_that_the_config_cannot_say_is_read_from_its_cuts(
    tmp_path: Path, name: str, kinds: tuple[str, ...], layers: bool
) -> None:
    reference = saved_source(tmp_path, name)
    source = load_model(str(reference))
    cut = same_cut(source, kinds, layers)
    pruned = written(tmp_path / "x.pruned", source, cut, str(reference))
    assert read_saved(tmp_path / "x.pruned").cuts == (cut,)
    again = load_model(str(tmp_path / "x.pruned"))
    assert largest_difference(pruned, again) <= SAME
    assert set(again.assets) == set(source.assets)


def test_what_a_config_would_load_beside_its_weights_is_not_written_on(tmp_path: Path) -> None:
    reference = saved_source(tmp_path, "BERT")
    config = json.loads((reference / "config.json").read_text(encoding="utf-8"))
    foreign = {"attn_implementation": "someone/kernels", "auto_map": {"AutoModel": "evil.Model"}}
    (reference / "config.json").write_text(json.dumps({**config, **foreign}), encoding="utf-8")
    source = load_model(str(reference))
    written(tmp_path / "x", source, same_cut(source, ("feedforward",)), str(reference))
    assert read_saved(tmp_path / "x").cuts == ()
    read = json.loads((tmp_path / "x" / "config.json").read_text(encoding="utf-8"))
    assert not set(foreign) & set(read)
    assert read["intermediate_size"] == config["intermediate_size"] * 3 // 4


def test_a_hugging_face_model_is_pruned_twice(tmp_path: Path) -> None:
    reference = saved_source(tmp_path, "BERT")
    source = load_model(str(reference))
    first = same_cut(source, ("attention",), True)
    written(tmp_path / "one", source, first, str(reference))
    once = load_model(str(tmp_path / "one"))
    second = same_cut(once, ("feedforward",))
    twice = written(tmp_path / "two", once, second, str(tmp_path / "one"))
    saved = read_saved(tmp_path / "two")
    assert saved.cuts == (first, second)
    assert saved.source == reference.name
    assert saved.source_sha256 == source.source_sha256
    assert largest_difference(twice, load_model(str(tmp_path / "two"))) <= SAME


def test_hugging_face_weights_that_were_changed_are_refused(tmp_path: Path) -> None:
    reference = saved_source(tmp_path, "BERT")
    source = load_model(str(reference))
    written(tmp_path / "x", source, same_cut(source, ("attention",)), str(reference))
    path = tmp_path / "x" / HF_WEIGHTS
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(EdgeattnError, match="was changed"):
        load_model(str(tmp_path / "x"))


# --- what is nobody's business ----------------------------------------------------------------------------------------

FACTORY = """\
import torch


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)

    def forward(self, x):
        line_of_my_source = torch.nn.functional.gelu(self.up(x))
        return x + self.down(line_of_my_source)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(Block(), Block()).eval(), (torch.ones(1, 4, 8),)
"""


def test_what_is_written_holds_no_folders_and_no_lines_of_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeattn.pruning.cut import Cut

    home = tmp_path / "home-of-mine"
    (home / "project").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "project")
    file = home / "project" / "net.py"
    file.write_text(FACTORY)
    source = load_model(str(file))
    told = {"speedup": 1.5, "failures": [f"cannot read {home}/project/data.tsv:3", "see ~/notes/a.txt"]}
    write_pruned(home / "out", source, source, Cut(), f"{file}:model", told)
    saved = read_saved(home / "out")
    assert saved.source == "net.py:model"
    assert saved.facts["failures"] == ["cannot read data.tsv:3", "see a.txt"]
    held = {path.name: path.read_bytes() for path in (home / "out").iterdir()}
    with zipfile.ZipFile(home / "out" / PROGRAM) as archive:
        held |= {f"{PROGRAM}/{name}": archive.read(name) for name in archive.namelist()}
    for name, data in held.items():
        for word in (str(tmp_path), "home-of-mine", "line_of_my_source", "Block", "stack_trace"):
            assert word.encode() not in data, (name, word)
    again = load_model(str(home / "out" / PROGRAM))
    inputs = source.example["main"]
    wanted, got = source.run(inputs), again.run({next(iter(again.example["main"])): next(iter(inputs.values()))})
    np.testing.assert_allclose(next(iter(got.values())), next(iter(wanted.values())), atol=SAME)
