"""Parts that take features (batch, length, dim) to features of that shape: norms, activations, moves, arithmetic."""

# Torch types few of its functions:
# mypy: disable-error-code="no-any-return, no-untyped-call, operator"

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tests.fuzz.parts import BATCH, DIM, HEADS, LENGTH, WIDTH, Table
from tests.fuzz.weights import Weights

FEATURES = Table()
EPSILONS = (1e-3, 1e-5, 1e-6, 1e-8, 1e-12, 1e-16)

# --- norms ------------------------------------------------------------------------------------------------------------


@FEATURES.part(eps=EPSILONS)
def layer_norm(x: Tensor, m: Weights, eps: float) -> Tensor:
    return functional.layer_norm(x, (DIM,), m.gain, m.bias, eps)


@FEATURES.part(eps=EPSILONS, inside=(True, False), unbiased=(True, False))
def layer_norm_by_hand(x: Tensor, m: Weights, eps: float, inside: bool, unbiased: bool) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = x.var(-1, keepdim=True, unbiased=unbiased)
    return m.gain * (centred / (variance + eps).sqrt() if inside else centred / (variance.sqrt() + eps)) + m.bias


@FEATURES.part(eps=EPSILONS)
def std_norm(x: Tensor, m: Weights, eps: float) -> Tensor:
    return m.gain * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + eps) + m.bias


@FEATURES.part(eps=EPSILONS, form=("mean", "pow", "rsqrt", "torch", "norm"))
def rms_norm(x: Tensor, m: Weights, eps: float, form: str) -> Tensor:
    if form == "torch":
        return functional.rms_norm(x, (DIM,), m.gain, eps)
    if form == "norm":
        return m.gain * x / (x.norm(dim=-1, keepdim=True) * DIM**-0.5 + eps)
    if form == "mean":
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * m.gain
    if form == "pow":
        return x * (x.pow(2).mean(-1, keepdim=True) + eps).pow(-0.5) * m.gain
    return m.gain * (x * torch.rsqrt(x.square().sum(-1, keepdim=True) / DIM + eps))


@FEATURES.part(eps=EPSILONS, form=("torch", "clamp", "add", "sqrt", "max"), axis=(-1, 1))
def l2_norm(x: Tensor, m: Weights, eps: float, form: str, axis: int) -> Tensor:
    if form == "torch":
        return functional.normalize(x, dim=axis, eps=eps)
    if form == "clamp":
        return x / x.norm(dim=axis, keepdim=True).clamp(min=eps)
    if form == "add":
        return x / (x.norm(dim=axis, keepdim=True) + eps)
    if form == "max":
        return x / torch.maximum(x.pow(2).sum(axis, keepdim=True).sqrt(), torch.tensor(eps))
    return x / ((x * x).sum(axis, keepdim=True) + eps).sqrt()


@FEATURES.part(p=(1.0, 3.0, math.inf), eps=EPSILONS)
def p_norm(x: Tensor, m: Weights, p: float, eps: float) -> Tensor:
    return functional.normalize(x, p=p, dim=-1, eps=eps)


@FEATURES.part(eps=EPSILONS)
def group_norm(x: Tensor, m: Weights, eps: float) -> Tensor:
    return functional.group_norm(x.transpose(1, 2), 2, m.gain, m.bias, eps).transpose(1, 2)


@FEATURES.part(eps=EPSILONS)
def instance_norm(x: Tensor, m: Weights, eps: float) -> Tensor:
    return functional.instance_norm(x.transpose(1, 2), weight=m.gain, bias=m.bias, eps=eps).transpose(1, 2)


@FEATURES.part(eps=EPSILONS)
def batch_norm(x: Tensor, m: Weights, eps: float) -> Tensor:
    return functional.batch_norm(x.transpose(1, 2), m.bias, m.gain.square(), m.gain, m.bias, eps=eps).transpose(1, 2)


