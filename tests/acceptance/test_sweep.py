"""The sweep over transformers: what it shrinks, what it says of a class, and what its page is made of."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")
pytest.importorskip("transformers", reason="the sweep builds its classes: edgeattn[hf]")

from benchmarks import sweep
from benchmarks.cases import TARGETS
from benchmarks.shrink import WORDS, shrunk
from benchmarks.sweep import LARGEST, Row, classes, measure, read
from benchmarks.sweep_page import counts, render
from edgeattn.errors import load_extra
from edgeattn.guards.silence import silenced

RIGHT = {target: {"outcome": "right", "share": 2e-7} for target in TARGETS}
REFUSED = RIGHT | {TARGETS[1]: {"outcome": "refused", "code": 4, "reason": "aten.foo | has no kernel"}}


def small(kind: str) -> Any:
    with silenced():
        return next(shrunk(getattr(load_extra("transformers", "hf"), kind))).config


def test_widths_are_divided_by_one_factor_and_heads_stay_heads() -> None:
    config = small("BertConfig")
    assert (config.hidden_size, config.intermediate_size, config.num_attention_heads) == (96, 384, 12)
    assert (config.num_hidden_layers, config.vocab_size) == (2, WORDS)


def test_every_kind_of_layer_is_kept_once() -> None:
    config = small("Gemma3TextConfig")
    assert sorted(config.layer_types) == ["full_attention", "sliding_attention"]
    assert config.num_hidden_layers == 2


def test_layers_that_are_named_one_by_one_are_all_there() -> None:
    config = small("DPTConfig")
    assert (config.num_hidden_layers, config.backbone_out_indices) == (4, [0, 1, 2, 3])


def test_special_tokens_stay_apart_in_a_small_vocabulary() -> None:
    config = small("LlavaConfig")
    assert config.text_config.vocab_size == WORDS
    assert WORDS // 2 <= config.image_token_id < WORDS


def test_a_sub_config_keeps_what_its_owner_says() -> None:
    config = small("DepthAnythingConfig")
    assert config.backbone_config.reshape_hidden_states is False
    assert config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]


def test_the_sweep_knows_every_class_once_and_heads_of_used_architectures_first() -> None:
    names = [name for name, *_ in classes()]
    assert len(names) == len(set(names)) > 1000
    assert names[0] == "BertForMaskedLM"
    assert names.index("BertModel") < names.index("LlavaForConditionalGeneration")


def test_a_class_that_is_read_and_one_that_is_refused() -> None:
    with silenced():
        taken = measure("DPTForDepthEstimation", "dpt", ("DEPTH_ESTIMATION",), ())
        refused = measure("InformerModel", "informer", ("BASE",), ())
    assert (taken.code, taken.apart, taken.modality) == (0, "", "vision")
    assert 0 < taken.parameters < LARGEST
    assert refused.code == 2
    assert "changes between two calls on the same inputs" in refused.reason


def test_what_cannot_be_built_is_told_apart() -> None:
    with silenced():
        row = measure("TimmWrapperModel", "timm_wrapper", ("BASE",), ())
    assert "timm" in row.apart
    assert not row.right


def test_the_page_counts_what_was_built_and_names_each_failure() -> None:
    rows = [
        Row("BertModel", "bert", ("BASE",), "text", targets=RIGHT),
        Row("FooModel", "foo", ("BASE",), "text", targets=REFUSED),
        Row("BarModel", "bar", ("BASE",), "audio", code=2, reason="no example"),
        Row("ReadModel", "read", ("BASE",), "text"),
        Row("TimmModel", "timm", ("BASE",), "vision", apart="needs timm"),
    ]
    page = render(rows, {"torch": "9"}, known=7, largest=LARGEST)
    assert "were built small, 3 are read (75.0 %); of 2 of these that were converted, 1 are right" in page
    assert "| text | 3 | 0 | 3 | 3 | 2 | 1 |" in page
    assert "\nReadModel." in page
    assert "| bert | BertModel | 2e-07 | 2e-07 | 2e-07 |" in page
    assert f"- FooModel, {TARGETS[1]}, refused: aten.foo \\| has no kernel" in page
    assert "- BarModel (exit code 2): no example" in page
    assert "- needs timm: TimmModel" in page


def test_the_published_page_is_made_of_its_rows_and_none_is_wrong() -> None:
    tools, rows = read(sweep.ROWS)
    page = sweep.ROWS.with_suffix(".md").read_text()
    known = json.loads(sweep.ROWS.read_text().partition("\n")[0])["known"]  # by the transformers of that run
    assert page == render(list(rows.values()), tools, known, LARGEST)
    assert not [name for name, row in rows.items() if row.wrong]
    assert counts(rows.values()) in page
    for row in rows.values():
        assert (
            row.right
            or row.apart
            or row.reason
            or all(one.get("reason") or "share" in one for one in row.targets.values())
        )
