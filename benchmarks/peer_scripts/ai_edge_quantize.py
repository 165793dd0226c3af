"""ai-edge-quantizer's recipes by their own names ("static_wi8_ai8"), on a float32 TFLite file with one signature."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer, recipe
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.transformations.transformation_utils import add_new_activation_tensor, add_op_code
from ai_edge_quantizer.utils.tfl_flatbuffer_utils import read_model, write_model

from benchmarks.peer_scripts.job import read_job


def give_float(path: Path) -> None:
    """Dequantize the outputs that are int8 all the same.

    ai-edge-quantizer 0.10 leaves an output so whose range is tied to that of its input, a slice for example; its
    signature then points at the tensor before the last requantization.
    """
    model = read_model(str(path))
    (signature,), (graph,) = model.signatureDefs, model.subgraphs
    for output in signature.outputs:
        tensor = graph.tensors[output.tensorIndex]
        if tensor.type == qtyping.TensorType.FLOAT32:
            continue
        operator = qtyping.OperatorT()
        operator.opcodeIndex = add_op_code(qtyping.BuiltinOperator.DEQUANTIZE, model.operatorCodes)
        operator.inputs = [output.tensorIndex]
        output.tensorIndex = add_new_activation_tensor(
            tensor.name + b"_float", tensor.shape, qtyping.TensorType.FLOAT32, graph
        )
        operator.outputs = [output.tensorIndex]
        graph.operators.append(operator)
    outputs = [output.tensorIndex for output in signature.outputs]
    if set(outputs) != set(graph.outputs):
        graph.outputs = outputs
        write_model(model, str(path))


def main() -> None:
    job = read_job("ai-edge-quantizer", "ai-edge-litert")
    (signature,) = Interpreter(str(job.source)).get_signature_list()
    work = quantizer.Quantizer(str(job.source), getattr(recipe, job.recipe)())
    for border in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        # The recipe as it stands makes int8 inputs and outputs, which no caller of the float32 model could feed.
        work.update_quantization_recipe(".*", border, algorithm_key=AlgorithmName.NO_QUANTIZE)
    narrow = [
        {name: array.astype(np.int32) if array.dtype == np.int64 else array for name, array in sample.items()}
        for sample in job.samples  # TFLite files hold int32 where ONNX has int64
    ]
    ranges = work.calibrate({signature: narrow})
    work.quantize(ranges).export_model(str(job.target), overwrite=True)
    give_float(job.target)


if __name__ == "__main__":
    main()
