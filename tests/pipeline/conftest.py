"""Conversions made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeattn.results.report import Report
from tests.conversions import Converted, small_conversion, speech_conversion
from tests.once import shared_root


@pytest.fixture(autouse=True, scope="package")
def _torch() -> None:
    pytest.importorskip("torch", reason="conversion needs edgeattn[convert]")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return small_conversion(shared_root(tmp_path_factory))


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    return speech_conversion(shared_root(tmp_path_factory))
