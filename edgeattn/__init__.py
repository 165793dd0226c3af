"""edgeattn: attention models on edge devices, verified.

Importing this loads nothing heavy; the rooms are imported where they are needed
(``edgeattn.runtimes``, ``edgeattn.pipeline.convert``, ``edgeattn.converters``, ...).
"""

__version__ = "0.1.0"
