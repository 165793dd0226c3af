"""Parts of attention: heads, what is done to queries and keys, scores, mixing, merging."""

# Torch types few of its functions:
# mypy: disable-error-code="no-any-return, no-untyped-call"
# ruff: noqa: ARG005  # every part takes the module

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tests.fuzz.parts import BATCH, DIM, HEADS, LENGTH, WIDTH, Table
from tests.fuzz.weights import Weights

HEADED, PAIRED, SCORES, BIASES = Table(), Table(), Table(), Table()
MIXED, MERGED, LINEAR = Table(), Table(), Table()
EPSILONS = (1e-5, 1e-6, 1e-8, 1e-12, 1e-16)

# --- heads: features to (batch, heads, length, width) -----------------------------------------------------------------


@HEADED.part()
def viewed(x: Tensor, m: Weights) -> Tensor:
    return x.view(BATCH, LENGTH, HEADS, WIDTH).transpose(1, 2)


@HEADED.part()
def permuted(x: Tensor, m: Weights) -> Tensor:
    return x.reshape(BATCH, LENGTH, HEADS, WIDTH).permute(0, 2, 1, 3).contiguous()


@HEADED.part()
def unflattened(x: Tensor, m: Weights) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).movedim(2, 1)


@HEADED.part()
def chunked(x: Tensor, m: Weights) -> Tensor:
    return torch.stack(x.chunk(HEADS, -1), 1)


@HEADED.part()
def split(x: Tensor, m: Weights) -> Tensor:
    return torch.cat(x.split(WIDTH, -1), 0).view(HEADS, BATCH, LENGTH, WIDTH).transpose(0, 1)


@HEADED.part()
def interleaved(x: Tensor, m: Weights) -> Tensor:
    return x.view(BATCH, LENGTH, WIDTH, HEADS).permute(0, 3, 1, 2)


@HEADED.part()
def by_einsum(x: Tensor, m: Weights) -> Tensor:
    return torch.einsum("btd,hde->bhte", x, m.square.view(DIM, HEADS, WIDTH).transpose(0, 1))


@HEADED.part(form=("expand", "repeat", "interleave", "index"))
def grouped(x: Tensor, m: Weights, form: str) -> Tensor:
    one = x[..., :WIDTH].unsqueeze(1)
    if form == "expand":
        return one.expand(BATCH, HEADS, LENGTH, WIDTH)
    if form == "repeat":
        return one.repeat(1, HEADS, 1, 1)
    if form == "interleave":
        return one.repeat_interleave(HEADS, 1)
    return one[:, :, None].expand(-1, -1, HEADS, -1, -1).reshape(BATCH, HEADS, LENGTH, WIDTH)


# --- on queries and keys alike ----------------------------------------------------------------------------------------


def _angles(base: float = 100.0) -> Tensor:
    return torch.outer(torch.arange(LENGTH).float(), base ** (-torch.arange(0, WIDTH, 2) / WIDTH))


@PAIRED.part()
def plain(x: Tensor, m: Weights) -> Tensor:
    return x


