"""The choices that shape a step graph."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GraphOptions:
    """Settings of the graph of an architecture."""

    capacity: int  # C, cache slots, including those of the prefix and of a step's rows
    precision: str  # one of the dialect's precisions
    num_ranks: int  # k, ids returned for each row
    with_lora: bool = False  # whether LoRA of any rank is an input
    dialect: str = "ort"  # one of `bita.dialect_spec.DIALECTS`
    cache_type: str = "float16"  # type of the native dialect's caches, or "float32"
