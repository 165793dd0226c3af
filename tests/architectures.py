"""Small attention models with random weights: what the acceptance matrix and docs/support.md are about.

Transformers' own classes with a few thousand weights, stock torch modules, and attention written by hand the way users
write it. ``NAMED`` goes through every kind of source on every engine; ``FURTHER`` from torch alone, cheaper, so that no
rule fits the first list only. Weights are drawn from a fixed seed, and moved off the initial zeros and ones of biases
and norms: a bias that an engine drops would not be seen otherwise.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

Inputs = dict[str, Tensor]
Made = tuple[nn.Module, Inputs]

WORDS, SEQ, DIM, HEADS, BLOCKS, FFN = 97, 12, 32, 4, 2, 48
IMAGE, PATCH = 16, 4  # pixels
FRAMES, MEL = 40, 16
SAMPLES = 600  # of sound, after which Wav2Vec2's seven convolutions leave a handful of frames
TRANSFORMERS = "transformers"


@dataclass(frozen=True)
class Architecture:
    """One model.

    Attributes:
        name: of its row.
        kind: what it reads: "text", "image", "sound", "text to text", "several", "series", "graph".
        make: draws it; inputs are named after forward's parameters.
        saved: a Hugging Face class, which can be saved as a directory.
        needs: module that must be there.
    """

    name: str
    kind: str
    make: Callable[[], Made]
    saved: bool = False
    needs: str | None = None

    def build(self) -> Made:
        """The module in eval mode, and one set of inputs. The same in every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module, inputs = self.make()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.02 * torch.randn_like(parameter))
        return module.eval(), inputs


# --- what several models read -------------------------------------------------------------------------------------


def ids(length: int = SEQ) -> Tensor:
    return torch.randint(3, WORDS, (1, length))


def text(length: int = SEQ, padding: int = 3) -> Inputs:
    """Token ids and a mask whose last positions are padding, as a tokenizer gives them."""
    mask = torch.ones(1, length, dtype=torch.int64)
    mask[:, length - padding :] = 0
    return {"input_ids": ids(length), "attention_mask": mask}


def decoded(length: int = SEQ) -> Inputs:
    return {**text(length), "decoder_input_ids": ids(5)}


def image() -> Inputs:
    return {"pixel_values": torch.randn(1, 3, IMAGE, IMAGE)}


def sound() -> Inputs:
    return {"input_values": torch.randn(1, SAMPLES)}


# --- transformers' own classes ------------------------------------------------------------------------------------


def library() -> Any:
    """transformers; its annotations ask more of a test than they tell."""
    return importlib.import_module(TRANSFORMERS)


def pretrained(config: str, head: str, options: dict[str, Any], inputs: Callable[[], Inputs]) -> Callable[[], Made]:
    """A class of transformers with a small config. Both go by name, so that nothing is imported yet."""

    def make() -> Made:
        transformers = library()
        made = getattr(transformers, head)(getattr(transformers, config)(**options))
        return made, inputs()

    return make


ENCODER = {
    "vocab_size": WORDS,
    "hidden_size": DIM,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "max_position_embeddings": 64,
}
VISION = {
    "hidden_size": DIM,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
SEQ2SEQ = {
    "vocab_size": WORDS,
    "d_model": DIM,
    "encoder_layers": BLOCKS,
    "decoder_layers": BLOCKS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": FFN,
    "use_cache": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
WHISPER = {
    **SEQ2SEQ,
    "num_mel_bins": MEL,
    "max_source_positions": FRAMES // 2,
    "max_target_positions": 32,
    "forced_decoder_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
WAVE = {
    "vocab_size": WORDS,
    "hidden_size": DIM,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "conv_dim": [16] * 3,
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 0,
}
LLAMA = {**ENCODER, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": 0}


class WhisperEncoder(nn.Module):
    """The encoder alone, the way a service splits Whisper."""

    def __init__(self) -> None:
        super().__init__()
        transformers = library()
        self.encoder = transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)).get_encoder()

    def forward(self, input_features: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(input_features).last_hidden_state)


class WhisperStep(nn.Module):
    """One token of the decoder, its caches as tensors: [layers, 1, heads, tokens so far, head_dim]."""

    def __init__(self) -> None:
        super().__init__()
        transformers = library()
        self.whisper = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**WHISPER))

    def forward(self, token: Tensor, encoded: Tensor, keys: Tensor, values: Tensor) -> dict[str, Tensor]:
        transformers = library()
        cache = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
        for layer in range(keys.shape[0]):
            cache.self_attention_cache.update(keys[layer], values[layer], layer)
        decoder = self.whisper.get_decoder()
        hidden = decoder(token, encoder_hidden_states=encoded, past_key_values=cache, use_cache=True).last_hidden_state
        layers = cache.self_attention_cache.layers
        return {
            "logits": self.whisper.proj_out(hidden),
            "next_keys": torch.stack([layer.keys for layer in layers]),
            "next_values": torch.stack([layer.values for layer in layers]),
        }


