"""Parts that hide scores, make weights of them, and change weights; and what is made of the features at the end."""

# Torch types few of its functions:
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tests.fuzz.parts import BATCH, DIM, LENGTH, Table
from tests.fuzz.weights import Weights

MASKS, NORMALIZERS, WEIGHTS, OUTPUTS = Table(), Table(), Table(), Table()
HIDING = ("-inf", "finfo", "-1e9", "-1e4", "-1e30", "-100")
EPSILONS = (1e-5, 1e-6, 1e-8, 1e-9, 1e-12, 1e-16, 0.0)


def _hiding(name: str) -> float:
    return torch.finfo(torch.float32).min if name == "finfo" else float(name)


def _order() -> tuple[Tensor, Tensor]:
    places = torch.arange(LENGTH)
    return places[:, None], places[None]


# --- masks ------------------------------------------------------------------------------------------------------------


@MASKS.part()
def unmasked(s: Tensor, m: Weights) -> Tensor:
    return s


@MASKS.part()
def as_given(s: Tensor, m: Weights) -> Tensor:
    return s + m.given if m.given.ndim == 4 else s.masked_fill(~m.seen, -math.inf)


@MASKS.part(value=HIDING, form=("masked_fill", "where", "where_scalar", "inverted", "equal", "in_place", "logical"))
def padding(s: Tensor, m: Weights, value: str, form: str) -> Tensor:
    hidden = _hiding(value)
    if form == "where":
        return torch.where(m.seen, s, torch.full_like(s, hidden))
    if form == "where_scalar":
        return torch.where(m.seen, s, hidden)
    if form == "inverted":
        return torch.where(~m.seen, torch.tensor(hidden), s)
    if form == "equal":
        return s.masked_fill(m.seen.long() == 0, hidden)
    if form == "in_place":
        s = s.clone()
        s.masked_fill_(m.seen.logical_not(), hidden)
        return s
    if form == "logical":
        return s.masked_fill(torch.logical_not(m.seen.expand(-1, -1, LENGTH, -1)), hidden)
    return s.masked_fill(~m.seen, hidden)


@MASKS.part(value=("finfo", "-1e9", "-1e4", "-1e30", "-100"), form=("times", "given", "log", "minus"))
def added(s: Tensor, m: Weights, value: str, form: str) -> Tensor:
    hidden = _hiding(value)
    seen = m.seen.float()
    if form == "log":
        return s + torch.log(seen + 1e-9)
    if form == "minus":
        return s * seen - 1e10 * (1 - seen)
    if form == "given":
        return s + torch.zeros(BATCH, 1, 1, LENGTH).masked_fill(~m.seen, hidden)
    return s + (1.0 - seen) * hidden


@MASKS.part()
def added_infinity(s: Tensor, m: Weights) -> Tensor:
    return s + torch.zeros(BATCH, 1, 1, LENGTH).masked_fill(~m.seen, -math.inf)


@MASKS.part()
def log_of_mask(s: Tensor, m: Weights) -> Tensor:
    return s + m.seen.float().log()


@MASKS.part(
    value=HIDING, form=("tril", "triu", "arange", "constant", "window", "block", "dilated", "prefix", "diagonal")
)
def fixed(s: Tensor, m: Weights, value: str, form: str) -> Tensor:
    hidden, (row, column) = _hiding(value), _order()
    if form == "triu":
        return s + torch.triu(torch.full((LENGTH, LENGTH), hidden), 1)
    if form == "constant":
        return s + torch.zeros(LENGTH, LENGTH).masked_fill(torch.ones(LENGTH, LENGTH).tril() == 0, hidden)
    seen = {
        "tril": torch.tril(torch.ones(LENGTH, LENGTH, dtype=torch.bool)),
        "arange": column <= row,
        "window": (row - column).abs() <= 1,
        "block": row // 2 == column // 2,
        "dilated": (row - column) % 2 == 0,
        "prefix": (column <= row) | (column < 2),
        "diagonal": row != column,
    }[form]
    return s.masked_fill(~seen, hidden)


