"""ONNX -> torch: every operator of the table against ONNX Runtime, one small model per way of using it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the importer needs edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="the oracle is ONNX Runtime: edgeattn[convert]")

import torch

from edgeattn.sources.onnx.imported import ImportedModel
from edgeattn.sources.onnx.importer import import_onnx
from edgeattn.sources.onnx.ops import TABLE
from edgeattn.sources.onnx.reference import difference, runtime_session
from edgeattn.sources.onnx.static import make_static
from edgeattn.sources.onnx.values import constant_value, without_constant
from tests.sources.onnx import cases, contrib_cases
from tests.sources.onnx.cases import Case

CASES = [*cases.CASES, *contrib_cases.CASES]

NEW = 23  # opsets from here on are newer than the oldest ONNX Runtime that we install
# Computed when the graph is made static, so they never reach torch with inputs; tests/sources has graphs of them.
FOLDED = {"Shape", "Size", "Constant", "ConstantOfShape", "Range", "NonZero"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_operator_gives_what_onnx_runtime_gives(case: Case) -> None:
    # Float32 sums in another order: 1e-5 of the largest value; integers and booleans are equal, or for quantized
    # results one step apart where a value lies on the edge.
    model = case.model()
    names = [value.name for value in model.graph.output]
    try:
        expected = dict(zip(names, runtime_session(model).run(names, case.inputs), strict=True))
    except Exception as error:
        if case.opset < NEW:
            raise
        pytest.skip(f"this ONNX Runtime does not run opset {case.opset}: {str(error)[:80]}")
    static = make_static(model, {k: without_constant(constant_value(v)) for k, v in case.inputs.items()})
    module = import_onnx(static)
    assert isinstance(module, ImportedModel), module
    with torch.inference_mode():
        got = module(**{name: torch.from_numpy(array.copy()) for name, array in case.inputs.items()})
    for name, array in expected.items():
        ours = got[name].numpy()
        assert ours.dtype == array.dtype
        assert ours.shape == array.shape
        if "Q" in case.op and array.dtype.kind in "ui":
            assert np.abs(ours.astype(int) - array.astype(int)).max() <= 1
        else:
            assert difference(array, ours) <= case.tolerance


def test_every_operator_of_the_table_is_tested() -> None:
    tested = {(case.domain, case.op) for case in CASES}
    named = {(domain, name) for domain, name in TABLE if name not in FOLDED}
    missing = {(d, n) for d, n in named - tested if not ({("", n), ("com.microsoft", n)} & tested)}
    assert not missing
    assert len(TABLE) > 120
