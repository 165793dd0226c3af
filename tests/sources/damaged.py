"""Files that are cut off or hold other bytes: what a reader must make of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from edgeattn.errors import EdgeattnError
from tests.attacks.values import spoiled


def refusals(read: Callable[[Path], object], whole: Path, times: int) -> int:
    """Read a file, damaged in so many ways; how often that was refused, in one line and with the right code."""
    data, damaged, refused = whole.read_bytes(), whole.with_name(f"damaged{whole.suffix}"), 0
    for seed in range(times):
        damaged.write_bytes(spoiled(random.Random(seed), data))
        try:
            read(damaged)
        except EdgeattnError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
            assert error.exit_code in (2, 4)  # noqa: PT017
    return refused
