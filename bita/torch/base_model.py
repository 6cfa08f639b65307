"""The frozen base model in torch, from any checkpoint that the exporter can read."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bita.errors import MissingExtraError, ModelError
from bita.tensors import EMBEDDINGS, HEAD, TensorSource

# Projections that transformers joins in one tensor for some model families.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def load_base_model(checkpoint: TensorSource, dtype: str = "float32", device: str = "cpu") -> Any:
    """Return a frozen causal language model of transformers with the weights of a checkpoint.

    A bias that is not stored is zero, as in transformers. Attention is eager if logits are capped,
    since the fused kernels ignore the cap.

    Args:
        checkpoint: The checkpoint to read.
        dtype: Name of a torch type.
        device: Device of the model.

    Raises:
        MissingExtraError: without torch and transformers.
        ModelError: if transformers refuses the config, or for rotary factors of a GGUF file, which
            transformers cannot express.
    """
    model = new_base_model(checkpoint, dtype)
    import torch

    with torch.no_grad():
        for name, weight in model.state_dict().items():
            weight.copy_(torch.from_numpy(read_weight(checkpoint, name)))
    return model.requires_grad_(False).eval().to(device)


def new_base_model(checkpoint: TensorSource, dtype: str) -> Any:
    """Return the model of `load_base_model` without its weights. Raises the same errors."""
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
    """Return the attention mask that a model expects: a mask, or a dict by type of layer.

    `make` creates the mask for a sliding window, or without one for None.
    """
    window = getattr(config, "sliding_window", None)
    layer_types = getattr(config, "layer_types", None)
    if layer_types is None:
        return make(window)
    if set(layer_types) == {"full_attention"}:  # model families without windows accept no dict
        return make(None)
    windows = {"full_attention": None, "sliding_attention": window}
    return {kind: make(windows[kind]) for kind in sorted(set(layer_types))}


def read_weight(checkpoint: TensorSource, name: str) -> np.ndarray:
    """Read a weight by its name in transformers.

    Fused weights are joined, a tied output layer is the embedding table, and a bias that is not
    stored is zero.
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
