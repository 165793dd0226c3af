"""What a device must have before anything is sent to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeattn.errors import DeviceError, UnsupportedError
from edgeattn.targets.devices import Inventory, Wants
from edgeattn.targets.devices.session import check_inventory

BOARD = Inventory(
    python="3.11.2",
    executable="/usr/bin/python3",
    system="Linux",
    arch="aarch64",
    libc="glibc 2.36",
    model="Raspberry Pi 5 Model B Rev 1.0",
    tegra="",
    modules={"numpy": "1.26.4", "ai_edge_litert": None, "tflite_runtime": "2.14.0"},
    free_disk_bytes=10**9,
    free_memory_bytes=10**9,
)
WANTS = Wants(
    engine="litert",
    modules=(("ai_edge_litert", "ai-edge-litert"), ("tflite_runtime", "tflite-runtime")),
    install="pip install ai-edge-litert",
    runtime=(),
    arch="aarch64",
)
SIZE = 10**6


@pytest.mark.parametrize(
    "versions",
    [
        {},
        {"tflite_runtime": "2.13.1"},
        {"tflite_runtime": "2.14.9"},
        {"tflite_runtime": "1.99"},
        {"ai_edge_litert": "3.0"},  # its versions say nothing of the other's
    ],
)
def test_a_board_that_has_all_is_taken(versions: dict[str, str]) -> None:
    check_inventory("board", BOARD, replace(WANTS, versions=versions), SIZE)


def with_modules(**versions: str | None) -> Inventory:
    return replace(BOARD, modules={**BOARD.modules, **versions})


@pytest.mark.parametrize(
    ("found", "wants", "message"),
    [
        (with_modules(numpy=None), WANTS, "has no numpy: /usr/bin/python3 -m pip install numpy"),
        (with_modules(numpy="1.21.5"), WANTS, r"numpy 1\.21\.5 there, at least 1\.26"),
        (with_modules(tflite_runtime=None), WANTS, "litert is not installed .*pip install ai-edge-litert"),
        (
            BOARD,
            replace(WANTS, versions={"tflite_runtime": "2.15.0"}),
            r"litert 2\.14\.0 there, the bundle was made with 2\.15\.0",
        ),
        (replace(BOARD, arch="x86_64"), WANTS, "made for aarch64 and the device is x86_64"),
    ],
)
def test_what_must_be_installed_or_converted_anew(found: Inventory, wants: Wants, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        check_inventory("board", found, wants, SIZE)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (replace(BOARD, free_disk_bytes=2 * 10**6), r"no space: 2\.0 MB free there, 3\.0 MB are needed"),
        (replace(BOARD, free_memory_bytes=50 * 10**6), "50 MB of memory free there, 69 MB are needed"),
    ],
)
def test_too_little_room(found: Inventory, message: str) -> None:
    with pytest.raises(DeviceError, match=message) as caught:
        check_inventory("board", found, WANTS, SIZE)
    assert caught.value.exit_code == 3


def test_memory_that_the_system_does_not_tell_is_no_reason_to_refuse() -> None:
    check_inventory("board", replace(BOARD, free_memory_bytes=None), WANTS, SIZE)


JETSON = replace(
    BOARD,
    model="NVIDIA Jetson Orin Nano Developer Kit",
    tegra="# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
    nvinfer="libnvinfer.so.10",
    modules={"numpy": "1.26.4", "tensorrt": "10.3.0"},
)
FOR_TENSORRT = Wants("tensorrt", (("tensorrt", "tensorrt"),), "comes with JetPack", (), arch="aarch64")
NO_MODULE = {"numpy": "1.26.4", "tensorrt": None}


@pytest.mark.parametrize("version", ["8.6.2", "10.3.0", ""])
def test_a_jetson_with_tensorrt_is_taken(version: str) -> None:
    check_inventory("board", replace(JETSON, modules={**JETSON.modules, "tensorrt": version}), FOR_TENSORRT, SIZE)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (replace(BOARD, modules=NO_MODULE), r"it is no Jetson \(Raspberry Pi 5 .*without /etc/nv_tegra_release\)"),
        (replace(JETSON, nvinfer=""), r"a Jetson \(# R36.*without TensorRT .*no libnvinfer\): sudo apt install nvidia"),
        (replace(JETSON, nvinfer="", modules=NO_MODULE), "without TensorRT"),
        (
            replace(JETSON, modules=NO_MODULE),
            r"its Python module is not for /usr/bin/python3: .*--system-site-packages",
        ),
        (replace(JETSON, modules={**JETSON.modules, "tensorrt": "8.5.2.2"}), r"TensorRT 8\.5\.2\.2 .* 8\.6 is needed"),
    ],
)
def test_what_a_board_lacks_for_tensorrt(found: Inventory, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        check_inventory("board", found, FOR_TENSORRT, SIZE)
    assert caught.value.exit_code == 4
