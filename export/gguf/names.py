"""Tensor names of llama.cpp as names of transformers."""

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
# Tables of rotary factors: they go into the config.
ROPE_TABLE = re.compile(r"(blk\.[0-9]+\.)?(?P<table>rope_freqs|rope_factors_(long|short))\.weight")
# Buffers that old converters saved; they follow from the base of the frequencies.
BUFFER = re.compile(r"blk\.[0-9]+\.attn_rot_embd\.weight")


def rope_table_of(name: str) -> str | None:
    """Which table of rotary factors a tensor is, or None if it is something else."""
    found = ROPE_TABLE.fullmatch(name)
    return found["table"] if found else None


def transformers_name(architecture: str, name: str) -> str | None:
    """The name in transformers, or None if this architecture should not have such a tensor."""
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
    """({transformers name: name in the file}, names that have no place in the architecture).

    rope_tables: which tables of rotary factors it may have; they are in neither.
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
