"""What is made of a model bears its name: engines, adapters, folders of tuning."""

import re
from pathlib import Path


def model_name(model: str) -> str:
    """The last part of what a user calls a model, without .gguf and what shells take apart."""
    name = Path(model).name
    if name in ("", ".."):
        name = Path(model).resolve().name
    return re.sub(r"[^\w.-]+", "-", name.removesuffix(".gguf")).strip("-.") or "model"


def engine_path(model: str, precision: str, backend: str) -> Path:
    """Where an engine is built if no place is given."""
    parts = [model_name(model), precision, *([] if backend == "ort-cpu" else [backend])]
    return Path("engines") / "-".join(parts)


def adapter_path(model: str) -> Path:
    """Where a tuned adapter is written if no place is given, and where a build looks for one."""
    return Path("adapters") / f"{model_name(model)}.safetensors"
