"""What runs in a process of its own, here or on a device."""

__all__ = [
    "answers",
    "evaluate",
    "measure",
    "parcel",
    "remote",
]
