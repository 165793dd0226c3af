"""A slice of the fuzz: what ships for random programs is what torch gives; and the fuzz finds what is wrong.

``python -m tests.fuzz --count 1000 --seed 1`` is the long run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.fuzz.engines import CRASHED, Batch, tried
from tests.fuzz.inputs import SETS, inputs
from tests.fuzz.minimize import minimized
from tests.fuzz.oracle import expected
from tests.fuzz.programs import MASK_KINDS, Attention, Program, Step, parsed, programs, seeded

TOGETHER = 10
ONNX, LITERT = ("openvino", "tensorrt"), ("litert",)


@pytest.mark.slow
@pytest.mark.group_by("parameter")
@pytest.mark.parametrize(
    ("first", "engines"), [(TOGETHER * i, LITERT if i in (2, 5, 8) else ONNX) for i in range(10)], ids=str
)
def test_what_ships_for_a_random_program_is_what_torch_gives(
    first: int, engines: tuple[str, ...], tmp_path: Path
) -> None:
    drawn = [seeded(seed, most=1) for seed in range(first, first + TOGETHER)]
    outcomes = tried(drawn, tmp_path, engines)
    wrong = [f"{engine}: {words}: {o.program}" for o in outcomes for engine, words in o.wrong.items()]
    crashed = [f"{words}: {o.program}" for o in outcomes for words in o.late.values() if words.startswith(CRASHED)]
    assert not wrong
    assert not crashed
    assert sum(len(o.compared) for o in outcomes) >= 0.8 * TOGETHER * len(engines)  # few are refused


@settings(max_examples=25, deadline=None)
@given(programs())
def test_a_program_is_plain_data_and_runs(program: Program) -> None:
    assert parsed(str(program)) == program
    first = inputs(program.mask, program.seed)[0]
    with torch.no_grad():
        made = Attention(program)(*(torch.from_numpy(first[name]) for name in ("x", "mask")))
    assert made.numel()


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_the_sets_of_a_mask_hide_all_and_show_all(kind: str) -> None:
    from tests.fuzz.programs import visible

    sets = inputs(kind, seed=1)
    assert len(sets) == SETS
    shown = [visible(torch.from_numpy(given["mask"]), kind).float().mean().item() for given in sets]
    assert min(shown) == 0.0
    assert max(shown) == 1.0


PLAIN = Program(
    7,
    "bool",
    {
        "heads": (Step("viewed", {}),),
        "scores": (Step("dot", {"scale": 0.5, "form": "after"}),),
        "masks": (Step("padding", {"value": "-1e9", "form": "where"}),),
        "normalizer": (Step("masked_softmax", {"eps": 1e-9, "form": "multiply"}),),
        "mixing": (Step("mixed", {"form": "matmul"}),),
        "merging": (Step("merged", {"form": "view"}),),
        "output": (Step("features", {}),),
        "after": (Step("layer_norm", {"eps": 1e-5}), Step("activation", {"name": "gelu"})),
    },
    True,
)


def test_the_oracle_lets_rounding_pass_and_nothing_else() -> None:
    sets = inputs(PLAIN.mask, PLAIN.seed)
    module = Attention(PLAIN)
    for given_, wanted in zip(sets, expected(PLAIN, sets), strict=True):
        with torch.no_grad():
            double = module.double()(torch.from_numpy(given_["x"]).double(), torch.from_numpy(given_["mask"]))
        assert not wanted.wrong(double.float().numpy())
    wanted = expected(PLAIN, sets)[0]
    assert "1 of 96 entries" in wanted.wrong(np.where(np.arange(96).reshape(2, 6, 8) == 5, 1e-3, 0) + wanted.value)
    assert "nan" in wanted.wrong(np.full_like(wanted.value, np.nan))
    assert "shape" in wanted.wrong(wanted.value[:1])


def test_equal_values_may_be_chosen_in_any_order() -> None:
    ranked = Program(1, "bool", {**PLAIN.steps, "after": (), "output": (Step("indices", {"form": "indices"}),)}, False)
    zeros = expected(ranked, inputs(ranked.mask, ranked.seed))[1]
    assert not zeros.says.all()


def test_a_wrong_engine_is_found_and_the_program_made_small(tmp_path: Path) -> None:
    def still_wrong(program: Program) -> bool:
        batch = Batch([program], tmp_path)
        other = Attention(program)
        wanted = batch.wanted[0]
        for given_, right in zip(batch.sets[0], wanted, strict=True):
            with torch.no_grad():
                x, mask = (torch.from_numpy(given_[name].copy()) for name in ("x", "mask"))
                got = other(x, mask).numpy()
            if any(step.part == "activation" for step in program.steps.get("after", ())):
                got = got + 1e-2  # this engine computes GELU wrongly
            if right.wrong(got):
                return True
        return False

    small = minimized(PLAIN, still_wrong)
    assert small.steps["after"] == (Step("activation", {"name": "gelu"}),)
    assert small.steps["masks"] == ()
    assert not small.residual
