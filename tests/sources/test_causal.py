"""Causal language models as two graphs: a prompt and the tokens after it give what transformers gives for the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.sources import load_model
from edgeattn.sources.sizes import with_buckets

torch = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")
transformers: Any = pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")

TOLERANCE = 1e-4  # float32, the order of sums differs; the logits here are of the order of 1

SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
LLAMA = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
WHOLE = SIZES | {"num_attention_heads": 4, "max_position_embeddings": 64}
GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}

GEMMA = LLAMA | {"head_dim": 8, "sliding_window": 8}

# class, config class, config: positions from a table, rotated, rotated in part, from a table with an offset
STEPPED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", GPT),
    "Llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA),
    "NeoX": ("GPTNeoXForCausalLM", "GPTNeoXConfig", WHOLE),
    "OPT": ("OPTForCausalLM", "OPTConfig", WHOLE | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}
ONE_GRAPH: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "windows in some layers": ("Gemma2ForCausalLM", "Gemma2Config", GEMMA, "its logits step by step differ"),
    "recurrent": ("MambaForCausalLM", "MambaConfig", SIZES | {"state_size": 8}, "its cache holds no keys"),
    "types": ("BertLMHeadModel", "BertConfig", WHOLE, "it reads token_type_ids"),
}


def saved(kind: str, config: str, settings: dict[str, Any], directory: Path) -> tuple[EdgeModel, Any]:
    with silenced(), torch.random.fork_rng():
        torch.manual_seed(0)
        module = getattr(transformers, kind)(getattr(transformers, config)(**settings))
        with torch.no_grad():
            for parameter in module.parameters():  # off the zeros of biases, and positions that count
                parameter.add_(0.1 * torch.randn_like(parameter))
        module.save_pretrained(directory)
        return load_model(str(directory)), getattr(transformers, kind).from_pretrained(directory).eval()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[EdgeModel, Any]]:
    """A model by its name here: as edgeattn reads its directory, and as transformers does."""
    known: dict[str, tuple[EdgeModel, Any]] = {}

    def load(name: str) -> tuple[EdgeModel, Any]:
        if name not in known:
            known[name] = saved(*STEPPED[name], tmp_path_factory.mktemp("saved") / "net")
        return known[name]

    return load


def stepped(model: EdgeModel, tokens: np.ndarray, states: dict[str, np.ndarray], first: int) -> np.ndarray:
    """Logits after each token from ``first`` on."""
    graph, logits = model.spec.graph("step"), []
    for position in range(first, len(tokens)):
        inputs = {"input_ids": tokens[None, position : position + 1], "position": np.array([position])}
        result = model.run({**inputs, **states}, "step")
        states = {state.input: result[state.output] for state in graph.states}
        logits.append(result["logits"][0, 0])
    return np.stack(logits)


def whole(module: Any, tokens: np.ndarray) -> np.ndarray:
    """Transformers' logits for the whole sequence, without a cache."""
    with silenced(), torch.inference_mode():
        logits: np.ndarray = module(input_ids=torch.from_numpy(tokens)[None], use_cache=False).logits[0].numpy()
    return logits


def text(length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 97, length)


