"""What example inputs are made from: a model, its configs, and what lies beside them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeattn.sources.huggingface.checkpoint import read_json

TOKENS = 16  # length of example texts; the last quarter is padding, so that a mask that is lost is seen
CHOICES = 2
PARTS: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "decoder", "language", "llm", "thinker"),
    "vision": ("vision", "image", "encoder", "backbone", "pixel"),
    "audio": ("audio", "speech", "encoder", "acoustic"),
    "": (),
}
"""Words in the names of sub-configs, most telling first."""


@dataclass(frozen=True)
class Source:
    """What example inputs are made from.

    Attributes:
        model: the transformers model.
        directory: where it was read from.
        made: inputs so far, for makers that must agree with one.
    """

    model: Any
    directory: Path
    made: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def config(self) -> Any:
        """The model's own config."""
        return self.model.config

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Of forward, by name."""
        return inspect.signature(self.model.forward).parameters

    def find(self, part: str, *names: str) -> Any:
        """The first of some config fields that is set: in the config itself, then in its sub-configs."""
        for config in configs(self.config, PARTS[part]):
            for name in names:
                value = getattr(config, name, None)
                if value is not None:
                    return value
        return None

    def number(self, part: str, *names: str, default: int) -> int:
        """Like :meth:`find`, the first that is a positive integer."""
        for config in configs(self.config, PARTS[part]):
            for name in names:
                value = getattr(config, name, None)
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return default

    @property
    def processor(self) -> Mapping[str, Any]:
        """preprocessor_config.json, empty where there is none."""
        path = self.directory / "preprocessor_config.json"
        return read_json(path) if path.is_file() else {}

    def shape_of_text(self) -> tuple[int, ...]:
        """(1, tokens), with an axis of choices for multiple choice heads."""
        length = min(TOKENS, self.number("text", "max_position_embeddings", "n_positions", default=TOKENS))
        return (1, CHOICES, length) if self.takes_choices else (1, length)

    @property
    def takes_choices(self) -> bool:
        """Whether every text comes several times; no field of a config says so."""
        return type(self.model).__name__.endswith("ForMultipleChoice")


def configs(config: Any, words: tuple[str, ...]) -> Iterator[Any]:
    """A config and those inside it; the ones whose names hold the first words come first."""
    yield config
    names = [name for name in vars(config) if hasattr(getattr(config, name), "to_dict")]

    def rank(name: str) -> int:
        return next((index for index, word in enumerate(words) if word in name), len(words))

    for name in sorted(names, key=rank):
        yield from configs(getattr(config, name), words)
