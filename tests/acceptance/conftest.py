"""The cells of the matrix that a run leaves out."""

from __future__ import annotations

import pytest

for needed in ("torch", "onnxscript", "onnxruntime", "openvino", "nncf", "litert_torch", "ai_edge_quantizer"):
    pytest.importorskip(needed, reason="the matrix needs edgeattn[convert,openvino,tflite]")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--whole-matrix`` the cells that :func:`tests.acceptance.pairs.engines_of` chose are left."""
    if config.getoption("--whole-matrix"):
        return
    from tests.acceptance.pairs import engines_of
    from tests.architectures import NAMED

    chosen = engines_of(NAMED)

    taken, left_out = [], []
    for item in items:
        cell = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        case = (cell["loaded"][0].name, cell["loaded"][1]) if {"loaded", "engine"} <= set(cell) else None
        (left_out if case in chosen and cell["engine"] not in chosen[case] else taken).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = taken
