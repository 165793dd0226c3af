"""What is written is what transformers writes, token for token: by the float32 source and by every engine."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import InputError
from edgeattn.model import EdgeModel, Reference
from edgeattn.runtimes import GenerateOptions, Session, open_session
from edgeattn.sources import load_model
from edgeattn.sources.sizes import with_buckets
from tests.once import made_once, shared_root
from tests.runtimes.generation.language_models import LENGTH, MODELS, margin, of_transformers, prompt, write

pytestmark = pytest.mark.slow

LEAD = 1e-3  # of the best token: float32 rounds these logits by some 1e-5

ENGINES = dict.fromkeys(MODELS, ("onnxruntime",)) | {
    "llama": ("onnxruntime", "openvino", "litert"),
    "whisper": ("onnxruntime", "litert"),
    "bart": ("onnxruntime", "openvino"),
}
PAIRS = [(name, engine) for name, engines in ENGINES.items() for engine in engines]

Load = Callable[[str], tuple[EdgeModel, Path]]
Open = Callable[[str, str], Session]


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A model by its name, in one size of prompt, and its directory."""

    @cache
    def load(name: str) -> tuple[EdgeModel, Path]:
        directory = write(name, tmp_path_factory.mktemp("saved") / name)
        model = load_model(str(directory))
        return (model if name == "whisper" else with_buckets(model, {"seq": (16,)})), directory

    return load


@pytest.fixture(scope="session")
def opened(loaded: Load, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """A session on an engine, converted in float32 once per run."""
    with contextlib.ExitStack() as stack:

        @cache
        def open_(name: str, engine: str) -> Session:
            model, _ = loaded(name)
            root = shared_root(tmp_path_factory)
            files = made_once(root, f"writes-{name}-{engine}", lambda home: converted(model, engine, home, root, name))
            session = stack.enter_context(open_session(engine, files, model.spec))
            session.assets = model.assets
            return session

        yield open_


def converted(model: EdgeModel, engine: str, home: Path, root: Path, name: str) -> dict[str, Path]:
    for module in ("onnxscript", "onnxruntime", "openvino", "litert_torch"):
        pytest.importorskip(module, reason="the conversions need edgeattn[convert,openvino,tflite]")
    from edgeattn.converters.litert import to_tflite
    from edgeattn.converters.onnx import export_onnx
    from edgeattn.converters.openvino import to_openvino

    if engine == "litert":
        return dict(to_tflite(model, home, "fp32").models)
    if engine == "onnxruntime":
        return dict(export_onnx(model, home))
    exported = made_once(root, f"writes-{name}-onnxruntime", lambda other: dict(export_onnx(model, other)))
    return dict(to_openvino(exported, home, "fp32").models)


@pytest.mark.parametrize("name", MODELS)
def test_the_best_token_leads_by_more_than_rounding(loaded: Load, name: str) -> None:
    """Else the tests below would compare how engines round."""
    _, directory = loaded(name)
    assert margin(name, directory, prompt(name), max_new_tokens=LENGTH) > LEAD


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_the_source_writes_what_transformers_writes(loaded: Load, name: str, beams: int) -> None:
    model, directory = loaded(name)
    expected = of_transformers(name, directory, prompt(name), num_beams=beams, max_new_tokens=LENGTH)
    assert len(set(expected)) > 5  # words that differ: a loop that lost its states would not write them
    options = GenerateOptions(beams=beams, max_new_tokens=LENGTH)
    assert list(Reference(model).generate(prompt(name), options)) == expected


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize(("name", "engine"), PAIRS)
def test_an_engine_writes_what_transformers_writes(
    loaded: Load, opened: Open, name: str, engine: str, beams: int
) -> None:
    _, directory = loaded(name)
    expected = of_transformers(name, directory, prompt(name), num_beams=beams, max_new_tokens=LENGTH)
    options = GenerateOptions(beams=beams, max_new_tokens=LENGTH)
    assert list(opened(name, engine).generate(prompt(name), options)) == expected


@pytest.mark.parametrize("early", [True, False, "never"])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -1.0])
@pytest.mark.parametrize("name", ["llama", "bart"])
def test_a_search_ends_where_transformers_ends_it(loaded: Load, name: str, penalty: float, early: Any) -> None:
    """The token that ends a text is one that it would write early, so that beams finish at different lengths."""
    model, directory = loaded(name)
    inputs = prompt(name)
    last = of_transformers(name, directory, inputs, num_beams=4, max_new_tokens=LENGTH)[6]
    expected = of_transformers(
        name, directory, inputs, num_beams=4, max_new_tokens=LENGTH, eos_token_id=last, early_stopping=early,
        length_penalty=penalty, min_length=0, forced_eos_token_id=None,
    )  # fmt: skip
    options = GenerateOptions(
        beams=4, max_new_tokens=LENGTH, stop=(last,), early_stopping=early, length_penalty=penalty, min_new_tokens=0,
        forced_eos=(),
    )  # fmt: skip
    assert list(Reference(model).generate(inputs, options)) == expected


