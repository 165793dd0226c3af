"""Attention mechanisms, one file each."""

__all__ = [
    "masks",
    "multihead",
    "padded_rows",
    "relative_bias",
]
