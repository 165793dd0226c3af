"""The dozen CUDA runtime calls that running an engine takes, through ctypes: a device has no torch, cupy or pycuda."""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Iterable
from typing import Any, final

import numpy as np

from edgeattn.errors import DeviceError

LIBRARIES = ("libcudart.so.12", "libcudart.so.13", "libcudart.so.11.0", "libcudart.so")  # JetPack 6, 7, 5
TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3  # cudaMemcpyKind
MAJOR, MINOR, MULTIPROCESSORS = 75, 76, 16  # cudaDeviceAttr


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
        self._call("cudaStreamCreate", ctypes.byref(stream))
        self.stream = int(stream.value or 0)

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

    def close(self) -> None:
        """Destroy the stream."""
        self._call("cudaStreamDestroy", ctypes.c_void_p(self.stream))

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
            text = self._library.cudaGetErrorString
            text.restype = ctypes.c_char_p
            raise DeviceError(f"{name}: {text(ctypes.c_int(code)).decode()} (CUDA error {code})")


def _library() -> ctypes.CDLL:
    for name in LIBRARIES:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise DeviceError(f"no CUDA runtime library ({', '.join(LIBRARIES[:3])}); it comes with JetPack")
