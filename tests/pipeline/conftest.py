"""Conversions made once; one torch thread."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeattn.results.report import Report
from tests.conversions import Converted, small_conversion, speech_conversion
from tests.once import shared_root


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch", reason="conversion needs edgeattn[convert]")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return small_conversion(shared_root(tmp_path_factory))


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    return speech_conversion(shared_root(tmp_path_factory))