@MASKS.part(value=HIDING, form=("and", "twice", "or", "queries", "added"))
def causal_and_padding(s: Tensor, m: Weights, value: str, form: str) -> Tensor:
    hidden, (row, column) = _hiding(value), _order()
    if form == "and":
        return s.masked_fill(~(m.seen & (column <= row)), hidden)
    if form == "or":
        return s.masked_fill(~m.seen | (column > row), hidden)
    if form == "queries":
        return torch.where(m.seen & m.seen.transpose(-1, -2), s, hidden)
    if form == "added":
        return s + ((1 - m.seen.float()) + (column > row).float()) * max(hidden, -1e30)
    return s.masked_fill(~m.seen, hidden).masked_fill(column > row, hidden)


@MASKS.part(count=(1, 3), value=HIDING)
def only_top(s: Tensor, m: Weights, count: int, value: str) -> Tensor:
    return s.masked_fill(s < s.topk(count, -1).values[..., -1:], _hiding(value))


@MASKS.part(value=HIDING)
def by_threshold(s: Tensor, m: Weights, value: str) -> Tensor:
    return torch.where(s > s.mean(-1, keepdim=True), s, _hiding(value))


# --- normalizers ------------------------------------------------------------------------------------------------------


@NORMALIZERS.part(axis=(-1, -1, -1, -2, 1))
def softmax(s: Tensor, m: Weights, axis: int) -> Tensor:
    return torch.softmax(s, axis)


@NORMALIZERS.part(form=("exp", "log", "logsumexp", "stable", "clone"))
def softmax_by_hand(s: Tensor, m: Weights, form: str) -> Tensor:
    if form == "log":
        return torch.log_softmax(s, -1).exp()
    if form == "logsumexp":
        return (s - s.logsumexp(-1, keepdim=True)).exp()
    raised = torch.exp(s - s.amax(-1, keepdim=True)) if form != "exp" else torch.exp(s.clamp(max=30))
    return raised / raised.sum(-1, keepdim=True)


@NORMALIZERS.part(eps=EPSILONS, form=("add", "clamp", "max", "where"))
def softmax_with_epsilon(s: Tensor, m: Weights, eps: float, form: str) -> Tensor:
    raised = torch.exp(s - s.max(-1, keepdim=True)[0].clamp(min=-1e30)) * m.seen
    total = raised.sum(dim=-1, keepdim=True)
    if form == "add":
        return raised / (total + eps)
    if form == "where":
        return raised / torch.where(total > eps, total, torch.ones_like(total))
    return raised / (total.clamp(min=eps) if form == "clamp" else torch.maximum(total, torch.tensor(eps)))


@NORMALIZERS.part(form=("shifted", "plain", "pad"))
def softmax_one(s: Tensor, m: Weights, form: str) -> Tensor:
    if form == "pad":
        return torch.softmax(functional.pad(s, (1, 0)), -1)[..., 1:]
    if form == "plain":
        raised = torch.exp(s.clamp(max=20))
        return raised / (1 + raised.sum(-1, keepdim=True))
    top = s.amax(-1, keepdim=True).clamp(min=0)
    raised = torch.exp(s - top)
    return raised / (raised.sum(-1, keepdim=True) + torch.exp(-top))


@NORMALIZERS.part(form=("sink", "sigmoid", "log_sigmoid", "biased"))
def sigmoid(s: Tensor, m: Weights, form: str) -> Tensor:
    if form == "sink":
        sinks = m.slopes.view(1, -1, 1, 1).expand(BATCH, -1, LENGTH, 1)
        return torch.softmax(torch.cat((s, sinks), -1), -1)[..., :-1]
    if form == "log_sigmoid":
        return functional.logsigmoid(s).exp()
    return torch.sigmoid(s - math.log(LENGTH) if form == "biased" else s)


