"""The tiny model of tiny.py, made once and opened on each engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from edgeattn.runtimes import Session, open_session
from tests.runtimes.tiny import ENGINES, tiny_spec, write_ir, write_onnx, write_tflite


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Backend -> its model file, made when first asked for; "fp16" is an ONNX that computes in float16."""
    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def make(kind: str) -> Path:
        if kind == "openvino":
            return write_ir(make("onnxruntime"), folder / "main.xml")
        if kind == "litert":
            return write_tflite(folder / "main.tflite")
        return write_onnx(folder / f"{kind}.onnx", half=kind == "fp16")

    return make


@pytest.fixture(params=ENGINES)
def session(request: pytest.FixtureRequest, tiny_file: Callable[[str], Path]) -> Iterator[Session]:
    """The tiny model on each engine in turn."""
    with open_session(request.param, {"main": tiny_file(request.param)}, tiny_spec()) as opened:
        yield opened


@pytest.fixture
def random_inputs() -> dict[str, np.ndarray]:
    """Every input and state of the tiny model, all different."""
    rng = np.random.default_rng(11)
    return {t.name: rng.standard_normal(t.shape).astype(np.float32) for t in tiny_spec().graphs[0].all_inputs}
