"""MODEL as a Hugging Face directory: it computes what transformers computes, and nothing in it is ever run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeattn.errors import MissingExtraError, ModelError
from edgeattn.guards.silence import silenced
from edgeattn.sources import load_model

torch = pytest.importorskip("torch", reason="models are torch modules: edgeattn[convert]")
transformers: Any = pytest.importorskip("transformers", reason="directories are read by it: edgeattn[hf]")

BLOCKS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = BLOCKS | {"vocab_size": 97, "max_position_embeddings": 64}
IMAGE = BLOCKS | {"image_size": 16, "patch_size": 4}
SOUND = BLOCKS | {
    "vocab_size": 97,
    "conv_dim": [16] * 3,
    "conv_kernel": [10, 3, 2],
    "conv_stride": [10, 4, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
GPT = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
CLIP = {
    "text_config": TEXT | {"max_position_embeddings": 12, "eos_token_id": 2},
    "vision_config": IMAGE,
    "projection_dim": 16,
}
WORDS = TEXT | {"model_type": "llama", "num_key_value_heads": 2}
LLAVA = {"vision_config": IMAGE | {"model_type": "clip_vision_model"}, "text_config": WORDS, "image_token_index": 90}
SERIES = {"num_input_channels": 2, "context_length": 32, "patch_length": 8, "patch_stride": 8, "prediction_length": 4}

# ruff: noqa: E501 - one case a line
# class, config class, config, task, names of the inputs
CASES: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("BertModel", "BertConfig", TEXT, "feature-extraction", "input_ids attention_mask token_type_ids"),
    ("BertForSequenceClassification", "BertConfig", TEXT, "text-classification", "input_ids attention_mask token_type_ids"),
    ("BertForMultipleChoice", "BertConfig", TEXT, "multiple-choice", "input_ids attention_mask token_type_ids"),
    ("BertForMaskedLM", "BertConfig", TEXT, "fill-mask", "input_ids attention_mask token_type_ids"),
    ("RobertaForTokenClassification", "RobertaConfig", TEXT | {"type_vocab_size": 1, "pad_token_id": 1}, "token-classification", "input_ids attention_mask"),
    ("DistilBertForQuestionAnswering", "DistilBertConfig", {"vocab_size": 97, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, "question-answering", "input_ids attention_mask"),
    ("GPT2LMHeadModel", "GPT2Config", GPT, "text-generation", "input_ids attention_mask"),
    ("T5EncoderModel", "T5Config", T5, "feature-extraction", "input_ids attention_mask"),
    ("T5ForSequenceClassification", "T5Config", T5, "text-classification", "input_ids attention_mask"),
    ("BartModel", "BartConfig", {"vocab_size": 97, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64}, "feature-extraction", "input_ids attention_mask decoder_input_ids"),
    ("ViTForImageClassification", "ViTConfig", IMAGE, "image-classification", "pixel_values"),
    ("ViTMAEForPreTraining", "ViTMAEConfig", IMAGE | {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}, "pre-training", "pixel_values noise"),
    ("SwinModel", "SwinConfig", {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}, "feature-extraction", "pixel_values"),
    ("SegformerForSemanticSegmentation", "SegformerConfig", {"num_encoder_blocks": 2, "depths": [1, 1], "hidden_sizes": [8, 16], "num_attention_heads": [1, 2], "sr_ratios": [8, 4], "patch_sizes": [7, 3], "strides": [4, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16}, "image-segmentation", "pixel_values"),
    ("CLIPModel", "CLIPConfig", CLIP, "zero-shot-image-classification", "input_ids pixel_values attention_mask"),
    ("WhisperForAudioClassification", "WhisperConfig", {"vocab_size": 97, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32, "pad_token_id": 0}, "audio-classification", "input_features"),
    ("Wav2Vec2ForCTC", "Wav2Vec2Config", SOUND, "automatic-speech-recognition", "input_values"),
    ("ASTForAudioClassification", "ASTConfig", BLOCKS | {"patch_size": 8, "max_length": 24, "num_mel_bins": 16, "time_stride": 8, "frequency_stride": 8}, "audio-classification", "input_values"),
    ("PatchTSTForPrediction", "PatchTSTConfig", SERIES | {"d_model": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 16}, "prediction", "past_values"),
    ("TimesFmModel", "TimesFmConfig", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 8, "intermediate_size": 48, "context_length": 64}, "feature-extraction", "past_values past_values_padding freq"),
    ("Mamba2Model", "Mamba2Config", {"hidden_size": 32, "num_hidden_layers": 1, "num_heads": 8, "head_dim": 8, "state_size": 8, "vocab_size": 97, "n_groups": 1, "chunk_size": 8}, "feature-extraction", "input_ids attention_mask"),
    ("VideoMAEForVideoClassification", "VideoMAEConfig", IMAGE | {"num_frames": 4, "tubelet_size": 2}, "video-classification", "pixel_values"),
    ("LayoutLMForTokenClassification", "LayoutLMConfig", TEXT, "token-classification", "input_ids attention_mask bbox token_type_ids"),
    ("PerceiverModel", "PerceiverConfig", {"num_latents": 4, "d_latents": 16, "d_model": 16, "num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 2}, "feature-extraction", "inputs"),
    ("DecisionTransformerModel", "DecisionTransformerConfig", {"state_dim": 3, "act_dim": 2, "hidden_size": 16, "n_layer": 1, "n_head": 2, "max_ep_len": 64}, "feature-extraction", "states actions rewards returns_to_go timesteps"),
    ("LlavaForConditionalGeneration", "LlavaConfig", LLAVA, "image-text-to-text", "pixel_values input_ids attention_mask"),
    ("MixtralForCausalLM", "MixtralConfig", TEXT | {"num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2}, "text-generation", "input_ids attention_mask"),
    ("VisualBertModel", "VisualBertConfig", TEXT | {"visual_embedding_dim": 20}, "feature-extraction", "input_ids attention_mask token_type_ids visual_embeds"),
]  # fmt: skip

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A model with random weights, saved; its directory."""

    def make(
        kind: str = "BertModel", config: str = "BertConfig", settings: dict[str, Any] = TEXT, **options: Any
    ) -> Path:
        with silenced(), torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, kind)(getattr(transformers, config)(**settings))
            model.to(options.pop("dtype", torch.float32)).save_pretrained(tmp_path / "net", **options)
        return tmp_path / "net"

    return make


