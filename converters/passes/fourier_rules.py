"""What ``torch.fft``, ``stft`` and ``istft`` do, as rules of :mod:`edgeattn.converters.passes.complex_rules`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from edgeattn.converters.passes import fourier, short_time
from edgeattn.converters.passes.complex_reader import Reader, Result
from edgeattn.converters.passes.graph import size

aten = torch.ops.aten


def transformed(read: Reader) -> Result:
    """Any ``fft_*`` of one or more axes."""
    name = str(read.node.target).split(".")[1].removeprefix("fft_")
    several = name.endswith(("2", "n"))
    kind = name[:-1] if several else name
    axes, sizes = _axes(read, kind, several, name.endswith("2"))
    norm, parts = read.named.get("norm"), read.first()
    write = read.write
    if kind == "ihfft":
        return _inverse_hermitian(read, parts, axes[0], sizes[0], norm)
    if kind == "rfft":
        *axes, last = axes
        *sizes, count = sizes
        first = fourier.scale_of(norm, count, False)
        parts = _along(read, parts, last, count, lambda p: fourier.half_spectrum(write, p[0], first))
        kind = "fft"
    final = axes.pop() if kind in ("irfft", "hfft") else None
    length = sizes.pop() if final is not None else 0
    inverse = kind in ("ifft", "irfft")
    for axis, count in zip(axes, sizes, strict=True):
        change = functools.partial(
            fourier.transform, write, inverse=inverse, scale=fourier.scale_of(norm, count, inverse)
        )
        parts = _along(read, parts, axis, count, change)
    if final is None:
        return parts
    if kind == "hfft":  # the way back of a conjugated half, scaled as the way there
        parts = parts[0], None if parts[1] is None else write(aten.neg.default, parts[1])
    scale = fourier.scale_of(norm, length, kind == "irfft")
    made = _along(
        read,
        parts,
        final,
        length // 2 + 1,
        lambda p: (fourier.from_half_spectrum(write, p, length, scale), None),
    )
    return made[0]


def _inverse_hermitian(read: Reader, parts: Any, axis: int, count: int, norm: str | None) -> Any:
    scale = fourier.scale_of(norm, count, True)
    real, imaginary = _along(read, parts, axis, count, lambda p: fourier.half_spectrum(read.write, p[0], scale))
    return real, None if imaginary is None else read.write(aten.neg.default, imaginary)


def _axes(read: Reader, kind: str, several: bool, two: bool) -> tuple[list[int], list[int]]:
    """The axes of a transform and the lengths that they have in its domain of time."""
    shape = list(size(read.args[0]))
    given = read.named.get("s" if several else "n")
    lengths = list(given) if isinstance(given, (list, tuple)) else [given]
    axes = read.named.get("dim")
    if axes is None:
        axes = [-2, -1] if two else list(range(-len(lengths), 0)) if given is not None else list(range(len(shape)))
        axes = axes if several else [-1]
    axes = [axis % len(shape) for axis in (axes if isinstance(axes, (list, tuple)) else [axes])]
    lengths = lengths if given is not None else [None] * len(axes)
    sizes = [shape[axis] if length in (None, -1) else int(length) for axis, length in zip(axes, lengths, strict=True)]
    if kind in ("irfft", "hfft") and lengths[-1] in (None, -1):
        sizes[-1] = 2 * (shape[axes[-1]] - 1)
    return axes, sizes


def _along(read: Reader, parts: Any, axis: int, count: int, change: Callable[[Any], Any]) -> Any:
    """A change along the last axis, done along another one, cut or filled to ``count`` places before."""
    last = len(size(parts[0])) - 1
    given = [None if part is None else fourier.resized(read.write, part, axis, count) for part in parts]
    if axis != last:
        given = [None if part is None else read.write(aten.transpose.int, part, axis, last) for part in given]
    made = change((given[0], given[1]))
    if axis != last:
        made = tuple(None if part is None else read.write(aten.transpose.int, part, axis, last) for part in made)
    return made


def spectrogram(read: Reader) -> Result:
    """torch.stft."""
    made = short_time.spectrogram(read.write, read.first(), read.named)
    if read.named.get("return_complex"):
        return made
    real, imaginary = made
    return read.write(aten.stack.default, [real, imaginary], -1)


def signal(read: Reader) -> Result:
    """torch.istft."""
    return short_time.signal_of(read.write, read.first(), read.named)
