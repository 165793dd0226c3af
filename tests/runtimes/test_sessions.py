"""Every engine against the numpy oracle."""

from __future__ import annotations

import numpy as np

from edgeattn.runtimes import Session
from tests.runtimes.tiny import numpy_step, tiny_weights


def test_run_binds_same_shaped_inputs_by_name(session: Session, random_inputs: dict[str, np.ndarray]) -> None:
    expected = numpy_step(tiny_weights(), random_inputs)
    results = session.run(random_inputs)
    assert set(results) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(results[name], array, atol=1e-5, err_msg=name)
