"""Slow and obvious implementations of the native operators in numpy.

Every operator follows its definition in float64. Caches round, because they have the type of the
graph. Rows that the library quantizes between operators stay floats, unless the attribute `rounds`
is set; then they are rounded to 8 bits too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from reference_layers import (
    ACTIVATIONS,
    Array,
    Attributes,
    Inputs,
    dequantized,
    gate_and_up,
    linear,
    quantized,
    rms_norm,
    with_extras,
)

PAGE = 16


def embed(inputs: Inputs, attributes: Attributes) -> list[Array]:
    ids, masks, *parts = padded(inputs, 5)
    size = attributes["vocab_size"]
    table = dequantized(parts, attributes["bits"], size, attributes["hidden_size"])
    rows = [table[i] if i < size else masks[i - size].astype(np.float64) for i in ids[0]]
    return [np.array(rows) * attributes["scale"]]


def add_norm(inputs: Inputs, attributes: Attributes) -> list[Array]:
    total, delta, weight, delta_weight, rows = padded(inputs, 5)
    assert delta is None
    assert delta_weight is None
    chosen = total if rows is None else total[rows]
    return [quantized(rms_norm(chosen, weight, attributes["epsilon"]), attributes), total]


def attention_sublayer(inputs: Inputs, attributes: Attributes) -> list[Array]:
    given = padded(inputs, 22)
    hidden, norm, post_norm, qkv, first = *given[:3], given[3:9], given[21]
    heads, size = attributes["num_heads"], attributes["head_dim"]
    num_out = (heads + 2 * attributes["kv_num_heads"]) * size
    rows = quantized(rms_norm(hidden, norm, attributes["epsilon"]), attributes)
    layer = attributes["layer"]
    product = linear(rows, qkv, first, attributes["qkv_bits"], num_out, layer)
    attended = quantized(attention(product, given[9:15], attributes), attributes)
    delta = linear(attended, given[15:21], first, attributes["o_bits"], hidden.shape[1], layer)
    return [residual(hidden, delta, post_norm, attributes), given[10]]


def mlp_sublayer(inputs: Inputs, attributes: Attributes) -> list[Array]:
    given = padded(inputs, 16)
    hidden, norm, post_norm, gate_up, down, first = *given[:3], given[3:9], given[9:15], given[15]
    num_inner = attributes["intermediate_size"]
    rows = quantized(rms_norm(hidden, norm, attributes["epsilon"]), attributes)
    weight = np.concatenate(
        gate_and_up(gate_up[:3], attributes["gate_up_bits"], num_inner, rows.shape[1])
    )
    layer = attributes["layer"]
    both = with_extras(
        rows @ weight.T, rows, gate_up[3], (first, *gate_up[4:]), layer, is_gated=True
    )
    activated = ACTIVATIONS[attributes["activation"].decode()](both[:, :num_inner])
    inner = quantized(activated * both[:, num_inner:], attributes)
    delta = linear(inner, down, first, attributes["down_bits"], hidden.shape[1], layer)
    return [residual(hidden, delta, post_norm, attributes)]


def residual(hidden: Array, delta: Array, post_norm: Any, attributes: Attributes) -> Array:
    """Add the output of a sublayer, after its norm, to the hidden states."""
    if post_norm is not None:
        delta = rms_norm(delta, post_norm, attributes["epsilon"])
    return hidden + attributes["residual_scale"] * delta


def sights(inputs: Inputs, attributes: Attributes) -> list[Any]:
    """Pass the inputs on to attention."""
    return [(*inputs, attributes["window"])]


def attention(qkv: Array, inputs: Inputs, attributes: Attributes) -> Array:
    """Compute attention [Q, heads * D] from products [Q, (heads + 2 * kv heads) * D]."""
    place: Any
    place, pages, cos, sin, q_norm, k_norm = inputs
    assert pages is not None
    positions, row_slots, row_texts, sees, sees_prefix, lengths, text_pages = place[:7]
    prefix_pages, prefix_length, window = place[7:]
    heads, kv_heads = attributes["num_heads"], attributes["kv_num_heads"]
    size, epsilon = attributes["head_dim"], attributes["epsilon"]
    where = positions[0]
    parts = qkv.reshape(len(qkv), heads + 2 * kv_heads, size)
    query, key, value = np.split(parts, [heads, heads + kv_heads], axis=1)
    query = normalize_and_rotate(query, q_norm, epsilon, cos, sin, where)
    key = normalize_and_rotate(key, k_norm, epsilon, cos, sin, where)
    for row, (text, slot) in enumerate(zip(row_texts, row_slots, strict=True)):
        write_slot(pages, text_pages[text, slot // PAGE], slot % PAGE, key[row], value[row])
    prefix = [(prefix_pages[s // PAGE], s % PAGE) for s in range(prefix_length[0])]
    rows_places = [
        (text_pages[text, slot // PAGE], slot % PAGE)
        for text, slot in zip(row_texts, row_slots, strict=True)
    ]
    attended = np.empty((len(qkv), heads, size))
    for row in range(len(qkv)):
        text = row_texts[row]
        first = where[row] - window + 1 if window else 0
        places = list(prefix) if sees_prefix[row] else []
        places += [
            (text_pages[text, s // PAGE], s % PAGE) for s in range(lengths[text]) if s >= first
        ]
        places += [
            rows_places[other] for other in np.flatnonzero(sees[row]) if where[other] >= first
        ]
        attended[row] = attend(query[row], *read_slots(pages, places), attributes)
    return attended.reshape(len(qkv), heads * size)


def normalize_and_rotate(
    parts: Array, norm: Array | None, epsilon: float, cos: Any, sin: Any, positions: Array
) -> Array:
    """Apply the norm and the rotary embedding to heads [Q, heads, D]."""
    if norm is not None:
        parts = rms_norm(parts, norm, epsilon)
    if cos is None:
        return parts
    half = cos.shape[1]
    c, s = (table[positions][:, None].astype(np.float64) for table in (cos, sin))
    left, right, rest = parts[..., :half], parts[..., half : 2 * half], parts[..., 2 * half :]
    return np.concatenate([left * c - right * s, right * c + left * s, rest], axis=-1)


def write_slot(pages: Array, page: int, slot: int, key: Array, value: Array) -> None:
    size = key.shape[-1]
    pages[page, :, 0, slot::PAGE] = key
    pages[page, :, 1, slot * size : (slot + 1) * size] = value


def read_slots(pages: Array, places: Sequence[tuple[int, int]]) -> tuple[Array, Array]:
    """Return the keys and values of slots, [kv heads, n, D] each."""
    size = pages.shape[-1] // PAGE
    keys = [pages[page, :, 0, slot::PAGE] for page, slot in places]
    values = [pages[page, :, 1, slot * size : (slot + 1) * size] for page, slot in places]
    return np.stack(keys, 1).astype(np.float64), np.stack(values, 1).astype(np.float64)


def attend(query: Array, keys: Array, values: Array, attributes: Attributes) -> Array:
    """Compute attention [heads, D] for the `query` [heads, D] of one row."""
    shared = len(query) // len(keys)
    keys, values = keys.repeat(shared, 0), values.repeat(shared, 0)
    scores = attributes["scale"] * np.einsum("hd,hnd->hn", query, keys)
    if attributes["softcap"]:
        scores = attributes["softcap"] * np.tanh(scores / attributes["softcap"])
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hn,hnd->hd", shares / shares.sum(-1, keepdims=True), values)


def head(inputs: Inputs, attributes: Attributes) -> list[Array]:
    rows, *parts, wants_logits = padded(inputs, 5)
    sizes = attributes["bits"], attributes["out_features"], attributes["in_features"]
    logits = rows @ dequantized(parts, *sizes).T
    if attributes["softcap"]:
        logits = attributes["softcap"] * np.tanh(logits / attributes["softcap"])
    logits = logits.astype(np.float32)
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, : attributes["num_ranks"]]
    best = np.take_along_axis(logits, ids, -1)
    return [ids, best, logits if wants_logits[0] else logits[:0]]


def padded(inputs: Inputs, count: int) -> list[Any]:
    """Return the inputs, with None for the missing ones at the end."""
    return [*inputs, *[None] * (count - len(inputs))]


OPERATORS = {
    "Embed": embed,
    "Sights": sights,
    "AttentionSublayer": attention_sublayer,
    "MlpSublayer": mlp_sublayer,
    "AddNorm": add_norm,
    "Head": head,
}
