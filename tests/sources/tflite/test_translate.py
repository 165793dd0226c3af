"""TFLite operators as they are read, against LiteRT on the file: one small file per way of using each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="sources need edgeattn[convert]")
pytest.importorskip("onnxruntime", reason="sources need edgeattn[convert]")
pytest.importorskip("ai_edge_litert.interpreter", reason="the oracle is LiteRT: edgeattn[tflite]")

import torch

from edgeattn.errors import UnsupportedError
from edgeattn.sources import read_model
from edgeattn.sources.onnx.imported import ImportedModel
from edgeattn.sources.onnx.reference import difference, runtime_session
from edgeattn.sources.tflite.builder import TABLE
from edgeattn.sources.tflite.file import interpreted
from edgeattn.sources.tflite.read import read_tflite
from edgeattn.sources.tflite.translate import to_onnx
from tests.sources.tflite.files import Written, ints, normal, write

X, IMAGE = (2, 3, 4), (1, 5, 6, 4)
FLAG, FLAGS = np.zeros(X, bool), (2, 3, 4)


def of(
    kind: str, *inputs: object, out: object = X, table: str = "", dtype: str = "float32", **options: object
) -> Written:
    outputs = out if isinstance(out, list) else [out]
    return Written(kind, list(inputs), outputs, options, table, dtype)  # type: ignore[arg-type]


def places(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.int32)


CASES = (
    *(of(kind, X) for kind in ("ABS", "NEG", "EXP", "LOG", "SQRT", "RSQRT", "SIN", "COS", "TANH", "LOGISTIC", "RELU",
                               "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "FLOOR", "CEIL", "ROUND", "SIGN", "HARD_SWISH",
                               "ELU", "SQUARE", "ZEROS_LIKE", "LOG_SOFTMAX")),
    *(of(kind, X, X, table=f"{kind.title()}Options", fusedActivationFunction=code)
      for kind, code in (("ADD", 1), ("SUB", 3), ("MUL", 2), ("DIV", 0))),
    *(of(kind, X, (1, 4)) for kind in ("MAXIMUM", "MINIMUM", "POW", "SQUARED_DIFFERENCE", "FLOOR_MOD", "FLOOR_DIV")),
    *(of(kind, X, ints(3, -3, 2, 5), out=np.zeros(X, np.int32), dtype="int32") for kind in ("FLOOR_MOD", "FLOOR_DIV")),
    *(of(kind, X, X, out=FLAG)
      for kind in ("EQUAL", "NOT_EQUAL", "LESS", "LESS_EQUAL", "GREATER", "GREATER_EQUAL")),
    *(of(kind, FLAGS, FLAGS, out=FLAG, dtype="bool") for kind in ("LOGICAL_AND", "LOGICAL_OR")),
    of("LOGICAL_NOT", FLAGS, out=FLAG, dtype="bool"),
    of("ADD_N", X, X, X),
    of("LEAKY_RELU", X, table="LeakyReluOptions", alpha=0.3),
    of("PRELU", X, normal(4)),
    of("GELU", X, table="GeluOptions", approximate=False),
    of("GELU", X, table="GeluOptions", approximate=True),
    of("SOFTMAX", X, table="SoftmaxOptions", beta=0.7),
    of("L2_NORMALIZATION", (2, 4), out=(2, 4), table="L2NormOptions"),
    of("SELECT", normal(2) > 0, X, X),
    of("SELECT_V2", normal(3, 1) > 0, X, (1, 1, 4)),
    of("CAST", X, out=places(*X), table="CastOptions"),
    *(of(kind, X, ints(-1, 0), out=(1, 3, 1), table="ReducerOptions", keepDims=True)
      for kind in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD")),
    of("MEAN", X, ints(1), out=(2, 4), table="ReducerOptions", keepDims=False),
    *(of(kind, FLAGS, ints(1), out=np.zeros((2, 4), bool), dtype="bool", table="ReducerOptions", keepDims=False)
      for kind in ("REDUCE_ANY", "REDUCE_ALL")),
    of("ARG_MAX", X, ints(-1), out=places(2, 3), table="ArgMaxOptions", outputType=2),
    of("ARG_MIN", X, ints(1), out=np.zeros((2, 4), np.int64), table="ArgMinOptions", outputType=4),
    of("CUMSUM", X, ints(1), table="CumsumOptions", exclusive=True, reverse=True),
    of("TOPK_V2", X, ints(2), out=[(2, 3, 2), places(2, 3, 2)]),
    of("FULLY_CONNECTED", X, normal(5, 4), normal(5), out=(6, 5), table="FullyConnectedOptions",
       fusedActivationFunction=1),
    of("FULLY_CONNECTED", X, normal(5, 4), out=(2, 3, 5), table="FullyConnectedOptions", keepNumDims=True),
    of("FULLY_CONNECTED", X, normal(5, 12), normal(5), out=(2, 5), table="FullyConnectedOptions"),
    of("BATCH_MATMUL", X, (2, 5, 4), out=(2, 3, 5), table="BatchMatMulOptions", adjX=False, adjY=True),
    of("BATCH_MATMUL", (2, 4, 3), normal(2, 4, 5), out=(2, 3, 5), table="BatchMatMulOptions", adjX=True, adjY=False),
    of("RESHAPE", X, ints(4, -1), out=(4, 6)),
    of("SQUEEZE", (2, 1, 4), out=(2, 4), table="SqueezeOptions", squeezeDims=[1]),
    of("EXPAND_DIMS", X, ints(-1), out=(2, 3, 4, 1)),
    of("TRANSPOSE", X, ints(2, 0, 1), out=(4, 2, 3)),
    of("CONCATENATION", X, (2, 1, 4), out=(2, 4, 4), table="ConcatenationOptions", axis=-2),
    of("PACK", X, X, out=(2, 2, 3, 4), table="PackOptions", axis=1, valuesCount=2),
    of("UNPACK", X, out=[(2, 4)] * 3, table="UnpackOptions", axis=1, num=3),
    of("SPLIT", ints(2), X, out=[(2, 3, 2)] * 2, table="SplitOptions", numSplits=2),
    of("SPLIT_V", X, ints(1, 3), ints(-1), out=[(2, 3, 1), (2, 3, 3)], table="SplitVOptions", numSplits=2),
    of("SLICE", X, ints(0, 1, 1), ints(-1, 2, 3), out=(2, 2, 3)),
    of("STRIDED_SLICE", X, ints(0, -1, 3), ints(2, 0, -9), ints(1, 1, -2), out=(2, 2), table="StridedSliceOptions",
       beginMask=1, endMask=5, shrinkAxisMask=2),
    of("REVERSE_V2", X, ints(1)),
    of("PAD", X, np.array([[0, 1], [2, 0], [0, 0]], np.int32), out=(3, 5, 4)),
    of("PADV2", X, np.array([[0, 1], [0, 0], [0, 0]], np.int32), np.array(2.5, np.float32), out=(3, 3, 4)),
    of("MIRROR_PAD", X, np.array([[0, 0], [2, 1], [0, 0]], np.int32), out=(2, 6, 4), table="MirrorPadOptions", mode=0),
    of("GATHER", X, ints(2, 0), out=(2, 2, 4), table="GatherOptions", axis=1),
    of("EMBEDDING_LOOKUP", ints(2, 0, 2), (3, 4), out=(3, 4)),
    of("GATHER_ND", X, np.array([[1, 2], [0, 0]], np.int32), out=(2, 4)),
    of("SCATTER_ND", np.array([[1], [3]], np.int32), (2, 4), ints(5, 4), out=(5, 4)),
    of("TILE", X, ints(1, 2, 1), out=(2, 6, 4)),
    of("BROADCAST_TO", (3, 1), ints(2, 3, 4), out=X),
    of("FILL", ints(2, 3), (), out=(2, 3)),
    of("SHAPE", X, out=places(3), table="ShapeOptions", outType=2),
    of("RANK", X, out=places()),
    of("ONE_HOT", (24,), np.array(9, np.int32), np.array(2, np.float32), np.array(-1, np.float32), dtype="int32",
       out=np.zeros((24, 9), np.float32), table="OneHotOptions", axis=-1),
    of("CONV_2D", IMAGE, normal(3, 3, 3, 4), normal(3), out=(1, 3, 3, 3), table="Conv2DOptions", padding=0, strideW=2,
       strideH=2, dilationWFactor=1, dilationHFactor=1, fusedActivationFunction=1),
    of("CONV_2D", IMAGE, normal(2, 2, 3, 4), normal(2), out=(1, 3, 4, 2), table="Conv2DOptions", padding=1, strideW=1,
       strideH=1, dilationWFactor=1, dilationHFactor=2),
    of("DEPTHWISE_CONV_2D", IMAGE, normal(1, 3, 2, 8), normal(8), out=(1, 5, 6, 8), table="DepthwiseConv2DOptions",
       padding=0, strideW=1, strideH=1, depthMultiplier=2, dilationWFactor=1, dilationHFactor=1),
    of("TRANSPOSE_CONV", ints(1, 10, 12, 3), normal(3, 3, 3, 4), IMAGE, out=(1, 10, 12, 3),
       table="TransposeConvOptions", padding=0, strideW=2, strideH=2),
    of("AVERAGE_POOL_2D", IMAGE, out=(1, 3, 3, 4), table="Pool2DOptions", padding=0, strideW=2, strideH=2,
       filterWidth=3, filterHeight=2),
    of("MAX_POOL_2D", IMAGE, out=(1, 4, 5, 4), table="Pool2DOptions", padding=1, strideW=1, strideH=1, filterWidth=2,
       filterHeight=2),
    of("RESIZE_BILINEAR", IMAGE, ints(7, 9), out=(1, 7, 9, 4), table="ResizeBilinearOptions", halfPixelCenters=True),
    of("RESIZE_BILINEAR", IMAGE, ints(10, 12), out=(1, 10, 12, 4), table="ResizeBilinearOptions", alignCorners=True),
    of("RESIZE_NEAREST_NEIGHBOR", IMAGE, ints(10, 12), out=(1, 10, 12, 4), table="ResizeNearestNeighborOptions",
       halfPixelCenters=True),
    of("RESIZE_NEAREST_NEIGHBOR", IMAGE, ints(7, 4), out=(1, 7, 4, 4), table="ResizeNearestNeighborOptions"),
    of("DEPTH_TO_SPACE", (1, 2, 3, 8), out=(1, 4, 6, 2), table="DepthToSpaceOptions", blockSize=2),
    of("SPACE_TO_DEPTH", (1, 4, 6, 2), out=(1, 2, 3, 8), table="SpaceToDepthOptions", blockSize=2),
)  # fmt: skip
ELSEWHERE = {"QUANTIZE", "DEQUANTIZE", "RANGE"}  # QUANTIZE and its like in test_file.py


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_gives_what_litert_gives(case: Written, tmp_path: Path) -> None:
    # Sums in another order, and LiteRT's own exp and tanh: 1e-5 of the largest value.
    path = write(tmp_path / "net.tflite", case)
    np.savez(path.with_suffix(".npz"), allow_pickle=False, **case.free())
    source = read_model(str(path))
    module = source.modules["main"]
    assert isinstance(module, ImportedModel), module
    inputs = case.free()
    expected = interpreted(path, read_tflite(path), inputs)
    with torch.inference_mode():
        got = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    for name, array in expected.items():
        assert got[name].numpy().dtype == array.dtype
        assert difference(array, got[name].numpy()) <= case.tolerance


def test_every_operator_of_the_table_is_tested() -> None:
    assert set(TABLE) - ELSEWHERE == {case.kind for case in CASES}


def test_a_range_is_a_constant(tmp_path: Path) -> None:
    case = of("RANGE", np.array(1, np.float32), np.array(4, np.float32), np.array(1.5, np.float32), out=(2,))
    model = to_onnx(read_tflite(write(tmp_path / "net.tflite", case)))
    np.testing.assert_array_equal(runtime_session(model).run(None, {})[0], np.array([1, 2.5], np.float32))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (of("RFFT2D", X, ints(1, 4)), "operators RFFT2D are not read; give the model that the file was made from"),
        (of("ADD", X, X, table="AddOptions", fusedActivationFunction=4), "operator ADD, which .*: fused activation 4"),
        (of("MIRROR_PAD", X, np.zeros((3, 2), np.int32), table="MirrorPadOptions", mode=1), "SYMMETRIC padding"),
        (of("SLICE", X, (3,), (3,), out=(1, 1, 1)), "is computed at run time"),
        (of("GATHER", X, ints(0), table="GatherOptions", batchDims=1), "batch_dims is not read"),
        (of("RESIZE_NEAREST_NEIGHBOR", IMAGE, ints(7, 4), out=(1, 7, 4, 4), table="ResizeNearestNeighborOptions",
            alignCorners=True), "nearest neighbours of aligned corners"),
        (of("STRIDED_SLICE", X, ints(0), ints(1), ints(1), table="StridedSliceOptions", ellipsisMask=1), "an ellipsis"),
        (of("FULLY_CONNECTED", X, normal(5, 4), out=(6, 5), table="FullyConnectedOptions", weightsFormat=1),
         "shuffled weights"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(case: Written, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "net.tflite", case)
    with pytest.raises(UnsupportedError, match=message) as caught:
        read_model(str(path))
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith(str(path))
