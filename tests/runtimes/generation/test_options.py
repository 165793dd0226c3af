"""What may be asked for, and what a model's own config says where nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import InputError
from edgeattn.runtimes import GenerateOptions
from edgeattn.runtimes.generation.plan import TOP_K, plan_of
from tests.runtimes.generation.toy import assets


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("max_new_tokens", 0, "max_new_tokens must be a whole number from 1 on, got 0"),
        ("max_new_tokens", True, "max_new_tokens must be a whole number from 1 on, got True"),
        ("min_new_tokens", -1, "min_new_tokens must be a whole number from 0 on, got -1"),
        ("beams", 2.0, "beams must be a whole number from 1 on, got 2.0"),
        ("beams", 65, "beams must be 64 at most, got 65"),
        ("temperature", 0.0, "temperature must be larger than 0, got 0.0"),
        ("temperature", float("nan"), "temperature must be a finite number, got nan"),
        ("repetition_penalty", -1, "repetition_penalty must be larger than 0, got -1"),
        ("length_penalty", "1", "length_penalty must be a finite number, got '1'"),
        ("top_p", 0.0, r"top_p must lie in \(0, 1\], got 0.0"),
        ("top_p", 1.5, r"top_p must lie in \(0, 1\], got 1.5"),
        ("early_stopping", "soon", "early_stopping must be True, False or 'never', got 'soon'"),
        ("stop", (1.5,), "stop must be a sequence of token ids, whole numbers from 0 on"),
        ("suppress", (-1,), "suppress must be a sequence of token ids"),
        ("prefix", [[1], [2, 3]], "prefix must be a sequence of token ids"),
        ("bad_words", ((),), "bad_words holds an empty sequence"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field: str, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        GenerateOptions(**{field: value})


def test_tokens_may_come_as_any_sequence() -> None:
    options = GenerateOptions(stop=[3], suppress=np.array([4, 5]), bad_words=([6, 7],))  # type: ignore[arg-type]
    assert (options.stop, options.suppress, options.bad_words) == ((3,), (4, 5), ((6, 7),))


def test_what_is_not_asked_for_is_the_models_own(tmp_path: Path) -> None:
    own = {
        "num_beams": 4, "length_penalty": 0.5, "early_stopping": True, "max_length": 30, "min_length": 3,
        "no_repeat_ngram_size": 3, "eos_token_id": [2, 3], "bad_words_ids": [[0], [5, 6]], "forced_eos_token_id": 2,
        "forced_bos_token_id": 9, "suppress_tokens": [7], "begin_suppress_tokens": [8], "decoder_start_token_id": 1,
        "repetition_penalty": 1.2, "pad_token_id": 4, "temperature": None,
    }  # fmt: skip
    files = assets(tmp_path, {"max_position_embeddings": 64, "num_beams": 2}, own)
    plan = plan_of(GenerateOptions(), files)
    assert (plan.beams, plan.length_penalty, plan.early_stopping, plan.max_length) == (4, 0.5, True, 30)
    assert (plan.min_length, plan.no_repeat_ngram, plan.stop) == (3, 3, (2, 3))
    assert (plan.bad_words, plan.forced_eos, plan.forced_bos) == (((0,), (5, 6)), (2,), (9,))
    assert (plan.suppress, plan.begin_suppress, plan.start, plan.pad) == ((7,), (8,), 1, 4)
    assert (plan.repetition_penalty, plan.positions, plan.temperature) == (1.2, 64, 1.0)
    asked = plan_of(GenerateOptions(beams=1, stop=(), forced_bos=(), max_new_tokens=5, bad_words=()), files)
    assert (asked.beams, asked.stop, asked.forced_bos, asked.max_new_tokens, asked.asked) == (1, (), (), 5, True)
    assert asked.bad_words == ()


def test_without_a_generation_config_the_config_says_it(tmp_path: Path) -> None:
    config = {"eos_token_id": 2, "decoder": {"decoder_start_token_id": 5, "max_position_embeddings": 32}}
    plan = plan_of(GenerateOptions(), assets(tmp_path, config))
    assert (plan.stop, plan.start, plan.positions) == ((2,), 5, 32)
    assert plan_of(GenerateOptions(), {}).stop == ()


def test_a_model_that_samples_draws_as_transformers_would(tmp_path: Path) -> None:
    files = assets(tmp_path, {}, {"do_sample": True, "temperature": 0.6, "top_p": 0.9})
    plan = plan_of(GenerateOptions(), files)
    assert (plan.sample, plan.temperature, plan.top_p, plan.top_k) == (True, 0.6, 0.9, TOP_K)
    searching = plan_of(GenerateOptions(beams=4), files)  # asked for beams, so nothing is drawn
    assert (searching.sample, searching.beams) == (False, 4)


def test_a_search_that_draws_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sample=True draws one text, and beams=4 searches for the best"):
        plan_of(GenerateOptions(sample=True, beams=4), {})
    files = assets(tmp_path, {}, {"num_beams": 4})
    assert plan_of(GenerateOptions(sample=True), files).beams == 1  # the model's own search gives way


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must be a JSON object, got list"),
        ("[" * 100_000, "cannot be read as JSON"),
        (json.dumps({"num_beams": "4"}), "num_beams must be a whole number, got '4'"),
        (json.dumps({"eos_token_id": [-1]}), "eos_token_id must be a token id or a list of them"),
        (json.dumps({"bad_words_ids": [["a"]]}), "bad_words_ids must be lists of tokens"),
        (json.dumps({"do_sample": 1}), "do_sample must be true or false, got 1"),
        (json.dumps({"length_penalty": "long"}), "length_penalty must be a number, got 'long'"),
        (json.dumps({"early_stopping": 3}), "early_stopping must be true, false or 'never', got 3"),
    ],
)
def test_a_config_that_is_none_is_refused_with_its_name(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"generation_config\.json.*" + said):
        plan_of(GenerateOptions(), {"generation_config.json": path})


def test_a_config_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgeattn.runtimes.generation import plan

    monkeypatch.setattr(plan, "MAX_CONFIG_BYTES", 10)
    with pytest.raises(InputError, match="has more than 10 bytes, no config does"):
        plan_of(GenerateOptions(), assets(tmp_path, {"vocab_size": 1000}))
