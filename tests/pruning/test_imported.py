"""Units of imported ONNX graphs: what is found, that removing equals masking, that engines and files take the result."""
