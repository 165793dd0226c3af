"""Series and rows of numbers: windows, splits in time, standardising, and errors against scikit-learn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.tasks import Pipeline, stored
from tests.tasks.end_to_end import Gives, loaded, model_for, scored_by_onnxruntime, scored_everywhere, task_of

PAST, NEXT, COLUMNS = 6, 2, 3
MEAN, STD = [10.0, 20.0, 30.0], [2.0, 4.0, 8.0]
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "ett_h1" / "ETTh1.csv.gz"


def with_settings(tmp_path: Path, **settings: Any) -> dict[str, Path]:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(settings))
    return {"preprocessor_config.json": path}


def persistence(assets: dict[str, Path] | None = None, columns: int = COLUMNS) -> EdgeModel:
    """The last row again, a little lower."""
    last = Gives("y", lambda x: 0.9 * x[:, -1:].repeat(1, NEXT, 1)[..., -columns:])
    return model_for("forecasting", last, assets, x=torch.zeros(1, PAST, COLUMNS))


def series(path: Path, rows: int = 60) -> np.ndarray:
    walk: np.ndarray = np.random.default_rng(0).standard_normal((rows, COLUMNS)).cumsum(axis=0).round(4)
    walk = walk + np.array(MEAN)
    lines = [f"2020-01-{row},{','.join(map(repr, values))}" for row, values in enumerate(walk.tolist())]
    path.write_text("\n".join(["date,a,b,c", *lines]))
    return walk


@pytest.mark.parametrize("columns", [COLUMNS, 1])
@pytest.mark.parametrize("standardised", [True, False])
def test_errors_are_those_of_scikit_learn_over_all_windows_of_the_last_fifth(
    tmp_path: Path, columns: int, standardised: bool
) -> None:
    sklearn: Any = pytest.importorskip("sklearn.metrics", reason="it is the oracle: edgeattn[dev]")
    walk = series(tmp_path / "series.csv")
    assets = with_settings(tmp_path, mean=MEAN, std=STD) if standardised else None
    model = persistence(assets, columns)
    score = scored_everywhere(model, loaded(model, tmp_path / "series.csv"), tmp_path)
    scaled = (walk - MEAN) / STD if standardised else walk
    starts = range(48, 60 - NEXT + 1)
    true = np.stack([scaled[s : s + NEXT, -columns:] for s in starts]).ravel()
    said = np.stack([0.9 * scaled[s - 1, None, -columns:].repeat(NEXT, 0) for s in starts]).ravel()
    assert score.metric == "r2"
    assert score.value == pytest.approx(sklearn.r2_score(true, said), abs=1e-5)
    assert score.others["mse"] == pytest.approx(sklearn.mean_squared_error(true, said), rel=1e-5)
    assert score.others["mae"] == pytest.approx(sklearn.mean_absolute_error(true, said), rel=1e-5)


@pytest.mark.slow
def test_an_engine_forecasts_the_same(tmp_path: Path) -> None:
    series(tmp_path / "series.csv")
    model = persistence()
    data = loaded(model, tmp_path / "series.csv")
    here = scored_everywhere(model, data, tmp_path).value
    assert scored_by_onnxruntime(model, data, tmp_path).value == pytest.approx(here, abs=1e-5)


def test_named_columns_are_taken(tmp_path: Path) -> None:
    walk = series(tmp_path / "series.csv")
    model = persistence(with_settings(tmp_path, columns=["c", "a", "b"], targets=["a"], mean=MEAN, std=STD), 1)
    sample = task_of(model).read(tmp_path / "series.csv", {})[0]
    np.testing.assert_array_equal(sample.given, walk[:PAST, [2, 0, 1]])
    np.testing.assert_allclose(sample.target["values"][:, 0], (walk[PAST : PAST + NEXT, 0] - MEAN[1]) / STD[1])


def test_no_window_forecasts_over_the_end_of_its_part(tmp_path: Path) -> None:
    series(tmp_path / "series.csv")
    samples = task_of(persistence()).read(tmp_path / "series.csv", {})
    starts = {split: [int(str(s.key)) for s in samples if s.split == split] for split in ("train", "valid", "test")}
    assert (min(starts["train"]), max(starts["train"])) == (0, 42 - PAST - NEXT)
    assert (min(starts["valid"]), max(starts["valid"])) == (42 - PAST, 48 - PAST - NEXT)
    assert (min(starts["test"]), max(starts["test"])) == (48 - PAST, 60 - PAST - NEXT)


def test_a_missing_number_hides_the_windows_that_see_it(tmp_path: Path) -> None:
    series(tmp_path / "series.csv", 20)
    rows = (tmp_path / "series.csv").read_text().splitlines()
    rows[11] = rows[11].rsplit(",", 1)[0] + ","
    (tmp_path / "series.csv").write_text("\n".join(rows))
    keys = {sample.key for sample in task_of(persistence()).read(tmp_path / "series.csv", {})}
    assert not keys & set(range(5, 11))
    assert {4, 11} & keys


def test_a_table_in_the_next_rows_out(tmp_path: Path) -> None:
    walk = series(tmp_path / "series.csv")
    model = persistence(with_settings(tmp_path, mean=MEAN, std=STD))
    pipeline = Pipeline(Reference(model), stored(task_of(model)), {})
    found = pipeline(pipeline.read(str(tmp_path / "series.csv")))
    expected = 0.9 * (walk[-1] - MEAN) + MEAN
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-6)
    assert pipeline.task.line(pipeline.answer(walk[-PAST:])).endswith("... (2 rows)")
    series(tmp_path / "short.csv", 4)
    with pytest.raises(DataError, match="expected at least 6 rows, got 4"):
        pipeline.read(str(tmp_path / "short.csv"))


# --- rows -------------------------------------------------------------------------------------------------------------


def linear(assets: dict[str, Path] | None = None) -> EdgeModel:
    model = Gives("y", lambda x: x @ torch.tensor([[1.0], [-2.0]]) + 0.5)
    return model_for("regression", model, assets, x=torch.zeros(1, 2))


def table(path: Path) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 2))
    y = x @ [1.0, -2.0] + 0.5 + 0.3 * rng.standard_normal(30)
    rows = np.column_stack([x, y]).round(5)
    path.write_text("a\tname\tb\ty\n" + "".join(f"{a}\tx\t{b}\t{c}\n" for a, b, c in rows.tolist()))
    return rows


def test_rows_are_scored_as_scikit_learn_does(tmp_path: Path) -> None:
    sklearn: Any = pytest.importorskip("sklearn.metrics", reason="it is the oracle: edgeattn[dev]")
    rows = table(tmp_path / "rows.tsv")
    model = linear()
    data = loaded(model, tmp_path / "rows.tsv")
    score = scored_everywhere(model, data, tmp_path)
    given = [tuple(sample.encoded.calls[0]["x"][0].tolist()) for sample in data.evaluation]
    kept = [row for row in rows if tuple(row[:2].astype(np.float32).tolist()) in given]
    assert len(kept) == len(given) == 24
    true, said = [row[2] for row in kept], [row[0] - 2 * row[1] + 0.5 for row in kept]
    assert score.value == pytest.approx(sklearn.r2_score(true, said), abs=1e-6)
    assert score.others["mae"] == pytest.approx(sklearn.mean_absolute_error(true, said), abs=1e-6)


def test_a_row_in_a_value_out(tmp_path: Path) -> None:
    model = linear(with_settings(tmp_path, mean=[1, 1], std=[2, 2], target_mean=[100], target_std=[10]))
    pipeline = Pipeline(Reference(model), stored(task_of(model)), {})
    assert pipeline(pipeline.read("3, 1")) == [pytest.approx(115.0)]
    assert pipeline.task.line(pipeline.answer([3.0, 1.0])) == "115"
    for text in ("1", "1,x", "1,nan", "1,2,3"):
        with pytest.raises(DataError, match="expected 2"):
            pipeline.read(text)


def test_what_is_no_number_is_the_worst(tmp_path: Path) -> None:
    table(tmp_path / "rows.tsv")
    model = model_for("regression", Gives("y", lambda x: x[:, :1].sqrt()), x=torch.zeros(1, 2))
    score = scored_everywhere(model, loaded(model, tmp_path / "rows.tsv"), tmp_path)
    assert score.value <= -1e6  # minus infinity, bounded
    assert "no better than the mean" in score.broken


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a header and rows of as many cells"),
        ("a,b,y\n", "expected a header and rows"),
        ("a,y\n1,2\n", r"expected a header and 2 columns of numbers.* are a, y"),
        ("a,b,y\n1,2,3\n1,x,3\n", r"t\.csv:3: b: expected a number, or nothing where it is missing; got 'x'"),
        ("a,b,y\n1,2,3\n1,,3\n", r"t\.csv:3: expected a number for each feature"),
        ("a,b,y\n1,2,3\n1,inf,3\n", r"t\.csv:3: b: expected a number"),
        ("a,b,y\n1,2,3\n1,2\n", r"t\.csv:3: expected 3 columns"),
        ("a,b,y\n1,2,3\n", "no sample to measure on"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        loaded(linear(), tmp_path / "t.csv")


def test_a_series_of_one_window_less_is_refused(tmp_path: Path) -> None:
    series(tmp_path / "s.csv", PAST + NEXT - 1)
    with pytest.raises(DataError, match="expected at least 8 rows for one window, got 7"):
        loaded(persistence(), tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": [1.0]}, "mean: expected 2, one for each, got 1"),
        ({"std": [1, 0]}, "std: expected numbers above 0"),
        ({"columns": "a"}, "columns: expected a list"),
        ({"mean": ["a", "b"]}, "mean: expected a list"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        linear(with_settings(tmp_path, **settings))


@pytest.mark.parametrize("name", ["regression", "forecasting"])
def test_a_model_of_something_else_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"expected features, float|expected the last rows, float"):
        model_for(name, Gives("y", torch.abs), x=torch.zeros(1, 3, 4, 5))


def test_the_shared_series_is_read(tmp_path: Path) -> None:
    if not SHARED.is_file():
        pytest.skip("ett_h1 is not at shared/data beside the checkout")
    last = Gives("y", lambda x: x[:, -1:, -1:].repeat(1, 24, 1))
    model = model_for("forecasting", last, x=torch.zeros(1, 96, 7))
    score = scored_everywhere(model, loaded(model, SHARED, limit=100), tmp_path)
    assert 0 < score.value < 1  # the oil temperature of the next day is near the last one