def edit(directory: Path, **changes: Any) -> None:
    """Change fields of config.json; None removes one."""
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(("kind", "config", "settings", "task", "names"), CASES, ids=[case[0] for case in CASES])
def test_it_computes_what_transformers_computes(
    save: Save, kind: str, config: str, settings: dict[str, Any], task: str, names: str
) -> None:
    directory = save(kind, config, settings)
    model = load_model(str(directory))
    example = model.example[model.spec.graphs[0].name]  # a causal language model's is its prefill
    assert set(example) == set(names.split())
    assert model.spec.task == task
    with silenced(), torch.inference_mode():
        oracle = getattr(transformers, kind).from_pretrained(directory, dtype=torch.float32).eval()
        expected = oracle(**{name: torch.from_numpy(value) for name, value in example.items()})
    got = model.run(example)
    compared = [name for name in got if isinstance(expected.get(name), torch.Tensor)]
    assert compared
    for name in compared:
        np.testing.assert_allclose(got[name], expected[name].numpy(), atol=1e-6, rtol=0)


def test_the_weights_of_experts_are_gathered_so_that_no_size_depends_on_values(save: Save) -> None:
    experts = TEXT | {"num_hidden_layers": 1, "num_key_value_heads": 2, "num_local_experts": 4}
    directory = save("MixtralForCausalLM", "MixtralConfig", experts)
    with silenced():
        network = transformers.MixtralForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokens = {"input_ids": torch.arange(16)[None]}
    with torch.inference_mode():
        expected = network(**tokens, use_cache=False).logits.numpy()
    made = load_model(str(directory))
    example = {name: array.copy() for name, array in made.example["prefill"].items()}
    example["input_ids"][...], example["attention_mask"][...] = tokens["input_ids"].numpy(), 1
    np.testing.assert_allclose(made.run(example)["logits"], expected, atol=1e-6, rtol=0)
    tensors = {name: torch.from_numpy(array) for name, array in example.items()}
    traced = torch.export.export(made.modules["prefill"], (), tensors, strict=False)
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert not [name for name in called if "histc" in name or "grouped_mm" in name]


def test_a_directory_without_architectures_is_its_base_model(save: Save) -> None:
    directory = save()
    edit(directory, architectures=None)
    assert list(load_model(str(directory)).run(load_model(str(directory)).example["main"])) == [
        "last_hidden_state",
        "pooler_output",
    ]


def test_tokens_may_vary_in_length_and_are_padded_with_the_pad_token(save: Save) -> None:
    model = load_model(str(save("RobertaModel", "RobertaConfig", TEXT | {"pad_token_id": 1, "type_vocab_size": 1})))
    assert model.dims == {"main": {"input_ids": {1: "seq"}, "attention_mask": {1: "seq"}}}
    assert model.fills == {"input_ids": 1.0}
    assert model.example["main"]["attention_mask"].sum() == 12  # of 16: a mask that is lost shows


