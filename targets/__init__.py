"""Devices that bundles are made for: facts in .toml files beside this one, and this machine."""

from edgeattn.targets.host import CpuFeatures, cpu_features, host_target
from edgeattn.targets.loader import get_target, list_targets
from edgeattn.targets.target import Accelerator, Arch, Backend, Cpu, Isa, Memory, Peaks, Precision, Target

__all__ = [
    "Accelerator",
    "Arch",
    "Backend",
    "Cpu",
    "CpuFeatures",
    "Isa",
    "Memory",
    "Peaks",
    "Precision",
    "Target",
    "cpu_features",
    "get_target",
    "host_target",
    "list_targets",
]
