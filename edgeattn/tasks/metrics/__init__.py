"""The metrics themselves, numpy alone; each is held to the field's own library by a test.

One file per family. An answer that is NaN, None or no value of its kind counts as wrong, or as the worst there is,
never as good; a target of the wrong kind is refused; a metric that the targets leave undefined raises DataError.
"""

__all__ = [
    "classification",
    "detection",
    "edit",
    "enhancement",
    "generation",
    "keyword",
    "language",
    "policy",
    "ranking",
    "regression",
    "segmentation",
    "similarity",
    "spans",
    "tagging",
    "verification",
]
