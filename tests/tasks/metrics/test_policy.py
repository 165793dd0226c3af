"""Agreement of actions and returns, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.tasks.metrics.policy import ACTION_AGREEMENT, MEAN_RETURN
from tests.tasks.metrics.measuring import measured


def test_agreement_is_the_share_of_equal_actions() -> None:
    pairs = [(0, 0), (np.int64(2), 2), (1, 2), (math.nan, 0), (None, 1)]
    assert measured(ACTION_AGREEMENT, pairs) == pytest.approx(0.4, abs=1e-12)
    with pytest.raises(DataError, match="a target here is a class"):
        ACTION_AGREEMENT.statistics(0, math.nan)


def test_the_return_of_an_episode_is_given_or_the_sum_of_its_rewards() -> None:
    episodes = [(3.0, None), ([1.0, -2.0, 0.5], None), (np.float32(1.5), None), (np.array(0.5), None), ([], None)]
    assert measured(MEAN_RETURN, episodes) == pytest.approx((3.0 - 0.5 + 1.5 + 0.5) / 5, abs=1e-12)
    assert MEAN_RETURN.unit == ""


@pytest.mark.parametrize("answer", [math.nan, None, [1.0, math.nan], math.inf])
def test_a_return_that_is_no_number_is_the_worst(answer: object) -> None:
    assert measured(MEAN_RETURN, [(answer, None), (5.0, None)]) == -math.inf
