"""The device side: open an engine and decode. Imports neither torch, transformers nor onnx."""
