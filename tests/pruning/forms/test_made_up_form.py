"""A form that is added as one file and one row goes all the way: asked, planned, checked, applied, proved and saved."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.pruning import (
    FORMS,
    Cut,
    Form,
    Planning,
    Prunable,
    apply_saved,
    check_cut,
    parse_request,
    prune,
    request_text,
    write_pruned,
)
from edgeattn.pruning.forms.form import Change
from edgeattn.targets import get_target
from tests.pruning.blocks import classifier
from tests.pruning.forms.unbiased import UNBIASED, apply


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one row."""
    monkeypatch.setitem(FORMS, UNBIASED.key, UNBIASED)


def planned(given: Prunable, cut: Cut) -> Cut:
    ((key, asked),) = parse_request("unbiased=exits").amounts
    planning = Planning(given=given, target=get_target("cpu"), scores=dict, spared=lambda _: {})
    return FORMS[key].plan(asked, cut, planning)


def test_it_is_asked_for_by_its_key() -> None:
    assert request_text(parse_request("unbiased=exits")) == "unbiased=exits"
    with pytest.raises(InputError, match="unbiased must be exits, got 'all'"):
        parse_request("unbiased=all")


def test_what_it_refuses_is_refused_of_every_cut() -> None:
    given = classifier()
    with pytest.raises(InputError, match=r"blocks\.9: no exit"):
        check_cut(given.anatomy, Cut(forms={"unbiased": ("blocks.9",)}))
    with pytest.raises(InputError, match=r"blocks\.9: no exit"):
        prune(given, Cut(forms={"unbiased": ("blocks.9",)}))


def test_it_is_applied_proved_saved_and_read_again(tmp_path: Path) -> None:
    given = classifier()
    heads = next(unit for unit in given.anatomy.units if unit.kind == "attention")
    cut = planned(given, Cut({heads.key: (0, 2)}, {"blocks": (0, 2)}))
    assert len(cut.forms["unbiased"]) == 4  # of two layers that stay
    made = prune(given, cut)
    assert isinstance(made.network, nn.Module)
    assert all(made.network.get_submodule(f"blocks.{n}.attention.output").bias is None for n in (0, 1))

    directory = write_pruned(tmp_path / "x.pruned", made, given.model, cut, "x.py", {})
    (written,) = json.loads((directory / "pruning.json").read_text())["cuts"]
    assert written["unbiased"] == list(cut.forms["unbiased"])
    again = apply_saved(given.model, directory)
    example = given.model.example["main"]
    np.testing.assert_array_equal(again.run(example)["logits"], made.run(example)["logits"])


def test_a_form_whose_oracle_does_not_agree_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*args: object) -> Change:
        apply(*args)  # type: ignore[arg-type]
        return Change()  # says that the network computes what it did before

    lying: Form = replace(UNBIASED, apply=silent)
    monkeypatch.setitem(FORMS, UNBIASED.key, lying)
    given = classifier()
    with pytest.raises(UnsupportedError, match="have no bias, outputs differ by"):
        prune(given, planned(given, Cut()))
