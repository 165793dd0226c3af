"""A source that does not repeat itself is told before anything is converted; the cause is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest

torch = pytest.importorskip("torch", reason="sources need edgeattn[convert]")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from edgeattn.errors import ModelError  # noqa: E402
from edgeattn.model import EdgeModel  # noqa: E402
from edgeattn.pipeline.convert import convert  # noqa: E402
from edgeattn.pipeline.quantize import quantize  # noqa: E402
from edgeattn.pipeline.steps import repeatable  # noqa: E402
from edgeattn.pipeline.steps.options import ConvertOptions  # noqa: E402
from edgeattn.pipeline.steps.repeatable import batch_note, confirmed, repeat_difference  # noqa: E402
from edgeattn.progress import Quiet  # noqa: E402
from edgeattn.targets import get_target  # noqa: E402
from tests.converters.samples import as_model  # noqa: E402


class Forward(nn.Module):
    """A linear layer, and what a subclass does with its output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.cache: Tensor
        self.register_buffer("cache", torch.zeros(1, 4, 8))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.after(self.linear(x))}

    def after(self, y: Tensor) -> Tensor:
        return y


class AlwaysDrops(Forward):
    def after(self, y: Tensor) -> Tensor:
        return functional.dropout(y, 0.1)  # training=True is its default


class Samples(Forward):
    def after(self, y: Tensor) -> Tensor:
        return cast(Tensor, y + 1e-6 * torch.randn_like(y))


class Remembers(Forward):
    """Equal calls in a row agree: the cache then holds what it held."""

    def after(self, y: Tensor) -> Tensor:
        seen = y + self.cache
        self.cache.copy_(y)
        return seen


class Counts(Forward):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def after(self, y: Tensor) -> Tensor:
        self.calls += 1
        return y + self.calls


class AcrossTheBatch(Forward):
    def after(self, y: Tensor) -> Tensor:
        return cast(Tensor, torch.softmax(y, 0))


class BatchStatistics(Forward):
    def after(self, y: Tensor) -> Tensor:
        return functional.batch_norm(y.transpose(1, 2), None, None, training=True).transpose(1, 2)


class OneRowAlone(Forward):
    def after(self, y: Tensor) -> Tensor:
        return y.reshape(1, 2, 2, 8).sum(1)


def model(module: Forward) -> EdgeModel:
    torch.manual_seed(0)
    return as_model("small", module, x=torch.randn(1, 4, 8))


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (AlwaysDrops, "draws random numbers, as dropout and sampling do"),
        (Samples, "draws random numbers"),
        (Remembers, "writes buffer cache: make it a state"),
        (Counts, "keeps something between calls"),
    ],
)
def test_a_source_that_answers_otherwise_when_asked_again_is_refused(kind: type[Forward], cause: str) -> None:
    with pytest.raises(ModelError, match=rf"output y of graph 'main' .*largest difference [\d.e-]+\).*{cause}"):
        confirmed(model(kind()))


def test_dropout_in_training_mode_is_named() -> None:
    module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))

    class Wrapped(Forward):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def after(self, y: Tensor) -> Tensor:
            return cast(Tensor, module(y))

    source = model(Wrapped())
    module[1].train()
    with pytest.raises(ModelError, match=r"inner\.1 in training mode: call \.eval\(\)"):
        confirmed(source)


@pytest.mark.parametrize("kind", [AcrossTheBatch, BatchStatistics])
def test_a_row_that_depends_on_its_neighbours_is_told(kind: type[Forward]) -> None:
    source = model(kind())
    told = confirmed(source)
    (note,) = told.notes
    assert re.search(r"a row of a batch depends on the rows beside it: output y of graph 'main'", note)
    assert confirmed(told).notes == told.notes  # once


@pytest.mark.parametrize("kind", [Forward, OneRowAlone])
def test_a_source_that_repeats_itself_is_left_alone(kind: type[Forward]) -> None:
    source = model(kind())
    assert confirmed(source) is source
    assert repeat_difference(source) is None
    assert batch_note(source) is None


def test_a_slow_source_is_called_fewer_times(monkeypatch: pytest.MonkeyPatch) -> None:
    source, asked = model(Forward()), []
    source.modules["main"].register_forward_hook(lambda *_: asked.append(1))
    confirmed(source)
    quick = len(asked)
    monkeypatch.setattr(repeatable, "SLOW_SECONDS", -1.0)
    asked.clear()
    confirmed(source)
    assert (quick, len(asked)) == (9, 5)


def test_attention_of_two_rows_is_within_rounding() -> None:
    class Attends(Forward):
        def after(self, y: Tensor) -> Tensor:
            return functional.scaled_dot_product_attention(y, y, y, is_causal=True)

    assert confirmed(model(Attends())).notes == ()


def test_nothing_is_converted_of_a_source_that_does_not_repeat(tmp_path: Path) -> None:
    options = ConvertOptions((get_target("cpu"),), out=tmp_path / "out")
    for command in (convert, quantize):
        with pytest.raises(ModelError, match="is another when the model is called again"):
            command(model(AlwaysDrops()), None, options, Quiet())
    assert not (tmp_path / "out").exists()