@PAIRED.part(form=("half", "pairs", "complex", "partial", "matrix", "negative"))
def rotary(x: Tensor, m: Weights, form: str) -> Tensor:
    angles = _angles()
    if form == "complex":
        turned = torch.view_as_complex(
            x.reshape(BATCH, HEADS, LENGTH, WIDTH // 2, 2).clone(memory_format=torch.contiguous_format)
        )
        return torch.view_as_real(turned * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    if form == "pairs":
        cos, sin, even, odd = angles.cos(), angles.sin(), x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
    if form == "matrix":
        turn = torch.stack((angles.cos(), -angles.sin(), angles.sin(), angles.cos()), -1).view(LENGTH, -1, 2, 2)
        return torch.einsum("tpij,bhtpj->bhtpi", turn, x.unflatten(-1, (-1, 2))).flatten(-2)
    whole = torch.cat((angles, angles), -1)
    first, second = x.chunk(2, -1)
    turned = x * whole.cos() + torch.cat((-second, first), -1) * whole.sin()
    if form == "negative":
        return turned * torch.exp(-torch.arange(LENGTH) / 8.0)[:, None]
    return torch.cat((turned[..., :2], x[..., 2:]), -1) if form == "partial" else turned


@PAIRED.part(eps=EPSILONS, form=("torch", "add", "rsqrt", "clamp"))
def unit(x: Tensor, m: Weights, eps: float, form: str) -> Tensor:
    if form == "torch":
        return functional.normalize(x, dim=-1, eps=eps)
    if form == "add":
        return x / (x.norm(dim=-1, keepdim=True) + eps)
    if form == "rsqrt":
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
    return x / x.square().sum(-1, keepdim=True).clamp(min=eps).sqrt()


@PAIRED.part(eps=EPSILONS, form=("rms", "layer"))
def head_norm(x: Tensor, m: Weights, eps: float, form: str) -> Tensor:
    if form == "layer":
        return functional.layer_norm(x, (WIDTH,), m.head_gain, None, eps)
    return m.head_gain * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


@PAIRED.part(axis=(-1, -2))
def softmaxed(x: Tensor, m: Weights, axis: int) -> Tensor:
    return torch.softmax(x, axis)


@PAIRED.part()
def centred(x: Tensor, m: Weights) -> Tensor:
    return x - x.mean(-2, keepdim=True)


@PAIRED.part()
def shifted(x: Tensor, m: Weights) -> Tensor:
    return torch.cat((x[..., :2], functional.pad(x, (0, 0, 1, -1))[..., 2:]), -1)


@PAIRED.part()
def head_mixed(x: Tensor, m: Weights) -> Tensor:
    return torch.einsum("hg,bgtd->bhtd", m.mixing, x)


@PAIRED.part(temperature=(0.1, 8.0))
def tempered(x: Tensor, m: Weights, temperature: float) -> Tensor:
    return x / temperature


# --- scores: queries and keys to (batch, heads, length, length) -------------------------------------------------------


@SCORES.part(scale=(1.0, 0.5, 0.125), form=("after", "query", "key", "divide", "both"))
def dot(q: Tensor, k: Tensor, m: Weights, scale: float, form: str) -> Tensor:
    if form == "query":
        return (q * scale) @ k.transpose(-1, -2)
    if form == "key":
        return q @ (k * scale).mT
    if form == "divide":
        return torch.matmul(q, k.transpose(2, 3)) / (1 / scale)
    if form == "both":
        return (q * scale**0.5) @ (k.transpose(-2, -1) * scale**0.5)
    return torch.matmul(q, k.transpose(-2, -1)) * scale


@SCORES.part(form=("bhqd,bhkd->bhqk", "bhid,bhjd->bhij"))
def by_einsum_too(q: Tensor, k: Tensor, m: Weights, form: str) -> Tensor:
    return torch.einsum(form, q, k) / math.sqrt(WIDTH)


@SCORES.part(form=("bmm", "baddbmm"))
def batched(q: Tensor, k: Tensor, m: Weights, form: str) -> Tensor:
    queries, keys = q.reshape(-1, LENGTH, WIDTH), k.reshape(-1, LENGTH, WIDTH).transpose(1, 2)
    if form == "bmm":
        return torch.bmm(queries, keys).view(BATCH, HEADS, LENGTH, LENGTH)
    made = torch.baddbmm(m.pair_bias.repeat(BATCH, 1, 1), queries, keys, beta=0.5, alpha=WIDTH**-0.5)
    return made.view(BATCH, HEADS, LENGTH, LENGTH)


@SCORES.part(form=("tanh", "relu", "leaky"))
def additive(q: Tensor, k: Tensor, m: Weights, form: str) -> Tensor:
    both = q.unsqueeze(-2) + k.unsqueeze(-3)
    act = {"tanh": torch.tanh, "relu": torch.relu, "leaky": lambda x: functional.leaky_relu(x, 0.2)}[form]
    return act(both) @ m.additive


@SCORES.part()
def graph_attention(q: Tensor, k: Tensor, m: Weights) -> Tensor:
    return functional.leaky_relu((q @ m.additive)[..., None] + (k @ m.head_gain)[..., None, :], 0.2)


@SCORES.part()
def general(q: Tensor, k: Tensor, m: Weights) -> Tensor:
    return q @ m.head @ k.mT


@SCORES.part(eps=EPSILONS, form=("torch", "hand"))
def cosine(q: Tensor, k: Tensor, m: Weights, eps: float, form: str) -> Tensor:
    if form == "torch":
        return functional.cosine_similarity(q.unsqueeze(-2), k.unsqueeze(-3), dim=-1, eps=eps)
    return q @ k.mT / (q.norm(dim=-1)[..., None] * k.norm(dim=-1)[..., None, :] + eps)


@SCORES.part(form=("cdist", "expanded", "rbf", "l1", "product", "inverse"))
def distance(q: Tensor, k: Tensor, m: Weights, form: str) -> Tensor:
    if form == "cdist":
        return -torch.cdist(q, k)
    if form == "l1":
        return -(q.unsqueeze(-2) - k.unsqueeze(-3)).abs().sum(-1)
    if form == "expanded":
        return -(q.square().sum(-1, keepdim=True) + k.square().sum(-1)[..., None, :] - 2 * q @ k.mT).clamp(min=0)
    squared = (q.unsqueeze(-2) - k.unsqueeze(-3)).pow(2).sum(-1)
    if form == "inverse":
        return 1 / (1 + squared)
    return torch.exp(-squared / 2) if form == "rbf" else -0.5 * squared


@SCORES.part(form=("shift", "gather", "table", "shaw"))
def relative(q: Tensor, k: Tensor, m: Weights, form: str) -> Tensor:
    content = q @ k.mT
    if form == "shaw":
        apart = (torch.arange(LENGTH) - torch.arange(LENGTH)[:, None]).clamp(-3, 3) + 3
        return content + torch.einsum("bhid,ijd->bhij", q, m.relative[apart])
    if form == "table":
        apart = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH) + LENGTH - 1
        return content + m.relative.sum(-1)[apart]
    position = q @ m.relative.T
    if form == "gather":
        apart = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH) + LENGTH - 1).expand(BATCH, HEADS, -1, -1)
        return content + position.gather(-1, apart)
    padded = functional.pad(position, (1, 0)).view(BATCH, HEADS, 2 * LENGTH, LENGTH)[:, :, 1:]
    return content + padded.reshape(BATCH, HEADS, LENGTH, 2 * LENGTH - 1)[..., :LENGTH]