@FEATURES.part(eps=EPSILONS)
def batch_statistics(x: Tensor, m: Weights, eps: float) -> Tensor:
    mean, var = x.mean((0, 1), keepdim=True), x.var((0, 1), keepdim=True, unbiased=False)
    return (x - mean) * torch.rsqrt(var + eps) * m.gain + m.bias


@FEATURES.part(eps=EPSILONS)
def var_mean(x: Tensor, m: Weights, eps: float) -> Tensor:
    variance, mean = torch.var_mean(x, -1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps)


@FEATURES.part(eps=EPSILONS)
def min_max(x: Tensor, m: Weights, eps: float) -> Tensor:
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    return (x - low) / (high - low + eps)


@FEATURES.part(eps=EPSILONS)
def masked_mean_norm(x: Tensor, m: Weights, eps: float) -> Tensor:
    seen = m.seen[:, 0, 0, :, None].float()
    mean = (x * seen).sum(1, keepdim=True) / (seen.sum(1, keepdim=True) + eps)
    return x - mean


# --- activations ------------------------------------------------------------------------------------------------------

PLAIN = {
    "relu": functional.relu, "gelu": functional.gelu, "silu": functional.silu, "mish": functional.mish,
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "softplus": functional.softplus, "elu": functional.elu,
    "selu": functional.selu, "celu": functional.celu, "hardswish": functional.hardswish,
    "hardsigmoid": functional.hardsigmoid, "hardtanh": functional.hardtanh, "leaky_relu": functional.leaky_relu,
    "logsigmoid": functional.logsigmoid, "softsign": functional.softsign, "tanhshrink": functional.tanhshrink,
    "softshrink": functional.softshrink, "hardshrink": functional.hardshrink, "relu6": functional.relu6,
    "erf": torch.erf, "sin": torch.sin, "cos": torch.cos, "atan": torch.atan, "sinc": torch.sinc,
    "abs": torch.abs, "sign": torch.sign, "floor": torch.floor, "ceil": torch.ceil, "round": torch.round,
    "trunc": torch.trunc, "frac": torch.frac, "square": torch.square, "neg": torch.neg, "sgn": torch.sgn,
    "expm1": torch.expm1, "asinh": torch.asinh, "sinh": torch.sinh, "reciprocal": torch.reciprocal,
    "exp": torch.exp, "signbit": lambda x: torch.signbit(x).float(), "isfinite": lambda x: torch.isfinite(x).float(),
}  # fmt: skip


@FEATURES.part(name=tuple(PLAIN))
def activation(x: Tensor, m: Weights, name: str) -> Tensor:
    return PLAIN[name](x)


@FEATURES.part(form=("tanh", "erf", "sigmoid", "pow"))
def gelu_by_hand(x: Tensor, m: Weights, form: str) -> Tensor:
    if form == "tanh":
        return functional.gelu(x, approximate="tanh")
    if form == "erf":
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
    if form == "sigmoid":
        return x * torch.sigmoid(1.702 * x)
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


@FEATURES.part(form=("glu", "swiglu", "geglu", "reglu"))
def gated(x: Tensor, m: Weights, form: str) -> Tensor:
    wide = functional.linear(x, m.wide)
    if form == "glu":
        return functional.glu(wide, -1)
    gate, value = wide.chunk(2, -1)
    return {"swiglu": functional.silu, "geglu": functional.gelu, "reglu": functional.relu}[form](gate) * value


@FEATURES.part(power=(0.5, 1.5, 2, 3, -1, -0.5, 0.0))
def powers(x: Tensor, m: Weights, power: float) -> Tensor:
    return (x.abs() + 0.01).pow(power)


@FEATURES.part(eps=(0.0, *EPSILONS), form=("sqrt", "rsqrt", "log", "log1p", "log2", "log10", "reciprocal"))
def small_numbers(x: Tensor, m: Weights, eps: float, form: str) -> Tensor:
    positive = x.abs() + eps
    if form == "reciprocal":
        return 1.0 / (positive + 1e-3)
    if form == "rsqrt":
        return torch.rsqrt(positive).clamp(max=1e6)
    return getattr(torch, form)(positive).clamp(-50.0, 1e4)


