"""What ``--precision`` stands for on an engine of a target."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgeattn.engines import ENGINES, precision_of
from edgeattn.errors import InputError, UnsupportedError
from edgeattn.pipeline.steps.recipes import recipes
from edgeattn.quantize.plan import Plan, Rule, recipe_plan
from edgeattn.targets import get_target

CPU = get_target("cpu")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime", "litert"])
def test_auto_tries_the_floats_and_the_engines_own_int8(backend: str) -> None:
    assert recipes(CPU, backend, "auto") == ("fp32", "fp16", *ENGINES[backend].tried)


@pytest.mark.parametrize("backend", ENGINES)
def test_int8_is_whatever_the_engine_is_fast_with(backend: str) -> None:
    target = get_target("jetson") if backend == "tensorrt" else CPU
    assert recipes(target, backend, "int8") == ENGINES[backend].tried


@pytest.mark.parametrize("recipe", [s for s in ENGINES["litert"].recipes if s not in ENGINES["litert"].tried])
def test_a_scheme_that_is_not_tried_can_be_asked_for_by_name(recipe: str) -> None:
    assert recipes(CPU, "litert", recipe) == (recipe,)


def test_static_int8_on_litert_is_made_only_by_its_name() -> None:
    assert "int8-static" not in recipes(CPU, "litert", "auto")
    assert "int8-static" not in recipes(CPU, "litert", "int8")


def test_an_unknown_precision_is_refused_with_the_valid_ones() -> None:
    with pytest.raises(InputError, match=r"unknown precision 'int9'.* Valid: auto, fp16, fp32, int4-weights, int8,"):
        recipes(CPU, "openvino", "int9")


def test_a_scheme_that_the_engine_lacks_names_what_is_possible() -> None:
    with pytest.raises(UnsupportedError, match="litert on cpu has no int8-nncf; it has fp32, fp16, int8-dynamic"):
        recipes(CPU, "litert", "int8-nncf")


def test_a_target_without_int8_has_no_int8_schemes() -> None:
    floats = replace(CPU, precisions=dict.fromkeys(CPU.backends, ("fp32", "fp16")))
    assert recipes(floats, "openvino", "auto") == ("fp32", "fp16")
    with pytest.raises(UnsupportedError, match="has no int8-dynamic; it has fp32, fp16"):
        recipes(floats, "openvino", "int8-dynamic")


@pytest.mark.parametrize(
    ("recipe", "precision"),
    [("fp32", "fp32"), ("fp16", "fp16"), ("int8-static", "int8"), ("int8-weights", "int8"), ("int4-weights", "int4")],
)
def test_a_scheme_counts_as_a_precision(recipe: str, precision: str) -> None:
    assert precision_of(recipe) == precision


def test_one_plan_means_on_each_engine_what_its_scheme_does() -> None:
    plan = Plan("int8", (Rule("head", "float"), Rule("embed", "int4-weights")))
    dynamic = recipe_plan("int8-dynamic", plan)
    assert [dynamic.of(path) for path in ("body", "head", "embed")] == ["int8-weights", "float", "int4-weights"]
    assert recipe_plan("int8-static", plan) == plan
