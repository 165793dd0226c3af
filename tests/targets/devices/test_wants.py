"""What a bundle wants of a device, and devices that are not served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgeattn.bundle import read_manifest
from edgeattn.errors import InputError
from edgeattn.jobs.remote import measure_on, wants
from edgeattn.pipeline.profile import profile
from edgeattn.profiling.measure import MeasureOptions
from edgeattn.targets.devices import parse_device


def test_the_engine_its_version_and_the_architecture_come_from_the_manifest(tiny_bundle: Path) -> None:
    manifest = read_manifest(tiny_bundle)
    assert (wants(manifest, None).engine, wants(manifest, None).arch, wants(manifest, None).versions) == (
        "onnxruntime", None, {},
    )  # fmt: skip
    tools = {"tools": {"onnxruntime": "1.20.1", "openvino": "2025.4.0"}}
    pi = wants(replace(manifest, target="raspberry-pi-5", provenance=tools), None)
    assert (pi.arch, pi.versions, pi.install) == ("aarch64", {"onnxruntime": "1.20.1"}, "pip install onnxruntime")
    own_file = wants(replace(manifest, target="my-board"), None)
    assert own_file.arch is None


def test_tensorrt_builds_its_engine_there_so_no_version_is_asked_for(tiny_bundle: Path) -> None:
    manifest = replace(read_manifest(tiny_bundle), backend="tensorrt", provenance={"tools": {"tensorrt": "10.3"}})
    assert wants(manifest, None).versions == {}


def test_an_unknown_backend_is_refused_before_anything_is_reached(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="unknown backend 'onnx-runtime', did you mean 'onnxruntime'"):
        measure_on(parse_device("ssh://127.0.0.1:1"), tiny_bundle, MeasureOptions(), "onnx-runtime")


def test_a_device_given_twice_is_refused(tiny_bundle: Path) -> None:
    with pytest.raises(InputError, match="each may be given once"):
        profile(tiny_bundle, MeasureOptions(), None, ("local", "local"))


def test_a_litert_bundle_asks_for_the_litert_that_checked_it(tiny_bundle: Path) -> None:
    tools = {"tools": {"ai-edge-litert": "2.3.0", "litert-torch": "0.10.0"}}
    asked = wants(replace(read_manifest(tiny_bundle), backend="litert", provenance=tools), None)
    assert asked.versions == {"ai_edge_litert": "2.3.0"}