@SCORES.part()
def synthesized(q: Tensor, k: Tensor, m: Weights) -> Tensor:
    return (q + k) @ m.relative.T[:, :LENGTH]


# --- on scores: biases, caps ------------------------------------------------------------------------------------------


def _apart() -> Tensor:
    return torch.arange(LENGTH)[None] - torch.arange(LENGTH)[:, None]


@BIASES.part()
def nothing(s: Tensor, m: Weights) -> Tensor:
    return s


@BIASES.part(form=("symmetric", "causal", "slopes"))
def alibi(s: Tensor, m: Weights, form: str) -> Tensor:
    slopes = 2.0 ** -torch.arange(1, HEADS + 1).float()
    if form == "slopes":
        return s + m.slopes.view(1, HEADS, 1, 1) * torch.arange(LENGTH)
    apart = -_apart().abs() if form == "symmetric" else _apart().clamp(max=0)
    return s + slopes[:, None, None] * apart


@BIASES.part(both=(True, False))
def t5_buckets(s: Tensor, m: Weights, both: bool) -> Tensor:
    apart, buckets, found = _apart(), 8, torch.zeros(LENGTH, LENGTH, dtype=torch.long)
    if both:
        buckets //= 2
        found = (apart > 0).long() * buckets
        apart = apart.abs()
    else:
        apart = -torch.min(apart, torch.zeros_like(apart))
    exact = buckets // 2
    far = exact + (torch.log(apart.float() / exact) / math.log(20 / exact) * (buckets - exact)).long()
    far = torch.min(far, torch.full_like(far, buckets - 1))
    return s + m.buckets[found + torch.where(apart < exact, apart, far)].permute(2, 0, 1)[None]


@BIASES.part(cap=(5.0, 30.0))
def softcap(s: Tensor, m: Weights, cap: float) -> Tensor:
    return cap * torch.tanh(s / cap)


@BIASES.part()
def pair_bias(s: Tensor, m: Weights) -> Tensor:
    return s + m.pair_bias.unsqueeze(0)


@BIASES.part()
def talking_heads(s: Tensor, m: Weights) -> Tensor:
    return torch.einsum("hg,bgqk->bhqk", m.mixing, s)


