"""What a model is, to every room and every engine: names, shapes, states, front end, decoding.

All of it is frozen, needs nothing beyond the standard library and numpy, and goes through JSON unchanged
(:func:`to_json`, :func:`from_json`), because the same objects are written into a bundle's manifest.
"""

from edgeattn.spec.as_json import from_json, to_json
from edgeattn.spec.buckets import BucketSpec, CutAxis, PaddedAxis
from edgeattn.spec.graphs import DTYPES, HALF_MAX, MAX_NAME, DType, GraphSpec, StateSpec, TensorSpec, check_name
from edgeattn.spec.models import ModelSpec
from edgeattn.spec.streams import HIDDEN, HIDES, MAX_SAMPLE_RATE, CtcGreedy, FbankConfig, StreamSpec

__all__ = [
    "DTYPES",
    "HALF_MAX",
    "HIDDEN",
    "HIDES",
    "MAX_NAME",
    "MAX_SAMPLE_RATE",
    "BucketSpec",
    "CtcGreedy",
    "CutAxis",
    "DType",
    "FbankConfig",
    "GraphSpec",
    "ModelSpec",
    "PaddedAxis",
    "StateSpec",
    "StreamSpec",
    "TensorSpec",
    "check_name",
    "from_json",
    "to_json",
]
