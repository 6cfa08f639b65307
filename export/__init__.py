"""From a checkpoint to an engine directory: weights, step graph, quantization."""
