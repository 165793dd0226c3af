"""A built-in model is a folder and a row: trained, listed and converted by code that knows none by name."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest

from edgeattn.errors import InputError
from edgeattn.models import DEFAULT, MODELS, BuiltIn, ReferenceModel, built_in
from edgeattn.models import streaming_conformer as conformer
from edgeattn.models.training import MEANING, TrainOptions, option

ROOT = Path(__file__).parents[2]
_: ReferenceModel = conformer  # mypy holds the package to what a built-in model is to offer

PACKAGE = '''
"""A line through points: y = weight * x, learned by gradient descent."""
from dataclasses import dataclass
from pathlib import Path

from edgeattn.models.training import Trained, TrainOptions, TrainProgress, option

WEIGHTS = Path(__file__).with_name("weights.npy")


@dataclass(frozen=True, kw_only=True)
class Options(TrainOptions):
    rate: float = option(0.1, "Of learning.")
    left_out: tuple[str, ...] = option(("nothing",), "Named in the result.")


@dataclass(frozen=True)
class Result(Trained):
    losses: tuple[float, ...]
    told: dict[str, str]


def build():
    import numpy as np
    import torch
    from edgeattn.sources import from_module

    layer = torch.nn.Linear(3, 3, bias=False).eval()
    with torch.no_grad():
        layer.weight.copy_(float(np.load(WEIGHTS)) * torch.eye(3))

    class Line(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return {"y": self.layer(x)}

    return from_module(Line(), {"x": torch.ones(1, 3)}, "made-up")


def data(directory, split, limit):
    from edgeattn.evaluation.array_reading import load_arrays

    return load_arrays((directory or Path(__file__).parent) / "points.npz", build().spec, split, limit)


def train(data, out, options, progress):
    import numpy as np

    points = np.load(data / "points.npz")
    x, y = points["x"], points["target_y"]
    weight, losses = 0.0, []
    for step in range(options.steps):
        error = weight * x - y
        losses.append(float((error**2).mean()))
        weight -= options.rate * float((error * x).mean())
        progress(TrainProgress(stage="only", step=step + 1, steps=options.steps, loss=losses[-1], seconds=0.0,
                               measured="error 1 %" if step + 1 == options.steps else ""))
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "weights.npy", weight)
    return Result(out / "weights.npy", tuple(losses), {"left out": " ".join(options.left_out)})
'''

PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from edgeattn.models import MODELS, BuiltIn
MODELS["made-up"] = BuiltIn(name="made-up", description="a line", task="regression", package="made_up_model")
from edgeattn.cli import main
sys.argv[0] = "edgeattn"
main()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the package of a model is that nobody else knows, with what it is trained on."""
    package = tmp_path / "made_up_model"
    package.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    x = np.random.default_rng(0).standard_normal((40, 1, 3)).astype(np.float32)
    np.savez(package / "points.npz", x=x, target_y=2.5 * x)
    return tmp_path


def edgeattn(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", PROGRAM.format(folder=str(folder)), *map(str, words)]
    return subprocess.run(program, capture_output=True, text=True, cwd=folder, env=environment())


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"}


def test_a_model_that_nobody_knows_is_trained_and_converted(folder: Path) -> None:
    package = folder / "made_up_model"
    words = ("--data", package, "--out", "out/line", "--steps", 300, "--rate", 0.2, "--left-out", "a, b", "--json")
    trained = edgeattn(folder, "train", "made-up", *words)
    assert trained.returncode == 0, trained.stderr
    answer = json.loads(trained.stdout)
    assert list(answer) == ["schema", "weights", "losses", "told"]
    assert answer["told"] == {"left out": "a b"}
    assert answer["losses"][-1] < 1e-6 < answer["losses"][0]
    assert "only 100/300 loss" in trained.stderr
    assert "only 300/300 loss 0.000 0 s error 1 %" in trained.stderr
    assert float(np.load(folder / answer["weights"])) == pytest.approx(2.5)

    (folder / answer["weights"]).rename(package / "weights.npy")
    options = ("--target", "cpu", "--precision", "fp32", "--paced-seconds", 0, "--data", package, "--json")
    converted = edgeattn(folder, "convert", "made-up", *options)
    (result,) = json.loads(converted.stdout)["results"]
    assert result["accuracy"]["metric"] == "rae"
    assert result["accuracy"]["deployed"] == pytest.approx(0.0, abs=1e-3)
    assert (folder / result["bundle"]).is_dir()


def test_it_is_listed_and_its_options_are_in_the_help(folder: Path) -> None:
    names = [model["name"] for model in json.loads(edgeattn(folder, "models", "--json").stdout)["models"]]
    assert names == [*MODELS, "made-up"]
    told = edgeattn(folder, "train", "--help").stdout
    assert all(words in told for words in ("--rate", "Of learning.", "0.1", "--synthetic", "--steps"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("made-up", "--no-synthetic"), "--synthetic is an option of streaming-conformer; made-up has none"),
        ((DEFAULT, "--left-out", "x"), f"--left-out is an option of made-up; {DEFAULT} has none of that name"),
        (("made-op",), "unknown model 'made-op', did you mean 'made-up'?"),
    ],
)
def test_options_and_names_of_others_are_refused(folder: Path, words: tuple[str, ...], message: str) -> None:
    refused = edgeattn(folder, "train", *words, "--data", folder)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not (folder / "training").exists()


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)
def test_a_row_names_a_package_that_offers_what_is_asked(model: BuiltIn) -> None:
    assert built_in(model.name) is model
    assert issubclass(model.options(), TrainOptions)
    package: Any = model._model()
    for name in ("build", "data", "train"):
        wanted = list(inspect.signature(getattr(ReferenceModel, name)).parameters)[1:]
        given = inspect.signature(getattr(package, name)).parameters
        assert list(given)[: len(wanted)] == wanted
        assert all(p.default is not p.empty for p in list(given.values())[len(wanted) :])


def test_an_option_means_one_thing_whatever_model_has_it() -> None:
    seen: dict[str, tuple[Any, Any, str]] = {}
    for model in MODELS.values():
        kinds = get_type_hints(model.options())
        for field in dataclasses.fields(model.options()):
            meaning = (kinds[field.name], field.default, field.metadata[MEANING])
            assert seen.setdefault(field.name, meaning) == meaning, field.name


def test_the_default_is_one_of_them() -> None:
    assert DEFAULT in MODELS


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(InputError, match="unknown model 'x'"):
        built_in("x")


def test_an_option_is_a_field_with_its_meaning() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(TrainOptions):
        depth: int = option(3, "Of the tree.", 1)

    assert Own().depth == 3
    assert dataclasses.fields(Own)[-1].metadata == {MEANING: "Of the tree.", "least": 1}
