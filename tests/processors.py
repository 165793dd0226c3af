"""What the processor of this machine can do."""

from __future__ import annotations

import pytest

from edgeattn.targets.host import host_target
from edgeattn.targets.target import int8_dot

ARCH = host_target().cpu

needs_int8_dot = pytest.mark.skipif(
    ARCH.arch == "x86_64" and not int8_dot(ARCH.isa),
    reason="no VNNI here: kernels saturate 8-bit weights (quantize/saturation.py), which is not asked",
)
"""Of tests whose figures are those of exact integer products with weights of 8 bits."""
