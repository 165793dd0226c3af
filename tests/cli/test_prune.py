"""``edgeattn prune`` and ``convert --prune``, as typed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="pruning needs edgeattn[convert]")
pytest.importorskip("openvino", reason="the cpu target needs edgeattn[openvino]")

from edgeattn.errors import UnsupportedError
from edgeattn.model import EdgeModel
from edgeattn.pipeline import convert as pipeline
from edgeattn.pipeline.steps.options import ConvertOptions
from edgeattn.pipeline.steps.pruning import Setting
from edgeattn.pruning import Timing
from edgeattn.runtimes import load
from edgeattn.sources import load_model
from tests.cli.conftest import Command
from tests.prunable import LAYERS, NEURONS, block_weights, write_prunable

pytestmark = pytest.mark.slow

QUICK = ("--duration", "0s", "--precision", "fp32", "--max-drop", "100")


@pytest.fixture(autouse=True)
def steady_clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A clock that counts weights, and a cache of its own: what comes out does not hang on the host."""

    def times(_: Setting, models: Mapping[str, EdgeModel]) -> dict[str, Timing]:
        return {name: Timing(1e-3 * block_weights(models[name])) for name in models}

    monkeypatch.setattr("edgeattn.pipeline.steps.pruning.timing.time_models", times)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def given(tmp_path: Path) -> tuple[str, str]:
    return write_prunable(tmp_path)


def pruned_units(result: Mapping[str, Any]) -> list[tuple[int, int]]:
    return [(row["kept"], row["groups"]) for row in result["pruning"]["units"] if row["kind"] == "feedforward"]


def test_a_pruned_model_is_saved_and_converted_by_naming_its_code(
    edgeattn: Command, given: tuple[str, str], tmp_path: Path
) -> None:
    model, data = given
    done = edgeattn("prune", model, "--data", data, "--neurons", "0.5", "--heads", "0.25", "--out", "p", "--json")
    assert done.code == 0, done.err
    (result,) = done.json["results"]
    assert pruned_units(result) == [(NEURONS // 2, NEURONS)] * LAYERS
    directory = Path(result["bundle"])
    saved = json.loads((directory / "pruning.json").read_text())
    assert saved["source"] == Path(model).name  # where it lay is nobody's business

    refused = edgeattn("inspect", str(directory))
    assert refused.code == 2
    assert f"edgeattn convert {Path(model).name} --prune {directory}" in refused.error

    converted = edgeattn("convert", model, "--data", data, "--prune", str(directory), "--out", "b", *QUICK, "--json")
    assert converted.code == 0, converted.err
    bundle = converted.json["results"][0]["bundle"]
    program = load_model(str(directory / "model.pt2"))  # needs no code of anybody's
    x = np.random.default_rng(3).standard_normal((1, 8, 16)).astype(np.float32)
    with load(bundle) as session:
        np.testing.assert_allclose(session.run({"x": x})["scores"], program.run({"x": x})["scores"], atol=1e-5)


def test_convert_prunes_to_a_budget_and_tells_what_it_foresaw(edgeattn: Command, given: tuple[str, str]) -> None:
    model, data = given
    asked = ("convert", model, "--data", data, "--prune", "speedup=1.5", "--out", "b", *QUICK)
    done = edgeattn(*asked, "--json")
    assert done.code == 0, done.err
    facts = done.json["results"][0]["pruning"]
    assert facts["asked"] == "speedup=1.5"
    assert facts["predicted_speedup"] >= 1.5
    assert facts["speedup"] >= 1.45
    people = edgeattn(*asked, "--force")
    assert "pruning" in people.out
    assert f"neurons {sum(k for k, _ in pruned_units({'pruning': facts}))} of {LAYERS * NEURONS}" in people.out


def test_a_speed_out_of_reach_fails_with_the_nearest_and_keeps_it(edgeattn: Command, given: tuple[str, str]) -> None:
    model, data = given
    done = edgeattn("prune", model, "--data", data, "--speedup", "500", "--out", "p", "--json")
    assert done.code == 1
    (result,) = done.json["results"]
    (failure,) = [f for f in result["failures"] if f["gate"] == "speedup"]
    assert "x at most" in failure["got"]
    facts = json.loads((Path(result["bundle"]) / "pruning.json").read_text())["facts"]
    assert facts["failures"]


def test_where_nothing_may_be_removed_nothing_is_written(edgeattn: Command, given: tuple[str, str]) -> None:
    model, data = given
    done = edgeattn("prune", model, "--data", data, "--max-drop", "4", "--out", "p", "--json")
    assert done.code == 0, done.err
    (result,) = done.json["results"]
    assert result["bundle"] is None
    assert not result["pruning"]["kept"]
    assert any("nothing is removed" in note for note in result["notes"])
    assert not list(Path("p").glob("*.pruned"))


def test_a_picture_shows_what_each_group_is_worth(edgeattn: Command, given: tuple[str, str]) -> None:
    pytest.importorskip("matplotlib", reason="pictures need edgeattn[report]")
    model, data = given
    done = edgeattn("prune", model, "--data", data, "--neurons", "0.5", "--out", "p", "--plot", "worth.png")
    assert done.code == 0, done.err
    assert Path("worth.png").read_bytes().startswith(b"\x89PNG")


def test_a_loss_of_the_users_decides_what_is_worth(edgeattn: Command, given: tuple[str, str], tmp_path: Path) -> None:
    model, data = given
    (tmp_path / "loss.py").write_text(
        "import torch\n"
        "def own(outputs, inputs):\n"
        "    return torch.nn.functional.cross_entropy(outputs['scores'], inputs['target_scores'].reshape(-1).long())\n"
        "def broken(outputs, inputs):\n    return outputs['scores'].sum() * float('nan')\n"
    )
    asked = ("prune", model, "--data", data, "--neurons", "0.5", "--out", "p", "--json")
    done = edgeattn(*asked, "--loss", str(tmp_path / "loss.py:own"))
    assert done.code == 0, done.err
    assert done.json["results"][0]["pruning"]["importance"]["method"] == "empirical fisher"
    failed = edgeattn(*asked, "--loss", str(tmp_path / "loss.py:broken"), "--force")
    assert failed.code == 2
    assert "the loss is nan" in failed.error


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--heads", "1.5"), "heads is a share between 0 and 1"),
        (("--neurons", "0"), "neurons is a share between 0 and 1"),
        ((), "nothing to prune"),
        (("--speedup", "2", "--max-drop", "1"), "pruning meets one budget"),
        (("--sparsity", "2:4"), "no kernels for 2:4"),
        (("--left", "8"), "no left context"),
        (("--kv-heads", "3"), "cannot be merged into 3"),
        (("--layers", "3"), "only 2 layers"),
        (("--neurons", "0.5", "--loss", "no.py:loss"), "expected file.py:function"),
        (("--neurons", "0.5", "--plot", "worth.bmp"), "Valid: .png, .svg"),
    ],
)
def test_what_cannot_be_pruned_so_is_refused(
    edgeattn: Command, given: tuple[str, str], flags: tuple[str, ...], says: str
) -> None:
    model, data = given
    done = edgeattn("prune", model, "--data", data, "--out", "p", *flags)
    assert done.code in (2, 4)
    assert says in done.error
    assert not Path("p").exists()


