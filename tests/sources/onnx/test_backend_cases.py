"""onnx's own backend tests: each case is right to its tolerance, or refused in a sentence; docs/onnx.md says which."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the importer needs edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="ONNX sources need edgeattn[convert]")

import onnx

from edgeattn.sources.onnx.ops import TABLE
from tests.sources.onnx.backend import PAGE, SEVERAL, cases, outcome, rows

PARTS = 6
RUNTIME = {"test_resize_downsample_scales_cubic_align_corners", "test_resize_downsample_scales_linear_align_corners"}
pytestmark = [pytest.mark.slow, pytest.mark.group_by("part")]


@pytest.mark.parametrize("part", range(PARTS))
def test_every_case_is_right_or_refused_and_the_table_says_so(part: int) -> None:
    operators = (
        sorted(name for name in cases() if name != SEVERAL)[part :: PARTS - 1] if part < PARTS - 1 else [SEVERAL]
    )
    found = [outcome(case, operator) for operator in operators for case in cases()[operator]]
    wrong = [one for one in found if one.kind not in ("right", "refused")]
    assert [one for one in wrong if one.kind != "runtime" or one.name not in RUNTIME] == []
    assert all(one.reason for one in found if one.kind == "refused")
    page = PAGE.read_text(encoding="utf-8")
    if f"(onnx {onnx.__version__}:" not in page:
        pytest.skip(f"docs/onnx.md is of another onnx than {onnx.__version__}")
    stale = [row for row in rows(found).values() if f"{row}\n" not in page]
    assert stale == [], "run python -m tests.sources.onnx.backend"


def test_three_quarters_of_the_cases_of_imported_operators_are_right() -> None:
    told = [line.split("|")[1:4] for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    counts = {name.strip(): (int(right), int(left)) for name, right, left in told if right.strip().isdigit()}
    claimed = {name: pair for name, pair in counts.items() if ("", name) in TABLE}
    right, left = (sum(pair[i] for pair in claimed.values()) for i in (0, 1))
    assert right >= 0.75 * (right + left)