@FEATURES.part()
def signed_sqrt(x: Tensor, m: Weights) -> Tensor:
    return torch.sign(x) * torch.sqrt(torch.abs(x))


@FEATURES.part(slope=(0.25,))
def prelu(x: Tensor, m: Weights, slope: float) -> Tensor:
    return functional.prelu(x.transpose(1, 2), m.gain * slope).transpose(1, 2)


@FEATURES.part(low=(-1.0, 0.0, -math.inf), high=(1.0, 6.0, math.inf))
def clamped(x: Tensor, m: Weights, low: float, high: float) -> Tensor:
    return x.clamp(low, high)


@FEATURES.part()
def clamped_by_tensors(x: Tensor, m: Weights) -> Tensor:
    return torch.clamp(x, -m.gain.abs(), m.gain.abs())


@FEATURES.part(form=("nan", "inf", "neginf"))
def cleaned(x: Tensor, m: Weights, form: str) -> Tensor:
    if form == "nan":
        return torch.nan_to_num(x / x.sum(-1, keepdim=True), nan=0.5, posinf=2.0, neginf=-2.0)
    if form == "inf":
        return torch.nan_to_num(1.0 / x, nan=0.0, posinf=3.0, neginf=-3.0)
    return torch.nan_to_num(torch.log(torch.relu(x)), neginf=-7.0)


@FEATURES.part(form=("where", "masked_fill", "mul", "chain", "index"))
def conditional(x: Tensor, m: Weights, form: str) -> Tensor:
    if form == "where":
        return torch.where(x > 0, x, x * 0.1)
    if form == "masked_fill":
        return x.masked_fill(x < 0, 0.5)
    if form == "mul":
        return x * (x >= 0.25) - (x != 0).float()
    if form == "index":
        return torch.where(m.seen[:, 0, 0, :, None], x, torch.zeros(()))
    return torch.where(x.abs() < 1e-3, torch.ones_like(x), torch.where(x > 1, 1 / x, x))


@FEATURES.part(divisor=(0.5, 3.0, -2.0), form=("floor", "remainder", "fmod", "floor_mode", "trunc_mode"))
def divided(x: Tensor, m: Weights, divisor: float, form: str) -> Tensor:
    if form == "floor":
        return x // divisor
    if form == "remainder":
        return x % divisor
    if form == "fmod":
        return torch.fmod(x, divisor)
    return torch.div(x, divisor, rounding_mode=form.removesuffix("_mode"))


@FEATURES.part(bits=(2.0, 7.0, 127.0))
def fake_quantized(x: Tensor, m: Weights, bits: float) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-8) / bits
    return (x / scale).round().clamp(-bits, bits) * scale


# --- products and convolutions ----------------------------------------------------------------------------------------


@FEATURES.part(form=("linear", "matmul", "einsum", "transposed", "addmm", "tensordot", "matvec"))
def projected(x: Tensor, m: Weights, form: str) -> Tensor:
    if form == "linear":
        return functional.linear(x, m.square, m.bias)
    if form == "matmul":
        return x @ m.square
    if form == "einsum":
        return torch.einsum("btd,de->bte", x, m.square)
    if form == "transposed":
        return (m.square @ x.mT).mT
    if form == "tensordot":
        return torch.tensordot(x, m.square, dims=([-1], [0]))
    if form == "matvec":
        return (x @ m.gain)[..., None] * m.bias
    return torch.addmm(m.bias, x.reshape(-1, DIM), m.square, beta=0.5, alpha=2.0).view(BATCH, LENGTH, DIM)


