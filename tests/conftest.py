"""The settings of hypothesis, how tests are spread over workers, and fixtures that several rooms use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import hypothesis
import pytest

from edgeattn.traces import leave_none
from tests.small import write_small_bundle
from tests.spread import spread
from tests.wheels import WEIGHTS, build, copy_sources

leave_none(
    "openvino"
)  # nor ONNX Runtime: tests import both themselves, as oracles, and OpenVINO would fork to report it

# The same examples in every run: what is red for one is red for all. HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole-matrix", action="store_true", help="every source of every architecture on every engine")


@pytest.hookimpl(tryfirst=True)  # before xdist writes the groups into the names of the tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    spread(items)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """These models are too small for more, and idle threads spin beside whatever else runs."""
    if "torch" in sys.modules:  # whoever needs it has imported it by now; the others shall not wait for it
        import torch

        torch.set_num_threads(1)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A whole bundle directory."""
    return write_small_bundle(tmp_path / "small.cpu.edge")


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads."""
    return copy_sources(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="session")
def wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel."""
    return build(source_tree, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def weights_wheel(source_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the built-in model's weights."""
    return build(source_tree / WEIGHTS, "wheel", tmp_path_factory.mktemp("weights_wheel"))
