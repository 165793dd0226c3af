"""``stft`` and ``istft``: frames, a window and a product, and the way back with overlapping sums.

Speech enhancement lives on them. Both are torch's own in every option: ``center`` and its padding come before in the
program, ``normalized`` is a factor, a window shorter than the transform stands in its middle, and the way back divides
by the sum of the squared windows (torch.istft; Griffin and Lim, 1984).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from edgeattn.converters.passes.fourier import (
    Node,
    Parts,
    UnsupportedTransformError,
    constant,
    from_half_spectrum,
    transform,
)
from edgeattn.converters.passes.graph import Program, Writer, size
from edgeattn.converters.passes.plain_windows import frames, overlapped

aten = torch.ops.aten


def spectrogram(write: Writer, signal: Parts, options: dict[str, Any]) -> Parts:
    """torch.stft of (rows, length) or (length,): the parts of (rows, bins, frames) or (bins, frames).

    Args:
        options: torch.stft's arguments by name, ``center`` and ``pad_mode`` included where it is the operator's.

    Raises:
        UnsupportedTransformError: see :func:`~edgeattn.converters.passes.fourier.transform`.
    """
    width, real = options["n_fft"], signal[1] is None
    step = options.get("hop_length") or width // 4
    bins = width // 2 + 1 if options.get("onesided") in (None, True) and real else width
    scale = width**-0.5 if options.get("normalized") else 1.0
    window = _window(write.program, options, width)
    alone = len(size(signal[0])) == 1
    made: list[Node | None] = []
    for part in signal:
        if part is None:
            made.append(None)
            continue
        rows = write(aten.unsqueeze.default, part, 0) if alone else part
        if options.get("center"):
            rows = _centred(write, rows, width // 2, options.get("pad_mode", "reflect"))
        cut = frames(write, rows, width, step)
        if window is None:
            cut = write(aten.mul.Tensor, cut, _unknown_window(write, options["window"], width))
        elif not np.array_equal(window, np.ones(width)):
            cut = write(aten.mul.Tensor, cut, constant(write, window, cut))
        made.append(cut)
    assert made[0] is not None
    found = transform(write, (made[0], made[1]), False, scale, bins)
    turned = [write(aten.transpose.int, part, 1, 2) for part in found if part is not None]
    if alone:
        turned = [write(aten.squeeze.dim, part, 0) for part in turned]
    return turned[0], turned[1]


def signal_of(write: Writer, parts: Parts, options: dict[str, Any]) -> Node:
    """torch.istft of (rows, bins, frames) or (bins, frames): (rows, length) or (length,).

    Args:
        options: torch.istft's arguments by name.

    Raises:
        UnsupportedTransformError: for a window that is not known, or a complex signal.
    """
    width = options["n_fft"]
    step = options.get("hop_length") or width // 4
    window = _window(write.program, options, width)
    if window is None or options.get("return_complex"):
        raise UnsupportedTransformError("istft with a window that inputs decide, or of a complex signal")
    scale = width**0.5 if options.get("normalized") else 1.0
    alone, count = len(size(parts[0])) == 2, size(parts[0])[-1]  # without rows
    rows = [p if p is None or not alone else write(aten.unsqueeze.default, p, 0) for p in parts]
    real, imaginary = (None if part is None else write(aten.transpose.int, part, 1, 2) for part in rows)
    assert real is not None
    if options.get("onesided") is False:  # both halves are there; the signal is real all the same
        windows = transform(write, (real, imaginary), True, scale / width)[0]
    else:
        windows = from_half_spectrum(write, (real, imaginary), width, scale / width)
    windows = write(aten.mul.Tensor, windows, constant(write, window, windows))
    whole = overlapped(write, windows, step)
    weight = np.zeros(size(whole)[1])
    for place in range(count):
        weight[place * step : place * step + width] += window**2
    first, end = _ends(options, width, step, count)
    shown = min(end, len(weight))
    kept = weight[first:shown]
    result = write(aten.slice.Tensor, whole, 1, first, shown)
    result = write(aten.div.Tensor, result, constant(write, kept, result))
    if end > shown:
        result = write(aten.constant_pad_nd.default, result, [0, end - shown], 0.0)
    return write(aten.squeeze.dim, result, 0) if alone else result


def _ends(options: dict[str, Any], width: int, step: int, count: int) -> tuple[int, int]:
    centred = options.get("center", True)
    first = width // 2 if centred else 0
    if options.get("length") is not None:
        return first, first + int(options["length"])
    whole = (count - 1) * step + width
    return first, whole - width // 2 if centred else whole


def _window(program: Program, options: dict[str, Any], width: int) -> np.ndarray | None:
    """The window, zeros around it where it is shorter, float64; None where it is not known."""
    given = options.get("window")
    length = options.get("win_length") or width
    if given is None:
        window = np.ones(length)
    else:
        known = program.known(given)
        if known is None:
            return None
        window = known.double().numpy()
    before = (width - len(window)) // 2
    return np.pad(window, (before, width - len(window) - before))


def _unknown_window(write: Writer, window: Node, width: int) -> Node:
    (length,) = size(window)
    before = (width - length) // 2
    if length == width:
        return window
    return write(aten.constant_pad_nd.default, window, [before, width - length - before], 0.0)


def _centred(write: Writer, rows: Node, amount: int, mode: str) -> Node:
    if mode == "constant":
        return write(aten.constant_pad_nd.default, rows, [amount, amount], 0.0)
    lifted = write(aten.unsqueeze.default, rows, 0)
    return write(aten.squeeze.dim, write(aten.pad.default, lifted, [amount, amount], mode), 0)