@FEATURES.part(form=("depthwise", "full", "causal", "pointwise", "dilated", "circular", "reflect", "replicate"))
def convolved(x: Tensor, m: Weights, form: str) -> Tensor:
    y = x.transpose(1, 2)
    if form == "pointwise":
        y = functional.conv1d(y, m.square[..., None])
    elif form == "full":
        y = functional.conv1d(y, m.taps, m.bias, padding=1)
    elif form == "dilated":
        y = functional.conv1d(y, m.taps, padding=2, dilation=2)
    elif form == "causal":
        y = functional.conv1d(functional.pad(y, (2, 0)), m.taps[:, :1], groups=DIM)
    elif form == "depthwise":
        y = functional.conv1d(y, m.taps[:, :1], padding="same", groups=DIM)
    else:
        y = functional.conv1d(functional.pad(y, (1, 1), mode=form), m.taps[:, :1], groups=DIM)
    return y.transpose(1, 2)


@FEATURES.part(form=("avg", "max", "avg_inside", "lp"))
def pooled(x: Tensor, m: Weights, form: str) -> Tensor:
    y = x.transpose(1, 2)
    if form == "avg":
        return functional.avg_pool1d(y, 3, 1, 1).transpose(1, 2)
    if form == "avg_inside":
        return functional.avg_pool1d(y, 3, 1, 1, count_include_pad=False).transpose(1, 2)
    if form == "max":
        return functional.max_pool1d(y, 3, 1, 1).transpose(1, 2)
    squares = functional.avg_pool1d(functional.pad(y, (1, 1)).square(), 3, 1)
    return squares.sqrt().transpose(1, 2)


@FEATURES.part(form=("nearest", "linear", "linear_corners", "nearest2"))
def resized(x: Tensor, m: Weights, form: str) -> Tensor:
    y = x.transpose(1, 2)
    if form == "nearest":
        y = functional.interpolate(functional.avg_pool1d(y, 2), size=LENGTH, mode="nearest")
    elif form == "nearest2":
        y = functional.interpolate(y, scale_factor=2.0, mode="nearest")[..., 1::2]
    else:
        y = functional.interpolate(
            functional.avg_pool1d(y, 2), size=LENGTH, mode="linear", align_corners=form == "linear_corners"
        )
    return y.transpose(1, 2)


# --- moves ------------------------------------------------------------------------------------------------------------

