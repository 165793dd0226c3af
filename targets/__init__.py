"""Devices that bundles are made for: facts in .toml files beside this one, and this machine."""

from edgeattn.targets.host import CpuFeatures, cpu_features, host_target
from edgeattn.targets.loader import get_target, known_target, list_targets
from edgeattn.targets.target import (
    Accelerator,
    Arch,
    CoreCluster,
    Cpu,
    Isa,
    Kernels,
    Memory,
    Peaks,
    Power,
    Software,
    Target,
    cpu_kernels,
    head_dim_note,
    supports_2_4,
)

__all__ = [
    "Accelerator",
    "Arch",
    "CoreCluster",
    "Cpu",
    "CpuFeatures",
    "Isa",
    "Kernels",
    "Memory",
    "Peaks",
    "Power",
    "Software",
    "Target",
    "calibration",
    "cpu_features",
    "cpu_kernels",
    "get_target",
    "head_dim_note",
    "host",
    "host_target",
    "known_target",
    "list_targets",
    "roofline",
    "supports_2_4",
    "target",
]
