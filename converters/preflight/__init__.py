"""What would fail or lose on a target, found before anything is converted."""

__all__ = [
    "judge",
    "rule",
    "view",
]
