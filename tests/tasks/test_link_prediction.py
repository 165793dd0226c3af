"""Filtered ranks by a plain loop, both directions, and refusals of triples that do not fit."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeattn.errors import DataError, InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.tasks import Pipeline, stored
from edgeattn.tasks.link_prediction import LinkPrediction
from tests.tasks.end_to_end import Gives, loaded, model_for, scored_by_onnxruntime, scored_everywhere, task_of

ENTITIES, RELATIONS = 12, 3
SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "kg_triples"


class DistMult(nn.Module):
    """Yang et al. 2015: sum of head * relation * tail; random embeddings."""

    def __init__(self, entities: int = ENTITIES, relations: int = 2 * RELATIONS) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.e = nn.Parameter(torch.randn(entities, 6, generator=generator))
        self.r = nn.Parameter(torch.randn(relations, 6, generator=generator))

    def forward(self, head: Tensor, relation: Tensor) -> dict[str, Tensor]:
        return {"scores": (self.e[head] * self.r[relation]) @ self.e.T}


@pytest.fixture
def assets(tmp_path: Path) -> dict[str, Path]:
    names = {number: f"e{number}" for number in range(ENTITIES)}
    config = {"inverse_relations": True, "num_relations": RELATIONS, "id2label": names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return {"config.json": tmp_path / "config.json"}


def scorer(
    assets: dict[str, Path] | None = None, entities: int = ENTITIES, relations: int = 2 * RELATIONS
) -> EdgeModel:
    zero = torch.zeros(1, dtype=torch.int64)
    return model_for("link-prediction", DistMult(entities, relations), assets, head=zero, relation=zero)


def triples(directory: Path) -> dict[str, list[tuple[int, int, int]]]:
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[int, int, int]]] = {}
    for split in ("train", "test"):
        found[split] = sorted({(int(h), int(r), int(t)) for h, r, t in rng.integers([12, 3, 12], size=(15, 3))})
    directory.mkdir(exist_ok=True)
    for split, rows in found.items():
        (directory / f"{split}.txt").write_text("".join(f"{h}\t{r}\t{t}\n" for h, r, t in rows))
    return found


@pytest.mark.parametrize("inverse", [True, False])
def test_ranks_are_filtered_by_the_triples_of_all_splits(
    assets: dict[str, Path], tmp_path: Path, inverse: bool
) -> None:
    model = scorer(assets if inverse else None)
    found = triples(tmp_path / "data")
    if inverse:
        (tmp_path / "data" / "entities.txt").write_text("".join(f"{number}\n" for number in range(ENTITIES)))
    score = scored_everywhere(model, loaded(model, tmp_path / "data"), tmp_path)
    net = model.modules["main"]
    asked = [*found["test"], *((t, r + RELATIONS, h) for h, r, t in found["test"] if inverse)]
    every = {q for rows in found.values() for h, r, t in rows for q in ((h, r, t), (t, r + RELATIONS, h))}
    ranks = []
    for head, relation, tail in asked:
        scores = net(torch.tensor([head]), torch.tensor([relation]))["scores"][0].tolist()
        better = [e for e in range(ENTITIES) if scores[e] > scores[tail] and (head, relation, e) not in every]
        ranks.append(1 + len(better))
    assert (score.metric, len(ranks)) == ("mrr", len(found["test"]) * (1 + inverse))
    assert score.value == pytest.approx(np.mean([1 / rank for rank in ranks]), abs=1e-12)
    assert score.others == {
        f"hits@{k}": pytest.approx(100 * np.mean([rank <= k for rank in ranks]), abs=1e-9) for k in (1, 3, 10)
    }


@pytest.mark.slow
def test_an_engine_ranks_the_same(assets: dict[str, Path], tmp_path: Path) -> None:
    model = scorer()
    triples(tmp_path / "data")
    data = loaded(model, tmp_path / "data")
    assert scored_by_onnxruntime(model, data, tmp_path).value == scored_everywhere(model, data, tmp_path).value


@pytest.mark.parametrize(
    ("scores", "known", "rank"),
    [
        ([0.0, 0.0, 0.0, 0.0], [1], 2.5),  # equal ones share the mean of places 1 to 4
        ([3.0, 2.0, 1.0, 0.0], [1], 2.0),
        ([3.0, 2.0, 1.0, 0.0], [0, 1], 1.0),
        ([3.0, np.nan, 1.0, 0.0], [1], None),
        ([3.0, 2.0, 1.0, np.nan], [1], None),
        ([np.inf, 2.0, 1.0, 0.0], [1], 2.0),
        ([0.0, -np.inf, -np.inf, -np.inf], [1], 2.0),
    ],
)
def test_ties_share_their_ranks_and_nan_has_none(scores: list[float], known: list[int], rank: float | None) -> None:
    task = LinkPrediction(inputs=("x",), output="scores", entities=4)
    answer = task.answer([{"scores": np.array([scores])}], {"right": 1, "known": known})
    assert answer["rank"] == rank
    json.dumps(answer)


def test_a_random_scorer_is_told() -> None:
    task = LinkPrediction(inputs=("x",), output="scores", entities=4)
    assert "no better than chance" in task.broken(0.5, [], [])
    assert task.broken(0.6, [], []) == ""


def test_a_question_in_names_out(assets: dict[str, Path]) -> None:
    model = scorer(assets)
    pipeline = Pipeline(Reference(model), stored(task_of(model)), {})
    best = pipeline(pipeline.read("e3,1"))
    scores = model.modules["main"](torch.tensor([3]), torch.tensor([1]))["scores"][0]
    assert [one["entity"] for one in best[:2]] == [f"e{n}" for n in scores.argsort(descending=True)[:2].tolist()]
    assert pipeline.task.line(pipeline.answer({"head": 3, "relation": 1})).startswith(best[0]["entity"])
    for text in ("e3", "e99,1", "e3,x", "e3,1,2"):
        with pytest.raises(DataError, match="expected"):
            pipeline.read(text)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no sample to measure on"),
        ({"test.txt": ""}, "no sample to measure on"),
        ({"test.txt": "0\t1\n"}, r"test\.txt:1: expected 3 columns"),
        ({"test.txt": "0\t1\t12\n"}, r":1: tail: expected a number from 0 to 11; entities\.txt .*got '12'"),
        ({"test.txt": "peru\t1\t2\n"}, ":1: head: expected a number"),
        ({"test.txt": "0\tborders\t2\n"}, ":1: relation: expected a number from 0"),
        ({"test.txt": "a\t0\tc\n", "entities.txt": "a\nb\n"}, ":1: tail: expected a listed name"),
        ({"test.txt": "a\t0\tb\n", "entities.txt": "a\nb\na\n"}, r"entities\.txt:3: 'a' stands there twice"),
    ],
)
def test_wrong_triples_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        loaded(scorer(), tmp_path)


def test_a_model_of_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="expected head and relation, int"):
        model_for("link-prediction", Gives("scores", torch.abs), x=torch.zeros(1, 2))
    one = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(InputError, match="expected a score per entity"):
        model_for("link-prediction", Gives("scores", lambda x: x[:, :1].float()), x=one)


@pytest.mark.parametrize(("name", "entities", "relations"), [("nations", 14, 55), ("umls", 135, 46)])
def test_shared_graphs_are_read(tmp_path: Path, name: str, entities: int, relations: int) -> None:
    archive = SHARED / f"{name}.tar.gz"
    if not archive.is_file():
        pytest.skip("kg_triples is not at shared/data beside the checkout")
    with tarfile.open(archive) as packed:
        for split in ("train", "valid", "test"):
            member = packed.extractfile(f"{split}.txt")
            assert member is not None
            (tmp_path / f"{split}.txt").write_bytes(member.read())
    texts = [(tmp_path / f"{split}.txt").read_text() for split in ("train", "valid", "test")]
    rows = [line.split("\t") for text in texts for line in text.splitlines()]
    (tmp_path / "entities.txt").write_text("\n".join(sorted({one for h, _, t in rows for one in (h, t)})))
    (tmp_path / "relations.txt").write_text("\n".join(sorted({r for _, r, _ in rows})))
    model = scorer(entities=entities, relations=relations)
    score = scored_everywhere(model, loaded(model, tmp_path, limit=40), tmp_path)
    assert 0 < score.value < 1
