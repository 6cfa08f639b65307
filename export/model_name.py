"""File names derived from a model's name: engines, adapters, folders of tuning."""

import re
from pathlib import Path


def model_name(model: str) -> str:
    """Return the last part of a model's path or id, without .gguf and shell metacharacters."""
    name = Path(model).name
    if name in ("", ".."):
        name = Path(model).resolve().name
    return re.sub(r"[^\w.-]+", "-", name.removesuffix(".gguf")).strip("-.") or "model"


def engine_path(model: str, precision: str, backend: str) -> Path:
    """Return the default path of an engine."""
    parts = [model_name(model), precision, *([] if backend == "ort-cpu" else [backend])]
    return Path("engines") / "-".join(parts)


def adapter_path(model: str) -> Path:
    """Return the default path of a tuned adapter, at which a build also looks for one."""
    return Path("adapters") / f"{model_name(model)}.safetensors"
