"""This machine as a target: what its processor can do, read without running anything on it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from edgeattn.targets.target import Arch, Backend, Cpu, Isa, Memory, Precision, Target, cpu_kernels, int8_dot

CPUINFO = Path("/proc/cpuinfo")

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
    """

    arch: str
    model: str
    cores: int
    isa: tuple[Isa, ...]

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
    return parse_cpuinfo(text, platform.machine(), _usable_cores())


def parse_cpuinfo(text: str, arch: str, cores: int) -> CpuFeatures:
    """Read the text of /proc/cpuinfo; features count only where every core has them (big.LITTLE parts can differ)."""
    model = ""
    common: set[str] | None = None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        match key.strip():
            case "flags" | "Features":
                flags = set(value.split())
                common = flags if common is None else common & flags
            case "model name" | "Model" if not model:
                model = value.strip()
    isa = tuple(name for flag, name in ISA_OF_FLAG.items() if flag in (common or ()))
    return CpuFeatures(arch, model, cores, isa)


def host_target() -> Target:
    """The target ``cpu``: this machine's processor, with the engines that suit it."""
    features = cpu_features()
    arch = ARCH.get(features.arch.lower(), "other")
    every: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    backends: tuple[Backend, ...] = (
        ("litert", "openvino", "onnxruntime") if arch == "aarch64" else ("openvino", "onnxruntime", "litert")
    )
    saturating = arch == "x86_64" and "avx2" in features.isa and not features.int8_dot
    return Target(
        name="cpu",
        title=f"this machine ({features.model or features.arch})",
        backends=backends,
        precisions=dict.fromkeys(backends, every),
        cpu=Cpu(arch, features.cores, features.isa, source="read from this machine"),
        memory=Memory(source="read from this machine", bytes=_memory_bytes()),
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
