"""Which transposed convolutions LiteRT has."""

from __future__ import annotations

from collections.abc import Sequence


def convolved_otherwise(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], extra: Sequence[int], dilation: Sequence[int]
) -> bool:
    """Whether a transposed convolution reaches LiteRT as others (:mod:`edgeattn.converters.litert_forms`).

    Its own takes no padding, or one that leaves an output of ``stride`` times the input.

    Args:
        extra: ``output_padding``.
    """
    even = all(p == 0 or k - s == 2 * p for k, s, p in zip(kernel, stride, padding, strict=True))
    return len(kernel) > 2 or any(extra) or not even or (max(stride) > 1 and max(dilation) > 1)
