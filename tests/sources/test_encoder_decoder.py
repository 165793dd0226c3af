"""Encoder-decoders as two graphs: token by token they give what transformers gives for the whole sequence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.guards.silence import silenced
from edgeattn.model import EdgeModel
from edgeattn.sources import load_model

torch = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")
transformers: Any = pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")

TOLERANCE = 1e-4  # float32, the order of sums differs; the logits here are of the order of 1

BART = {
    "vocab_size": 97,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": None,
}
T5 = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
WHISPER = BART | {"num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 24}
MOONSHINE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "encoder_num_hidden_layers": 1,
    "decoder_num_hidden_layers": 1,
    "encoder_num_attention_heads": 4,
    "decoder_num_attention_heads": 4,
    "encoder_num_key_value_heads": 4,
    "decoder_num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}

Make = Callable[[], Any]


def of(kind: str, config: str, settings: dict[str, Any]) -> Make:
    return lambda: getattr(transformers, kind)(getattr(transformers, config)(**settings))


def vision(decoder: Make) -> Make:
    def make() -> Any:
        encoder = transformers.ViTConfig(**TINY, image_size=16, patch_size=4)
        both = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder())
        both.decoder_start_token_id, both.pad_token_id = 1, 0
        return transformers.VisionEncoderDecoderModel(both)

    return make


def bert_decoder() -> Any:
    return transformers.BertConfig(
        vocab_size=97, **TINY, max_position_embeddings=64, is_decoder=True, add_cross_attention=True
    )


def trocr_decoder() -> Any:
    settings = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "max_position_embeddings": 64}
    return transformers.TrOCRConfig(vocab_size=97, d_model=32, **settings)


# Positions are told in each of the ways: relative, looked up by their number, by decoder_position_ids, from a table.
STEPPED: dict[str, Make] = {
    "T5": of("T5ForConditionalGeneration", "T5Config", T5),
    "UMT5": of("UMT5ForConditionalGeneration", "UMT5Config", T5),
    "BART": of("BartForConditionalGeneration", "BartConfig", BART),
    "Pegasus": of("PegasusForConditionalGeneration", "PegasusConfig", BART),
    "MBart": of("MBartForConditionalGeneration", "MBartConfig", BART),
    "Marian": of("MarianMTModel", "MarianConfig", BART),
    "M2M100": of("M2M100ForConditionalGeneration", "M2M100Config", BART),
    "Whisper": of("WhisperForConditionalGeneration", "WhisperConfig", WHISPER),
    "Moonshine": of("MoonshineForConditionalGeneration", "MoonshineConfig", MOONSHINE),
    "ViT and BERT": vision(bert_decoder),
    "TrOCR": vision(trocr_decoder),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[EdgeModel, Any]]:
    """A model by its name here: as edgeattn reads its directory, and as transformers does."""
    known: dict[str, tuple[EdgeModel, Any]] = {}

    def load(name: str) -> tuple[EdgeModel, Any]:
        if name not in known:
            known[name] = saved(STEPPED[name], tmp_path_factory.mktemp("saved") / "net")
        return known[name]

    return load


def saved(make: Make, directory: Path) -> tuple[EdgeModel, Any]:
    with silenced(), torch.random.fork_rng():
        torch.manual_seed(0)
        module = make()
        with torch.no_grad():
            for parameter in module.parameters():  # off the zeros of biases, and positions that count
                parameter.add_(0.1 * torch.randn_like(parameter))
        module.save_pretrained(directory)
        return load_model(str(directory)), type(module).from_pretrained(directory).eval()


def greedy(model: EdgeModel, tokens: int, first: int = 1) -> tuple[list[int], np.ndarray]:
    """Tokens that were read, and the logits after each."""
    example = model.example["encoder"]
    graph = model.spec.graph("decoder_step")
    crossed = model.run(example, "encoder")
    given = crossed | {name: value for name, value in example.items() if name in graph.input_names}
    states, read, logits = graph.initial_states(), [first], []
    for position in range(tokens):
        step = {"input_ids": np.array([[read[-1]]]), "position": np.array([position])}
        result = model.run({**given, **states, **step}, "decoder_step")
        states = {state.input: result[state.output] for state in graph.states}
        logits.append(result["logits"][0, 0])
        read.append(int(logits[-1].argmax()))
    return read[:-1], np.stack(logits)


def whole(module: Any, model: EdgeModel, tokens: list[int]) -> np.ndarray:
    """Transformers' logits for the whole sequence, without a cache."""
    inputs = {name: torch.from_numpy(value) for name, value in model.example["encoder"].items()}
    with silenced(), torch.inference_mode():
        result = module(**inputs, decoder_input_ids=torch.tensor([tokens]), use_cache=False)
    logits: np.ndarray = result.logits[0].numpy()
    return logits


