"""Map llama.cpp's tensor names to those of transformers."""

import re
from collections.abc import Container, Iterable

OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYER_OF_ARCHITECTURE = {
    "gemma2": LAYER | GEMMA,
    "gemma3": LAYER | GEMMA,
    "phi3": LAYER | {"ffn_up": "mlp.gate_up_proj"},
}
# Tables of rotary factors, which become part of the config.
ROPE_TABLE = re.compile(r"(blk\.[0-9]+\.)?(?P<table>rope_freqs|rope_factors_(long|short))\.weight")
# Buffers saved by old converters, which follow from the base of the frequencies.
BUFFER = re.compile(r"blk\.[0-9]+\.attn_rot_embd\.weight")


def rope_table_of(name: str) -> str | None:
    """Return the name of a table of rotary factors, or None for other tensors."""
    found = ROPE_TABLE.fullmatch(name)
    return found["table"] if found else None


def transformers_name(architecture: str, name: str) -> str | None:
    """Return the name in transformers, or None if the architecture should not have the tensor."""
    module, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if module in OUTER:
        return f"{OUTER[module]}.{kind}"
    layer = re.fullmatch(r"blk\.([0-9]{1,9})\.(\w+)", module)
    table = LAYER_OF_ARCHITECTURE.get(architecture, LAYER)
    if layer is None or layer[2] not in table:
        return None
    return f"model.layers.{layer[1]}.{table[layer[2]]}.{kind}"


def map_names(
    architecture: str, names: Iterable[str], rope_tables: Container[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Return {transformers name: name in the file}, and the names foreign to the architecture.

    Args:
        architecture: `general.architecture` of the file.
        names: The tensors of the file.
        rope_tables: Tables of rotary factors that the architecture may have; they are in neither
            result.
    """
    mapped, unknown = {}, []
    for name in names:
        if rope_table_of(name) in rope_tables or BUFFER.fullmatch(name):
            continue
        canonical = transformers_name(architecture, name)
        if canonical is None:
            unknown.append(name)
        else:
            mapped[canonical] = name
    return mapped, unknown
