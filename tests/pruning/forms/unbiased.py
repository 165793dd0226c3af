"""A form of pruning that edgeattn does not have, as one file: exits of units give up their biases."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from edgeattn.errors import InputError
from edgeattn.pruning.anatomy import Anatomy
from edgeattn.pruning.cut import Cut, moved, staying
from edgeattn.pruning.forms.form import Change, Form, Planning, with_weights
from edgeattn.pruning.linear import dense, linear_at


def parse(text: str) -> str:
    if text != "exits":
        raise InputError(f"unbiased must be exits, got {text!r}")
    return text


def plan(_: str, cut: Cut, planning: Planning) -> Cut:
    anatomy, network = planning.given.anatomy, planning.given.network
    stay = staying(anatomy, cut)
    exits = [unit.exit for unit in anatomy.units if unit.key in stay]
    return cut.with_part("unbiased", tuple(p for p in exits if linear_at(network, p).bias is not None))


def check(anatomy: Anatomy, cut: Cut) -> None:
    for path in cut.forms.get("unbiased", ()):
        if path not in {unit.exit for unit in anatomy.units}:
            raise InputError(f"{path}: no exit of a unit")


def stays(_: Anatomy, cut: Cut) -> tuple[str, ...]:
    return tuple(path for path in cut.forms.get("unbiased", ()) if moved(cut, path) is not None)


def apply(network: nn.Module, anatomy: Anatomy, cut: Cut, _: Any = None) -> Change:
    weights = {}
    for path in stays(anatomy, cut):
        place = cast(str, moved(cut, path))
        layer = cast(nn.Linear, linear_at(network, place))
        weights[place] = dense(layer).clone(), torch.zeros_like(layer.bias)
        layer.bias = None  # type: ignore[assignment]
    return Change(weights)


def shape(network: nn.Module, anatomy: Anatomy, cut: Cut) -> None:
    apply(network, anatomy, cut)


def words(_: nn.Module, anatomy: Anatomy, cut: Cut) -> str:
    return f"once {', '.join(stays(anatomy, cut))} have no bias"


UNBIASED = Form(
    key="unbiased", field="unbiased", empty=[], parse=parse, plan=plan, check=check, stays=stays, apply=apply,
    shape=shape, oracle=with_weights, words=words, to_json=list, from_json=tuple,
)  # fmt: skip
