"""Heads and neurons: which of them go when a share is asked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import InputError
from edgeattn.pruning.cut import Cut
from edgeattn.pruning.forms import check_cut
from edgeattn.pruning.forms.groups import least_important
from tests.pruning.test_cut import ANATOMY


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.25, 0.5, 0.9]), st.sampled_from([1, 4, 8, 32]))
def test_the_same_share_of_the_least_important_groups_goes_from_every_unit(seed: int, share: float, step: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {unit.key: torch.rand(unit.groups, generator=generator) for unit in ANATOMY.units}
    found = least_important(ANATOMY, "attention", scores, share)
    found |= least_important(ANATOMY, "feedforward", scores, share, step)
    check_cut(ANATOMY, Cut(found))
    for unit in ANATOMY.units:
        kept = found.get(unit.key, tuple(range(unit.groups)))
        multiple = step if unit.kind == "feedforward" else 1
        assert len(kept) >= unit.groups * (1 - share) - 1e-9
        assert len(kept) % multiple == 0 or len(kept) == unit.groups
        assert len(kept) < unit.groups * (1 - share) + multiple
        gone = [group for group in range(unit.groups) if group not in kept]
        if gone:
            assert min(scores[unit.key][list(kept)]) >= max(scores[unit.key][gone])


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan"), float("inf")])
def test_a_share_outside_of_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"lies in \[0, 1\)"):
        least_important(ANATOMY, "attention", {}, share)
