"""Plans: engines compiled for TensorRT and TensorRT-RTX."""
