"""Model files read as graphs: their layers, and what their operations do, counted."""

__all__ = [
    "counting",
    "estimate",
    "layers",
    "work",
]
