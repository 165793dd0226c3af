"""The CUDA runtime calls that running an engine takes, through ctypes: a device has no torch, cupy or pycuda.

Every call here has one signature in CUDA 11.4 to 13, so no version is asked for: ``cudaGraphInstantiateWithFlags``
stands for ``cudaGraphInstantiate``, whose arguments changed with CUDA 12 (CUDA Runtime API, Graph Management).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, final

import numpy as np

from edgeattn.errors import DeviceError

LIBRARIES = ("libcudart.so.12", "libcudart.so.13", "libcudart.so.11.0", "libcudart.so")  # JetPack 6, 7, 5
PLACES = (Path("/usr/local/cuda/lib64"),)  # the toolkit's own place, where the linker does not look by itself
WHEELS = ("cu13/lib", "cuda_runtime/lib")  # below site-packages/nvidia: of nvidia-cuda-runtime and of its -cu12, -cu11
TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
MAJOR, MINOR, MULTIPROCESSORS = 75, 76, 16  # cudaDeviceAttr
NON_BLOCKING = 1  # cudaStreamNonBlocking: others' work on the legacy default stream would break a capture
CAPTURE_THREAD_LOCAL = 1  # cudaStreamCaptureMode: what other threads allocate meanwhile is their business


@final
class Cuda:
    """libcudart and one stream on device 0.

    Raises:
        DeviceError: if there is no CUDA runtime library, no driver or no GPU; by every call, if CUDA refuses it.
    """

    def __init__(self) -> None:
        self._library = _library()
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        if count.value == 0:
            raise DeviceError("CUDA finds no GPU")
        self._call("cudaSetDevice", ctypes.c_int(0))
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(NON_BLOCKING))
        self.stream = int(stream.value or 0)

    @property
    def version(self) -> str:
        """Of the runtime library, for example "12.6"."""
        number = ctypes.c_int()
        self._call("cudaRuntimeGetVersion", ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    @property
    def capability(self) -> str:
        """Compute capability, for example "8.7"."""
        return f"{self._attribute(MAJOR)}.{self._attribute(MINOR)}"

    @property
    def multiprocessors(self) -> int:
        """Streaming multiprocessors: engines are tuned to their number."""
        return self._attribute(MULTIPROCESSORS)

    def device_memory(self, nbytes: int) -> int:
        """Address of ``nbytes`` of device memory."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(nbytes))
        return int(address.value or 0)

    def pinned_array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Page-locked host memory as an array of zeros: copies from pageable memory block and take a detour.

        It is given back when the last view of it dies, so that no array is ever left over nothing.
        """
        kind = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        address = ctypes.c_void_p()
        self._call("cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(nbytes), ctypes.c_uint(0))
        block = (ctypes.c_byte * nbytes).from_address(int(address.value or 0))
        weakref.finalize(block, self._library.cudaFreeHost, ctypes.c_void_p(address.value)).atexit = False
        array: np.ndarray = np.ndarray(shape, kind, buffer=memoryview(block))
        array.fill(0)
        return array

    def free(self, addresses: Iterable[int]) -> None:
        """Give device memory back."""
        for address in addresses:
            self._call("cudaFree", ctypes.c_void_p(address))

    def upload(self, address: int, array: np.ndarray) -> None:
        """Start copying a contiguous host array to the device."""
        self._copy(address, array.ctypes.data, array.nbytes, TO_DEVICE)

    def download(self, array: np.ndarray, address: int) -> None:
        """Start copying from the device into a contiguous host array."""
        self._copy(array.ctypes.data, address, array.nbytes, TO_HOST)

    def synchronize(self) -> None:
        """Wait for all that was started."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def event(self) -> int:
        """A point in the stream that can be recorded, with the GPU's time."""
        event = ctypes.c_void_p()
        self._call("cudaEventCreate", ctypes.byref(event))
        return int(event.value or 0)

    def record(self, event: int) -> None:
        """Put the event behind all that was started so far."""
        self._call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(self.stream))

    def elapsed_ms(self, begin: int, end: int) -> float:
        """Time between two events that the GPU has passed, in steps of about 0.5 us."""
        value = ctypes.c_float()
        self._call("cudaEventElapsedTime", ctypes.byref(value), ctypes.c_void_p(begin), ctypes.c_void_p(end))
        return value.value

    def forget(self, event: int) -> None:
        """Destroy an event."""
        self._call("cudaEventDestroy", ctypes.c_void_p(event))

    @contextlib.contextmanager
    def capturing(self) -> Iterator[CudaGraph]:
        """What is started inside becomes a graph, to be launched as one; nothing of it is executed.

        Raises:
            DeviceError: at the end, if something inside cannot be captured; an error raised inside goes before that.
                The stream is as before in either case.
        """
        stream, captured = ctypes.c_void_p(self.stream), ctypes.c_void_p()
        self._call("cudaStreamBeginCapture", stream, ctypes.c_int(CAPTURE_THREAD_LOCAL))
        graph = CudaGraph()
        try:
            yield graph
        except BaseException:
            with contextlib.suppress(DeviceError):
                self._call("cudaStreamEndCapture", stream, ctypes.byref(captured))
            self._destroy(captured)
            raise
        self._call("cudaStreamEndCapture", stream, ctypes.byref(captured))
        executable = ctypes.c_void_p()
        try:
            no_flags = ctypes.c_ulonglong(0)
            self._call("cudaGraphInstantiateWithFlags", ctypes.byref(executable), captured, no_flags)
        finally:
            self._destroy(captured)
        graph.address = int(executable.value or 0)

    def launch(self, graph: CudaGraph) -> None:
        """Start a captured graph."""
        self._call("cudaGraphLaunch", ctypes.c_void_p(graph.address), ctypes.c_void_p(self.stream))

    def drop(self, graph: CudaGraph) -> None:
        """Destroy a captured graph."""
        self._call("cudaGraphExecDestroy", ctypes.c_void_p(graph.address))
        graph.address = 0

    def close(self) -> None:
        """Destroy the stream."""
        self._call("cudaStreamDestroy", ctypes.c_void_p(self.stream))

    def _destroy(self, captured: ctypes.c_void_p) -> None:
        if captured.value:
            self._call("cudaGraphDestroy", captured)

    def _copy(self, to: int, source: int, nbytes: int, kind: int) -> None:
        self._call(
            "cudaMemcpyAsync",
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(nbytes),
            ctypes.c_int(kind),
            ctypes.c_void_p(self.stream),
        )

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int()
        self._call("cudaDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(which), ctypes.c_int(0))
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != 0:
            self._library.cudaGetLastError()  # else the next to ask, such as TensorRT, takes it for its own
            text = self._library.cudaGetErrorString
            text.restype = ctypes.c_char_p
            raise DeviceError(f"{name}: {text(ctypes.c_int(code)).decode()} (CUDA error {code})")


@final
class CudaGraph:
    """Work captured from a stream: address of the executable graph, 0 until it is captured and once it is dropped."""

    def __init__(self) -> None:
        self.address = 0


def _library() -> ctypes.CDLL:
    for name in (*LIBRARIES, *library_files()):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(name))
    raise DeviceError(
        f"no CUDA runtime library ({', '.join(LIBRARIES[:3])}); it comes with JetPack, elsewhere pip install "
        "nvidia-cuda-runtime"
    )


def library_files() -> list[Path]:
    """CUDA runtime libraries where the linker does not look: the toolkit's folder and NVIDIA's wheels."""
    folders = list(PLACES)
    wheels = importlib.util.find_spec("nvidia")
    for root in (wheels.submodule_search_locations or ()) if wheels is not None else ():
        folders += [Path(root) / folder for folder in WHEELS]
    return [path for folder in folders for path in sorted(folder.glob("libcudart.so*"))]
