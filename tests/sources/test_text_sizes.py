"""Without --bucket a model of texts is made in sizes that its data's texts have, and says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgeattn.errors import DataError
from edgeattn.model import EdgeModel
from edgeattn.sources.tasks import described, load_samples, with_task
from edgeattn.sources.text_sizes import buckets_for, with_sizes_of
from edgeattn.tasks.text_classification import TextClassification

pytest.importorskip("tokenizers", reason="it makes tokens of texts: edgeattn[hf]")
torch: Any = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")

from tests.tasks.text_models import model_of, write_assets  # noqa: E402

WORDS = ("good", "bad", "film")


class Mean(torch.nn.Module):  # type: ignore[misc]  # torch is Any here
    """Two classes by the mean of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(7, 2)

    def forward(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        mask = attention_mask.unsqueeze(-1)
        return {"logits": (self.table(input_ids) * mask).sum(1) / mask.sum(1)}


class Bag(torch.nn.Module):  # type: ignore[misc]  # torch is Any here
    """A model that padding changes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(7, 2)

    def forward(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        return {"logits": self.table(input_ids).mean(1) + 0 * attention_mask.sum()}


def model(tmp_path: Path, module: Any = None, **config: Any) -> EdgeModel:
    torch.manual_seed(0)
    return model_of(module or Mean(), write_assets(tmp_path / "assets", WORDS, **config), 16)


def table(tmp_path: Path, lengths: list[int]) -> Path:
    rows = [f"{'good ' * (length - 3)}film\t{number % 2}\n" for number, length in enumerate(lengths)]
    (tmp_path / "data.tsv").write_text("".join(rows))
    return tmp_path / "data.tsv"


LENGTHS = [*[10 + i % 3 for i in range(50)], *range(20, 60), *[100] * 9, 121]  # tokens, [CLS] and [SEP] included


def test_sizes_hold_half_nine_tenths_and_all_of_the_texts(tmp_path: Path) -> None:
    path = table(tmp_path, LENGTHS)
    source = model(tmp_path)
    found = buckets_for(source, TextClassification.fitted(described(source.spec, source.assets)), path)
    assert found is not None
    assert (found.dim, found.lengths, found.sizes) == ("seq", (12, 59, 121), (16, 64, 128))


@pytest.mark.parametrize("task", ["text-classification", None])
def test_a_model_is_made_in_these_sizes_and_says_so(tmp_path: Path, task: str | None) -> None:
    path = table(tmp_path, LENGTHS)
    sized = with_sizes_of(model(tmp_path) if task is None else with_task(model(tmp_path), task), path)
    assert [graph.inputs[0].shape for graph in sized.spec.graphs] == [(1, 16), (1, 64), (1, 128)]
    assert sized.notes[-1] == (
        "of the texts in data.tsv half have 12 tokens at most, 90 % 59, all 121: converted for seq=16,64,128; "
        "--bucket seq=... names other sizes"
    )
    fitted = TextClassification.fitted(described(sized.spec, sized.assets))
    assert load_samples(path, fitted, sized.spec, sized.assets, None, 0).cut == ""


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"max_position_embeddings": 40}, 40),
        ({"n_positions": 44}, 44),
        ({"max_position_embeddings": 46, "model_type": "xlm-roberta"}, 42),
        ({}, 512),
    ],
)
def test_no_size_goes_beyond_the_models_positions(tmp_path: Path, config: dict[str, Any], most: int) -> None:
    path = table(tmp_path, [*LENGTHS, *range(600, 610)])
    sized = with_sizes_of(model(tmp_path, **config), path)
    assert sized.spec.graphs[-1].inputs[0].shape == (1, most)
    fitted = TextClassification.fitted(described(sized.spec, sized.assets))
    data = load_samples(path, fitted, sized.spec, sized.assets, None, 0)
    assert data.cut.endswith(f"samples cut at {most} tokens")
    assert data.cut in data.origin


def test_a_model_that_padding_changes_stays_and_says_why(tmp_path: Path) -> None:
    source = model(tmp_path, Bag())
    kept = with_sizes_of(source, table(tmp_path, LENGTHS))
    assert kept.spec == source.spec
    assert "the model could not be made in sizes of seq=16,64,128" in kept.notes[-1]


def test_what_says_nothing_of_lengths_changes_nothing(tmp_path: Path) -> None:
    source, path = model(tmp_path), table(tmp_path, LENGTHS)
    (tmp_path / "x.npz").write_bytes(b"")
    for data in (None, tmp_path / "x.npz", tmp_path / "nowhere.tsv", "data.py:make"):
        assert with_sizes_of(source, data) is source
    assert with_sizes_of(replace(source, dims={}), path).spec == source.spec
    assert with_sizes_of(replace(source, assets={}), path).spec == source.spec


def test_a_wrong_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.tsv").write_text("good\t0\nbad\n")
    with pytest.raises(DataError, match=r"data\.tsv:2: expected 2 columns"):
        with_sizes_of(model(tmp_path), tmp_path / "data.tsv")