def test_a_sharded_checkpoint_is_read_whole(save: Save) -> None:
    directory = save(max_shard_size="20KB")
    assert not (directory / "model.safetensors").exists()
    model = load_model(str(directory))
    whole = transformers.BertModel.from_pretrained(directory)
    assert model.source_size_bytes == 4 * sum(p.numel() for p in whole.state_dict().values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_weights_become_float32(save: Save, dtype: str) -> None:
    model = load_model(str(save(dtype=getattr(torch, dtype))))
    assert {p.dtype for p in model.modules["main"].parameters()} == {torch.float32}


def test_what_prepares_the_inputs_travels_with_the_model(save: Save) -> None:
    directory = save()
    for name in ("tokenizer_config.json", "vocab.txt", "preprocessor_config.json", "modeling_own.py", "notes.pkl"):
        (directory / name).write_text("{}")
    assert set(load_model(str(directory)).assets) == {
        "config.json",
        "tokenizer_config.json",
        "vocab.txt",
        "preprocessor_config.json",
    }


def test_a_tokenizer_gives_the_example_text(save: Save) -> None:
    tokenizers: Any = pytest.importorskip("tokenizers")
    directory = save()
    vocabulary = {"[UNK]": 5, "the": 6, "fox": 7}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    ids = load_model(str(directory)).example["main"]["input_ids"]
    np.testing.assert_array_equal(ids[0, :5], [6, 5, 5, 7, 5])  # the quick brown fox jumps


def test_tuples_of_outputs_are_numbered(save: Save) -> None:
    directory = save()
    edit(directory, output_hidden_states=True)
    outputs = [t.name for t in load_model(str(directory)).spec.graph().outputs]
    assert outputs == ["last_hidden_state", "pooler_output", "hidden_states_0", "hidden_states_1", "hidden_states_2"]


def test_an_encoder_published_without_its_pooler_is_read_without(save: Save) -> None:
    directory = save()
    drop(directory, "pooler.")
    model = load_model(str(directory))
    assert [t.name for t in model.spec.graph().outputs] == ["last_hidden_state"]
    assert model.notes == ("no pooler: the checkpoint has no weights for it",)


def drop(directory: Path, prefix: str) -> None:
    """Take tensors out of a checkpoint."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith(prefix)}, directory / "model.safetensors")


def test_unused_weights_are_a_note(save: Save) -> None:
    directory = save("BertForMaskedLM")
    edit(directory, architectures=["BertForTokenClassification"])
    with pytest.raises(ModelError, match=r"weights are missing, classifier\.bias, classifier\.weight"):
        load_model(str(directory))
    directory = save("GPT2ForTokenClassification", "GPT2Config", GPT)
    edit(directory, architectures=["GPT2Model"])
    assert load_model(str(directory)).notes == (
        "GPT2Model does not use classifier.bias, classifier.weight of the checkpoint",
    )


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_missing_weights_are_never_drawn_at_random(save: Save) -> None:
    directory = save("BertForSequenceClassification")
    drop(directory, "classifier")
    with pytest.raises(ModelError, match=r"weights are missing, classifier.* draw them at random"):
        load_model(str(directory))


def test_remote_code_is_refused_and_never_run(save: Save, tmp_path: Path) -> None:
    directory, made = save(), tmp_path / "made"
    (directory / "modeling_own.py").write_text(f"open({str(made)!r}, 'w')\nclass Own: pass\nclass OwnConfig: pass\n")
    references = {"AutoModel": "modeling_own.Own", "AutoConfig": "modeling_own.OwnConfig"}
    edit(directory, architectures=["Own"], auto_map=references)
    with pytest.raises(ModelError, match="Own needs remote code; it is never executed"):
        load_model(str(directory))
    edit(directory, model_type="own")
    with pytest.raises(ModelError, match="model_type 'own' needs remote code; it is never executed"):
        load_model(str(directory))
    edit(directory, model_type="bert", architectures=["BertModel"])  # transformers has it: its own code is taken
    assert load_model(str(directory)).spec.task == "feature-extraction"
    assert not made.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"])
def test_other_weights_are_refused_with_what_to_do(save: Save, name: str) -> None:
    directory = save()
    (directory / "model.safetensors").rename(directory / name)
    with pytest.raises(ModelError, match=rf"holds only {name}, which is not read; .*safe_serialization=True"):
        load_model(str(directory))


def test_a_directory_without_weights_or_config_is_refused(save: Save) -> None:
    directory = save()
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no weights; model\.safetensors is needed"):
        load_model(str(directory))
    (directory / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json; a Hugging Face directory is what save_pretrained"):
        load_model(str(directory))


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_truncated_weights_are_refused(save: Save, keep: int) -> None:
    path = save() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors: truncated or no safetensors file"):
        load_model(str(path.parent))


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"X9","shape":[1],"data_offsets":[0,4]}}',
        b"[" * 1000,
    ],
)
def test_hostile_headers_are_refused(save: Save, header: bytes) -> None:
    path = save() / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(ModelError, match=r"model\.safetensors: truncated or no safetensors file"):
        load_model(str(path.parent))


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../../secret.safetensors"}, "is no safetensors file of this directory"),
        ({"a": "/etc/passwd"}, "is no safetensors file of this directory"),
        ({"a": "net.bin"}, "is no safetensors file of this directory"),
        ({"a": "model-00001-of-00002.safetensors"}, "shard model-00001-of-00002.safetensors is missing"),
        ({}, "weight_map must map tensor names to files"),
        ({"a": 1}, "weight_map must map tensor names to files"),
    ],
)
def test_a_bad_index_is_refused(save: Save, weight_map: Any, message: str) -> None:
    directory = save()
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=message):
        load_model(str(directory))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("\ufeff{}", "not readable as JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ("[" * 100_000, "not readable as JSON"),
        ('{"a": ' + "9" * 10_000 + "}", "not readable as JSON"),
        ("{}", "knows no model_type None"),
        ('{"model_type": "brt"}', r"knows no model_type 'brt', did you mean 'bert'\?"),
        ('{"model_type": ["bert"]}', "knows no model_type"),
    ],
)
def test_a_bad_config_is_refused(save: Save, text: str, message: str) -> None:
    directory = save()
    (directory / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        load_model(str(directory))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 10**15}, "vocab_size = 1000000000000000 is no size of a model"),
        ({"vocab_size": 2**31 - 1}, "describes a model of more than .* elements"),
        ({"max_position_embeddings": 2**31 - 1}, "describes a model of more than .* elements|cannot be built"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000, but the weights hold 39 tensors"),
        ({"num_hidden_layers": 900}, "describes a model of more than .* modules"),
        ({"hidden_size": -32}, "cannot be built|no valid bert config"),
        ({"num_attention_heads": 0}, "cannot be built|no valid bert config"),
        ({"hidden_size": "many"}, "cannot be built|no valid bert config"),
        ({"hidden_size": 64}, "cannot be built"),
        ({"hidden_act": "wobble"}, "cannot be built|no valid bert config"),
        ({"architectures": "BertModel"}, "architectures must be a list of class names"),
        ({"architectures": ["BertModl"]}, r"has no model class 'BertModl', did you mean 'BertModel'\?"),
        ({"architectures": ["pipeline"]}, "has no model class 'pipeline'"),
        ({"architectures": ["__loader__"]}, "has no model class '__loader__'"),
        ({"architectures": ["ViTModel"]}, "ViTModel needs model_type 'vit', got 'bert'"),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantized"),
    ],
)
def test_a_config_that_is_no_model_is_refused(save: Save, changes: dict[str, Any], message: str) -> None:
    directory = save()
    edit(directory, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(str(directory))
    assert "\n" not in str(caught.value)


def test_an_input_of_terabytes_is_not_made(save: Save) -> None:
    directory = save(*next(case[:3] for case in CASES if case[0].startswith("Segformer")))
    edit(directory, image_size=10**9)
    with pytest.raises(ModelError, match=r"asks for an input of \[1, 3, 1000000000, 1000000000\]"):
        load_model(str(directory))


@pytest.mark.parametrize("text", ["{", "[]", '{"model": {"type": "Own"}}', "\0"])
def test_a_damaged_tokenizer_is_refused(save: Save, text: str) -> None:
    directory = save()
    (directory / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=r"tokenizer\.json: not readable as a tokenizer"):
        load_model(str(directory))


def test_an_adapter_is_refused(save: Save) -> None:
    directory = save()
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "elsewhere"}')
    with pytest.raises(ModelError, match=r"holds an adapter .*merge_and_unload"):
        load_model(str(directory))


def test_a_config_that_points_elsewhere_is_not_followed(save: Save, tmp_path: Path) -> None:
    directory = save()
    edit(directory, transformers_weights="../elsewhere.bin", attn_implementation="someone/kernel", use_kernels=True)
    assert load_model(str(directory)).spec.task == "feature-extraction"


def test_a_parameter_that_cannot_be_invented_is_named(save: Save) -> None:
    config = TEXT | {"encoder_hidden_size": 32, "cross_attention_frequency": 1}
    with pytest.raises(
        ModelError, match=r"Blip2QFormerModel.forward takes 'query_embeds'.*Give your own with a factory"
    ):
        load_model(str(save("Blip2QFormerModel", "Blip2QFormerConfig", config)))


def test_without_transformers_the_extra_is_named(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = save()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"transformers is needed here: pip install 'edgeattn\[hf\]'"):
        load_model(str(directory))


def test_importing_the_sources_imports_no_framework() -> None:
    code = "import sys, edgeattn.sources; print([m for m in ('torch', 'transformers', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stderr