@NORMALIZERS.part(form=("square", "plain", "length", "normalized"))
def relu(s: Tensor, m: Weights, form: str) -> Tensor:
    raised = torch.relu(s)
    if form == "square":
        return raised.square() / LENGTH
    if form == "length":
        return raised / m.seen.sum(-1, keepdim=True).clamp(min=1)
    return raised / (raised.sum(-1, keepdim=True) + 1e-6) if form == "normalized" else raised


@NORMALIZERS.part(form=("cumsum", "gather"))
def sparsemax(s: Tensor, m: Weights, form: str) -> Tensor:
    s = s.clamp(min=-1e4)
    ranked = s.sort(-1, descending=True).values
    order = torch.arange(1, LENGTH + 1)
    sums = ranked.cumsum(-1)
    inside = 1 + order * ranked > sums
    if form == "gather":
        count = inside.sum(-1, keepdim=True).clamp(min=1)
        return torch.relu(s - (sums.gather(-1, count - 1) - 1) / count)
    count = (inside * order).amax(-1, keepdim=True).clamp(min=1)
    return torch.relu(s - ((ranked * inside).sum(-1, keepdim=True) - 1) / count)


@NORMALIZERS.part(alpha=(1.5, 2.0), steps=(6, 12))
def entmax(s: Tensor, m: Weights, alpha: float, steps: int) -> Tensor:
    s = s.clamp(min=-1e4) * (alpha - 1)
    low = s.amax(-1, keepdim=True) - 1
    width = 1 - LENGTH ** (1 - alpha)
    for _ in range(steps):
        width = width / 2
        middle = low + width
        weights = torch.relu(s - middle) ** (1 / (alpha - 1))
        low = torch.where(weights.sum(-1, keepdim=True) >= 1, middle, low)
    return weights / weights.sum(-1, keepdim=True)


@NORMALIZERS.part(form=("one_hot", "equal", "scatter", "straight"))
def hard(s: Tensor, m: Weights, form: str) -> Tensor:
    if form == "equal":
        return (s == s.amax(-1, keepdim=True)).float()
    if form == "scatter":
        return torch.zeros_like(s).scatter(-1, s.argmax(-1, keepdim=True), 1.0)
    if form == "straight":
        soft = torch.softmax(s, -1)
        return functional.one_hot(soft.argmax(-1), LENGTH).float() - soft.detach() + soft
    return functional.one_hot(s.argmax(-1), LENGTH).to(s.dtype)


@NORMALIZERS.part(eps=EPSILONS, form=("torch", "abs", "l2"))
def l1(s: Tensor, m: Weights, eps: float, form: str) -> Tensor:
    s = s * m.seen if form != "torch" else s.clamp(-1e4, 1e4)
    if form == "torch":
        return functional.normalize(s, p=1.0, dim=-1, eps=max(eps, 1e-16))
    if form == "abs":
        return s / (s.abs().sum(-1, keepdim=True) + max(eps, 1e-16))
    return functional.normalize(s, dim=-1, eps=max(eps, 1e-16))


@NORMALIZERS.part(eps=EPSILONS, form=("multiply", "both", "clamp", "keepdim"))
def masked_softmax(s: Tensor, m: Weights, eps: float, form: str) -> Tensor:
    weights = torch.softmax(s * m.seen if form == "both" else s, -1) * m.seen
    if form == "keepdim":
        return weights / (torch.sum(weights, -1, True) + eps)
    total = weights.sum(-1, keepdim=True)
    return weights / (total.clamp_min(eps) if form == "clamp" else total + eps)


@NORMALIZERS.part(axis=(-1, -2))
def double(s: Tensor, m: Weights, axis: int) -> Tensor:
    return torch.softmax(s, -1) * torch.softmax(s, -2) if axis == -1 else torch.softmax(torch.softmax(s, -2) * 4, -1)


