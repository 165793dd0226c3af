"""CUDA through ctypes: on a GPU where there is one, and on a simulator of the runtime elsewhere.

Needs numpy, pytest and a CUDA runtime library or a C compiler, and nothing of the other tests' fixtures.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

import edgeattn.runtimes.cuda
from edgeattn.errors import DeviceError
from edgeattn.runtimes.cuda import Cuda, CudaGraph, library_files
from tests.runtimes.cudart import build_simulator, has_gpu

KINDS = [
    "simulated",
    pytest.param("gpu", marks=pytest.mark.skipif(not has_gpu(), reason="needs a GPU and its driver")),
]


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_simulator(tmp_path_factory.mktemp("cudart"))


@pytest.fixture(params=KINDS)
def cuda(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    if request.param == "simulated":
        monkeypatch.setattr(edgeattn.runtimes.cuda, "LIBRARIES", (str(request.getfixturevalue("simulator")),))
    opened = Cuda()
    yield opened
    opened.close()


def random(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def test_the_device_is_described(cuda: Cuda) -> None:
    major, minor = (int(part) for part in cuda.capability.split("."))
    assert (major, minor) >= (5, 0)
    assert cuda.multiprocessors > 0
    assert int(cuda.version.split(".")[0]) >= 11


def test_what_goes_up_comes_down_unchanged(cuda: Cuda) -> None:
    values, back = random((300, 70)), cuda.pinned_array((300, 70), "float32")
    source = cuda.pinned_array((300, 70), "float32")
    source[:] = values
    address = cuda.device_memory(values.nbytes)
    cuda.upload(address, source)
    cuda.download(back, address)
    cuda.synchronize()
    np.testing.assert_array_equal(back, values)
    cuda.free([address])


def test_pageable_memory_can_be_copied_too(cuda: Cuda) -> None:
    values, back = random((1000,)), np.zeros(1000, np.float32)
    address = cuda.device_memory(values.nbytes)
    cuda.upload(address, values)
    cuda.synchronize()
    cuda.download(back, address)
    cuda.synchronize()
    np.testing.assert_array_equal(back, values)
    cuda.free([address])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int64", "bool"])
def test_pinned_memory_is_an_array_of_zeros_that_outlives_its_maker(cuda: Cuda, dtype: str) -> None:
    array = cuda.pinned_array((3, 0x101), dtype)
    assert (array.shape, array.dtype) == ((3, 0x101), np.dtype(dtype))
    assert array.flags.c_contiguous
    assert not array.any()
    view = array[1:]
    del array
    gc.collect()
    view[:] = 1
    assert view.all()


def test_events_tell_the_time_between_them_in_their_order(cuda: Cuda) -> None:
    nbytes = 2**24
    block, address = cuda.pinned_array((nbytes,), "int8"), cuda.device_memory(nbytes)
    events = [cuda.event() for _ in range(3)]
    cuda.record(events[0])
    cuda.upload(address, block)
    cuda.record(events[1])
    for _ in range(3):
        cuda.download(block, address)
    cuda.record(events[2])
    cuda.synchronize()
    first, second = cuda.elapsed_ms(events[0], events[1]), cuda.elapsed_ms(events[1], events[2])
    assert first > 0
    assert second > 0
    assert cuda.elapsed_ms(events[0], events[2]) == pytest.approx(first + second, rel=1e-2, abs=2e-3)
    for event in events:
        cuda.forget(event)
    cuda.free([address])


def test_an_event_can_be_recorded_again(cuda: Cuda) -> None:
    begin, end = cuda.event(), cuda.event()
    for _ in range(3):
        cuda.record(begin)
        cuda.record(end)
        cuda.synchronize()
        assert cuda.elapsed_ms(begin, end) >= 0
    cuda.forget(begin)
    cuda.forget(end)


def test_a_captured_copy_is_executed_only_when_launched_and_reads_what_the_host_holds_then(cuda: Cuda) -> None:
    source, back = cuda.pinned_array((4096,), "float32"), cuda.pinned_array((4096,), "float32")
    address = cuda.device_memory(source.nbytes)
    with cuda.capturing() as graph:
        cuda.upload(address, source)
        cuda.download(back, address)
    cuda.synchronize()
    source[:] = 7
    assert not back.any()  # captured, not executed
    for value in (1.0, 2.0, -3.5):
        source[:] = value
        cuda.launch(graph)
        cuda.synchronize()
        np.testing.assert_array_equal(back, np.full(4096, value, np.float32))
    cuda.drop(graph)
    cuda.free([address])


def test_two_graphs_hand_a_state_to_and_fro_in_device_memory(cuda: Cuda) -> None:
    source, back = cuda.pinned_array((16,), "int64"), cuda.pinned_array((16,), "int64")
    states = [cuda.device_memory(source.nbytes) for _ in (0, 1)]
    graphs = []
    for parity in (0, 1):  # writes what the host holds to one, reads what the other got before
        with cuda.capturing() as graph:
            cuda.upload(states[parity], source)
            cuda.download(back, states[1 - parity])
        graphs.append(graph)
    seen = []
    for step in range(6):
        source[:] = step
        cuda.launch(graphs[step % 2])
        cuda.synchronize()
        seen.append(int(back[0]))
    assert seen[1:] == [0, 1, 2, 3, 4]
    for graph in graphs:
        cuda.drop(graph)
    cuda.free(states)


def test_a_launch_lies_between_its_events(cuda: Cuda) -> None:
    source = cuda.pinned_array((2**22,), "int8")
    address = cuda.device_memory(source.nbytes)
    with cuda.capturing() as graph:
        cuda.upload(address, source)
    begin, end = cuda.event(), cuda.event()
    cuda.record(begin)
    cuda.launch(graph)
    cuda.record(end)
    cuda.synchronize()
    assert cuda.elapsed_ms(begin, end) > 0
    cuda.drop(graph)
    cuda.forget(begin)
    cuda.forget(end)
    cuda.free([address])


def test_waiting_inside_a_capture_is_an_error_after_which_the_stream_works(cuda: Cuda) -> None:
    source, back = cuda.pinned_array((8,), "float32"), cuda.pinned_array((8,), "float32")
    address = cuda.device_memory(source.nbytes)
    with pytest.raises(DeviceError, match=r"cudaStreamSynchronize: .*captur.*\(CUDA error 900\)"), cuda.capturing():
        cuda.synchronize()
    source[:] = 9
    cuda.upload(address, source)
    cuda.download(back, address)
    cuda.synchronize()
    assert (back == 9).all()
    with cuda.capturing() as graph:  # and can be captured again
        cuda.upload(address, source)
    cuda.drop(graph)
    cuda.free([address])


def test_a_capture_that_was_spoilt_in_silence_fails_at_its_end(cuda: Cuda) -> None:
    with pytest.raises(DeviceError, match=r"cudaStreamEndCapture: .*\(CUDA error 901\)"), cuda.capturing():
        cuda._library.cudaStreamSynchronize(ctypes.c_void_p(cuda.stream))  # by someone who does not look at the answer
    cuda.synchronize()


def test_an_error_of_ours_inside_a_capture_ends_it(cuda: Cuda) -> None:
    with pytest.raises(ZeroDivisionError), cuda.capturing():
        raise ZeroDivisionError
    cuda.synchronize()


def test_refused_calls_are_device_errors_that_name_the_call(cuda: Cuda) -> None:
    with pytest.raises(DeviceError, match=r"cudaMalloc: out of memory \(CUDA error 2\)") as caught:
        cuda.device_memory(2**50)
    assert caught.value.exit_code == 3
    with pytest.raises(DeviceError, match=r"cudaGraphLaunch: invalid .*\(CUDA error"):
        cuda.launch(CudaGraph())
    with pytest.raises(DeviceError, match=r"cudaMemcpyAsync: .*\(CUDA error (1|21)\)"):
        cuda._copy(0, 0, 8, 77)
    cuda.synchronize()  # none of them sticks


def test_an_error_is_not_left_for_the_next_who_asks(cuda: Cuda) -> None:
    with pytest.raises(DeviceError):
        cuda.device_memory(2**50)
    assert cuda._library.cudaGetLastError() == 0


def test_time_of_an_event_that_was_not_reached_is_refused(cuda: Cuda) -> None:
    begin, end = cuda.event(), cuda.event()
    with pytest.raises(DeviceError, match="cudaEventElapsedTime"):
        cuda.elapsed_ms(begin, end)
    cuda.forget(begin)
    cuda.forget(end)


def test_all_that_is_made_is_given_back(simulator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edgeattn.runtimes.cuda, "LIBRARIES", (str(simulator),))
    gc.collect()
    count = ctypes.CDLL(str(simulator)).simulatedLive
    before = count()
    cuda = Cuda()
    source, address, event = cuda.pinned_array((8,), "float32"), cuda.device_memory(32), cuda.event()
    with cuda.capturing() as graph:
        cuda.upload(address, source)
    with pytest.raises(DeviceError), cuda.capturing():
        cuda.synchronize()
    assert count() == before + 5  # stream, pinned, device, event, graph
    cuda.drop(graph)
    cuda.forget(event)
    cuda.free([address])
    cuda.close()
    del source
    gc.collect()
    assert count() == before


def test_a_library_in_a_wheel_or_in_the_toolkit_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels, toolkit = tmp_path / "site-packages" / "nvidia", tmp_path / "lib64"
    files = [
        toolkit / "libcudart.so",
        wheels / "cu13/lib/libcudart.so.13",
        wheels / "cuda_runtime/lib/libcudart.so.12",
    ]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    package = types.ModuleType("nvidia")
    package.__spec__ = ModuleSpec("nvidia", None, is_package=True)
    package.__spec__.submodule_search_locations = [str(wheels)]
    monkeypatch.setitem(sys.modules, "nvidia", package)
    monkeypatch.setattr(edgeattn.runtimes.cuda, "PLACES", (toolkit,))
    assert library_files() == files


def test_without_a_library_the_names_and_the_remedy_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edgeattn.runtimes.cuda, "LIBRARIES", ("libnowhere.so.12",))
    monkeypatch.setattr(edgeattn.runtimes.cuda, "library_files", list)
    with pytest.raises(DeviceError, match=r"no CUDA runtime library \(libnowhere.so.12\); it comes with JetPack"):
        Cuda()
