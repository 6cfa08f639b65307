"""Building blocks of an ONNX model: nodes, weights, mask, best tokens."""