def test_a_loss_belongs_to_pruning(edgeattn: Command, given: tuple[str, str]) -> None:
    done = edgeattn("convert", given[0], "--loss", "loss.py:loss")
    assert done.code == 2
    assert "--loss belongs to pruning: give --prune" in done.error


def test_recover_is_for_what_pruning_lost_or_else_int8(
    edgeattn: Command, given: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[ConvertOptions] = []

    def look(_: object, __: object, options: ConvertOptions, ___: object) -> None:
        asked.append(options)
        raise UnsupportedError("seen")

    monkeypatch.setattr(pipeline, "convert", look)
    common = ("convert", given[0], "--data", given[1])
    assert edgeattn(*common, "--recover", "3min", "--prune", "neurons=0.5").code == 4
    assert edgeattn(*common, "--recover-minutes", "3", "--prune", "neurons=0.5", "--precision", "fp32").code == 4
    assert edgeattn(*common, "--recover", "3min").code == 4
    for options, prunes in zip(asked, (True, True, False), strict=True):
        assert options.effort.recover_seconds == (0 if prunes else 180)
        assert (None if options.prune is None else options.prune.recover_seconds) == (180 if prunes else None)


def test_a_result_that_is_there_is_not_overwritten(edgeattn: Command, given: tuple[str, str]) -> None:
    model, data = given
    asked = ("prune", model, "--data", data, "--neurons", "0.5", "--out", "p")
    assert edgeattn(*asked).code == 0
    again = edgeattn(*asked)
    assert again.code == 2
    assert "pass --force" in again.error
    assert edgeattn(*asked, "--force").code == 0


def test_inspect_lists_what_can_be_cut(edgeattn: Command, given: tuple[str, str]) -> None:
    done = edgeattn("inspect", given[0], "--json")
    assert done.code == 0, done.err
    units = done.json["prunable"]["units"]
    assert [(u["path"], u["groups"]) for u in units if u["kind"] == "attention"] == [
        (f"blocks.{n}.attention", 4) for n in range(LAYERS)
    ]
    assert done.json["prunable"]["stacks"] == [{"path": "blocks", "layers": LAYERS, "pinned": []}]
    assert "what edgeattn prune can cut" in edgeattn("inspect", given[0]).out
