"""Calibration that does not fit is refused before any quantizer sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.models.streaming_conformer import BIAS, FEATURES, GRAPH
from edgeattn.quantize import int8_nncf, quantize_onnx
from edgeattn.quantize.calibration import Calibration, checked_samples
from tests.converters.samples import Arrays, calibration, converted_stream

Recipe = Callable[[Mapping[str, Path], Calibration, Path], object]
RECIPES = pytest.mark.parametrize("recipe", [int8_nncf, quantize_onnx])


def changed(**arrays: np.ndarray) -> dict[str, list[Arrays]]:
    good = calibration()[GRAPH]
    return {GRAPH: [good[0], {**good[1], **arrays}]}


def test_good_samples_pass_unchanged() -> None:
    good = calibration()[GRAPH][:3]
    for given, taken in zip(good, checked_samples({GRAPH: good}, GRAPH, converted_stream().onnx[GRAPH]), strict=True):
        assert given.keys() == taken.keys()
        for name, array in given.items():
            np.testing.assert_array_equal(array, taken[name])


@RECIPES
@pytest.mark.parametrize("empty", [{}, {GRAPH: []}])
def test_no_calibration_says_what_is_needed(recipe: Recipe, empty: Calibration, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="int8 needs calibration samples for graph 'step' and got none: give --data"):
        recipe(converted_stream().onnx, empty, tmp_path)
    assert not list(tmp_path.iterdir())


@RECIPES
def test_nan_names_the_sample_and_the_input(recipe: Recipe, tmp_path: Path) -> None:
    broken = calibration()[GRAPH][0][FEATURES].copy()
    broken[0, 3, 3] = np.nan
    with pytest.raises(DataError, match="calibration sample 1 of 'step': feats holds NaN"):
        recipe(converted_stream().onnx, changed(feats=broken), tmp_path)


def test_a_missing_input_is_named() -> None:
    sample = {name: array for name, array in calibration()[GRAPH][0].items() if name != BIAS}
    with pytest.raises(DataError, match="misses att_bias; expected inputs: feats, att_bias, kv_cache_0"):
        checked_samples({GRAPH: [sample]}, GRAPH, converted_stream().onnx[GRAPH])


def test_an_unknown_input_is_named() -> None:
    with pytest.raises(DataError, match="has unknown speech"):
        checked_samples(changed(speech=np.zeros(1)), GRAPH, converted_stream().onnx[GRAPH])


@pytest.mark.parametrize("wrong", [np.zeros((1, 2, 3), np.float32), np.zeros((1, 35, 40), np.float64)])
def test_a_wrong_shape_or_dtype_is_named_with_both(wrong: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"feats must be float32 \(1, 35, 40\), got float"):
        checked_samples(changed(feats=wrong), GRAPH, converted_stream().onnx[GRAPH])
