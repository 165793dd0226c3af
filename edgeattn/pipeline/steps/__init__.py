"""The steps of convert, in the order of its docstring, each on its own."""

__all__ = [
    "adversarial",
    "baseline",
    "candidates",
    "early",
    "exports",
    "fallbacks",
    "options",
    "packing",
    "preflight",
    "recipes",
    "refusals",
    "repeatable",
    "rows",
    "runs",
    "sensitivity",
    "served",
]
