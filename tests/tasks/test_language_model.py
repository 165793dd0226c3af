"""Perplexity of texts in windows, each token foreseen once, and each refusal with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import DataError
from edgeattn.sources.tasks import described, load_samples
from edgeattn.tasks import restored, stored
from edgeattn.tasks.language_model import LanguageModel

pytest.importorskip("tokenizers", reason="it makes tokens of texts: edgeattn[hf]")
torch: Any = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")

from tests.tasks.text_models import PerToken, model_of, scored, sent, spec_of, write_assets  # noqa: E402

WORDS = tuple("abcdefghij")
VOCABULARY = 4 + len(WORDS)
LENGTH = 8
SPEC = spec_of({"logits": (1, LENGTH, VOCABULARY)}, LENGTH)


@pytest.fixture
def assets(tmp_path: Path) -> dict[str, Path]:
    return write_assets(tmp_path / "assets", WORDS)


def write(path: Path, lines: int) -> Path:
    draw = np.random.default_rng(0)
    path.write_text("\n\n".join(" ".join(draw.choice(WORDS, 700)) for _ in range(lines)))
    return path


@pytest.mark.parametrize("sizes", [(), (4, LENGTH)], ids=["padded", "of several sizes"])
def test_the_score_is_torchs_cross_entropy(tmp_path: Path, assets: dict[str, Path], sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = model_of(PerToken(VOCABULARY, VOCABULARY), assets, LENGTH, sizes)
    task = LanguageModel.fitted(described(model.spec, assets))
    data = load_samples(write(tmp_path / "a.txt", 12), task, model.spec, assets, None, 0)
    logits, following = [], []
    table = next(iter(model.modules[model.spec.graphs[0].name].state_dict().values())).double()
    for sample in data.evaluation:
        ids = [1]  # [CLS]; what follows is each window's but for the token that it shares with the one before
        for window in sample.encoded.facts["windows"]:
            assert window[0] == ids[-1]
            ids += window[1:]
        assert ids[-1] == 2  # [SEP]
        logits.append(table[ids[:-1]])  # this model looks at one token alone
        following.append(torch.tensor(ids[1:]))
    entropy = torch.nn.functional.cross_entropy(torch.cat(logits), torch.cat(following))
    score = scored(model, data)
    assert (score.metric, score.higher_is_better) == ("perplexity", False)
    assert score.value == pytest.approx(float(entropy.exp()), rel=1e-6)
    right = (torch.cat(logits).argmax(1) == torch.cat(following)).double().mean()
    assert score.others["next-token-accuracy"] == pytest.approx(100 * float(right))
    assert sent(model, data, tmp_path) == score
    assert restored(stored(task)) == task


def test_targets_are_the_next_tokens(assets: dict[str, Path]) -> None:
    task = LanguageModel.fitted(described(SPEC, assets))
    encoded = task.encoder(SPEC, assets)("a b c")
    assert encoded.calls[0]["input_ids"].tolist() == [[1, 4, 5, 6, 2, 3, 3, 3]]
    assert task.array_targets(True, encoded)[0]["logits"].tolist() == [[4, 5, 6, 2, -100, -100, -100, -100]]
    outputs = [{"logits": np.full((1, LENGTH, VOCABULARY), np.nan, np.float32)}]
    answer = task.answer(outputs, encoded.facts)
    assert task.described(answer) == {"perplexity": None, "next-token-accuracy": 0.0}
    assert task.line(answer) == "perplexity None, next-token-accuracy 0.0"
    even = task.answer([{"logits": np.zeros((1, LENGTH, VOCABULARY), np.float32)}], encoded.facts)
    assert task.described(even)["perplexity"] == pytest.approx(VOCABULARY)


def test_a_sample_is_whole_lines(tmp_path: Path, assets: dict[str, Path]) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.txt").write_text("a " * 600 + "\n\n" + "b " * 300 + "\n" + "c " * 300)
    samples = LanguageModel.fitted(described(SPEC, assets)).read(tmp_path / "set", assets)
    assert [sample.place for sample in samples] == [f"{tmp_path}/set/train.txt:{line}" for line in (1, 4)]
    assert {sample.split for sample in samples} == {"train"}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "no sample to measure on"), (b"a\nb\xff\n", r"a\.txt:2: not UTF-8")],
    ids=["empty", "not UTF-8"],
)
def test_a_wrong_file_is_refused(tmp_path: Path, assets: dict[str, Path], content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_samples(tmp_path / "a.txt", LanguageModel.fitted(described(SPEC, assets)), SPEC, assets, None, 0)


@pytest.mark.parametrize("shape", [(1, VOCABULARY), (1, 1, VOCABULARY), (1, LENGTH, 3)])
def test_a_model_without_logits_of_all_tokens_is_refused(assets: dict[str, Path], shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="expected a causal language model that scores the next token at each place"):
        LanguageModel.fitted(described(spec_of({"logits": shape}, LENGTH), assets))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path, assets: dict[str, Path]) -> None:
    write_assets(tmp_path / "assets", WORDS, vocab_size=6)
    with pytest.raises(DataError, match=r"token 6, but the model has 6"):
        LanguageModel.fitted(described(SPEC, assets)).encoder(SPEC, assets)("a b c")