@pytest.mark.parametrize("name", STEPPED)
def test_greedy_steps_equal_the_whole_sequence(loaded: Callable[[str], tuple[EdgeModel, Any]], name: str) -> None:
    model, module = loaded(name)
    assert [graph.name for graph in model.spec.graphs] == ["encoder", "decoder_step"]
    read, logits = greedy(model, 14)
    np.testing.assert_allclose(logits, whole(module, model, read), atol=TOLERANCE, rtol=TOLERANCE)


def test_a_token_counts_where_it_stands(loaded: Callable[[str], tuple[EdgeModel, Any]]) -> None:
    """The oracle above would not see positions that are lost, were they without effect."""
    model, _ = loaded("BART")
    first = model.example["decoder_step"]
    later = {**first, "position": first["position"] + 20}
    assert np.abs(model.run(first, "decoder_step")["logits"] - model.run(later, "decoder_step")["logits"]).max() > 1e-2


def test_the_last_row_of_the_table_can_be_read(loaded: Callable[[str], tuple[EdgeModel, Any]]) -> None:
    model, module = loaded("Whisper")
    assert model.notes == ("decoder_step looks back on 23 tokens, at most 24 in all",)
    read, logits = greedy(model, 24)
    np.testing.assert_allclose(logits, whole(module, model, read), atol=TOLERANCE, rtol=TOLERANCE)


def test_from_a_full_cache_the_oldest_falls_out(
    loaded: Callable[[str], tuple[EdgeModel, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from edgeattn.sources.huggingface import encoder_decoder as stepping

    monkeypatch.setattr(stepping, "CACHE", 8)
    model, module = saved(STEPPED["T5"], tmp_path / "net")
    assert model.notes == ("decoder_step looks back on 8 tokens",)
    read, logits = greedy(model, 16)
    np.testing.assert_allclose(logits[:9], whole(module, model, read)[:9], atol=TOLERANCE, rtol=TOLERANCE)
    assert np.isfinite(logits).all()
    # Beyond, a layer reads the last 8 tokens and the new one; what those read before is in their keys.
    assert np.abs(logits[15] - whole(module, model, read)[15]).max() > TOLERANCE


def test_caches_move_by_concatenation_alone(loaded: Callable[[str], tuple[EdgeModel, Any]]) -> None:
    model, _ = loaded("T5")
    graph = model.spec.graph("decoder_step")
    program = torch.export.export(
        model.modules["decoder_step"],
        (),
        {name: torch.from_numpy(value) for name, value in model.example["decoder_step"].items()},
        strict=False,
    )
    used = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not [
        name for name in used if any(word in name for word in ("scatter", "index_copy", "index_put", "nonzero"))
    ]
    assert all(state.shape == (1, 4, 256, 8) for state in graph.states)


def test_the_encoders_axis_of_tokens_is_the_decoders(loaded: Callable[[str], tuple[EdgeModel, Any]]) -> None:
    dims = loaded("T5")[0].dims
    assert dims["encoder"] == {"input_ids": {1: "seq"}, "attention_mask": {1: "seq"}}
    assert dims["decoder_step"]["attention_mask"] == {1: "seq"}
    assert dims["decoder_step"]["cross_key_0"] == {2: "seq"}


def test_a_decoder_that_cannot_be_stepped_is_one_graph_and_says_why(tmp_path: Path) -> None:
    settings = {k: v for k, v in BART.items() if k != "max_position_embeddings"}
    lengths = {"max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": 4}
    model, module = saved(of("LEDForConditionalGeneration", "LEDConfig", settings | lengths), tmp_path / "net")
    assert [graph.name for graph in model.spec.graphs] == ["main"]
    assert model.notes[0].startswith("one graph over the whole target sequence, without caches: ")
    example = model.example["main"]
    with silenced(), torch.inference_mode():
        expected = module(**{name: torch.from_numpy(value) for name, value in example.items()}).logits
    np.testing.assert_allclose(model.run(example)["logits"], expected.numpy(), atol=1e-6)


@pytest.mark.slow
def test_both_graphs_convert(loaded: Callable[[str], tuple[EdgeModel, Any]], tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="edgeattn[convert]")
    from edgeattn.converters.onnx import export_onnx

    files = export_onnx(loaded("BART")[0], tmp_path)  # compared with torch inside
    assert set(files) == {"encoder", "decoder_step"}
