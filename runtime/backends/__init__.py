"""Backends that execute steps: ONNX Runtime and TensorRT, with their caches and memory."""
