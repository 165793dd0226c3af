"""MODEL as a local Hugging Face directory."""

__all__ = [
    "checkpoint",
    "directory",
]
