"""Baselines of plain decoding in torch on the same device: a hand-written loop and transformers.

`HandLoop` is a Llama that only decodes one token at a time in one captured CUDA graph, with merged
projections and a static cache. It is an upper bound of what a runtime can reach with torch's
kernels. On a CPU the same code runs without a graph.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bita.errors import ModelError
from bita.export.architecture import Architecture, read_architecture
from bita.export.checkpoint import Checkpoint
from bita.torch.base_model import load_base_model, read_weight

WARM_UP = 3  # runs before a capture


@dataclass(frozen=True)
class Decoded:
    """Result of decoding."""

    token_ids: list[int]  # new ones, including that of the prefill
    step_ms: float  # mean ms of a token, without the prefill


@dataclass(frozen=True)
class _Layer:
    norm: Tensor
    qkv: Tensor
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    keys: Tensor
    values: Tensor


class HandLoop:
    """Plain decoding of a Llama without further features.

    Args:
        checkpoint: The model.
        capacity: Tokens of prompt and answer.
        dtype: Name of the torch type.
        device: Name of the torch device.

    Raises:
        ModelError: if the architecture is another one.
    """

    def __init__(self, checkpoint: Checkpoint, capacity: int, dtype: str, device: str) -> None:
        arch = read_architecture(checkpoint.config, capacity)
        _check_plain(arch)
        self._arch, self._capacity = arch, capacity
        self._checkpoint, self._dtype, self._device = checkpoint, getattr(torch, dtype), device
        self._layers = [self._load_layer(index) for index in range(arch.num_layers)]
        self._embeddings = self._load("model.embed_tokens.weight")
        self._head = self._embeddings if arch.tied_embeddings else self._load("lm_head.weight")
        self._norm = self._load("model.norm.weight")
        rope = arch.layers[0].rope
        assert rope is not None
        cos, sin = (torch.from_numpy(table).to(device) for table in rope.tables(capacity))
        self._cos, self._sin = (torch.cat([half, half], -1) for half in (cos, sin))
        self._slots = torch.arange(capacity, device=device)
        self._token = torch.zeros(1, dtype=torch.long, device=device)
        self._position = torch.zeros(1, dtype=torch.long, device=device)
        self._graph: Any = None

    @torch.no_grad()
    def decode(self, prompt_ids: Sequence[int], num_tokens: int) -> Decoded:
        """Decode greedily; the prompt is read token by token, which is not timed."""
        for position, token in enumerate(prompt_ids):
            self._token.fill_(token)
            self._position.fill_(position)
            self._step()
        found = [int(self._token)]
        began = time.perf_counter()
        for _ in range(num_tokens - 1):
            self._position += 1
            self._step()
            found.append(int(self._token))
        return Decoded(found, 1000 * (time.perf_counter() - began) / max(num_tokens - 1, 1))

    @property
    def bytes_per_step(self) -> int:
        """Bytes of weights that a step reads."""
        matrices = [self._head, *(m for layer in self._layers for m in _matrices(layer))]
        return sum(matrix.numel() * matrix.element_size() for matrix in matrices)

    def _step(self) -> None:
        """Replace the token at the current position by the next one."""
        if self._device == "cpu":
            self._token.copy_(self._forward())
            return
        if self._graph is None:
            self._capture()
        self._graph.replay()

    def _capture(self) -> None:
        kept = self._token.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._token.copy_(self._forward())
        self._token.copy_(kept)

    def _forward(self) -> Tensor:
        arch = self._arch
        hidden = self._embeddings[self._token]
        cos, sin = self._cos[self._position], self._sin[self._position]
        mask = (self._slots <= self._position)[None]
        for layer in self._layers:
            normed = self._normalize(hidden, layer.norm)
            heads = functional.linear(normed, layer.qkv).view(-1, arch.head_dim)
            sizes = [arch.num_heads, arch.num_kv_heads, arch.num_kv_heads]
            query, key, value = heads.split(sizes)
            layer.keys.index_copy_(1, self._position, _rotate(key, cos, sin)[:, None])
            layer.values.index_copy_(1, self._position, value[:, None])
            attended = functional.scaled_dot_product_attention(
                _rotate(query, cos, sin)[None, :, None],
                layer.keys[None],
                layer.values[None],
                attn_mask=mask,
                scale=arch.attention_scale,
                enable_gqa=True,
            )
            hidden = hidden + functional.linear(attended.reshape(1, -1), layer.out)
            normed = self._normalize(hidden, layer.mlp_norm)
            gate, up = functional.linear(normed, layer.gate_up).chunk(2, -1)
            hidden = hidden + functional.linear(functional.silu(gate) * up, layer.down)
        return functional.linear(self._normalize(hidden, self._norm), self._head).argmax(-1)

    def _normalize(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self._arch.norm_eps)

    def _load_layer(self, index: int) -> _Layer:
        prefix, arch = f"model.layers.{index}.", self._arch
        shape = (arch.num_kv_heads, self._capacity, arch.head_dim)
        cache = [torch.zeros(shape, dtype=self._dtype, device=self._device) for _ in range(2)]
        attention = [f"{prefix}self_attn.{part}_proj.weight" for part in "qkv"]
        mlp = [f"{prefix}mlp.{part}_proj.weight" for part in ("gate", "up")]
        return _Layer(
            self._load(f"{prefix}input_layernorm.weight"),
            self._load(*attention),
            self._load(f"{prefix}self_attn.o_proj.weight"),
            self._load(f"{prefix}post_attention_layernorm.weight"),
            self._load(*mlp),
            self._load(f"{prefix}mlp.down_proj.weight"),
            *cache,
        )

    def _load(self, *names: str) -> Tensor:
        joined = np.concatenate([read_weight(self._checkpoint, name) for name in names])
        return torch.from_numpy(joined).to(self._device, self._dtype)


class Transformers:
    """`generate` of transformers with a static cache, which it compiles on a GPU."""

    def __init__(self, checkpoint: Checkpoint, dtype: str, device: str) -> None:
        self._model = load_base_model(checkpoint, dtype, device)
        self._device = device

    def decode(self, prompt_ids: Sequence[int], num_tokens: int) -> Decoded:
        """Decode greedily; the difference of two runs gives the time of a step without prefill."""
        short = max(num_tokens // 4, 1)
        _, short_ms = self._generate(prompt_ids, short)
        found, long_ms = self._generate(prompt_ids, num_tokens)
        return Decoded(found, (long_ms - short_ms) / max(num_tokens - short, 1))

    def _generate(self, prompt_ids: Sequence[int], num_tokens: int) -> tuple[list[int], float]:
        ids = torch.tensor([list(prompt_ids)], device=self._device)
        began = time.perf_counter()
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            cache_implementation="static",
            pad_token_id=0,
        )
        found = output[0, len(prompt_ids) :].tolist()
        return found, 1000 * (time.perf_counter() - began)


def copy_bandwidth(device: str, num_bytes: int = 1 << 30, repeats: int = 10) -> float:
    """Measure the bytes per second that a copy within the device's memory reads and writes."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    best = float("inf")
    for _ in range(repeats):
        _synchronize(device)
        began = time.perf_counter()
        target.copy_(source)
        _synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * num_bytes / best


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to [heads, D]."""
    first, second = heads.float().chunk(2, -1)
    other = torch.cat([-second, first], -1)
    return (heads.float() * cos + other * sin).to(heads.dtype)


def _matrices(layer: _Layer) -> tuple[Tensor, ...]:
    return layer.qkv, layer.out, layer.gate_up, layer.down


def _check_plain(arch: Architecture) -> None:
    first = arch.layers[0]
    plain = (
        arch.activation == "silu"
        and not (arch.qk_norm or arch.sandwich_norms or arch.norm_offset)
        and not (arch.attention_softcap or arch.logit_softcap)
        and (arch.embedding_scale, arch.residual_scale, arch.logit_scale) == (1.0, 1.0, 1.0)
        and all(layer == first and layer.window is None for layer in arch.layers)
        and first.rope is not None
        and 2 * len(first.rope.inv_freq) == arch.head_dim
    )
    if not plain:
        raise ModelError(f"the hand-written loop supports plain Llamas only, not {arch.family}")
