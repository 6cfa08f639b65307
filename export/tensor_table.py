"""Tensors under the names of transformers, some of them row ranges of a fused tensor.

Phi-3 stores Q, K and V as one tensor, and the gate and up projections as another. The exporter
knows only the separate tensors, so a table maps each of them to a range of rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from bita.errors import ModelError, raise_faults
from bita.json_values import Fields
from bita.tensors import head_dim_of


@dataclass(frozen=True)
class RowRange:
    """Rows [start, stop) of the stored tensor `source`, used as a separate tensor."""

    source: str
    start: int
    stop: int


class TensorTable:
    """Canonical tensor names, their shapes, and the location of their rows."""

    def __init__(
        self, owner: str, stored: Mapping[str, tuple[int, ...]], config: Mapping[str, Any]
    ) -> None:
        """Build the table.

        Args:
            owner: The model, for errors.
            stored: Names and shapes of the tensors in the file.
            config: The config, which gives the rows of the parts of fused tensors.

        Raises:
            ModelError: if the rows of a fused tensor do not match the config, or the config lacks
                a number.
        """
        self.owner = owner
        self._stored = dict(stored)
        self._parts: dict[str, RowRange] = {}
        faults: list[str] = []
        for name, shape in stored.items():
            parts = _fused_parts(name, config)
            rows = shape[0] if shape else 1
            if not parts:
                parts = [(name, rows)]
            twice = [part for part, _ in parts if part in self._parts]
            if twice:
                faults.append(f"{name} holds {', '.join(twice)}, which another tensor holds too")
            elif sum(size for _, size in parts) != rows:
                expected = " + ".join(str(size) for _, size in parts)
                faults.append(f"{name} has {rows} rows; the config asks for {expected}")
            else:
                self._add(name, parts)
        raise_faults(ModelError, owner, faults)

    def names(self) -> frozenset[str]:
        return frozenset(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        part = self._part(name)
        stored = self._stored[part.source]
        return (part.stop - part.start, *stored[1:]) if stored else ()

    def locate(self, name: str, start: int, stop: int | None) -> RowRange:
        """Map rows [start, stop) of a tensor to rows of a stored one."""
        part = self._part(name)
        rows = part.stop - part.start
        stop = rows if stop is None else stop
        if not 0 <= start <= stop <= rows:
            raise ModelError(f"{self.owner}: {name} has {rows} rows, not [{start}, {stop})")
        return RowRange(part.source, part.start + start, part.start + stop)

    def _part(self, name: str) -> RowRange:
        if name not in self._parts:
            close = get_close_matches(name, self._parts, n=3)
            hint = f"; close names: {', '.join(close)}" if close else ""
            raise ModelError(f"{self.owner} has no tensor {name!r}{hint}")
        return self._parts[name]

    def _add(self, source: str, parts: list[tuple[str, int]]) -> None:
        start = 0
        for name, size in parts:
            self._parts[name] = RowRange(source, start, start + size)
            start += size


def _fused_parts(name: str, config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return name and row count of each tensor in a fused one; empty if `name` is not fused."""
    module, _, kind = name.rpartition(".")
    if module.endswith("self_attn.qkv_proj"):
        heads = _number(config, "num_attention_heads")
        kv_heads = heads
        if config.get("num_key_value_heads") is not None:
            kv_heads = _number(config, "num_key_value_heads")
        head_dim, prefix = head_dim_of(config), module.removesuffix("qkv_proj")
        sizes = {"q_proj": heads, "k_proj": kv_heads, "v_proj": kv_heads}
        return [(f"{prefix}{part}.{kind}", size * head_dim) for part, size in sizes.items()]
    if module.endswith("mlp.gate_up_proj"):
        prefix, rows = module.removesuffix("gate_up_proj"), _number(config, "intermediate_size")
        return [(f"{prefix}{part}.{kind}", rows) for part in ("gate_proj", "up_proj")]
    return []


def _number(config: Mapping[str, Any], key: str) -> int:
    fields = Fields(config)
    number = fields.whole(key, least=1)
    fields.check(ModelError, "the model's config")
    return number
