"""Checks of adapters against the engines that they run in: an engine's own adapter, and others."""

from bita.adapter import Adapter
from bita.engine import ADAPTER_FILE, Engine
from bita.errors import AdapterError, EngineError, raise_faults


def read_adapter(engine: Engine) -> Adapter:
    """Read the engine's own adapter.

    Raises AdapterError if it is broken or differs from the manifest, EngineError if the engine's
    graph cannot run it.
    """
    path = engine.file(ADAPTER_FILE)
    adapter = Adapter.load(path)
    manifest = engine.manifest
    faults = [
        f"{name} is {getattr(adapter, name)}, the manifest says {getattr(manifest, name)}"
        for name in ("num_masks", "prefix_length", "lora_rank", "pair_rank")
        if getattr(adapter, name) != getattr(manifest, name)
    ]
    raise_faults(AdapterError, f"{path} is not this engine's; rebuild the engine", faults)
    check_adapter(engine, adapter)
    return adapter


def check_adapter(engine: Engine, adapter: Adapter) -> None:
    """Raise EngineError, with every reason, if the engine's graph cannot run this adapter."""
    manifest = engine.manifest
    shape = (manifest.num_layers, manifest.num_kv_heads, adapter.prefix_length, manifest.head_dim)
    faults = []
    if adapter.prefix_length >= manifest.capacity:
        faults.append(
            f"its prefix of {adapter.prefix_length} does not fit a cache of {manifest.capacity} "
            "slots: build an engine with --capacity"
        )
    if adapter.prefix_keys.shape != shape:
        faults.append(f"prefix has shape {adapter.prefix_keys.shape}, expected {shape}")
    if adapter.mask_embeddings.shape[1] != manifest.hidden_size:
        width = adapter.mask_embeddings.shape[1]
        faults.append(f"mask embeddings are {width} wide, the model is {manifest.hidden_size}")
    if adapter.lora_rank and not manifest.lora_rank:
        faults.append(
            f"it has LoRA of rank {adapter.lora_rank}, the engine was built for an adapter "
            "without: build one with ADAPTER=…"
        )
    raise_faults(EngineError, f"adapter of engine {engine.path}", faults)
