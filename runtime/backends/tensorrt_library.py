"""Load TensorRT or TensorRT-RTX as a Python module, and record its errors."""

import importlib
from typing import Any

from bita.errors import EngineError
from bita.json_values import shown
from bita.plan import INSTALL, NAMES


def load_library(name: str) -> Any:
    """Import `tensorrt` or `tensorrt_rtx`. Raises EngineError with the install command."""
    if name not in NAMES:  # a manifest may name any module
        raise EngineError(f"{shown(name)} is not one of the libraries {', '.join(NAMES)}")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(f"{NAMES[name]} is not installed ({error}); {INSTALL[name]}") from error


def error_log(trt: Any) -> Any:
    """Return a logger for the library that prints nothing; `reason` is the last error."""

    class ErrorLog(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.reason = "no reason given"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.reason = message

    return ErrorLog()
