"""What executes a step: ONNX Runtime and TensorRT, their caches and memory."""