@NORMALIZERS.part(steps=(2, 4))
def sinkhorn(s: Tensor, m: Weights, steps: int) -> Tensor:
    s = s.clamp(-50, 50)
    for _ in range(steps):
        s = s - s.logsumexp(-1, keepdim=True)
        s = s - s.logsumexp(-2, keepdim=True)
    return s.exp()


@NORMALIZERS.part()
def stick_breaking(s: Tensor, m: Weights) -> Tensor:
    logits = s.clamp(-30, 30)
    left = functional.logsigmoid(-logits).cumsum(-1) - functional.logsigmoid(-logits)
    return torch.exp(functional.logsigmoid(logits) + left)


@NORMALIZERS.part()
def taylor(s: Tensor, m: Weights) -> Tensor:
    s = s.clamp(-5, 5)
    raised = 1 + s + 0.5 * s * s
    return raised / raised.sum(-1, keepdim=True)


# --- on weights -------------------------------------------------------------------------------------------------------


@WEIGHTS.part()
def kept(w: Tensor, m: Weights) -> Tensor:
    return w


@WEIGHTS.part(form=("nan_to_num", "where", "isnan", "any", "self"))
def rescued(w: Tensor, m: Weights, form: str) -> Tensor:
    if form == "nan_to_num":
        return torch.nan_to_num(w, nan=0.0)
    if form == "where":
        return torch.where(torch.isnan(w), torch.zeros_like(w), w)
    if form == "isnan":
        return w.masked_fill(torch.isnan(w), 0.0)
    if form == "self":
        return torch.where(w != w, 0.0, w)
    return torch.where(m.seen.any(-1, keepdim=True), w, torch.zeros(()))


@WEIGHTS.part(form=("multiply", "fill", "where", "queries"))
def masked_again(w: Tensor, m: Weights, form: str) -> Tensor:
    if form == "multiply":
        return w * m.seen
    if form == "fill":
        return w.masked_fill(~m.seen, 0.0)
    if form == "queries":
        return w * m.seen.transpose(-1, -2).to(w.dtype)
    return torch.where(m.seen, w, 0.0)


@WEIGHTS.part(eps=EPSILONS, axis=(-1, -2), form=("add", "clamp"))
def renormalized(w: Tensor, m: Weights, eps: float, axis: int, form: str) -> Tensor:
    total = w.sum(axis, keepdim=True)
    return w / (total + eps if form == "add" else total.clamp(min=max(eps, 1e-16)))


@WEIGHTS.part(count=(1, 2))
def sparse(w: Tensor, m: Weights, count: int) -> Tensor:
    return torch.where(w >= w.topk(count, -1).values[..., -1:], w, 0.0)


@WEIGHTS.part()
def weights_talk(w: Tensor, m: Weights) -> Tensor:
    return torch.einsum("hg,bgqk->bhqk", m.mixing, w)


@WEIGHTS.part(power=(2.0, 0.5, 3))
def sharpened(w: Tensor, m: Weights, power: float) -> Tensor:
    raised = w.clamp(min=0).pow(power)
    return raised / raised.sum(-1, keepdim=True).clamp(min=1e-12)


@WEIGHTS.part()
def monotonic(w: Tensor, m: Weights) -> Tensor:
    left = (1 - w.clamp(0, 1)).clamp(1e-10, 1).log().cumsum(-1)
    return w * left.exp()


# --- the end ----------------------------------------------------------------------------------------------------------


@OUTPUTS.part()
def features(x: Tensor, m: Weights) -> Tensor:
    return x


