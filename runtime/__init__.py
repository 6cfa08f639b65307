"""The device side: open an engine and decode. Imports neither torch, transformers nor onnx."""

import os

# ONNX Runtime's official wheels report usage unless this is set before they are imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
