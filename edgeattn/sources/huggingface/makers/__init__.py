"""Makers of example inputs, by what the input is.

Each takes a :class:`~edgeattn.sources.huggingface.source.Source`, and knows names of parameters and of config fields,
never names of models.
"""

__all__ = [
    "audio",
    "images",
    "others",
    "series",
    "text",
]
