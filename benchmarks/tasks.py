"""Tasks on real data: a small model is trained, converted with ``--data`` and measured on each target.

    python -m benchmarks.tasks --data ../shared/data [--only NAME ...] [--target cpu --target mobile] [--seconds 60]
        [--samples N] [--out FILE.jsonl]

Each row: what gates and what stands beside, of the source and deployed, what was shipped, the bound of what is lost,
the verdict, and the seconds of training and of conversion. Nothing is trained for longer than ``--seconds``.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import io
import json
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.guards.silence import silenced
from edgeattn.pipeline import api
from edgeattn.results.report import Result
from edgeattn.tasks.tagged import read_tagged

BATCH = 64
PAST, HORIZON = 96, 24  # hours of ETT-h1
TOKENS, WORDS = 64, 8_000


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model and what measures it.

    Attributes:
        model: as :func:`edgeattn.pipeline.api.convert` takes it.
        task: what it is for, where it does not say so itself.
    """

    model: Any
    data: Path
    task: str | None = None


def train(module: Any, batches: Iterator[tuple[Any, Any]], loss: Callable[[Any, Any], Any], seconds: float) -> None:
    """AdamW with a rate that falls linearly over the time that there is."""
    import torch

    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    began = time.monotonic()
    module.train()
    for given, wanted in batches:
        share = (time.monotonic() - began) / seconds
        if share >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - share)
        optimizer.zero_grad()
        loss(given, wanted).backward()
        optimizer.step()
    module.eval()


def shuffled(count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Batches of indices, epoch after epoch, without end."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        yield from (order[start : start + BATCH] for start in range(0, count - BATCH + 1, BATCH))


# --- image classification: MNIST --------------------------------------------------------------------------------------


def mnist(data: Path, home: Path, seconds: float) -> Trained:
    """A ViT of two layers on digits, 16 patches of 7 x 7 pixels."""
    import torch

    transformers: Any = importlib.import_module("transformers")
    pillow: Any = importlib.import_module("PIL.Image")
    images, labels = [], []
    with zipfile.ZipFile(data / "mnist" / "train_subset_png.zip") as packed:
        for name in sorted(packed.namelist()):
            if name.endswith(".png"):
                images.append(np.asarray(pillow.open(io.BytesIO(packed.read(name)))))
                labels.append(int(Path(name).parent.name))
    with gzip.open(data / "mnist" / "t10k-images-idx3-ubyte.gz") as file:
        test = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 28, 28)
    with gzip.open(data / "mnist" / "t10k-labels-idx1-ubyte.gz") as file:
        truth = np.frombuffer(file.read()[8:], np.uint8)
    split = np.array(["train"] * len(images) + ["test"] * len(test))
    every = np.concatenate([np.stack(images), test])
    np.savez(home / "mnist.npz", images=every, labels=np.concatenate([labels, truth]).astype(np.int64), split=split)

    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, image_size=28, patch_size=7,
        hidden_dropout_prob=0.0, id2label={str(n): f"digit {n}" for n in range(10)},
    )  # fmt: skip
    module = transformers.ViTForImageClassification(config)
    pixels = torch.from_numpy((np.stack(images).astype(np.float32) / 255 - 0.5) / 0.5)[:, None].expand(-1, 3, -1, -1)
    targets = torch.tensor(labels)

    def loss(given: Any, wanted: Any) -> Any:
        return torch.nn.functional.cross_entropy(module(pixel_values=given).logits, wanted)

    train(module, ((pixels[i], targets[i]) for i in shuffled(len(targets))), loss, seconds)
    module.save_pretrained(home / "net")
    transformers.ViTImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(home / "net")
    names = [f"digit {n}" for n in range(10)]
    np.savez(home / "mnist.npz", images=every, labels=np.array([names[n] for n in [*labels, *truth]]), split=split)
    return Trained(model=home / "net", data=home / "mnist.npz")


# --- token classification: parts of speech of English Web Treebank ----------------------------------------------------


