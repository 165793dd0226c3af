"""MODEL as a directory of a pruned model: a built-in one loads, a user's is told how, and nothing in it runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import ModelError
from edgeattn.model import EdgeModel
from edgeattn.pruning import (
    PRUNING,
    WEIGHTS,
    Cut,
    apply_saved,
    largest_difference,
    prunable,
    prune,
    reshape,
    write_pruned,
)
from edgeattn.sources import load_model

NAME = "streaming-conformer"
FACTORY = """
import pathlib, torch
pathlib.Path(__file__).with_name("ran").touch()

class FeedForward(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = torch.nn.Linear(8, 12), torch.nn.Linear(12, 8)

    def forward(self, x):
        return x + self.fc2(torch.relu(self.fc1(x)))

def model():
    torch.manual_seed(0)
    return FeedForward().eval(), (torch.randn(2, 8),)
"""


def pruned_builtin(directory: Path) -> EdgeModel:
    source = load_model(NAME)
    given = prunable(source)
    groups = {unit.key: tuple(range(unit.groups // 2, unit.groups)) for unit in given.anatomy.units}
    cut = Cut(groups, {stack.path: (0, *range(2, stack.layers)) for stack in given.anatomy.stacks})
    pruned = prune(given, cut)
    write_pruned(directory, pruned, source, cut, NAME, {})
    return pruned


def pruned_factory(tmp_path: Path) -> tuple[EdgeModel, str]:
    reference = str(tmp_path / "mine.py")
    Path(reference).write_text(FACTORY, encoding="utf-8")
    source = load_model(reference)
    cut = Cut({"feedforward:": (0, 1, 2, 3)})
    pruned = prune(prunable(source), cut)
    write_pruned(tmp_path / "x.pruned", pruned, source, cut, reference, {})
    (tmp_path / "ran").unlink()
    return pruned, reference


def test_a_pruned_built_in_model_is_a_model_with_smaller_states_and_the_same_words(tmp_path: Path) -> None:
    pruned = pruned_builtin(tmp_path / "x.pruned")
    again = load_model(str(tmp_path / "x.pruned"))
    assert again.spec == pruned.spec
    assert largest_difference(pruned, again) <= 1e-6
    whole = load_model(NAME)
    assert sum(s.nbytes for s in again.spec.graphs[0].states) < sum(s.nbytes for s in whole.spec.graphs[0].states)
    assert again.source_size_bytes < whole.source_size_bytes


def test_a_users_model_is_not_run_because_a_directory_names_it(tmp_path: Path) -> None:
    _, reference = pruned_factory(tmp_path)
    with pytest.raises(
        ModelError, match=rf"name it yourself: edgeattn convert {Path(reference).name} --prune .*x\.pruned; or take"
    ):
        load_model(str(tmp_path / "x.pruned"))
    assert not (tmp_path / "ran").exists()


def test_a_users_model_that_is_named_takes_its_pruned_weights(tmp_path: Path) -> None:
    pruned, reference = pruned_factory(tmp_path)
    again = apply_saved(load_model(reference), tmp_path / "x.pruned")
    assert largest_difference(pruned, again) <= 1e-6


def test_the_program_in_it_is_a_model_by_itself(tmp_path: Path) -> None:
    pruned, _ = pruned_factory(tmp_path)
    program = load_model(str(tmp_path / "x.pruned" / "model.pt2"))
    (wanted,), (got,) = pruned.run(pruned.example["main"]).values(), program.run(program.example["main"]).values()
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    assert not (tmp_path / "ran").exists()


def test_a_source_named_like_a_path_or_a_module_stays_text(tmp_path: Path) -> None:
    pruned_factory(tmp_path)
    path = tmp_path / "x.pruned" / PRUNING
    data = json.loads(path.read_text(encoding="utf-8"))
    for name in ("os:system", "../mine.py", "mine.py:model", "/etc/passwd"):
        path.write_text(json.dumps({**data, "source": name}), encoding="utf-8")
        with pytest.raises(ModelError, match="data names it"):
            load_model(str(tmp_path / "x.pruned"))
    assert not (tmp_path / "ran").exists()


def test_damage_is_told_as_that_of_the_file(tmp_path: Path) -> None:
    pruned_builtin(tmp_path / "x.pruned")
    weights = tmp_path / "x.pruned" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"weights\.safetensors: was changed"):
        load_model(str(tmp_path / "x.pruned"))
    (tmp_path / "x.pruned" / PRUNING).write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"pruning\.json: not readable as JSON"):
        load_model(str(tmp_path / "x.pruned"))


def test_less_left_context_low_rank_and_merged_heads_are_read_back(tmp_path: Path) -> None:
    source = load_model(NAME)
    given = prunable(source)
    attention = next(unit for unit in given.anatomy.units if unit.kind == "attention")
    feedforward = next(unit for unit in given.anatomy.units if unit.kind == "feedforward")
    cut = Cut(
        {feedforward.key: tuple(range(192))},
        forms={"merged": {attention.key: 2}, "ranks": {feedforward.exit: 16}, "left": 16},
    )
    plain = prune(given, Cut(cut.groups))
    pruned = reshape(plain, given.anatomy, cut)
    write_pruned(tmp_path / "x.pruned", pruned, source, cut, NAME, {})
    again = load_model(str(tmp_path / "x.pruned"))
    assert again.spec == pruned.spec
    assert again.spec.stream is not None
    assert again.spec.stream.left == 16
    assert largest_difference(pruned, again) <= 1e-6
