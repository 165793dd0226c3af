"""The settings say what they mean, refuse what contradicts itself, and go through JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgeattn.errors import InputError, ModelError
from edgeattn.spec import from_json, to_json
from edgeattn.tasks.images.settings import ImageSettings, default_settings, input_form, with_overrides

DETR = ImageSettings(
    height=1333,
    width=1333,
    resize="shortest_edge",
    edge=800,
    max_edge=1333,
    padding="corner",
    pad_normalized=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


@pytest.mark.parametrize("settings", [ImageSettings(height=2, width=3), DETR], ids=["default", "detr"])
def test_settings_go_through_json_unchanged(settings: ImageSettings) -> None:
    assert from_json(ImageSettings, json.loads(json.dumps(to_json(settings)))) == settings


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"height": 0}, r"height must be in 1\.\.65536 pixels, got 0"),
        ({"edge": 70_000, "resize": "shortest_edge"}, "edge must be in"),
        ({"edge": 4}, "edge goes with resize 'shortest_edge'"),
        ({"resize": "shortest_edge"}, "edge goes with resize"),
        ({"max_edge": 4}, "max_edge goes with edge"),
        ({"resize": "shortest_edge", "edge": 4, "max_edge": 3}, "no less than it, got 3 and 4"),
        ({"resize": "none", "resize_width": 3}, "resize_height and resize_width go with"),
        ({"resize": "fit"}, "leaves a side short"),
        ({"resize": "fit", "crop": True, "padding": "center"}, "leaves a side short"),
        ({"crop": True, "padding": "center"}, "exclude each other"),
        ({"mean": (1.0, 2.0)}, "mean must have 1 value or 3, got 2"),
        ({"color": "gray", "std": (1.0, 1.0, 1.0)}, "std must have 1 value or 1, got 3"),
        ({"mean": (float("nan"),)}, "mean must be finite"),
        ({"std": (0.0,)}, "std must be positive"),
        ({"rescale_factor": 0.0}, "rescale_factor must be positive"),
        ({"pad_value": 300.0}, "pad_value must be a whole number"),
        ({"pad_value": 0.5}, "pad_value must be a whole number"),
        ({"dtype": "uint8"}, "rescale_factor must be 1"),
        ({"dtype": "uint8", "rescale_factor": 1.0, "mean": (1.0,)}, "mean 0"),
        ({"dtype": "uint8", "rescale_factor": 1.0, "pad_normalized": True}, "pad_normalized"),
    ],
    ids=str,
)
def test_settings_that_contradict_themselves_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ImageSettings(**{"height": 8, "width": 8, **fields})


@pytest.mark.parametrize(
    ("shape", "form"),
    [
        ([1, 3, 20, 30], ("channels_first", 20, 30, 3)),
        ([1, 20, 30, 3], ("channels_last", 20, 30, 3)),
        ([1, 1, 28, 28], ("channels_first", 28, 28, 1)),
        ([1, 16, 3, 20, 30], ("channels_first", 20, 30, 3)),
        ([1, 16, 20, 30, 1], ("channels_last", 20, 30, 1)),
        ([1, 3, 20, 3], ("channels_first", 20, 3, 3)),
    ],
    ids=str,
)
def test_the_shape_of_the_input_says_its_layout(shape: list[int], form: tuple[str, int, int, int]) -> None:
    assert input_form(shape) == form


@pytest.mark.parametrize("shape", [[1, 3], [1, 4, 20, 20], [1, 3, -1, 20], [1, 1, 3, 2, 2, 2]], ids=str)
def test_a_shape_of_something_else_is_refused(shape: list[int]) -> None:
    with pytest.raises(ModelError, match=r"has the shape \[1, .*an image is \[1, c, h, w\]"):
        input_form(shape)


def test_a_model_without_a_processor_gets_the_input_s_size_and_0_to_1() -> None:
    assert default_settings([1, 3, 20, 30]) == ImageSettings(height=20, width=30)
    assert default_settings([1, 20, 30, 1], dtype="uint8") == ImageSettings(
        height=20, width=30, color="gray", layout="channels_last", dtype="uint8", rescale_factor=1.0
    )


def test_overrides_change_single_fields() -> None:
    got = default_settings([1, 3, 20, 30], overrides={"mean": (0.5,), "std": [0.5, 0.5, 0.5], "color": "bgr"})
    assert got == ImageSettings(height=20, width=30, mean=(0.5,), std=(0.5, 0.5, 0.5), color="bgr")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"colour": "bgr"}, "image settings: unknown field 'colour'.*did you mean 'color'"),
        ({"mean": 0.5}, "image settings.mean: expected a list"),
        ({"color": "cmyk"}, "image settings.color: expected one of rgb, bgr, gray"),
        ({"std": [0.0]}, "image settings: std must be positive"),
    ],
    ids=["name", "kind", "value", "range"],
)
def test_overrides_are_read_strictly(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        with_overrides(ImageSettings(height=2, width=2), overrides)
