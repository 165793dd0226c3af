"""The session on TensorRT on a real GPU: a network of one CUDA kernel, with the simulated TensorRT on the real runtime.

Needs numpy, pytest, nvcc, and nothing of the other tests' fixtures.
"""

from __future__ import annotations

import ctypes
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import edgeattn.runtimes.cuda
from edgeattn.runtimes import open_session
from edgeattn.runtimes.tensorrt_build import BuildRecipe, recipe_to_build
from edgeattn.spec import GraphSpec, ModelSpec, StateSpec, TensorSpec
from tests.runtimes.cudart import has_gpu
from tests.runtimes.simulated_tensorrt import Network, simulated_tensorrt

ACCUMULATE = """
__global__ void accumulate(int n, const float *x, const float *sum, float *y, float *next) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) { next[i] = sum[i] + x[i]; y[i] = 2 * sum[i] + x[i]; }
}
extern "C" int enqueue(void *stream, int n, const float *x, const float *sum, float *y, float *next) {
    accumulate<<<(n + 255) / 256, 256, 0, (cudaStream_t)stream>>>(n, x, sum, y, next);
    return cudaGetLastError();
}
"""
COUNT = 100_000


def accumulator() -> ModelSpec:
    """Y = 2 s + x, with s' = s + x."""
    x, y = TensorSpec("x", "float32", (COUNT,)), TensorSpec("y", "float32", (COUNT,))
    return ModelSpec("accumulator", "test", (GraphSpec("main", (x,), (y,), (StateSpec("sum", "next", (COUNT,)),)),))


def kernel_network(folder: Path) -> Callable[[bytes], Network]:
    """The accumulator as a CUDA kernel."""
    (folder / "accumulate.cu").write_text(ACCUMULATE)
    library = folder / "libaccumulate.so"
    command = ["nvcc", "-shared", "-Xcompiler", "-fPIC", "-arch=native", "-o", str(library)]
    subprocess.run([*command, str(folder / "accumulate.cu")], check=True)
    enqueue_kernel = ctypes.CDLL(str(library)).enqueue

    def enqueue(stream: int, addresses: Mapping[str, int]) -> None:
        pointers = [ctypes.c_void_p(addresses[name]) for name in ("x", "sum", "y", "next")]
        assert enqueue_kernel(ctypes.c_void_p(stream), ctypes.c_int(COUNT), *pointers) == 0

    kind = ("float32", (COUNT,))
    return lambda _: Network({"x": kind, "sum": kind}, {"y": kind, "next": kind}, enqueue)


@pytest.mark.skipif(not has_gpu() or shutil.which("nvcc") is None, reason="needs a GPU, its driver and nvcc")
@pytest.mark.parametrize("capturable", [True, False])
def test_a_kernel_on_a_gpu_gives_the_same_captured_and_plain(
    capturable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = edgeattn.runtimes.cuda._library()
    module = simulated_tensorrt("10.3.0", library, kernel_network(tmp_path), capturable)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setenv("EDGEATTN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "main.onnx").write_bytes(b"the accumulator")
    rng, total = np.random.default_rng(6), np.zeros(COUNT, np.float32)
    build = recipe_to_build(BuildRecipe())
    with (
        caplog.at_level(logging.INFO),
        open_session("tensorrt", {"main": tmp_path / "main.onnx"}, accumulator(), build=build) as session,
    ):
        step = session.step()
        for _ in range(20):
            x = rng.standard_normal(COUNT, dtype=np.float32)
            step.inputs["x"][:] = x
            step.run()
            np.testing.assert_allclose(step.outputs["y"], 2 * total + x, rtol=1e-6, atol=1e-6)
            total += x
            assert step.device_ms is not None
            assert step.device_ms > 0
        np.testing.assert_array_equal(step.states()["sum"], total)
        captured = step._captured  # type: ignore[attr-defined]
        assert [graph is not None for graph in captured] == [capturable, capturable]
    assert ("without a CUDA graph" in caplog.text) is not capturable
