"""A tiny text classifier as a Hugging Face directory, its tokenizer of whole words, and a table of labelled texts."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from edgeattn.guards.silence import silenced

PAD, LENGTH, CLASSES = 3, 6, 3
WORDS = ("good", "bad", "film", "plot", "very")
LABELS = ("negative", "neutral", "positive")
TABLE = "".join(f"{'very ' * (i % 3)}{WORDS[i % 5]} film {i}\t{i % CLASSES}\n" for i in range(20))


def write_tokenizer(directory: Path) -> Path:
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "[PAD]": PAD}
    vocabulary |= {word: len(vocabulary) + i for i, word in enumerate(WORDS)}
    tokenizers: Any = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory / "tokenizer.json"


def write_config(directory: Path, **changes: Any) -> Path:
    path = directory / "config.json"
    config = {"pad_token_id": PAD, "vocab_size": 9, "id2label": dict(enumerate(LABELS))} | changes
    path.write_text(json.dumps(config))
    return path


def write_classifier(directory: Path) -> Any:
    """A BERT of random weights that does not give all texts one label; the module that was written."""
    import torch

    transformers: Any = importlib.import_module("transformers")

    settings = {"vocab_size": 9, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    with silenced(), torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(
            **settings,
            intermediate_size=48,
            pad_token_id=PAD,
            id2label=dict(enumerate(LABELS)),
            initializer_range=1.0,
        )
        source = transformers.BertForSequenceClassification(config).eval()
        source.save_pretrained(directory)
    write_tokenizer(directory)
    return source


def convert_classifier(home: Path) -> Path:
    """A bundle of :func:`write_classifier` for this machine, in float32, measured on :data:`TABLE`."""
    from edgeattn.pipeline import api

    write_classifier(home / "net")
    (home / "data.tsv").write_text(TABLE)
    report = api.convert(
        home / "net", data=home / "data.tsv", precision="fp32", out=home, max_drop=100.0, accept_unproved=True
    )
    bundle = report.results[0].bundle
    assert bundle is not None, report.results[0]
    return Path(bundle)