def whisper_step() -> Made:
    past = (BLOCKS, 1, HEADS, 6, DIM // HEADS)
    return WhisperStep(), {
        "token": ids(1),
        "encoded": torch.randn(1, FRAMES // 2, DIM),
        "keys": torch.randn(past),
        "values": torch.randn(past),
    }


def clip() -> Made:
    transformers = library()
    words = {**ENCODER, "max_position_embeddings": SEQ, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=words, vision_config=VISION, projection_dim=24)
    read = text()
    read["input_ids"][0, SEQ - 4] = 2  # the end of the text, whose position CLIP pools
    return transformers.CLIPModel(config), {**read, **image()}


# --- stock torch modules ------------------------------------------------------------------------------------------


class TorchEncoder(nn.Module):
    """nn.TransformerEncoder with a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, DIM)
        layer = nn.TransformerEncoderLayer(DIM, HEADS, FFN, batch_first=True, norm_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, BLOCKS, enable_nested_tensor=False)
        self.head = nn.Linear(DIM, 5)

    def forward(self, tokens: Tensor, padding: Tensor) -> dict[str, Tensor]:
        hidden = self.encoder(self.embedding(tokens), src_key_padding_mask=padding)
        seen = (~padding).unsqueeze(-1)
        return {"scores": self.head((hidden * seen).sum(1) / seen.sum(1))}


def torch_encoder() -> Made:
    padding = torch.zeros(1, SEQ, dtype=torch.bool)
    padding[:, SEQ - 3 :] = True
    return TorchEncoder(), {"tokens": ids(), "padding": padding}


class TorchDecoder(nn.Module):
    """nn.TransformerDecoder under a causal mask, over a memory."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(DIM, HEADS, FFN, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, BLOCKS)

    def forward(self, target: Tensor, memory: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        # Without the hint torch.export itself stumbles over a comparison of masks (edgeattn's own trace does not).
        return cast(Tensor, self.decoder(target, memory, tgt_mask=causal, tgt_is_causal=True))


class Multihead(nn.Module):
    """nn.MultiheadAttention over another sequence, its weights a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, kdim=24, vdim=24, batch_first=True)

    def forward(self, query: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        mixed, weights = self.attention(query, memory, memory)
        return mixed, weights


class LstmAttention(nn.Module):
    """LSTM and additive attention (Bahdanau et al., 2015) that pools a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 24)
        self.recurrent = nn.LSTM(24, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.key = nn.Linear(DIM, DIM)
        self.energy = nn.Linear(DIM, 1, bias=False)
        self.head = nn.Linear(DIM, 5)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        hidden, _ = self.recurrent(self.embedding(tokens))
        weights = torch.softmax(self.energy(torch.tanh(self.key(hidden))), dim=1)
        return {"scores": self.head((weights * hidden).sum(1)), "weights": weights.squeeze(-1)}


class GruTranslator(nn.Module):
    """GRU encoder and decoder with attention at each step (Bahdanau et al., 2015), teacher forced."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(WORDS, 24)
        self.target = nn.Embedding(WORDS, 24)
        self.encoder = nn.GRU(24, DIM, batch_first=True)
        self.cell = nn.GRUCell(24 + DIM, DIM)
        self.score = nn.Linear(DIM, DIM, bias=False)
        self.head = nn.Linear(2 * DIM, WORDS)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, last = self.encoder(self.source(source))
        keys, hidden, read = self.score(memory), last[0], []
        for step in range(target.shape[1]):
            weights = torch.softmax(torch.einsum("btd,bd->bt", keys, hidden), dim=-1)
            context = torch.einsum("bt,btd->bd", weights, memory)
            hidden = self.cell(torch.cat([self.target(target[:, step]), context], -1), hidden)
            read.append(torch.cat([hidden, context], -1))
        return cast(Tensor, self.head(torch.stack(read, 1)))


# --- attention by hand --------------------------------------------------------------------------------------------


def split_heads(x: Tensor) -> Tensor:
    """(B, T, D) -> (B, H, T, D / H)."""
    return x.reshape(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, d) -> (B, T, H * d)."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


class HandMade(nn.Module):
    """Projections and a residual around :meth:`attend`, which each mechanism writes itself."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.q, self.k, self.v, self.out = (nn.Linear(DIM, DIM) for _ in range(4))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        mixed = self.attend(split_heads(self.q(y)), split_heads(self.k(y)), split_heads(self.v(y)))
        return x + cast(Tensor, self.out(join_heads(mixed)))


class HardAttention(HandMade):
    """Each query reads the one best key (Xu et al., 2015, at inference)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        best = (q @ k.transpose(-1, -2)).argmax(-1, keepdim=True)
        return v.gather(2, best.expand(-1, -1, -1, v.shape[-1]))


class TopKAttention(HandMade):
    """Softmax over the four best keys."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        least = scores.topk(4, dim=-1).values[..., -1:]
        return scores.masked_fill(scores < least, float("-inf")).softmax(-1) @ v


class WindowAttention(HandMade):
    """Two positions to each side."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(q.shape[2])
        near = (place[:, None] - place[None, :]).abs() <= 2
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=near)


class Linformer(HandMade):
    """Keys and values projected to four positions (Wang et al., 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.values = nn.Linear(SEQ, 4, bias=False), nn.Linear(SEQ, 4, bias=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = self.keys(k.transpose(-1, -2)).transpose(-1, -2)
        v = self.values(v.transpose(-1, -2)).transpose(-1, -2)
        return functional.scaled_dot_product_attention(q, k, v)


class LinearAttention(HandMade):
    """elu(x) + 1 as the feature map, causal by a cumulative sum (Katharopoulos et al., 2020)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = functional.elu(q) + 1, functional.elu(k) + 1
        memory = torch.einsum("bhtd,bhte->bhtde", k, v).cumsum(2)
        weight = torch.einsum("bhtd,bhtd->bht", q, k.cumsum(2))
        return torch.einsum("bhtd,bhtde->bhte", q, memory) / weight[..., None]


class RelativeBias(HandMade):
    """A learned bias per head and distance (Shaw et al., 2018, as T5 simplified it)."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(2 * SEQ - 1, HEADS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        place = torch.arange(q.shape[2])
        bias = self.bias(place[:, None] - place[None, :] + SEQ - 1).permute(2, 0, 1).unsqueeze(0)
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class Alibi(HandMade):
    """Linear biases, causal (Press et al., 2022)."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length = q.shape[2]
        slopes = 2.0 ** (torch.arange(1, HEADS + 1) * (-8 // HEADS))
        place = torch.arange(length)
        distance = (place[None, :] - place[:, None]).clamp(max=0)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + slopes[:, None, None] * distance
        hidden = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        return scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1) @ v


class Multimodal(nn.Module):
    """Words attend to image regions and the other way round, gated (as in Flamingo)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, DIM)
        self.regions = nn.Linear(20, DIM)
        self.to_image = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.to_words = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.gate = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, words: Tensor, regions: Tensor, present: Tensor) -> dict[str, Tensor]:
        x, y = self.embedding(words), self.regions(regions)
        seen, _ = self.to_image(x, y, y, key_padding_mask=~present, need_weights=False)
        told, _ = self.to_words(y, x, x, need_weights=False)
        return {"words_seen": x + self.gate.tanh() * seen, "regions_told": y + self.gate.tanh() * told}


class Recommender(nn.Module):
    """Self-attention over a history, scores of the next item (SASRec, Kang & McAuley, 2018)."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(WORDS, DIM, padding_idx=0)
        self.places = nn.Embedding(SEQ, DIM)
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.first, self.second = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.narrow = nn.Conv1d(DIM, DIM, 1)

    def forward(self, history: Tensor) -> Tensor:
        length = history.shape[1]
        x = self.items(history) * DIM**0.5 + self.places(torch.arange(length))
        x = x * (history != 0).unsqueeze(-1)
        hidden = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        y = self.first(x)
        x = y + self.attention(y, x, x, attn_mask=hidden, need_weights=False)[0]
        x = x + self.narrow(self.second(x).transpose(1, 2)).transpose(1, 2).relu()
        scores: Tensor = x[:, -1] @ self.items.weight.T
        return scores


class GraphAttention(nn.Module):
    """Graph attention (Velickovic et al., 2018) over entities, an adjacency per relation."""

    def __init__(self, relations: int = 3) -> None:
        super().__init__()
        self.entity = nn.Embedding(WORDS, DIM)
        self.project = nn.Linear(DIM, DIM, bias=False)
        self.sender = nn.Parameter(torch.randn(relations, DIM) / DIM**0.5)
        self.receiver = nn.Parameter(torch.randn(relations, DIM) / DIM**0.5)

    def forward(self, entities: Tensor, edges: Tensor) -> Tensor:
        h = self.project(self.entity(entities))
        scores = (h @ self.receiver.T).transpose(1, 2).unsqueeze(-1) + (h @ self.sender.T).transpose(1, 2).unsqueeze(-2)
        scores = functional.leaky_relu(scores, 0.2).masked_fill(edges == 0, -1e4)
        return functional.elu((scores.softmax(-1) @ h.unsqueeze(1)).mean(1))


def graph_attention() -> Made:
    edges = (torch.rand(1, 3, 10, 10) < 0.4).to(torch.int64)
    return GraphAttention(), {"entities": ids(10), "edges": torch.maximum(edges, torch.eye(10, dtype=torch.int64))}


class RotaryGrouped(nn.Module):
    """Rotary positions and grouped queries by hand, causal, with RMSNorm written out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(DIM))
        self.q, self.kv, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def forward(self, x: Tensor) -> Tensor:
        length, size = x.shape[1], DIM // HEADS
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        q = split_heads(self.q(y))
        k, v = (t.reshape(1, length, HEADS // 2, size).transpose(1, 2) for t in self.kv(y).chunk(2, -1))
        angle = torch.outer(torch.arange(length).float(), 10_000.0 ** (-torch.arange(0, size, 2).float() / size))
        turn = torch.polar(torch.ones_like(angle), angle)
        cos, sin = turn.real.repeat(1, 2), turn.imag.repeat(1, 2)

        def rotate(t: Tensor) -> Tensor:
            first, second = t.chunk(2, -1)
            return t * cos + torch.cat([-second, first], -1) * sin

        k, v = (t[:, :, None].expand(-1, -1, 2, -1, -1).reshape(1, HEADS, length, size) for t in (rotate(k), v))
        return x + cast(
            Tensor, self.out(join_heads(functional.scaled_dot_product_attention(rotate(q), k, v, is_causal=True)))
        )


def by_hand(module: type[nn.Module]) -> Callable[[], Made]:
    return lambda: (module(), {"x": torch.randn(1, SEQ, DIM)})


def hugging_face(
    name: str, kind: str, config: str, head: str, options: dict[str, Any], inputs: Callable[[], Inputs]
) -> Architecture:
    return Architecture(name, kind, pretrained(config, head, options, inputs), saved=True, needs=TRANSFORMERS)


NAMED: tuple[Architecture, ...] = (
    hugging_face("BERT", "text", "BertConfig", "BertForSequenceClassification", ENCODER, text),
    hugging_face(
        "DistilBERT",
        "text",
        "DistilBertConfig",
        "DistilBertForTokenClassification",
        {"vocab_size": WORDS, "dim": DIM, "n_layers": BLOCKS, "n_heads": HEADS, "hidden_dim": FFN},
        text,
    ),
    hugging_face("RoBERTa", "text", "RobertaConfig", "RobertaModel", {**ENCODER, "pad_token_id": 1}, text),
    hugging_face(
        "GPT-2",
        "text",
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": WORDS,
            "n_embd": DIM,
            "n_layer": BLOCKS,
            "n_head": HEADS,
            "n_positions": 64,
            "use_cache": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        text,
    ),
    hugging_face(
        "T5",
        "text to text",
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": WORDS,
            "d_model": DIM,
            "d_kv": DIM // HEADS,
            "d_ff": FFN,
            "num_layers": BLOCKS,
            "num_heads": HEADS,
            "use_cache": False,
            "decoder_start_token_id": 0,
        },
        decoded,
    ),
    hugging_face(
        "BART",
        "text to text",
        "BartConfig",
        "BartForConditionalGeneration",
        {**SEQ2SEQ, "max_position_embeddings": 64, "forced_eos_token_id": None},
        decoded,
    ),
    hugging_face("ViT", "image", "ViTConfig", "ViTForImageClassification", VISION, image),
    hugging_face("DeiT", "image", "DeiTConfig", "DeiTForImageClassificationWithTeacher", VISION, image),
    hugging_face(
        "Swin",
        "image",
        "SwinConfig",
        "SwinForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
            "mlp_ratio": 2.0,
        },
        lambda: {"pixel_values": torch.randn(1, 3, 32, 32)},
    ),
    Architecture("CLIP", "several", clip, saved=True, needs=TRANSFORMERS),
    Architecture(
        "Whisper encoder",
        "sound",
        lambda: (WhisperEncoder(), {"input_features": torch.randn(1, MEL, FRAMES)}),
        needs=TRANSFORMERS,
    ),
    Architecture("Whisper decoder step", "sound", whisper_step, needs=TRANSFORMERS),
    hugging_face(
        "Whisper",
        "sound",
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        WHISPER,
        lambda: {"input_features": torch.randn(1, MEL, FRAMES), "decoder_input_ids": ids(5)},
    ),
    hugging_face("Wav2Vec2", "sound", "Wav2Vec2Config", "Wav2Vec2ForCTC", WAVE, sound),
    hugging_face(
        "Wav2Vec2-Conformer",
        "sound",
        "Wav2Vec2ConformerConfig",
        "Wav2Vec2ConformerForCTC",
        {**WAVE, "position_embeddings_type": "relative", "conv_depthwise_kernel_size": 5},
        sound,
    ),
    Architecture("nn.TransformerEncoder", "text", torch_encoder),
    Architecture(
        "nn.TransformerDecoder",
        "series",
        lambda: (TorchDecoder(), {"target": torch.randn(1, 5, DIM), "memory": torch.randn(1, SEQ, DIM)}),
    ),
    Architecture(
        "nn.MultiheadAttention",
        "series",
        lambda: (Multihead(), {"query": torch.randn(1, 5, DIM), "memory": torch.randn(1, SEQ, 24)}),
    ),
    Architecture("LSTM + additive attention", "text", lambda: (LstmAttention(), {"tokens": ids()})),
    Architecture(
        "GRU seq2seq with attention",
        "text to text",
        lambda: (GruTranslator(), {"source": ids(), "target": ids(5)}),
    ),
)

FURTHER: tuple[Architecture, ...] = (
    Architecture("hard attention", "series", by_hand(HardAttention)),
    Architecture("top-k attention", "series", by_hand(TopKAttention)),
    Architecture("sliding window", "series", by_hand(WindowAttention)),
    Architecture("Linformer", "series", by_hand(Linformer)),
    Architecture("linear attention", "series", by_hand(LinearAttention)),
    Architecture("relative bias", "series", by_hand(RelativeBias)),
    Architecture("ALiBi", "series", by_hand(Alibi)),
    Architecture("RoPE + grouped queries", "series", by_hand(RotaryGrouped)),
    Architecture(
        "cross attention of two modalities",
        "several",
        lambda: (
            Multimodal(),
            {
                "words": ids(),
                "regions": torch.randn(1, 9, 20),
                "present": torch.arange(9).unsqueeze(0) < 7,
            },
        ),
    ),
    Architecture("SASRec", "series", lambda: (Recommender(), {"history": functional.pad(ids(SEQ - 4), (4, 0))})),
    Architecture("graph attention", "graph", graph_attention),
    hugging_face("Llama", "text", "LlamaConfig", "LlamaForCausalLM", LLAMA, text),
    hugging_face("Qwen2", "text", "Qwen2Config", "Qwen2ForCausalLM", LLAMA, text),
    hugging_face("Gemma", "text", "GemmaConfig", "GemmaForCausalLM", {**LLAMA, "head_dim": 8}, text),
    hugging_face("Mistral", "text", "MistralConfig", "MistralModel", {**LLAMA, "sliding_window": 4}, text),
    hugging_face(
        "Longformer",
        "text",
        "LongformerConfig",
        "LongformerModel",
        {**ENCODER, "attention_window": [4, 4], "pad_token_id": 1},
        text,
    ),
    hugging_face(
        "BigBird", "text", "BigBirdConfig", "BigBirdModel", {**ENCODER, "attention_type": "original_full"}, text
    ),
    hugging_face(
        "DeBERTa",
        "text",
        "DebertaV2Config",
        "DebertaV2Model",
        {
            **ENCODER,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
        text,
    ),
    hugging_face("ALBERT", "text", "AlbertConfig", "AlbertModel", {**ENCODER, "embedding_size": 16}, text),
    hugging_face("ELECTRA", "text", "ElectraConfig", "ElectraModel", {**ENCODER, "embedding_size": 16}, text),
    hugging_face("MPNet", "text", "MPNetConfig", "MPNetModel", {**ENCODER, "pad_token_id": 1}, text),
    hugging_face(
        "XLNet",
        "text",
        "XLNetConfig",
        "XLNetModel",
        {
            "vocab_size": WORDS,
            "d_model": DIM,
            "n_layer": BLOCKS,
            "n_head": HEADS,
            "d_inner": FFN,
            "use_mems_eval": False,
        },
        text,
    ),
    hugging_face(
        "ModernBERT",
        "text",
        "ModernBertConfig",
        "ModernBertModel",
        {**ENCODER, "pad_token_id": 0, "local_attention": 4, "global_attn_every_n_layers": 2},
        text,
    ),
    hugging_face(
        "Perceiver",
        "several",
        "PerceiverConfig",
        "PerceiverModel",
        {
            "d_model": DIM,
            "d_latents": 24,
            "num_latents": 6,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 2,
        },
        lambda: {"inputs": torch.randn(1, SEQ, DIM)},
    ),
    hugging_face(
        "SegFormer",
        "image",
        "SegformerConfig",
        "SegformerForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [3, 3],
            "strides": [2, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 16,
        },
        image,
    ),
    hugging_face(
        "YOLOS",
        "image",
        "YolosConfig",
        "YolosForObjectDetection",
        {**VISION, "image_size": [IMAGE, IMAGE], "num_detection_tokens": 5, "use_mid_position_embeddings": False},
        image,
    ),
    hugging_face(
        "BEiT",
        "image",
        "BeitConfig",
        "BeitForImageClassification",
        {**VISION, "use_relative_position_bias": True, "vocab_size": WORDS},
        image,
    ),
    hugging_face("DINOv2", "image", "Dinov2Config", "Dinov2Model", {**VISION, "mlp_ratio": 2}, image),
    hugging_face(
        "VideoMAE",
        "image",
        "VideoMAEConfig",
        "VideoMAEForVideoClassification",
        {**VISION, "num_frames": 4},
        lambda: {"pixel_values": torch.randn(1, 4, 3, IMAGE, IMAGE)},
    ),
    hugging_face(
        "AST",
        "sound",
        "ASTConfig",
        "ASTForAudioClassification",
        {**VISION, "max_length": 24, "num_mel_bins": MEL, "frequency_stride": 4, "time_stride": 4},
        lambda: {"input_values": torch.randn(1, 24, MEL)},
    ),
    hugging_face(
        "PatchTST",
        "series",
        "PatchTSTConfig",
        "PatchTSTForPrediction",
        {
            "num_input_channels": 2,
            "context_length": 32,
            "prediction_length": 8,
            "patch_length": 8,
            "patch_stride": 8,
            "d_model": DIM,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": HEADS,
            "ffn_dim": FFN,
        },
        lambda: {"past_values": torch.randn(1, 32, 2)},
    ),
    hugging_face(
        "Wav2Vec2-BERT",
        "sound",
        "Wav2Vec2BertConfig",
        "Wav2Vec2BertForCTC",
        {
            "vocab_size": WORDS,
            "hidden_size": DIM,
            "num_hidden_layers": BLOCKS,
            "num_attention_heads": HEADS,
            "intermediate_size": FFN,
            "feature_projection_input_dim": MEL,
            "conv_depthwise_kernel_size": 5,
            "pad_token_id": 0,
        },
        lambda: {"input_features": torch.randn(1, SEQ, MEL)},
    ),
    hugging_face("HuBERT", "sound", "HubertConfig", "HubertForCTC", WAVE, sound),
    hugging_face(
        "M2M100", "text to text", "M2M100Config", "M2M100Model", {**SEQ2SEQ, "max_position_embeddings": 64}, decoded
    ),
)

ALL = (*NAMED, *FURTHER)


def named(name: str) -> Architecture:
    """The architecture of that name."""
    return next(architecture for architecture in ALL if architecture.name == name)