@OUTPUTS.part(axis=(-1, 1, 0), form=("mean", "sum", "amax", "amin", "logsumexp", "prod", "l2", "l1", "linf", "median"))
def reduced(x: Tensor, m: Weights, axis: int, form: str) -> Tensor:
    if form in ("l2", "l1", "linf"):
        return torch.linalg.vector_norm(x, {"l2": 2, "l1": 1, "linf": math.inf}[form], dim=axis)
    if form == "prod":
        return x.tanh().prod(axis)
    if form == "median":
        return x.sort(axis).values.select(axis, x.shape[axis] // 2)
    made = getattr(x, form)(axis)
    assert isinstance(made, Tensor)
    return made


@OUTPUTS.part(unbiased=(True, False), form=("std", "var", "both"), axis=(1, -1, (1, 2)))
def spread(x: Tensor, m: Weights, unbiased: bool, form: str, axis: int | tuple[int, int]) -> Tensor:
    if form == "both":
        deviation, mean = torch.std_mean(x, axis, unbiased=unbiased)
        return torch.cat((deviation, mean))
    return (x.std if form == "std" else x.var)(axis, unbiased=unbiased)


@OUTPUTS.part(eps=EPSILONS, form=("masked_mean", "clamp", "masked_max", "first", "last", "attention", "statistics"))
def pooled(x: Tensor, m: Weights, eps: float, form: str) -> Tensor:
    seen = m.seen[:, 0, 0, :, None]
    if form == "masked_max":
        return x.masked_fill(~seen, -1e9).amax(1)
    if form == "first":
        return torch.tanh(functional.linear(x[:, 0], m.square))
    if form == "last":
        return x[torch.arange(BATCH), (seen[..., 0].sum(-1) - 1).clamp(min=0)]
    if form == "attention":
        return (torch.softmax((x @ m.gain).masked_fill(~seen[..., 0], -1e4), -1)[..., None] * x).sum(1)
    total, count = (x * seen).sum(1), seen.sum(1)
    if form == "statistics":
        mean = x.mean(1)
        return torch.cat((mean, ((x - mean[:, None]) ** 2).mean(1).clamp(min=max(eps, 1e-16)).sqrt()), -1)
    return total / (count + eps) if form == "masked_mean" and eps else total / count.clamp(min=1)


@OUTPUTS.part(form=("argmax", "topk", "argsort", "any", "count", "max_both", "all", "compare", "indices"))
def indices(x: Tensor, m: Weights, form: str) -> Tensor:
    if form == "argmax":
        return x.argmax(-1)
    if form == "topk":
        return x.topk(2, 1).values
    if form == "indices":
        return x.topk(2, -1).indices
    if form == "argsort":
        return x.argsort(dim=-1, stable=True)
    if form == "any":
        return (x > 1).any(1)
    if form == "all":
        return (x > -1).all(-1).float()
    if form == "count":
        return (x > 0).sum((1, 2))
    if form == "compare":
        return x[:, 1:] > x[:, :-1]
    return x.flatten(1).max(-1).values


@OUTPUTS.part(form=("softmax", "log_softmax", "sigmoid", "softmax_length", "normalize", "similarity"))
def scored(x: Tensor, m: Weights, form: str) -> Tensor:
    if form == "softmax":
        return torch.softmax(functional.linear(x.mean(1), m.wide), -1)
    if form == "log_softmax":
        return functional.log_softmax(x, -1)
    if form == "softmax_length":
        return torch.softmax(x, 1)
    if form == "similarity":
        return functional.cosine_similarity(x[:, 0], x[:, 1], -1)
    return torch.sigmoid(x) if form == "sigmoid" else functional.normalize(x.reshape(BATCH, LENGTH * DIM), dim=-1)


@OUTPUTS.part(form=("flat", "transposed", "four", "squeezed", "strided", "batch_last"))
def reshaped(x: Tensor, m: Weights, form: str) -> Tensor:
    if form == "four":
        return x.view(BATCH, 1, 3, 2, DIM)
    if form == "strided":
        return x[:, ::2, 1::3]
    if form == "squeezed":
        return x[:, :1].squeeze()
    if form == "flat":
        return x.flatten()
    return x.mT if form == "transposed" else x.permute(1, 2, 0)
