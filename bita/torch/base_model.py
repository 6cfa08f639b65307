"""The frozen base model in torch, from any checkpoint that the exporter reads."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bita.errors import MissingExtraError, ModelError
from bita.tensors import EMBEDDINGS, HEAD, TensorSource

# transformers keeps these projections of some families in one tensor.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def load_base_model(checkpoint: TensorSource, dtype: str = "float32", device: str = "cpu") -> Any:
    """A causal language model of transformers with the weights of a checkpoint, frozen.

    dtype: name of a torch type. A bias that is not stored is zero, as in transformers. Attention
    is eager where logits are capped, since the fused kernels leave the cap out. Raises
    MissingExtraError without torch and transformers, ModelError for a config that transformers
    refuses, and for rotary factors of a GGUF file, which it has no word for.
    """
    model = new_base_model(checkpoint, dtype)
    import torch

    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight.copy_(torch.from_numpy(read_weight(checkpoint, name)))
    return model.requires_grad_(False).eval().to(device)


def new_base_model(checkpoint: TensorSource, dtype: str) -> Any:
    """The same model before it has its weights. Raises what `load_base_model` raises."""
    if _rope_type(checkpoint) == "gguf_factors":
        raise ModelError(
            "transformers cannot run a GGUF file with rotary factors of its own (Llama 3); use the "
            "model's Hugging Face directory"
        )
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError("the base model in torch", "tune") from error
    try:
        config = transformers.AutoConfig.for_model(**checkpoint.config)
        attention = "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation=attention
        )
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        message = str(error).strip() or type(error).__name__
        raise ModelError(f"transformers refuses the model's config: {message}") from error


def _rope_type(source: TensorSource) -> str | None:
    kind = (source.config.get("rope_parameters") or {}).get("rope_type")
    return kind if isinstance(kind, str) else None


def masks_by_layer(config: Any, make: Callable[[int | None], Any]) -> Any:
    """The attention mask that a model wants: one, or a dict of one for each type of layer.

    make: the mask for a sliding window (None: no window).
    """
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return make(window)
    if set(layer_types) == {"full_attention"}:  # families without windows take no dict
        return make(None)
    windows = {"full_attention": None, "sliding_attention": window}
    return {kind: make(windows[kind]) for kind in sorted(set(layer_types))}


def read_weight(checkpoint: TensorSource, name: str) -> np.ndarray:
    """A weight by its name in transformers: fused ones joined, a tied output layer found, biases
    that are not stored as zeros.
    """
    present = checkpoint.names()
    parts = [name]
    for fused, halves in FUSED.items():
        if fused in name and name not in present:
            parts = [name.replace(fused, half) for half in halves]
    if name == HEAD and name not in present:
        parts = [EMBEDDINGS]
    if name.endswith(".bias") and not any(part in present for part in parts):
        num_rows = checkpoint.shape(f"{name.removesuffix('bias')}weight")[0]
        return np.zeros(num_rows, np.float32)
    return np.concatenate([checkpoint.read(part) for part in parts])
