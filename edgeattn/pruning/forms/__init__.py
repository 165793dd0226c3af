"""The forms of pruning: one file and one row each.

A form says how it is asked for, planned for a target, checked, applied, proved against an oracle and written; see
:class:`~edgeattn.pruning.forms.form.Form`. To add one, write its file beside these and give it a row below: from here
``--prune``, convert, the check against the model before, pruning.json and what reads it know of it.
"""

from __future__ import annotations

from typing import Any

from edgeattn.errors import InputError
from edgeattn.pruning.anatomy import Anatomy
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms.form import Form
from edgeattn.pruning.forms.heads import HEADS
from edgeattn.pruning.forms.kv_heads import KV_HEADS
from edgeattn.pruning.forms.layers import LAYERS
from edgeattn.pruning.forms.left_context import LEFT_CONTEXT
from edgeattn.pruning.forms.low_rank import RANK
from edgeattn.pruning.forms.neurons import NEURONS
from edgeattn.pruning.forms.sparsity import SPARSITY

__all__ = [
    "FORMS",
    "check_cut",
    "cut_from_json",
    "cut_to_json",
    "form",
    "removing",
    "reshaping",
    "without_dropped",
]

FORMS: dict[str, Form] = {form.key: form for form in (HEADS, NEURONS, LAYERS, KV_HEADS, RANK, LEFT_CONTEXT, SPARSITY)}
"""Key of ``--prune`` -> form, in the order in which they are planned and applied."""

FORMAT = 1


def removing() -> list[Form]:
    """Forms that take groups or layers away."""
    return [form for form in FORMS.values() if form.removes]


def reshaping(anatomy: Anatomy, cut: Cut) -> list[Form]:
    """The other forms that a cut has, of layers that stay."""
    forms = [form for form in FORMS.values() if not form.removes and cut.part(form.field) is not None]
    return [form for form in forms if form.stays(anatomy, cut) not in ({}, (), None)]


def check_cut(anatomy: Anatomy, cut: Cut) -> None:
    """Refuse a cut that does not fit.

    Raises:
        InputError: naming the unit, stack or layer, what was asked and what is there.
    """
    for form in FORMS.values():
        form.check(anatomy, cut)


def without_dropped(anatomy: Anatomy, cut: Cut) -> Cut:
    """The same cut without what it says about layers that are left out: there is nothing to cut there."""
    rest = cut
    for form in FORMS.values():
        rest = rest.with_part(form.field, form.stays(anatomy, cut))
    return rest


def cut_to_json(cut: Cut) -> dict[str, Any]:
    """Plain JSON, ``format`` included."""
    parts = {form.field: (form, cut.part(form.field)) for form in FORMS.values()}
    written = {name: form.empty if part is None else form.to_json(part) for name, (form, part) in parts.items()}
    return {"format": FORMAT, **written}


def cut_from_json(data: Any, where: str) -> Cut:
    """Read what :func:`cut_to_json` gave. Fields of forms that came later than the file may be missing.

    Raises:
        InputError: naming the field that is wrong, or that asks for a form that is not known here.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise InputError(f"{where}: no cut of format {FORMAT}")
    forms = {form.field: form for form in FORMS.values()}
    unknown = [name for name, part in data.items() if name not in (*forms, "format") and part]
    if unknown:
        raise InputError(f"{where}: {unknown[0]!r:.60} is no form of pruning that this edgeattn knows; update it")
    cut = Cut()
    for name, form in forms.items():
        part = data.get(name, None if form.removes else form.empty)
        try:
            cut = cut if part == form.empty else cut.with_part(name, form.from_json(part))
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{where}: not a cut: {name}: {type(error).__name__} {error}") from error
    return cut
