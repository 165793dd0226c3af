"""What pruning is asked for: read from one line or from flags, refused where it makes no sense."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeattn.errors import InputError, MissingExtraError
from edgeattn.pruning.request import BUDGETS, READERS, Request, amounts, parse_request, request_text


def test_a_budget_is_read_with_its_unit() -> None:
    assert parse_request("speedup=1.5") == Request(speedup=1.5)
    assert parse_request("speedup=1.5x") == Request(speedup=1.5)
    assert parse_request("deadline=20ms") == Request(deadline_ms=20.0)
    assert parse_request("deadline=0.02s") == Request(deadline_ms=20.0)
    assert parse_request("max-drop=0.5") == Request(max_drop=0.5)


def test_amounts_are_read_together() -> None:
    asked = "heads=0.25, neurons=0.5, layers=1, left=16, kv-heads=2, rank=0.4, sparsity=2:4, samples=64"
    read = {"heads": 0.25, "neurons": 0.5, "layers": 1, "kv-heads": 2, "rank": 0.4, "left": 16, "sparsity": "2:4"}
    assert parse_request(asked, 120.0) == Request(amounts=tuple(read.items()), samples=64, recover_seconds=120.0)


def test_requests_for_the_same_are_the_same() -> None:
    """What does not depend on the target is done once for each request, which is a key there."""
    one, other = parse_request("heads=0.5,rank=0.25"), parse_request("rank=0.25, heads=0.50")
    assert {one: 1}[other] == 1


def test_a_directory_stands_for_what_was_pruned_before(tmp_path: Path) -> None:
    assert parse_request(str(tmp_path), 0.0) == Request(saved=tmp_path)


SHARES, COUNTS = st.floats(0.01, 0.99), st.integers(1, 999)


@given(
    st.fixed_dictionaries(
        {"heads": SHARES},
        optional={
            "neurons": SHARES, "layers": COUNTS, "kv-heads": COUNTS, "left": COUNTS, "rank": SHARES,
            "sparsity": st.just("2:4"),
        },
    ),
    st.integers(1, 999),
)  # fmt: skip
def test_the_one_line_form_is_read_back_as_what_it_says(asked: dict[str, object], samples: int) -> None:
    request = Request(amounts=amounts({key: str(value) for key, value in asked.items()}), samples=samples)
    assert dict(request.amounts) == asked
    assert parse_request(request_text(request)) == request


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("heads=0", "heads is a share between 0 and 1"),
        ("heads=1", "heads is a share between 0 and 1"),
        ("neurons=1.5", "neurons is a share between 0 and 1"),
        ("neurons=-0.1", "neurons is a share between 0 and 1"),
        ("rank=nan", "rank is a share between 0 and 1"),
        ("layers=0", "layers must be at least 1"),
        ("layers=two", "layers=two"),
        ("left=-8", "left must be at least 1"),
        ("speedup=1", "speedup must be more than 1"),
        ("speedup=inf", "speedup must be more than 1"),
        ("max-drop=-1", "max-drop must be 0 or more points"),
        ("deadline=20", "a time such as 20ms"),
        ("sparsity=1:4", "sparsity must be 2:4"),
        ("head=0.5", "did you mean 'heads'"),
        ("heads=0.5,heads=0.2", "heads is given twice"),
        ("speedup=2,max-drop=1", "pruning meets one budget"),
        ("speedup=2,heads=0.5", "speedup finds out what to remove itself"),
        ("samples=10", "nothing to prune"),
        ("no/such/directory", "no directory of a pruned model"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says.replace("(", "\\(")):
        parse_request(text)


def test_a_saved_model_says_itself_what_is_removed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave the other prune options out"):
        Request(saved=tmp_path, amounts=(("heads", 0.5),))


def test_forms_need_torch_and_a_budget_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert parse_request("speedup=1.5").budget == "speedup"
    with pytest.raises(MissingExtraError, match="torch is needed here"):
        parse_request("heads=0.5")


def test_every_key_that_is_no_form_names_a_field() -> None:
    fields = set(Request.__dataclass_fields__)
    assert {BUDGETS.get(key, key) for key in READERS} <= fields
