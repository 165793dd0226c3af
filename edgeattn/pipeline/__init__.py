"""What a command calls, each under the command's own name; the steps of convert stand in steps/."""

__all__ = [
    "api",
    "calibrate",
    "check",
    "convert",
    "inspect",
    "profile",
    "prune",
    "quantize",
    "run",
    "stream",
]
