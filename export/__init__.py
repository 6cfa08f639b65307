"""Export a checkpoint as an engine directory: weights, step graph, quantization."""
