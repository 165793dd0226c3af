"""This machine as a target: what its processor can do, read without running anything on it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, replace
from pathlib import Path

from edgeattn.engines import ENGINES, Precision
from edgeattn.targets.target import Arch, CoreCluster, Cpu, Isa, Memory, Peaks, Target, cpu_kernels, int8_dot

CPUINFO = Path("/proc/cpuinfo")
MAX_FREQUENCY = Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")  # kHz
PER_CYCLE = "the widest instructions of this machine's instruction sets, two of them a cycle; not checked for this core"

# Names of the Linux kernel (arch/x86/include/asm/cpufeatures.h, Documentation/arch/arm64/elf_hwcaps.rst) to ours.
ISA_OF_FLAG: dict[str, Isa] = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx512f": "avx512",
    "avx512_vnni": "avx512-vnni",
    "avx512_bf16": "avx512-bf16",
    "avx512_fp16": "avx512-fp16",
    "avx_vnni": "avx-vnni",
    "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16",
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}

ARCH: dict[str, Arch] = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@dataclass(frozen=True)
class CpuFeatures:
    """What the processor of this machine offers.

    Attributes:
        arch: as Python names it: ``"x86_64"``, ``"aarch64"``, ``"arm64"``, ...
        model: the maker's name, empty where the system does not tell.
        cores: those that this process may run on.
        isa: instruction sets that matter to the engines; empty where the system does not tell.
        clock_hz: highest that the system tells, of the moment where it tells no other; None where it tells none.
    """

    arch: str
    model: str
    cores: int
    isa: tuple[Isa, ...]
    clock_hz: float | None = None

    @property
    def int8_dot(self) -> bool:
        """See :func:`edgeattn.targets.target.int8_dot`."""
        return int8_dot(self.isa)


def cpu_features() -> CpuFeatures:
    """Features of this machine's processor."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""  # not Linux
    features = parse_cpuinfo(text, platform.machine(), _usable_cores())
    try:
        highest = _number(MAX_FREQUENCY.read_text(encoding="ascii")) * 1e3
    except (OSError, UnicodeDecodeError):
        return features  # virtual machines tell the clock of the moment alone
    return replace(features, clock_hz=highest) if highest > 0 else features


def parse_cpuinfo(text: str, arch: str, cores: int) -> CpuFeatures:
    """Read the text of /proc/cpuinfo; features count only where every core has them (big.LITTLE parts can differ)."""
    model = ""
    clock = 0.0
    common: set[str] | None = None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "flags" | "Features":
                flags = set(value.split())
                common = flags if common is None else common & flags
            case "model name" | "Model" if not model:
                model = value.strip()
            case "cpu MHz":
                clock = max(clock, _number(value) * 1e6)
    isa = tuple(name for flag, name in ISA_OF_FLAG.items() if flag in (common or ()))
    return CpuFeatures(arch, model, cores, isa, clock or None)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def operations_per_cycle(isa: tuple[Isa, ...]) -> dict[str, float]:
    """Dense operations per cycle and core at each precision, a multiply-add counted as two, from the vectors' widths.

    Only what the engines compute in: on x86 they unpack float16 to float32, so it has no rate of its own.

    >>> operations_per_cycle(("avx2", "fma"))
    {'fp32': 32}
    >>> operations_per_cycle(("neon", "fp16", "dotprod"))
    {'fp32': 16, 'fp16': 32, 'int8': 64}
    """
    sets = set(isa)
    rates: dict[str, float] = {}
    if "avx512" in sets:
        rates["fp32"] = 64
    elif {"avx2", "fma"} <= sets:
        rates["fp32"] = 32
    elif "neon" in sets:
        rates["fp32"] = 16 if sets & {"fp16", "dotprod"} else 8
    if "neon" in sets and "fp16" in sets:
        rates["fp16"] = 32
    if "amx-int8" in sets:
        rates["int8"] = 2048
    elif "avx512-vnni" in sets:
        rates["int8"] = 256
    elif "avx-vnni" in sets or "i8mm" in sets:
        rates["int8"] = 128
    elif "dotprod" in sets:
        rates["int8"] = 64
    elif "neon" in sets:
        rates["int8"] = 16
    return rates


def host_target() -> Target:
    """The target ``cpu``: this machine's processor, with the engines that suit it."""
    features = cpu_features()
    arch = ARCH.get(features.arch.lower(), "other")
    every: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    ranks = {row.name: row.arm_rank if arch == "aarch64" else row.rank for row in ENGINES.values()}
    backends = tuple(sorted(filter(ranks.get, ranks), key=lambda name: ranks[name] or 0))
    clock = features.clock_hz
    rates = operations_per_cycle(features.isa)
    clusters: tuple[CoreCluster, ...] = ()
    peaks = None
    if clock is not None and rates:
        clusters = (CoreCluster(features.model or features.arch, features.cores, clock, **rates),)
        every_core = {name: rate * clock * features.cores for name, rate in rates.items()}
        peaks = Peaks(f"derived: {features.cores} cores x {clock / 1e9:.2f} GHz x {PER_CYCLE}", **every_core)
    saturating = arch == "x86_64" and "avx2" in features.isa and not features.int8_dot
    return Target(
        name="cpu",
        title=f"this machine ({features.model or features.arch})",
        backends=backends,
        precisions=dict.fromkeys(backends, every),
        cpu=Cpu(arch, features.cores, features.isa, "read from this machine", clock, clusters),
        memory=Memory(source="read from this machine", bytes=_memory_bytes()),
        peaks=peaks,
        kernels=cpu_kernels(features.isa),
        notes=("no VNNI: int8 sums saturate at 16 bits in some kernels; trust the measured accuracy",) * saturating,
    )


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


HOST = "cpu"  # the target that is this machine