def treebank(data: Path, home: Path, seconds: float) -> Trained:
    """A BERT of two layers, with a WordPiece vocabulary of its own, on universal parts of speech."""
    import torch

    transformers: Any = importlib.import_module("transformers")
    tokenizers: Any = importlib.import_module("tokenizers")
    home.joinpath("net").mkdir(parents=True)
    sentences = read_tagged(data / "ud_english_ewt")
    rows = [(sentence.words, sentence.tags["UPOS"]) for sentence in sentences if sentence.split == "train"]
    tags = sorted({tag for _, row in rows for tag in row})
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=WORDS, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    )
    tokenizer.train_from_iterator((" ".join(words) for words, _ in rows), trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(home / "net" / "tokenizer.json"))
    ids, marks = np.zeros((len(rows), TOKENS), np.int64), np.full((len(rows), TOKENS), -100, np.int64)
    tokenizer.enable_truncation(TOKENS)
    for row, (words, names) in enumerate(rows):
        encoding = tokenizer.encode(list(words), is_pretokenized=True)
        ids[row, : len(encoding.ids)] = encoding.ids
        before = None
        for place, word in enumerate(encoding.word_ids):
            if word is not None and word != before:
                marks[row, place] = tags.index(names[word])
            before = word
    config = transformers.BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192, max_position_embeddings=128, pad_token_id=0, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, id2label=dict(enumerate(tags)),
    )  # fmt: skip
    module = transformers.BertForTokenClassification(config)
    given, wanted = torch.from_numpy(ids), torch.from_numpy(marks)

    def loss(taken: Any, labels: Any) -> Any:
        return module(input_ids=taken, attention_mask=(taken != 0).long(), labels=labels).loss

    train(module, ((given[i], wanted[i]) for i in shuffled(len(rows))), loss, seconds)
    module.save_pretrained(home / "net")
    return Trained(model=home / "net", data=data / "ud_english_ewt")


# --- forecasting: load of a transformer, hour by hour -----------------------------------------------------------------


def electricity(data: Path, home: Path, seconds: float) -> Trained:
    """An encoder of two layers over patches of 8 hours; what it gives is added to the mean of what it saw."""
    import torch
    from torch import nn

    with gzip.open(data / "ett_h1" / "ETTh1.csv.gz", "rt") as file:
        (home / "ett.csv").write_text(file.read())
    table = np.genfromtxt(home / "ett.csv", delimiter=",", skip_header=1)[:, 1:].astype(np.float32)
    known = table[: int(0.7 * len(table))]
    deviation = known.std(axis=0)

    class Forecaster(nn.Module):
        deviation: Any

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("deviation", torch.from_numpy(deviation))
            self.embed = nn.Linear(8, 64)
            self.places = nn.Parameter(0.02 * torch.randn(PAST // 8, 64))
            layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(64 * PAST // 8, HORIZON)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            mean = x.mean(1, keepdim=True)
            series = ((x - mean) / self.deviation).transpose(1, 2)  # [batch, columns, hours]
            patches = series.reshape(-1, PAST // 8, 8)
            seen = self.encoder(self.embed(patches) + self.places).flatten(1)
            future = self.head(seen).reshape(x.shape[0], x.shape[2], HORIZON).transpose(1, 2)
            return {"forecast": future * self.deviation + mean}

    torch.manual_seed(0)
    module = Forecaster()
    series = torch.from_numpy(known)
    starts = len(known) - PAST - HORIZON

    def batches() -> Iterator[tuple[Any, Any]]:
        for chosen in shuffled(starts):
            windows = torch.stack([series[i : i + PAST + HORIZON] for i in chosen])
            yield windows[:, :PAST], windows[:, PAST:]

    def loss(given: Any, wanted: Any) -> Any:
        return (((module(given)["forecast"] - wanted) / module.deviation) ** 2).mean()

    train(module, batches(), loss, seconds)
    return Trained(model=(module, {"x": series[None, :PAST]}), data=home / "ett.csv", task="forecasting")


CASES: Mapping[str, Callable[[Path, Path, float], Trained]] = {
    "image-classification": mnist,
    "token-classification": treebank,
    "forecasting": electricity,
}


def row_of(name: str, result: Result, training: float, whole: float) -> dict[str, Any]:
    """What is told of one target."""
    figures = result.accuracy
    told: dict[str, Any] = {"task": name, "target": result.target, "shipped": result.precision.shipped}
    if figures is not None:
        told |= {
            "metric": figures.metric, "source": figures.source, "deployed": figures.deployed, "unit": figures.unit,
            "lost_at_most": figures.drop_upper, "proved": figures.proved, "samples": figures.samples,
            "others": {key: [beside.source, beside.deployed] for key, beside in figures.others.items()},
        }  # fmt: skip
    return told | {"verdict": result.verdict, "training_s": round(training, 1), "convert_s": round(whole, 1)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", action="append", choices=CASES)
    parser.add_argument("--target", action="append")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--samples", type=int, default=2_000)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    rows = []
    for name in asked.only or CASES:
        with tempfile.TemporaryDirectory() as folder:
            home, began = Path(folder), time.monotonic()
            with silenced():
                made = CASES[name](asked.data, home, asked.seconds)
            trained = time.monotonic()
            report = api.convert(
                made.model, data=made.data, task=made.task, targets=asked.target or ["cpu", "mobile"],
                samples=asked.samples, out=home / "out", keep_failed=True,
            )  # fmt: skip
            whole = time.monotonic() - trained
            for result in report.results:
                rows.append(row_of(name, result, trained - began, whole))
                print(json.dumps(rows[-1]), flush=True)
    if asked.out is not None:
        asked.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