MOVES = {
    "roll": lambda x: torch.roll(x, (1, -2), (1, 2)),
    "flip": lambda x: x.flip(1),
    "flip_both": lambda x: torch.flip(x, (1, 2)),
    "transposed_view": lambda x: x.transpose(1, 2).reshape(BATCH, LENGTH, DIM),
    "reinterpreted": lambda x: x.reshape(BATCH, DIM, LENGTH).transpose(1, 2),
    "permuted": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "swap_halves": lambda x: torch.cat((x[..., DIM // 2 :], x[..., : DIM // 2]), -1),
    "rotate_half": lambda x: torch.cat((-x[..., DIM // 2 :], x[..., : DIM // 2]), -1),
    "interleaved": lambda x: torch.stack((x[..., ::2], x[..., 1::2]), -1).flatten(-2),
    "deinterleaved": lambda x: x.unflatten(-1, (DIM // 2, 2)).transpose(-1, -2).flatten(-2),
    "split": lambda x: torch.cat(x.split((2, 4), 1)[::-1], 1),
    "chunk": lambda x: torch.cat([c * (i + 1) for i, c in enumerate(x.chunk(4, -1))], -1),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "pad_slice": lambda x: functional.pad(x, (0, 0, 1, 0))[:, :-1],
    "shift_diff": lambda x: x - functional.pad(x, (0, 0, 1, 0))[:, :-1],
    "diff": lambda x: torch.diff(x, dim=1, prepend=x[:, :1] * 0),
    "channel_shuffle": lambda x: functional.channel_shuffle(x.transpose(1, 2), 2).transpose(1, 2),
    "repeat": lambda x: x[:, :2].repeat(1, 3, 1),
    "repeat_interleave": lambda x: x[:, ::2].repeat_interleave(2, 1),
    "tile": lambda x: torch.tile(x[:, :3], (1, 2, 1)),
    "expand": lambda x: x[:, :1].expand(BATCH, LENGTH, DIM) + x,
    "index_list": lambda x: x[:, [5, 0, 0, 3, 2, 1]],
    "negative_index": lambda x: x[:, [-1, -2, 0, 1, 2, -6]],
    "index_select": lambda x: x.index_select(-1, torch.tensor([7, 1, 2, 2, 0, 5, 6, 3])),
    "gather_argsort": lambda x: x.gather(1, x.argsort(dim=1, stable=True)),
    "sort": lambda x: x.sort(1, stable=True).values,
    "sort_descending": lambda x: torch.sort(x, -1, descending=True)[0],
    "topk": lambda x: torch.cat((x.topk(3, 1).values, x.topk(3, 1, largest=False).values), 1),
    "cumsum": lambda x: x.cumsum(1),
    "cumsum_back": lambda x: x.flip(1).cumsum(1).flip(1),
    "cummean": lambda x: x.cumsum(1) / torch.arange(1, LENGTH + 1)[:, None],
    "causal_mean": lambda x: torch.tril(torch.ones(LENGTH, LENGTH)) @ x / torch.arange(1.0, LENGTH + 1)[:, None],
    "unfold": lambda x: functional.pad(x, (0, 0, 2, 0)).unfold(1, 3, 1).mean(-1),
    "unfold_max": lambda x: functional.pad(x, (0, 0, 1, 1)).unfold(1, 3, 1).amax(-1),
    "as_grid": lambda x: x.view(BATCH, 2, 3, DIM).transpose(1, 2).reshape(BATCH, LENGTH, DIM),
    "windows": lambda x: x.view(BATCH, 3, 2, 2, DIM // 2).permute(0, 1, 3, 2, 4).reshape(BATCH, LENGTH, DIM),
    "batch_flip": lambda x: x.flip(0),
    "batch_mean": lambda x: x - x.mean(0, keepdim=True),
    "outer": lambda x: torch.einsum("btd,bsd->bts", x, x) @ x / LENGTH,
    "narrow": lambda x: torch.cat((x.narrow(1, 3, 3), x.narrow(1, 0, 3)), 1),
    "select_scatter": lambda x: torch.select_scatter(x, x[:, 0], 1, 3),
    "slice_write": lambda x: _slice_write(x),  # noqa: PLW0108  # defined below
    "rot90": lambda x: torch.rot90(x, 2, (1, 2)),
    "movedim": lambda x: x.movedim(1, 2).movedim(2, 1) + x.swapaxes(0, 1).swapdims(0, 1),
    "tril": torch.tril, "triu": lambda x: x.triu(1),
    "diagonal": lambda x: x + torch.diagonal(x, dim1=1, dim2=2).sum(-1)[:, None, None],
    "cross_batch": lambda x: torch.cat((x[1:], x[:1])),
}  # fmt: skip


def _slice_write(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1::2] = y[:, ::2] * 2
    y[:, 0, :3] = 1.0
    return y


@FEATURES.part(name=tuple(MOVES))
def moved(x: Tensor, m: Weights, name: str) -> Tensor:
    return MOVES[name](x)


@FEATURES.part(count=(2, 3), axis=(1, -1), form=("values", "threshold", "mask"))
def top(x: Tensor, m: Weights, count: int, axis: int, form: str) -> Tensor:
    values = x.topk(count, axis).values
    if form == "values":
        return x - values.mean(axis, keepdim=True)
    kept = x >= values.narrow(axis, count - 1, 1)
    return torch.where(kept, x, 0.0) if form == "mask" else kept.float()


@FEATURES.part(form=("argmax", "one_hot", "gather", "rank", "max_index"))
def chosen(x: Tensor, m: Weights, form: str) -> Tensor:
    if form == "argmax":
        return x + x.argmax(-1, keepdim=True)
    if form == "one_hot":
        return functional.one_hot(x.argmax(-1), DIM).float()
    if form == "gather":
        return x.gather(1, x.argmin(1, keepdim=True).expand(-1, LENGTH, -1)) + x
    if form == "max_index":
        values, places = x.max(1, keepdim=True)
        return x * values + places
    return x.argsort(dim=-1, stable=True).argsort(-1).float()


@FEATURES.part(number=(2, 3, 5, -3), form=("floor", "mod", "shift", "and", "div", "compare", "trunc", "fmod"))
def integers(x: Tensor, m: Weights, number: int, form: str) -> Tensor:
    whole = (x.clamp(-100, 100) * 4).long()
    if form == "floor":
        made = whole // number
    elif form == "mod":
        made = whole % number
    elif form == "fmod":
        made = torch.fmod(whole, number)
    elif form == "shift":
        made = (whole.int() >> 1) + (whole.int() << 2)
    elif form == "and":
        made = whole & abs(number)
    elif form == "div":
        return x + whole / number
    elif form == "trunc":
        made = torch.div(whole, number, rounding_mode="trunc")
    else:
        made = (whole <= number).int() - (whole == 0).int()
    return x + made


@FEATURES.part(form=("mean", "max", "attention", "sum", "logsumexp", "median", "std", "norm"))
def context(x: Tensor, m: Weights, form: str) -> Tensor:
    if form == "mean":
        return x + x.mean(1, keepdim=True)
    if form == "max":
        return x * torch.sigmoid(x.amax(1, keepdim=True) - x.mean(1, keepdim=True))
    if form == "sum":
        return x / (1 + x.abs().sum((1, 2), keepdim=True))
    if form == "logsumexp":
        return x - torch.logsumexp(x, 1, keepdim=True)
    if form == "std":
        return x / (1e-3 + x.std((1, 2), keepdim=True))
    if form == "norm":
        return x / (1e-2 + torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True))
    if form == "median":
        return x - x.sort(1).values[:, LENGTH // 2 : LENGTH // 2 + 1]
    return x + (torch.softmax(x @ m.gain, 1)[:, None] @ x)


@FEATURES.part(form=("sinusoid", "table", "arange", "linspace", "coordinates"))
def positions(x: Tensor, m: Weights, form: str) -> Tensor:
    place = torch.arange(LENGTH)
    if form == "table":
        return x + m.places[place]
    if form == "arange":
        return x + place[:, None] / LENGTH
    if form == "linspace":
        return x * torch.linspace(-1, 1, LENGTH)[None, :, None]
    if form == "coordinates":
        rows, columns = torch.meshgrid(torch.arange(2), torch.arange(3), indexing="ij")
        return x + (rows * 3 + columns).flatten()[:, None] % 4
    angle = place[:, None] * torch.exp(torch.arange(0, DIM, 2) * (-math.log(10000.0) / DIM))
    return x + torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


@FEATURES.part(form=("seen_cumsum", "count", "fill", "length"))
def by_mask(x: Tensor, m: Weights, form: str) -> Tensor:
    seen = m.seen[:, 0, 0]
    if form == "seen_cumsum":
        return x + m.places[(seen.long().cumsum(-1) * seen - 1).clamp(min=0)]
    if form == "count":
        return x / seen.sum(-1).clamp(min=1)[:, None, None]
    if form == "fill":
        return x.masked_fill(~seen[..., None], -1.0)
    last = (seen.sum(-1) - 1).clamp(min=0)
    return x + x[torch.arange(BATCH), last][:, None]


@FEATURES.part(heads=(HEADS, WIDTH))
def residual_mix(x: Tensor, m: Weights, heads: int) -> Tensor:
    return x + functional.linear(functional.gelu(functional.linear(x, m.wide)), m.narrow) / heads
