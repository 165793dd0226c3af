"""What a bundle wants of a device, and devices that are not served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeattn.bundle import read_manifest
from edgeattn.checking import profile
from edgeattn.errors import InputError
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.profiling.remote import measure_on, wants
from edgeattn.targets.devices import parse_device


def test_the_engine_its_version_and_the_architecture_come_from_the_manifest(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert (wants(manifest, None).engine, wants(manifest, None).arch, wants(manifest, None).version) == (
        "onnxruntime", None, None,
    )  # fmt: skip
    tools = {"tools": {"onnxruntime": "1.20.1", "openvino": "2025.4.0"}}
    pi = wants(replace(manifest, target="raspberry-pi-5", provenance=tools), None)
    assert (pi.arch, pi.version, pi.install) == ("aarch64", "1.20.1", "pip install onnxruntime")
    own_file = wants(replace(manifest, target="my-board"), None)
    assert own_file.arch is None


def test_tensorrt_builds_its_engine_there_so_no_version_is_asked_for(tiny_bundle: Path) -> None:
    manifest = replace(read_manifest(tiny_bundle), backend="tensorrt", provenance={"tools": {"tensorrt": "10.3"}})
    assert wants(manifest, None).version is None


def test_an_unknown_backend_is_refused_before_anything_is_reached(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="unknown backend 'onnx-runtime', did you mean 'onnxruntime'"):
        measure_on(parse_device("ssh://127.0.0.1:1"), tiny_bundle, MeasureOptions(), "onnx-runtime")


def test_a_device_given_twice_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="each may be given once"):
        profile(tiny_bundle, MeasureOptions(), None, ("local", "local"))
