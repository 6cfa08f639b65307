"""The weight files of a model directory, chosen as in transformers."""

from pathlib import Path, PurePosixPath
from typing import Any

from bita.errors import ModelError
from bita.export.huggingface.safetensors_file import StoredTensor, read_tensors
from bita.json_values import Fields, read_json_object, shown

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
ADAPTER_NAME = "adapter_config.json"
MAX_NAMED = 5  # files or tensors listed in a message


def read_weight_files(directory: Path, faults: list[str]) -> dict[str, StoredTensor]:
    """Return all tensors of the directory; add what is wrong to `faults`.

    A single file takes precedence over an index. All tensors in the files of an index count,
    whatever file the index gives for them; if two files have the same tensor, the last one counts.
    """
    if (directory / ADAPTER_NAME).exists():
        faults.append(
            f"{ADAPTER_NAME} says that this is an adapter (LoRA) of another model; merge it into "
            "that model (PeftModel.merge_and_unload), or remove the file if the weights are whole"
        )
        return {}
    if (directory / SINGLE_NAME).exists():
        return read_tensors(directory / SINGLE_NAME, faults)
    if not (directory / INDEX_NAME).exists():
        faults.append(_no_weights(directory))
        return {}
    index = read_json_object(directory / INDEX_NAME, ModelError, "download it again")
    weight_map = _weight_map(index, faults)
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if not (directory / shard).exists()]
    if missing:
        faults.append(
            f"{len(missing)} of {len(shards)} weight files are missing: {_named(missing)}; "
            "download them into the same directory"
        )
    stored: dict[str, StoredTensor] = {}
    for shard in shards:
        if shard not in missing:
            stored |= read_tensors(directory / shard, faults)
    absent = [name for name in weight_map if name not in stored]
    if absent and not faults:
        faults.append(f"{INDEX_NAME} names tensors that no file has: {_named(absent)}")
    return stored


def _weight_map(index: dict[str, Any], faults: list[str]) -> dict[str, str]:
    """Return the file name of each tensor, which must be inside the directory."""
    fields = Fields(index)
    given = fields.table("weight_map")
    if not fields.faults and not given:
        fields.faults.append("weight_map is empty")
    wrong = [name for name, shard in given.items() if not _is_inside(shard)]
    if wrong:
        fields.faults.append(
            f"weight_map gives {shown(wrong[0])} the file {shown(given[wrong[0]])}; it must be "
            "the name of a file inside the model directory"
        )
    faults += [f"{INDEX_NAME}: {fault}; download it again" for fault in fields.faults]
    return {} if fields.faults else given


def _is_inside(shard: Any) -> bool:
    """Return whether a value is a relative path without parent directories.

    It may be a link to a file outside, as in the cache of the hub.
    """
    if not isinstance(shard, str) or "\\" in shard or not shard.isprintable():
        return False
    path = PurePosixPath(shard)
    fits = all(len(part.encode()) <= 255 for part in path.parts) and len(shard) <= 1024
    return fits and not path.is_absolute() and ".." not in path.parts and bool(path.name)


def _no_weights(directory: Path) -> str:
    pickles = sorted(p.name for p in [*directory.glob("*.bin"), *directory.glob("*.pt*")])
    if pickles:
        return (
            f"the weights are Python pickles ({pickles[0]}), which can run code when loaded; "
            "convert them to safetensors: AutoModelForCausalLM.from_pretrained(DIR)"
            ".save_pretrained(NEW_DIR)"
        )
    others = sorted(p.name for p in directory.glob("*.safetensors"))
    seen = f" (transformers does not load {_named(others)} either)" if others else ""
    return f"neither {SINGLE_NAME} nor {INDEX_NAME} exists{seen}; download the weights"


def _named(names: list[str]) -> str:
    rest = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
