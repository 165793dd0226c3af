"""What a target is: the facts about a device that conversion, profiling and reports use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from edgeattn.engines import ENGINES, Precision
from edgeattn.printable import excerpt

Arch = Literal["x86_64", "aarch64", "other"]
Isa = Literal[
    "avx2", "fma", "f16c", "avx512", "avx512-vnni", "avx512-bf16", "avx512-fp16", "avx-vnni", "amx-int8", "amx-bf16",
    "neon", "fp16", "dotprod", "i8mm", "bf16", "sve", "sve2",
]  # fmt: skip

PEAKS = ("fp32", "fp16", "int8")
"""What rates are told for; int4 weights are computed in one of these."""

INT8_DOT: frozenset[Isa] = frozenset(("avx512-vnni", "avx-vnni", "amx-int8", "dotprod", "i8mm"))
"""Instruction sets that sum int8 products in 32 bits."""

AMPERE = (8, 0)  # compute capability

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
"""A target's name is part of a bundle's file name, NAME.TARGET.edge: no dots, no separators."""


def int8_dot(isa: Iterable[str]) -> bool:
    """Whether int8 products are summed in 32 bits by one instruction; without it int8 is slow and can saturate.

    >>> int8_dot(("avx2", "fma")), int8_dot(("avx2", "avx-vnni"))
    (False, True)
    """
    return not INT8_DOT.isdisjoint(isa)


def supports_2_4(compute_capability: str) -> bool:
    """Whether GPUs of a compute capability have tensor cores for weights with two zeros in every four.

    Those since Ampere do (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv 2104.08378).

    >>> supports_2_4("8.7"), supports_2_4("7.5")
    (True, False)
    """
    major, _, minor = compute_capability.partition(".")
    return (int(major), int(minor or 0)) >= AMPERE


def _positive(where: object, names: Iterable[str]) -> None:
    """Refuse figures that are 0, negative, infinite or no number; an unknown one is left out, never 0."""
    for name in names:
        value = getattr(where, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive, got {value}; leave out what is not known")


@dataclass(frozen=True)
class CoreCluster:
    """Cores of one kind.

    Attributes:
        name: of the core, for example ``"Arm Cortex-A76"``.
        fp32, fp16, int8: operations per cycle and core, a multiply-add counted as two; absent where not known, or where
            the core has no instruction for it.
    """

    name: str
    cores: int
    clock_hz: float
    fp32: float | None = None
    fp16: float | None = None
    int8: float | None = None

    def __post_init__(self) -> None:
        _positive(self, ("cores", "clock_hz", *PEAKS))

    def rate(self, precision: str) -> float | None:
        """Operations per second of one core; None where not known."""
        per_cycle = {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}.get(precision)
        return None if per_cycle is None else per_cycle * self.clock_hz


@dataclass(frozen=True)
class Cpu:
    """Processor cores.

    Attributes:
        cores: how many a program can use.
        isa: instruction sets that decide which kernels an engine picks; those that every core has.
        clock_hz: of the fastest core.
        clusters: the cores by kind, from which the rate of a few threads follows; all of them or none.
        source: where these figures come from.
    """

    arch: Arch
    cores: int
    isa: tuple[Isa, ...]
    source: str
    clock_hz: float | None = None
    clusters: tuple[CoreCluster, ...] = ()

    def __post_init__(self) -> None:
        if self.cores < 1:
            raise ValueError(f"cores must be at least 1, got {self.cores}")
        _positive(self, ("clock_hz",))
        if self.clusters and sum(cluster.cores for cluster in self.clusters) != self.cores:
            raise ValueError(
                f"clusters must hold all {self.cores} cores, got {' + '.join(str(c.cores) for c in self.clusters)}"
            )

    def rate(self, precision: str, threads: int) -> float | None:
        """Operations per second of the fastest ``threads`` cores at a precision; None without figures of the clusters.

        >>> big = CoreCluster("big", 1, 2e9, fp32=16)
        >>> little = CoreCluster("little", 3, 1e9, fp32=8)
        >>> cpu = Cpu("aarch64", 4, (), "an example", clusters=(little, big))
        >>> [cpu.rate("fp32", threads) for threads in (1, 2, 9)], cpu.rate("int8", 1)
        ([32000000000.0, 40000000000.0, 56000000000.0], None)
        """
        rates = [cluster.rate(precision) for cluster in self.clusters for _ in range(cluster.cores)]
        known = sorted((rate for rate in rates if rate is not None), reverse=True)
        return sum(known[:threads]) if known and len(known) == len(rates) else None


@dataclass(frozen=True)
class Memory:
    """Main memory, shared with the accelerator on all boards here.

    Attributes:
        bytes: size.
        bytes_per_second: peak bandwidth.
        source: where these figures come from.
    """

    source: str
    bytes: int | None = None
    bytes_per_second: float | None = None

    def __post_init__(self) -> None:
        _positive(self, ("bytes", "bytes_per_second"))


@dataclass(frozen=True)
class Accelerator:
    """A GPU or NPU beside the cores.

    Attributes:
        compute_capability: of an NVIDIA GPU, for example ``"8.7"``; decides which engines can be built for it.
        multiprocessors: of an NVIDIA GPU.
        clock_hz: its highest.
        dla_cores: NVIDIA's deep learning accelerators beside the GPU.
        others: what else computes there, in words; no engine here uses it.
        source: where these figures come from.
    """

    name: str
    source: str
    compute_capability: str | None = None
    multiprocessors: int | None = None
    clock_hz: float | None = None
    dla_cores: int = 0
    others: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _positive(self, ("multiprocessors", "clock_hz"))
        if self.dla_cores < 0:
            raise ValueError(f"dla_cores must not be negative, got {self.dla_cores}")
        if self.compute_capability is not None and not re.fullmatch(r"\d+\.\d+", self.compute_capability):
            raise ValueError(f'compute_capability must look like "8.7", got {self.compute_capability!r}')


@dataclass(frozen=True)
class Peaks:
    """Dense peak rates in operations per second (a multiply-add counts as two). Absent where not known, never 0.

    They are of what the preferred engine computes on: the GPU for TensorRT, all cores for the others. They bound an
    estimate from below; no measured figure is ever derived from them. No engine here computes in fp8 or fp4: those
    stand for the record.
    """

    source: str
    fp32: float | None = None
    fp16: float | None = None
    int8: float | None = None
    fp8: float | None = None
    fp4: float | None = None

    def __post_init__(self) -> None:
        _positive(self, (*PEAKS, "fp8", "fp4"))


@dataclass(frozen=True)
class Power:
    """How much the device may draw.

    Attributes:
        modes: as the device's own tool names them (``nvpmodel -q`` on a Jetson).
        watts: smallest and largest budget.
        source: where these figures come from.
    """

    modes: tuple[str, ...]
    source: str
    watts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.watts) not in (0, 2) or any(not (math.isfinite(w) and w > 0) for w in self.watts):
            raise ValueError(f"watts must be two positive numbers, smallest and largest budget, got {self.watts}")
        if list(self.watts) != sorted(self.watts):
            raise ValueError(f"watts must stand smallest first, got {self.watts}")


@dataclass(frozen=True)
class Software:
    """One release of the device's system software, with the versions that come in it; the engine is built with those.

    Attributes:
        name: for example ``"JetPack 6.2"``.
        source: where these figures come from.
    """

    name: str
    source: str
    cuda: str | None = None
    tensorrt: str | None = None
    python: str | None = None


@dataclass(frozen=True)
class Kernels:
    """Sizes that the device's kernels fill without a remainder; pruning leaves multiples of them.

    Attributes:
        channels: of a feed-forward's neurons.
        head_dim: of the entries of one attention head.
        source: where these figures come from.
    """

    channels: int
    head_dim: int
    source: str

    def __post_init__(self) -> None:
        for name, size in (("channels", self.channels), ("head_dim", self.head_dim)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")


ANY_KERNELS = Kernels(
    16, 8, "an assumption where nothing is said: 16 channels fill the vectors and tiles of every device described here"
)


def cpu_kernels(isa: Iterable[Isa]) -> Kernels:
    """The sizes that a processor's instruction sets like.

    A matrix kernel computes as many columns at once as a vector has lanes: 16 floats in AVX-512, whose int8 dot product
    and AMX tiles have 16 columns too; 8 in AVX2. On Arm, XNNPACK's float32 tiles are 8 wide, those of float16 and of
    the int8 dot product 16.

    >>> [cpu_kernels(isa).channels for isa in (("avx2", "avx512"), ("avx2",), ("neon",), ("neon", "dotprod"))]
    [16, 8, 8, 16]
    """
    sets = set(isa)
    if "avx512" in sets:
        return Kernels(16, 16, "16 float32 lanes of AVX-512; 16 columns of VNNI and AMX tiles")
    if "avx2" in sets:
        return Kernels(8, 8, "8 float32 lanes of AVX2")
    if "neon" in sets:
        wide = bool(sets & {"fp16", "dotprod", "i8mm"})
        tiles = "16 columns of XNNPACK's float16 and int8 tiles" if wide else "8 columns of XNNPACK's float32 tiles"
        return Kernels(16 if wide else 8, 8, f"{tiles}; vectors of 4 float32 or 8 float16")
    return ANY_KERNELS


@dataclass(frozen=True)
class Target:
    """A device, or a class of devices, that a bundle is made for.

    Attributes:
        name: as in ``--target`` and in the bundle's file name.
        title: for people.
        backends: engines in order of preference.
        precisions: what each engine may be asked for there; which one ships is measured.
        kernels: sizes that pruning should leave.
        power: None where nothing can be chosen or is known.
        software: releases of the system software that are in use, the newest last.
        default_deadline_ms: real-time deadline of one step; without it a stream's hop is the deadline.
        aliases: other names that mean this target.
        notes: what a user should know before trusting a figure.
    """

    name: str
    title: str
    backends: tuple[str, ...]
    precisions: Mapping[str, tuple[Precision, ...]]
    cpu: Cpu
    memory: Memory
    accelerator: Accelerator | None = None
    peaks: Peaks | None = None
    kernels: Kernels = ANY_KERNELS
    power: Power | None = None
    software: tuple[Software, ...] = ()
    default_deadline_ms: float | None = None
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.name, *self.aliases):
            if not NAME.fullmatch(name):
                raise ValueError(f"a name is lower-case letters, digits and single hyphens, got {name!r}")
        for place, backend in enumerate(self.backends):
            if backend not in ENGINES:
                raise ValueError(f"backends[{place}]: expected one of {', '.join(ENGINES)}, got {excerpt(backend)}")
        if not self.backends:
            raise ValueError("backends must name at least one engine")
        if set(self.precisions) != set(self.backends):
            raise ValueError(
                f"precisions must be given for each of the backends ({', '.join(self.backends)}) and no other, "
                f"got {', '.join(self.precisions) or 'none'}"
            )
        for backend, precisions in self.precisions.items():
            if not precisions:
                raise ValueError(f"precisions of {backend} must not be empty")
        if self.default_deadline_ms is not None and not self.default_deadline_ms > 0:
            raise ValueError(f"default_deadline_ms must be positive, got {self.default_deadline_ms}")

    @property
    def cores(self) -> int:
        """CPU cores that a program can use."""
        return self.cpu.cores

    @property
    def isa(self) -> tuple[Isa, ...]:
        """Instruction sets of the CPU."""
        return self.cpu.isa

    @property
    def int8_dot(self) -> bool:
        """See :func:`int8_dot`."""
        return int8_dot(self.cpu.isa)

    @property
    def memory_bytes(self) -> int | None:
        """Size of main memory, None where a class of devices has no one figure."""
        return self.memory.bytes

    @property
    def compute_capability(self) -> str | None:
        """Of the NVIDIA GPU, None without one."""
        return None if self.accelerator is None else self.accelerator.compute_capability


def head_dim_note(target: Target, head_dim: int) -> str:
    """What to know of a head dimension on a target; empty if its attention kernels like it."""
    liked = target.kernels.head_dim
    if head_dim % liked == 0:
        return ""
    return (
        f"heads of {head_dim} entries are no multiple of {liked}, which its attention kernels like "
        f"({target.kernels.source}); they are padded or run unfused, so removing heads may gain less than their share"
    )