@pytest.mark.parametrize("name", STEPPED)
def test_steps_equal_the_whole_sequence_up_to_the_last_position(
    loaded: Callable[[str], tuple[EdgeModel, Any]], name: str
) -> None:
    model, module = loaded(name)
    assert [graph.name for graph in model.spec.graphs] == ["prefill", "step"]
    assert model.notes == ("step looks back on 63 tokens, at most 64 in all",)
    tokens = text(64)
    logits = stepped(model, tokens, model.spec.graph("step").initial_states(), 0)
    np.testing.assert_allclose(logits, whole(module, tokens), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("name", STEPPED)
def test_steps_go_on_behind_a_prompt_of_any_length(loaded: Callable[[str], tuple[EdgeModel, Any]], name: str) -> None:
    """The keys of a padded prompt, moved to the end of a cache."""
    model, module = loaded(name)
    sized = with_buckets(model, {})
    assert [graph.name for graph in sized.spec.graphs] == ["prefill_16", "prefill_63", "step"]
    tokens = text(30)
    for count in (1, 9, 16, 20):
        prompt = {"input_ids": tokens[None, :count], "attention_mask": np.ones((1, count), np.int64)}
        given = sized.run(prompt, "prefill")
        states = sized.spec.graph("step").initial_states()
        for key, state in states.items():
            state[:, :, state.shape[2] - count :] = given[key]
        logits = np.concatenate([given["logits"][0], stepped(sized, tokens, states, count)])
        np.testing.assert_allclose(logits, whole(module, tokens), atol=TOLERANCE, rtol=TOLERANCE)


def test_a_cache_has_the_heads_of_the_keys(loaded: Callable[[str], tuple[EdgeModel, Any]]) -> None:
    model, _ = loaded("Llama")
    assert {state.shape for state in model.spec.graph("step").states} == {(1, 2, 63, 8)}
    assert model.spec.task == "text-generation"
    assert model.buckets == {"seq": (16, 63)}


def test_from_a_full_cache_the_oldest_falls_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgeattn.sources.huggingface import causal

    monkeypatch.setattr(causal, "CACHE", 8)
    model, module = saved(*STEPPED["Llama"], tmp_path / "net")
    assert model.notes == ("step looks back on 8 tokens, at most 64 in all",)
    assert model.buckets == {"seq": (8,)}
    tokens = text(16)
    logits = stepped(model, tokens, model.spec.graph("step").initial_states(), 0)
    expected = whole(module, tokens)
    np.testing.assert_allclose(logits[:9], expected[:9], atol=TOLERANCE, rtol=TOLERANCE)
    assert np.isfinite(logits).all()
    assert np.abs(logits[15] - expected[15]).max() > TOLERANCE


def test_a_window_of_all_layers_is_a_cache_of_that_length(tmp_path: Path) -> None:
    settings = LLAMA | {"sliding_window": 8}
    model, module = saved("MistralForCausalLM", "MistralConfig", settings, tmp_path / "net")
    assert model.notes == ("step looks back on 7 tokens as all its layers do, at most 64 in all",)
    assert model.buckets == {"seq": (16, 63)}  # a prompt may be longer than the window
    tokens = text(40)
    logits = stepped(model, tokens, model.spec.graph("step").initial_states(), 0)
    np.testing.assert_allclose(logits, whole(module, tokens), atol=TOLERANCE, rtol=TOLERANCE)


def test_caches_move_by_concatenation_alone(loaded: Callable[[str], tuple[EdgeModel, Any]]) -> None:
    model, _ = loaded("Llama")
    example = {name: torch.from_numpy(value) for name, value in model.example["step"].items()}
    program = torch.export.export(model.modules["step"], (), example, strict=False)
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [
        name for name in used if any(word in name for word in ("scatter", "index_copy", "index_put", "nonzero"))
    ]


@pytest.mark.parametrize("name", ONE_GRAPH)
def test_a_model_that_cannot_be_stepped_is_one_graph_and_says_why(name: str, tmp_path: Path) -> None:
    kind, config, settings, why = ONE_GRAPH[name]
    model, module = saved(kind, config, settings, tmp_path / "net")
    assert [graph.name for graph in model.spec.graphs] == ["main"]
    assert model.notes[0].startswith("one graph over the whole text, without caches: ")
    assert why in model.notes[0]
    example = model.example["main"]
    with silenced(), torch.inference_mode():
        expected = module(**{name: torch.from_numpy(value) for name, value in example.items()}).logits
    np.testing.assert_allclose(model.run(example)["logits"], expected.numpy(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_all_graphs_convert(loaded: Callable[[str], tuple[EdgeModel, Any]], name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="edgeattn[convert]")
    from edgeattn.converters.onnx import export_onnx

    files = export_onnx(with_buckets(loaded(name)[0], {"seq": (16,)}), tmp_path)  # compared with torch inside
    assert set(files) == {"prefill_16", "step"}
