"""One thread for torch, and sources that are loaded once for all the cells that come from them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

for needed in ("torch", "onnxscript", "onnxruntime", "openvino", "nncf", "litert_torch", "ai_edge_quantizer"):
    pytest.importorskip(needed, reason="the matrix needs edgeattn[convert,openvino,tflite]")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
