"""What operators of torch do to a complex tensor, told as what they do to its real and its imaginary part.

A rule writes nodes for one call and returns the parts of its result, or one real node.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch

from edgeattn.converters.passes import fourier
from edgeattn.converters.passes.complex_reader import REAL_OF, Reader, Result, UnsupportedPartError
from edgeattn.converters.passes.fourier import Node, Parts, UnsupportedTransformError
from edgeattn.converters.passes.fourier_rules import signal, spectrogram, transformed
from edgeattn.converters.passes.graph import Writer, size

aten = torch.ops.aten


# Each part alone ------------------------------------------------------------------------------------------------------


def _each(*positions: int) -> Callable[[Reader], Result]:
    """The same operator on each part of the arguments at these positions; the others stay."""

    def rule(read: Reader) -> Result:
        node = read.node

        def chosen(value: Any, part: int) -> Any:
            if value is None:
                return None
            if isinstance(value, (list, tuple)):
                return [chosen(item, part) for item in value]
            return read.full(value)[part]

        def call(part: int) -> Node:
            args = [chosen(a, part) if place in positions else a for place, a in enumerate(node.args)]
            args = [REAL_OF.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
            kwargs = {k: REAL_OF.get(a, a) if isinstance(a, torch.dtype) else a for k, a in node.kwargs.items()}
            return read.write(node.target, *args, **kwargs)

        return call(0), call(1)

    return rule


def _to(read: Reader) -> Result:
    dtype = read.node.meta["val"].dtype
    wanted = REAL_OF.get(dtype, dtype)
    made = [None if part is None else read.write(aten.to.dtype, part, wanted) for part in read.first()]
    return (made[0], made[1]) if dtype in REAL_OF else made[0]


def _conjugate(read: Reader) -> Result:
    real, imaginary = read.first()
    return real, None if imaginary is None else read.write(aten.neg.default, imaginary)


def _adjoint(read: Reader) -> Result:
    real, imaginary = _conjugate(read)
    turned = [None if part is None else read.write(aten.transpose.int, part, -1, -2) for part in (real, imaginary)]
    assert turned[0] is not None
    return turned[0], turned[1]


def _same(read: Reader) -> Result:
    return read.first()


def _filled(read: Reader) -> Result:
    value, dtype = complex(read.named.get("fill_value", 1)), REAL_OF[read.node.meta["val"].dtype]
    made = [read.write(aten.full.default, list(size(read.node)), x, dtype=dtype) for x in (value.real, value.imag)]
    return made[0], made[1]


# Between the real and the complex -------------------------------------------------------------------------------------


def _paired(read: Reader) -> Result:
    a, b = read.args[:2]
    return a, b


def _from_pair(read: Reader) -> Result:
    source = read.args[0]
    return tuple(read.write(aten.select.int, source, -1, place) for place in (0, 1))


def _as_pair(read: Reader) -> Result:
    return read.write(aten.stack.default, list(read.full(read.args[0])), -1)


def _real(read: Reader) -> Result:
    return read.first()[0]


def _imaginary(read: Reader) -> Result:
    return read.full(read.args[0])[1]


def _from_polar(read: Reader) -> Result:
    return _polar(read.write, *read.args[:2])


def _polar(write: Writer, length: Any, angle: Any) -> Parts:
    cos, sin = write(aten.cos.default, angle), write(aten.sin.default, angle)
    return write(aten.mul.Tensor, cos, length), write(aten.mul.Tensor, sin, length)


def _length(read: Reader) -> Node:
    real, imaginary = read.first()
    if imaginary is None:
        return read.write(aten.abs.default, real)
    return read.write(aten.sqrt.default, _squared_length(read.write, real, imaginary))


def _squared_length(write: Writer, real: Any, imaginary: Any) -> Node:
    squares = [write(aten.mul.Tensor, part, part) for part in (real, imaginary)]
    return write(aten.add.Tensor, *squares)


def _angle(read: Reader) -> Node:
    real, imaginary = read.full(read.args[0])
    return read.write(aten.atan2.default, imaginary, real)


def _norm(read: Reader) -> Result:
    """A vector norm is that of the lengths."""
    return read.write(read.node.target, _length(read), *read.args[1:], **read.node.kwargs)


# Arithmetic -----------------------------------------------------------------------------------------------------------


def _product(read: Reader) -> Result:
    return fourier.times(read.write, read.parts(read.args[0]), read.parts(read.args[1]))


def _square(read: Reader) -> Result:
    return fourier.times(read.write, read.first(), read.first())


def _sum(sign: int, swapped: bool = False) -> Callable[[Reader], Result]:
    def rule(read: Reader) -> Result:
        left, right = (read.parts(value) for value in read.args[:2])
        alpha = read.named.get("alpha", 1)
        if isinstance(alpha, complex):
            raise UnsupportedPartError("multiplies by a complex alpha")
        if swapped:
            left, right = right, left
        made = []
        for a, b in zip(left, right, strict=True):
            if b is None:
                made.append(a)
                continue
            scaled = b if alpha == 1 else read.write(aten.mul.Tensor, b, alpha)
            made.append(_added(read.write, a, scaled, sign))
        return made[0], made[1]

    return rule


def _added(write: Writer, a: Any, b: Any, sign: int) -> Node:
    if a is None:
        return b if sign > 0 else write(aten.neg.default, b)
    if isinstance(a, torch.fx.Node):
        return write(aten.add.Tensor if sign > 0 else aten.sub.Tensor, a, b)
    return write(aten.add.Tensor, b if sign > 0 else write(aten.neg.default, b), a)


def _quotient(read: Reader) -> Result:
    if read.named.get("rounding_mode") is not None:
        raise UnsupportedPartError("rounds a complex quotient")
    upper, lower = (read.parts(value) for value in read.args[:2])
    return _divided(read.write, upper, lower)


def _reciprocal(read: Reader) -> Result:
    real, imaginary = read.full(read.args[0])
    length = _squared_length(read.write, real, imaginary)
    return read.write(aten.div.Tensor, real, length), read.write(
        aten.div.Tensor, read.write(aten.neg.default, imaginary), length
    )


def _divided(write: Writer, upper: Any, lower: Any) -> Parts:
    """The quotient: a / c, or a * conj(c) / abs(c)^2."""
    (c, d) = lower
    if d is None:
        real, imaginary = upper
        return _over(write, real, c), None if imaginary is None else _over(write, imaginary, c)
    if not isinstance(d, torch.fx.Node):
        inverse = 1 / complex(c, d)
        return fourier.times(write, upper, (inverse.real, inverse.imag))
    length = _squared_length(write, c, d)
    real, imaginary = fourier.times(write, upper, (c, write(aten.neg.default, d)))
    return _over(write, real, length), _over(write, imaginary, length)


def _over(write: Writer, a: Any, b: Any) -> Node:
    if isinstance(a, torch.fx.Node):
        return write(aten.div.Tensor, a, b)
    return write(aten.mul.Tensor, write(aten.reciprocal.default, b), a)


def _exponential(read: Reader) -> Result:
    real, imaginary = read.first()
    grown = read.write(aten.exp.default, real)
    return (grown, None) if imaginary is None else _polar(read.write, grown, imaginary)


def _logarithm(read: Reader) -> Result:
    return read.write(aten.log.default, _length(read)), _angle(read)


def _power(read: Reader) -> Result:
    exponent = read.args[1]
    if isinstance(exponent, int) and 1 <= exponent <= 8:  # products up to the eighth are exact enough
        made = read.first()
        for _ in range(exponent - 1):
            made = fourier.times(read.write, made, read.first())
        return made
    if not isinstance(exponent, (int, float)):
        raise UnsupportedPartError("takes a power that is no number")
    length = read.write(aten.pow.Tensor_Scalar, _length(read), exponent)
    return _polar(read.write, length, read.write(aten.mul.Tensor, _angle(read), exponent))


def _root(read: Reader) -> Result:
    angle = read.write(aten.mul.Tensor, _angle(read), 0.5)
    return _polar(read.write, read.write(aten.sqrt.default, _length(read)), angle)


def _direction(read: Reader) -> Result:
    """The number on the unit circle, and 0 at 0."""
    length = _length(read)
    safe = read.write(
        aten.add.Tensor,
        length,
        read.write(aten.to.dtype, read.write(aten.eq.Scalar, length, 0), length.meta["val"].dtype),
    )
    return tuple(read.write(aten.div.Tensor, part, safe) for part in read.full(read.args[0]))


# Products of two tensors ----------------------------------------------------------------------------------------------


def _bilinear(left: int, right: int) -> Callable[[Reader], Result]:
    """An operator that is linear in two arguments, with a bias behind them where it has one."""

    def rule(read: Reader) -> Result:
        args = list(read.args)
        bias = read.named.get("bias")
        where = right + 1 if bias is not None else len(args)

        def one(a: Any, b: Any) -> Node | None:
            if a is None or b is None:
                return None
            given = [a if i == left else b if i == right else None if i == where else v for i, v in enumerate(args)]
            return read.write(read.node.target, *given, **read.node.kwargs)

        return _combined(read, read.parts(args[left]), read.parts(args[right]), one, bias)

    return rule


def _einsum(read: Reader) -> Result:
    equation, operands = read.args[:2]
    if len(operands) == 1:
        made = [read.write(aten.einsum.default, equation, [part]) for part in read.full(operands[0])]
        return made[0], made[1]
    if len(operands) != 2:
        raise UnsupportedPartError("is a product of more than two complex tensors; write it as products of two")

    def one(a: Any, b: Any) -> Node | None:
        return None if a is None or b is None else read.write(aten.einsum.default, equation, [a, b])

    return _combined(read, read.parts(operands[0]), read.parts(operands[1]), one, None)


def _combined(read: Reader, left: Any, right: Any, one: Callable[[Any, Any], Node | None], bias: Any) -> Parts:
    (a, b), (c, d) = left, right
    real, minus = one(a, c), one(b, d)
    made: list[Any] = [real if minus is None else read.write(aten.sub.Tensor, real, minus), None]
    for part in (one(a, d), one(b, c)):
        if part is not None:
            made[1] = part if made[1] is None else read.write(aten.add.Tensor, made[1], part)
    if bias is not None:
        axes = len(size(made[0])) - 2 if "conv" in str(read.node.target) else 0
        for place, part in enumerate(read.full(bias)):
            spread = read.write(aten.reshape.default, part, [-1, *[1] * axes]) if axes else part
            base = made[place] if made[place] is not None else read.write(aten.zeros_like.default, made[0])
            made[place] = read.write(aten.add.Tensor, base, spread)
    return made[0], made[1]


REFUSALS = (UnsupportedPartError, UnsupportedTransformError)
FIRST = (
    "reshape view _unsafe_view transpose permute t mT numpy_T unsqueeze squeeze expand slice select flatten unflatten "
    "split split_with_sizes chunk unbind clone contiguous index_select index gather flip roll narrow "
    "movedim repeat tile expand_as view_as repeat_interleave sum mean cumsum diff neg unfold detach detach_ alias "
    "fft_fftshift fft_ifftshift lift_fresh_copy tril triu diagonal embedding zeros_like new_zeros swapaxes "
    "take_along_dim masked_select as_strided dropout zero_ nansum trace diag_embed diag"
)
RULES: Mapping[str, Callable[[Reader], Result]] = {
    **dict.fromkeys(FIRST.split(), _each(0)),
    **dict.fromkeys(("zeros", "empty"), _each()),
    "constant_pad_nd": _each(0, 2),
    "pad": _each(0, 3),
    "getitem": _each(0),
    **dict.fromkeys(("cat", "stack", "hstack", "vstack"), _each(0)),
    **dict.fromkeys(("copy_", "fill_", "fill", "select_scatter", "slice_scatter"), _each(0, 1)),
    **dict.fromkeys(("where",), _each(1, 2)),
    **dict.fromkeys(("masked_fill", "index_put", "index_put_", "masked_fill_"), _each(0, 2)),
    **dict.fromkeys(("scatter", "scatter_add", "index_add", "index_copy"), _each(0, 3)),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _to),
    **dict.fromkeys(("conj", "_conj", "conj_physical", "_conj_physical"), _conjugate),
    **dict.fromkeys(("mH", "adjoint"), _adjoint),
    **dict.fromkeys(("resolve_conj", "resolve_neg"), _same),
    **dict.fromkeys(("ones", "ones_like", "full", "full_like", "new_ones", "new_full"), _filled),
    "complex": _paired,
    "view_as_complex": _from_pair,
    "view_as_real": _as_pair,
    "real": _real,
    "imag": _imaginary,
    "polar": _from_polar,
    "abs": _length,
    "angle": _angle,
    **dict.fromkeys(("linalg_vector_norm", "norm", "linalg_norm"), _norm),
    **dict.fromkeys(("mul", "multiply"), _product),
    "square": _square,
    "add": _sum(1),
    "sub": _sum(-1),
    "rsub": _sum(-1, swapped=True),
    **dict.fromkeys(("div", "true_divide"), _quotient),
    "reciprocal": _reciprocal,
    "exp": _exponential,
    "log": _logarithm,
    "pow": _power,
    "sqrt": _root,
    "sgn": _direction,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "outer", "linear"), _bilinear(0, 1)),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _bilinear(0, 1)),
    "einsum": _einsum,
    **dict.fromkeys(
        ("fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft", "fft_fft2", "fft_ifft2", "fft_rfft2",
         "fft_irfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn"),
        transformed,
    ),
    "stft": spectrogram,
    "istft": signal,
}  # fmt: skip
"""Name of an operator, all overloads of it -> its rule."""


def name_of(node: Node) -> str:
    """``mul`` for ``aten.mul.Tensor``."""
    if node.target is operator.getitem:
        return "getitem"
    target: Any = node.target
    return str(target.overloadpacket.__name__) if isinstance(target, torch._ops.OpOverload) else str(target)
