"""Export of the ranker to ONNX and TensorRT, with parity checks."""