def test_texts_of_one_session_are_written_at_once(loaded: Load, opened: Open) -> None:
    _, directory = loaded("llama")
    session, ids = opened("llama", "onnxruntime"), prompt("llama")["input_ids"]
    prompts = [{"input_ids": (ids + shift) % 97} for shift in range(4)]
    expected = [of_transformers("llama", directory, one, max_new_tokens=LENGTH) for one in prompts]
    options = GenerateOptions(max_new_tokens=LENGTH)
    turns = zip(*(session.generate(one, options) for one in prompts), strict=True)
    assert [list(text) for text in zip(*turns, strict=True)] == expected
    found: dict[int, list[int]] = {}

    def write_one(index: int) -> None:
        found[index] = list(session.generate(prompts[index], options))

    threads = [threading.Thread(target=write_one, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(4)] == expected


def test_a_prompt_beyond_the_largest_size_is_written_on(loaded: Load, opened: Open) -> None:
    _, directory = loaded("llama")
    ids = np.random.default_rng(4).integers(3, 97, (1, 30))  # the largest size is 16
    expected = of_transformers("llama", directory, {"input_ids": ids}, max_new_tokens=LENGTH)
    options = GenerateOptions(max_new_tokens=LENGTH)
    assert list(opened("llama", "onnxruntime").generate(ids[0], options)) == expected


def test_a_full_cache_slides_as_a_model_with_such_windows(
    loaded: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistral is a Llama whose layers see the last tokens alone, of any number: with the same weights, the oracle."""
    from edgeattn.sources.huggingface import causal

    monkeypatch.setattr(causal, "CACHE", 12)
    _, directory = loaded("llama")
    model = with_buckets(load_model(str(directory)), {})
    assert [graph.name for graph in model.spec.graphs] == ["prefill_12", "step"]
    shutil.copytree(directory, tmp_path / "mistral")
    config = json.loads((directory / "config.json").read_text())
    config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 12 + 1}
    (tmp_path / "mistral/config.json").write_text(json.dumps(config))
    expected = of_transformers("mistral", tmp_path / "mistral", prompt("llama"), max_new_tokens=40)
    assert expected != of_transformers("llama", directory, prompt("llama"), max_new_tokens=40)
    options = GenerateOptions(max_new_tokens=40, slide=True)
    assert list(Reference(model).generate(prompt("llama"), options)) == expected
    with pytest.raises(InputError, match="room for 13: take 3 at most, or let the oldest tokens fall out"):
        Reference(model).generate(prompt("llama"), GenerateOptions(max_new_tokens=40))
    windowed = with_buckets(load_model(str(tmp_path / "mistral")), {})  # its own window: nothing to allow
    assert list(Reference(windowed).generate(prompt("llama"), GenerateOptions(max_new_tokens=40))) == expected


def test_positions_end_where_the_models_do(opened: Open) -> None:
    session = opened("gpt2", "onnxruntime")
    assert len(list(session.generate([5, 6], GenerateOptions(max_new_tokens=63, stop=())))) == 63  # 64 positions
    with pytest.raises(InputError, match="room for 64: take 63 at most, or the model has positions for no more"):
        session.generate([5, 6], GenerateOptions(max_new_tokens=64))


def test_a_session_that_is_closed_writes_no_more(loaded: Load, opened: Open) -> None:
    model, _ = loaded("llama")
    files = made_once_files(opened)
    with open_session("onnxruntime", files, model.spec) as session:
        session.assets = model.assets
        text = session.generate([5, 6], GenerateOptions(max_new_tokens=5))
        next(text)
    with pytest.raises(InputError, match="closed"):
        next(text)
    with pytest.raises(InputError, match="closed"):
        session.generate([5, 6])


def made_once_files(opened: Open) -> dict[str, Path]:
    session: Any = opened("llama", "onnxruntime")
    return dict(session._models)
