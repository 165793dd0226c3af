"""A model with a cut applied: copied, cut, made a model again, and compared with what it should compute."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pruning.anatomy import Anatomy, Prunable
from edgeattn.pruning.compare import fitted_difference, masked_difference
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms import check_cut, removing, reshaping
from edgeattn.pruning.forms.form import Change, Form
from edgeattn.pruning.surgery import copied

ORACLE = 1e-4  # largest difference of an output of the pruned and the masked network, relative to its largest beyond 1

Findings = Mapping[str, Any]
"""Key of a form -> what its study found."""


def prune(given: Prunable, cut: Cut, findings: Findings | None = None) -> EdgeModel:
    """The model with a cut applied; its outputs are those of the original with what was cut masked to zero.

    Forms that remove no group or layer come after that; see :func:`reshape`.

    Args:
        findings: what makes those forms lose less.

    Raises:
        InputError: if the cut does not fit.
        UnsupportedError: if the pruned network does not run, or computes something else than the masked one: the family
            of the block is not understood, and nothing of it is kept.
    """
    pruned, why = removed(given, cut)
    if pruned is None:
        raise UnsupportedError(f"{given.model.spec.name}: once {described(cut)} are cut, {why}; it is left whole")
    return reshape(pruned, given.anatomy, cut, findings)


def removed(given: Prunable, cut: Cut) -> tuple[EdgeModel | None, str]:
    """The model without the groups and layers of a cut, or why there is none.

    Raises:
        InputError: if the cut does not fit.
    """
    check_cut(given.anatomy, cut)
    network = copied(given.network)
    assert given.model.rebuild is not None, "checked by prunable()"
    try:
        remove(network, given.anatomy, cut)
        pruned = given.model.rebuild(network)
        difference = oracle_difference(given, cut, pruned)
    except UnsupportedError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001 - a network that is not understood fails in its own way
        return None, f"the network does not run ({failure_line(error)})"
    if not difference <= ORACLE:
        return None, (
            f"outputs differ from those with the same parts masked by {difference:.1e}: it computes otherwise than its "
            "layers' names say"
        )
    return pruned, ""


def remove(network: nn.Module, anatomy: Anatomy, cut: Cut) -> None:
    """Remove groups and layers from a network, in place.

    A tensor that several modules share is cut once and stays shared. Nothing is changed if the cut does not fit.

    Raises:
        InputError: if it does not fit.
        UnsupportedError: if two units share a tensor and the cut asks different things of them.
    """
    check_cut(anatomy, cut)
    for form in removing():
        form.apply(network, anatomy, cut, None)


def failure_line(error: Exception) -> str:
    """An exception of a network's own in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def described(cut: Cut) -> str:
    """The places of a cut, in words."""
    places = [*(key.partition(":")[2] for key in cut.groups), *cut.layers]
    more = f" and {len(places) - 4} more" if len(places) > 4 else ""
    return f"{', '.join(places[:4])}{more}" or "no parts"


def oracle_difference(given: Prunable, cut: Cut, pruned: EdgeModel) -> float:
    """How far a model is from the original with the cut's groups and layers masked."""
    return masked_difference(given.model, pruned, lambda: masked_cut(given, cut), given.anatomy, cut)


@contextlib.contextmanager
def masked_cut(given: Prunable, cut: Cut) -> Iterator[None]:
    """While open, what a cut removes is masked in the original."""
    with contextlib.ExitStack() as stack:
        for form in removing():
            stack.enter_context(form.oracle(given.network, given.anatomy, cut, Change(fit="masked")))
        yield


# --- the other forms --------------------------------------------------------------------------------------------------


def shape(network: nn.Module, anatomy: Anatomy, cut: Cut) -> None:
    """Give an original network the modules and shapes that a cut leaves, in place, for weights that are loaded later.

    Raises:
        InputError: if the cut does not fit.
        UnsupportedError: if a block cannot be changed so.
    """
    remove(network, anatomy, cut)
    for form in reshaping(anatomy, cut):
        form.shape(network, anatomy, cut)


def reshape(
    plain: EdgeModel, anatomy: Anatomy, cut: Cut, findings: Findings | None = None, tolerance: float = ORACLE
) -> EdgeModel:
    """A model with the forms of a cut that remove nothing applied one after the other, and each checked.

    They change what a network computes, so that masking is no oracle of them. Instead each is compared with the network
    before it whose weights were replaced by what the form says they are, or as its file says.

    Args:
        plain: the model with the cut's groups and layers removed; it keeps its weights.
        anatomy: of the original, whose paths the cut names.
        tolerance: largest difference of an output to the oracle, relative to its largest beyond 1.

    Raises:
        InputError: if the cut does not fit.
        UnsupportedError: if a block cannot be changed so, does not run then, or computes something else.
    """
    check_cut(anatomy, cut)
    made = plain
    for form in reshaping(anatomy, cut):
        made = _reshaped(made, form, anatomy, cut, (findings or {}).get(form.key), tolerance)
    return made


def _reshaped(before: EdgeModel, form: Form, anatomy: Anatomy, cut: Cut, finding: Any, tolerance: float) -> EdgeModel:
    """The model of a changed copy, compared with the oracle of the form on the model before."""
    assert before.network is not None, "a model that was cut has a network"
    assert before.rebuild is not None, "a model that was cut can be made again"
    original, what = before.network, form.words(before.network, anatomy, cut)
    network = copied(original)
    change = form.apply(network, anatomy, cut, finding)
    try:
        after = before.rebuild(network)
        difference = fitted_difference(before, after, lambda: form.oracle(original, anatomy, cut, change), change.fit)
    except Exception as error:
        raise UnsupportedError(
            f"{before.spec.name}: the network does not run {what} ({failure_line(error)}); leave that out"
        ) from error
    if not difference <= tolerance:
        raise UnsupportedError(
            f"{before.spec.name}: {what}, outputs differ by {difference:.1e} from those that its weights should give: "
            "a block computes otherwise than its layers' names say; leave that out"
        )
    return after
