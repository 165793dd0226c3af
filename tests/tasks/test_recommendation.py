"""What users take next: histories, splits, rankings against scikit-learn's NDCG, and refusals."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.tasks import Pipeline, stored
from tests.tasks.end_to_end import Gives, loaded, model_for, scored_by_onnxruntime, scored_everywhere, task_of

ITEMS, LENGTH = 40, 5
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "movielens_100k"


class Next(nn.Module):
    """Scores that depend on the last items: a random matrix, later items weigh more."""

    def __init__(self, items: int, every: bool = False) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(items, items, generator=torch.Generator().manual_seed(0)))
        self.every = every

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        scores = self.table[ids].cumsum(dim=1) + 2 * self.table[ids]
        return {"logits": scores if self.every else scores[:, -1]}


def model_of(
    assets: dict[str, Path] | None = None, every: bool = False, items: int = ITEMS, length: int = LENGTH
) -> EdgeModel:
    ids = torch.zeros(1, length, dtype=torch.int64)
    return model_for("recommendation", Next(items, every), assets, ids=ids)


def interactions(path: Path) -> dict[int, list[int]]:
    """Users with 2 to 9 items each, in the order of their times; the table is in another order."""
    rng = np.random.default_rng(0)
    taken = {user: rng.choice(np.arange(1, ITEMS), 2 + user % 8, replace=False).tolist() for user in range(24)}
    rows = [(user, item, time) for user, items in taken.items() for time, item in enumerate(items)]
    lines = [f"{u}\t{i}\t3\t{t}\n" for u, i, t in (rows[k] for k in rng.permutation(len(rows)))]
    path.write_text("user\titem\trating\ttime\n" + "".join(lines))
    return taken


@pytest.mark.parametrize("every", [True, False])
def test_the_last_item_of_each_user_is_ranked_among_those_they_did_not_take(tmp_path: Path, every: bool) -> None:
    sklearn: Any = pytest.importorskip("sklearn.metrics", reason="it is the oracle: edgeattn[dev]")
    taken = interactions(tmp_path / "t.tsv")
    model = model_of(every=every)
    score = scored_everywhere(model, loaded(model, tmp_path / "t.tsv"), tmp_path)
    gains, hits = [], []
    for items in taken.values():
        ids = [0] * LENGTH + items[:-1]
        scores = model.modules["main"](torch.tensor([ids[-LENGTH:]]))["logits"].reshape(-1, ITEMS)[-1].detach().numpy()
        left = [item for item in range(1, ITEMS) if item not in items[:-1]]
        right = [[float(item == items[-1]) for item in left]]
        gains.append(sklearn.ndcg_score(right, [scores[left]], k=10))
        hits.append(items[-1] in sorted(left, key=lambda item: -scores[item])[:10])
    assert score.metric == "ndcg@10"
    assert 0 < score.value < 1
    assert score.value == pytest.approx(np.mean(gains), abs=1e-9)
    assert score.others == {"hr@10": pytest.approx(100 * np.mean(hits), abs=1e-9)}


@pytest.mark.slow
def test_an_engine_recommends_the_same(tmp_path: Path) -> None:
    interactions(tmp_path / "t.tsv")
    model = model_of()
    data = loaded(model, tmp_path / "t.tsv")
    assert scored_by_onnxruntime(model, data, tmp_path).value == scored_everywhere(model, data, tmp_path).value


def test_each_user_asks_once_per_split(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("user\titem\na\t1\na\t2\na\t3\na\t4\nb\t5\nb\t6\nc\t7\n")
    samples = task_of(model_of()).read(tmp_path / "t.tsv", {})
    assert [(s.given, s.target, s.split) for s in samples] == [
        ([1, 2, 3], [4], "test"),
        ([1, 2], [3], "valid"),
        ([1], [2], "train"),
        ([5], [6], "test"),
    ]


def test_items_of_a_split_are_all_right(tmp_path: Path) -> None:
    rows = "a\t1\ttrain\na\t2\ttrain\na\t3\tvalid\na\t4\ttest\na\t5\ttest\nb\t6\ttest\n"
    (tmp_path / "t.tsv").write_text("user\titem\tsplit\n" + rows)
    samples = task_of(model_of()).read(tmp_path / "t.tsv", {})
    assert [(s.given, s.target, s.split) for s in samples] == [
        ([1, 2, 3], [4, 5], "test"),
        ([1, 2], [3], "valid"),
        ([1], [2], "train"),
    ]


def test_a_history_is_padded_before_and_cut_and_the_mask_token_asks(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"mask_token_id": 39, "pad_token_id": 0}))
    model = model_of({"config.json": tmp_path / "config.json"})
    encode = task_of(model).encoder(model.spec, {})
    short, long = encode([7, 8]), encode([1, 2, 3, 4, 5])
    assert short.calls[0]["ids"].tolist() == [[0, 0, 7, 8, 39]]
    assert (long.calls[0]["ids"].tolist(), long.cut) == ([[2, 3, 4, 5, 39]], "at 5 items")


def test_a_history_in_names_out(tmp_path: Path) -> None:
    names = {number: f"film {number}" for number in range(1, ITEMS)}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    model = model_of({"config.json": tmp_path / "config.json"})
    pipeline = Pipeline(Reference(model), stored(task_of(model)), {})
    found = [one["item"] for one in pipeline(pipeline.read("film 3, film 9"))]
    assert len(found) == 10
    assert not {"film 3", "film 9", "film 0"} & set(found)
    assert pipeline.task.line(pipeline.answer([3, 9])) == ", ".join(found)
    for text in ("", "film 99", "0", "40"):
        with pytest.raises(DataError, match="expected an item"):
            pipeline.read(text)


def test_what_is_no_number_recommends_nothing(tmp_path: Path) -> None:
    task = task_of(model_of())
    scores = np.zeros((1, ITEMS))
    scores[0, 7] = np.nan
    answer = task.answer([{"logits": scores}], {"seen": []})
    assert [metric.value([metric.statistics(answer, [7])]) for metric in task.metrics] == [0.0, 0.0]
    assert task.as_target(answer) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no sample to measure on"),
        ("user\titem\na\t1\n", "no sample to measure on"),
        ("user\titem\na\t1\na\n", r"t\.tsv:3: expected 2 columns"),
        ("user\titem\na\t40\n", r"t\.tsv:2: expected an item, a number from 0 to 39 but 0 \(padding\), got '40'"),
        ("user\titem\na\t0\n", r"t\.tsv:2: expected an item"),
        ("user\titem\na\tfilm\n", r"t\.tsv:2: expected an item"),
        ("user\titem\ttime\na\t1\tnoon\n", r"t\.tsv:2: expected a number as the time, got 'noon'"),
        ("user\titem\ttime\na\t1\tnan\n", r"t\.tsv:2: expected a number as the time"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        loaded(model_of(), tmp_path / "t.tsv")


def test_a_model_of_something_else_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected a history of items, int \[1, length\]"):
        model_for("recommendation", Gives("y", torch.abs), x=torch.zeros(1, 3))


def test_the_shared_ratings_are_read(tmp_path: Path) -> None:
    if not (SHARED / "ua.base.gz").is_file():
        pytest.skip("movielens_100k is not at shared/data beside the checkout")
    parts = {"train": gzip.decompress((SHARED / "ua.base.gz").read_bytes()).decode()}
    parts["test"] = (SHARED / "ua.test").read_text()
    rows = [f"{row}\t{split}" for split, part in parts.items() for row in part.splitlines()]
    (tmp_path / "t.tsv").write_text("user\titem\trating\ttime\tsplit\n" + "\n".join(rows))
    model = model_of(items=1_683, length=50)
    data = loaded(model, tmp_path / "t.tsv", limit=50)
    assert {len(sample.target) for sample in data.evaluation} == {10}
    assert scored_everywhere(model, data, tmp_path).value < 0.1  # a random table knows nothing of films
