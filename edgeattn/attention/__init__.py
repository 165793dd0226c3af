"""Attention mechanisms, one file each."""

__all__ = [
    "masks",
    "multihead",
    "relative_bias",
]