@BIASES.part(temperature=(0.05, 3.0))
def temperature(s: Tensor, m: Weights, temperature: float) -> Tensor:
    return s / temperature


@BIASES.part(axis=(-1, -2), form=("max", "mean", "detached"))
def less_its_top(s: Tensor, m: Weights, axis: int, form: str) -> Tensor:
    return s - (s.mean(axis, keepdim=True) if form == "mean" else s.detach().amax(axis, keepdim=True))


@BIASES.part(low=(-5.0, -50.0))
def limited(s: Tensor, m: Weights, low: float) -> Tensor:
    return s.clamp(min=low, max=-low)


@BIASES.part()
def gaussian(s: Tensor, m: Weights) -> Tensor:
    return s + torch.log(torch.exp(-_apart().float().pow(2) / 2) + 1e-9)


@BIASES.part()
def symmetric(s: Tensor, m: Weights) -> Tensor:
    return (s + s.transpose(-1, -2)) / 2


@BIASES.part()
def log_scaled(s: Tensor, m: Weights) -> Tensor:
    return s * torch.log(m.seen.sum(-1, keepdim=True).float().clamp(min=1) + 1)


@BIASES.part()
def standardized(s: Tensor, m: Weights) -> Tensor:
    return (s - s.mean(-1, keepdim=True)) / (s.std(-1, keepdim=True) + 1e-5)


# --- mixing values, and back to features ------------------------------------------------------------------------------


@MIXED.part(form=("matmul", "einsum", "bmm", "transposed", "sum"))
def mixed(w: Tensor, v: Tensor, m: Weights, form: str) -> Tensor:
    if form == "einsum":
        return torch.einsum("bhqk,bhkd->bhqd", w, v)
    if form == "bmm":
        return torch.bmm(w.reshape(-1, LENGTH, LENGTH), v.reshape(-1, LENGTH, WIDTH)).view(v.shape)
    if form == "transposed":
        return (v.transpose(-1, -2) @ w.transpose(-1, -2)).transpose(-1, -2)
    if form == "sum":
        return (w.unsqueeze(-1) * v.unsqueeze(-3)).sum(-2)
    return w @ v


@MIXED.part()
def mixed_backwards(w: Tensor, v: Tensor, m: Weights) -> Tensor:
    return w.transpose(-1, -2) @ v


@MIXED.part()
def differential(w: Tensor, v: Tensor, m: Weights) -> Tensor:
    return (w - 0.3 * w.flip(1)) @ v


@MIXED.part()
def mixed_with_positions(w: Tensor, v: Tensor, m: Weights) -> Tensor:
    apart = _apart().clamp(-3, 3) + 3
    return w @ v + torch.einsum("bhij,ijd->bhid", w, m.relative[apart])


@MERGED.part(form=("reshape", "flatten", "view", "einsum", "cat", "unbind", "mean"))
def merged(y: Tensor, m: Weights, form: str) -> Tensor:
    if form == "view":
        return y.permute(0, 2, 1, 3).contiguous().view(BATCH, LENGTH, -1)
    if form == "flatten":
        return y.transpose(1, 2).flatten(2)
    if form == "einsum":
        return torch.einsum("bhtd,hde->bte", y, m.out.view(HEADS, WIDTH, DIM))
    if form == "cat":
        return torch.cat(list(y.split(1, 1)), -1).squeeze(1)
    if form == "unbind":
        return torch.cat(y.unbind(1), -1)
    if form == "mean":
        return y.mean(1).repeat(1, 1, HEADS)
    return y.transpose(1, 2).reshape(BATCH, LENGTH, DIM)


# --- attention without scores -----------------------------------------------------------------------------------------

MAPS = {
    "elu": lambda x, m: functional.elu(x) + 1,
    "relu": lambda x, m: torch.relu(x),
    "relu_eps": lambda x, m: torch.relu(x) + 1e-3,
    "square": lambda x, m: torch.relu(x).square(),
    "exp": lambda x, m: torch.exp(x - x.amax(-1, keepdim=True)),
    "softplus": lambda x, m: functional.softplus(x),
    "random": lambda x, m: torch.exp(x @ m.features - x.square().sum(-1, keepdim=True) / 2) / 6**0.5,
    "cosine": lambda x, m: torch.cat((torch.cos(x @ m.features), torch.sin(x @ m.features)), -1) / 6**0.5,
    "hedgehog": lambda x, m: torch.cat((torch.softmax(x, -1), torch.softmax(-x, -1)), -1),
    "taylor": lambda x, m: torch.cat(
        (torch.ones_like(x[..., :1]), x, (x[..., None] * x[..., None, :]).flatten(-2)), -1
    ),
}  # fmt: skip


