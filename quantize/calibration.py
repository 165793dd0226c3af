"""Checks calibration samples before a quantizer turns them into ranges that nobody looks at again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeattn.errors import DataError

Declared = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
"""Input -> dtype, shape."""
Samples = Sequence[Mapping[str, np.ndarray]]
Calibration = Mapping[str, Samples]
"""Graph name -> full input sets, states included, collected over whole streams with carried state: states that were
never carried are all zero and give no range."""


def checked_samples(calibration: Calibration, graph: str, onnx: Path) -> list[dict[str, np.ndarray]]:
    """The samples of one graph, each with every input that the ONNX file declares, contiguous.

    Raises:
        DataError: if there are none, or one has a missing or unknown name, another shape or dtype, NaN or +infinity.
    """
    return checked_against(calibration, graph, _declared_inputs(onnx))


def checked_against(calibration: Calibration, graph: str, expected: Declared) -> list[dict[str, np.ndarray]]:
    """As :func:`checked_samples`, for inputs that another file declares."""
    samples = calibration.get(graph) or ()
    if not samples:
        raise DataError(
            f"int8 needs calibration samples for graph {graph!r} and got none: give --data with inputs like those of "
            "use (full input sets, states included), or ask for fp16"
        )
    return [_checked(sample, expected, f"calibration sample {i} of {graph!r}") for i, sample in enumerate(samples)]


def _declared_inputs(onnx_path: Path) -> Declared:
    import onnx

    graph = onnx.load(onnx_path, load_external_data=False).graph
    return {
        value.name: (
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
            tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in graph.input
    }


def _checked(sample: Mapping[str, np.ndarray], expected: Declared, where: str) -> dict[str, np.ndarray]:
    if set(sample) != set(expected):
        missing, unknown = sorted(set(expected) - set(sample)), sorted(set(sample) - set(expected))
        parts = [f"misses {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise DataError(f"{where} {' and '.join(parts)}; expected inputs: {', '.join(expected)}")
    arrays = {}
    for name, (dtype, shape) in expected.items():
        array = np.asarray(sample[name])
        if array.shape != shape or not np.can_cast(array.dtype, dtype, "safe"):
            raise DataError(f"{where}: {name} must be {dtype} {shape}, got {array.dtype} {array.shape}")
        if array.dtype.kind == "f" and bool((np.isnan(array) | np.isposinf(array)).any()):  # -inf hides, as in a mask
            raise DataError(f"{where}: {name} holds NaN or +infinity; leave out the recording that it came from")
        arrays[name] = np.asarray(array, dtype=dtype, order="C")
    return arrays
