"""The cells of the matrices that a run leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

for needed in ("torch", "onnxscript", "onnxruntime", "openvino", "nncf", "litert_torch", "ai_edge_quantizer"):
    pytest.importorskip(needed, reason="the matrix needs edgeattn[convert,openvino,tflite]")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--whole-matrix`` the cells that :mod:`tests.acceptance.pairs` chose are left."""
    if config.getoption("--whole-matrix"):
        return
    from tests.acceptance.pairs import engines_of, in_turn
    from tests.architectures import FURTHER, NAMED
    from tests.pruning.families import FAMILIES

    chosen, engine_of = engines_of(NAMED, FURTHER), in_turn(FAMILIES)

    def is_left_out(item: pytest.Item) -> bool:
        cell: Mapping[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
        if {"pruned", "engine"} <= set(cell) and cell["pruned"] in engine_of:  # other rooms have such names, too
            return bool(cell["engine"] != engine_of[cell["pruned"]])
        if not {"loaded", "engine"} <= set(cell):
            return False
        architecture, source = cell["loaded"]
        return cell["engine"] not in chosen[architecture.name, source]

    left_out = {item.nodeid for item in items if is_left_out(item)}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = [item for item in items if item.nodeid not in left_out]