@LINEAR.part(feature_map=tuple(MAPS), eps=EPSILONS, form=("add", "clamp", "none", "max"))
def linear_attention(q: Tensor, k: Tensor, v: Tensor, m: Weights, feature_map: str, eps: float, form: str) -> Tensor:
    queries, keys = MAPS[feature_map](q, m), MAPS[feature_map](k, m) * m.seen.transpose(-1, -2)
    above = queries @ (keys.transpose(-1, -2) @ v)
    below = queries @ keys.sum(-2).unsqueeze(-1)
    if form == "none":
        return above / LENGTH
    if form == "max":
        return above / torch.max(below.abs(), torch.full((), eps))
    return above / (below + eps if form == "add" else below.clamp(min=eps))


@LINEAR.part(feature_map=tuple(MAPS), eps=EPSILONS)
def causal_linear_attention(q: Tensor, k: Tensor, v: Tensor, m: Weights, feature_map: str, eps: float) -> Tensor:
    queries, keys = MAPS[feature_map](q, m), MAPS[feature_map](k, m) * m.seen.mT
    state = torch.einsum("bhtf,bhtd->bhtfd", keys, v).cumsum(2)
    below = torch.einsum("bhtf,bhtf->bht", queries, keys.cumsum(2)) + eps
    return torch.einsum("bhtf,bhtfd->bhtd", queries, state) / below.unsqueeze(-1)


@LINEAR.part(decay=(0.9, 0.5))
def retention(q: Tensor, k: Tensor, v: Tensor, m: Weights, decay: float) -> Tensor:
    apart = -_apart()
    fading = torch.where(apart >= 0, decay ** apart.clamp(min=0).float(), 0.0)
    weights = q @ k.mT * fading
    return weights / weights.sum(-1, keepdim=True).abs().clamp(min=1) @ v


@LINEAR.part(form=("mask", "causal", "none", "both", "additive"), scale=(None, 0.3))
def fused(q: Tensor, k: Tensor, v: Tensor, m: Weights, form: str, scale: float | None) -> Tensor:
    attention = functional.scaled_dot_product_attention
    if form == "causal":
        return attention(q, k, v, is_causal=True, scale=scale)
    if form == "mask":
        return attention(q, k, v, attn_mask=m.seen, scale=scale)
    if form == "both":
        return attention(q, k, v, attn_mask=m.seen & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril(), scale=scale)
    if form == "additive":
        hidden = torch.zeros(BATCH, 1, LENGTH, LENGTH).masked_fill(~m.seen, -math.inf)
        return attention(q, k, v, attn_mask=hidden, scale=scale)
    return attention(q, k, v, scale=scale)


@LINEAR.part(form=("external", "aft", "pool", "channel", "fourier"))
def other(q: Tensor, k: Tensor, v: Tensor, m: Weights, form: str) -> Tensor:
    if form == "external":
        weights = torch.softmax(q @ m.relative[:LENGTH].T, -2)
        return weights / (1e-9 + weights.sum(-1, keepdim=True)) @ m.relative[:LENGTH]
    if form == "aft":
        weights = torch.exp(m.pair_bias - m.pair_bias.amax(-1, keepdim=True))
        keys = torch.exp(k - k.amax(-2, keepdim=True))
        return torch.sigmoid(q) * (weights @ (keys * v)) / (weights @ keys)
    if form == "pool":
        return v * torch.softmax((q * k).sum(-1, keepdim=True), -2)
    if form == "channel":
        return (torch.softmax(functional.normalize(q, dim=-2).mT @ functional.normalize(k, dim=-2), -1) @ v.mT).mT
    angle = 2 * math.pi / LENGTH * torch.outer(torch.arange(LENGTH), torch.arange(LENGTH))
    return torch.cos(angle) @ v - torch.sin(angle) @ k
