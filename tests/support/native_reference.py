"""Graphs of native operators in numpy, as slow and as obvious as can be.

Every operator follows its definition in float64: weights are taken out of their blocks. The caches
round, since they are of the type that the graph says. What the library quantizes between operators
stays in floats, or is rounded to its 8 bits too if that is asked for.

`ReferenceSession` stands in for ONNX Runtime's session, so that an engine of native operators
decodes without the library: `use_reference_operators(monkeypatch)`.
"""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

BLOCK, TILE, PAGE = 32, 16, 16
Array = np.ndarray
Attributes = Mapping[str, Any]
Inputs = Sequence[Array | None]


class NativeGraph:
    """A graph of native operators. rounds: whether rows have 8 bits between operators."""

    def __init__(self, model: onnx.ModelProto, rounds: bool = False) -> None:
        self.model = model
        self._rounds = rounds
        self.constants = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }

    @classmethod
    def load(cls, path: Path, rounds: bool = False) -> "NativeGraph":
        """From an engine's model.onnx."""
        return cls(onnx.load(path), rounds)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every value of the graph. The pages of `inputs` are updated in place."""
        values: dict[str, Array] = {**self.constants, **inputs}
        for node in self.model.graph.node:
            given = [values[name] if name else None for name in node.input]
            attributes = {
                each.name: onnx.helper.get_attribute_value(each) for each in node.attribute
            }
            results = OPERATORS[node.op_type](given, {**attributes, "rounds": self._rounds})
            values |= dict(zip(node.output, results, strict=False))
        return values

    def parts(self, label: str) -> list[Array | None]:
        """Values, scales, and minima or None."""
        return [self.constants.get(f"{label}.{part}") for part in ("values", "scales", "minima")]

    def bits(self, label: str) -> int:
        return self.constants[f"{label}.values"].shape[-1] * 8 // (TILE * BLOCK)

    def weight(self, label: str, num_out: int, num_in: int) -> Array:
        """The weights [num_out, num_in] of a label, in float64."""
        return dequantized(self.parts(label), self.bits(label), num_out, num_in)


def dequantized(parts: Inputs, bits: int, num_out: int, num_in: int) -> Array:
    """[num_out, num_in] of values, scales, and minima or None."""
    values, scales, minima = parts
    assert values is not None
    assert scales is not None
    numbers = unpacked(values, bits)
    if minima is None and bits == 4:
        numbers = numbers - 8
    weights = scales.astype(np.float64).transpose(0, 2, 1)[..., None] * numbers
    if minima is not None:
        weights = weights + minima.astype(np.float64).transpose(0, 2, 1)[..., None]
    num_tiles, _, num_blocks, _ = weights.shape
    return weights.reshape(num_tiles * TILE, num_blocks * BLOCK)[:num_out, :num_in]


def unpacked(values: Array, bits: int) -> Array:
    """[tiles, outputs of a tile, blocks, inputs of a block], float64."""
    num_tiles, num_blocks, _ = values.shape
    lines = values.reshape(num_tiles, num_blocks, -1, TILE, 4)
    numbers = np.empty((num_tiles, TILE, num_blocks, BLOCK))
    for index in range(lines.shape[2]):
        line = lines[:, :, index].transpose(0, 2, 1, 3)
        if bits == 4:
            numbers[..., 8 * index : 8 * index + 4] = line & 15
            numbers[..., 8 * index + 4 : 8 * index + 8] = line >> 4
        else:
            numbers[..., 4 * index : 4 * index + 4] = line.astype(np.int8)
    return numbers


def gate_and_up(parts: Inputs, bits: int, num_out: int, num_in: int) -> tuple[Array, Array]:
    """[num_out, num_in] each; the layer has 32 rows of gate, then 32 of up, and so on."""
    padded = -(-num_out // BLOCK) * BLOCK
    groups = dequantized(parts, bits, 2 * padded, num_in).reshape(-1, 2, BLOCK, num_in)
    gate, up = groups[:, 0].reshape(padded, num_in), groups[:, 1].reshape(padded, num_in)
    return gate[:num_out], up[:num_out]


def quantized(rows: Array, attributes: Attributes) -> Array:
    """Rows as they are between operators: in 8 bits if the graph rounds."""
    return rounded(rows) if attributes["rounds"] else rows


def rounded(rows: Array) -> Array:
    """Rows [Q, K] in 8 bits, with a scale for each block of 32."""
    width = rows.shape[1]
    blocks = np.pad(rows, ((0, 0), (0, -width % BLOCK))).reshape(len(rows), -1, BLOCK)
    largest = np.abs(blocks).max(-1, keepdims=True)
    scales = np.where(largest == 0, 1, largest) / 127
    values: Array = np.rint(blocks / scales) * scales
    return values.reshape(len(rows), -1)[:, :width]


def rms_norm(rows: Array, weight: Array, epsilon: float) -> Array:
    mean = np.square(rows).mean(-1, keepdims=True)
    return rows / np.sqrt(mean + epsilon) * weight.astype(np.float64)


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


def residual(hidden: Array, delta: Array, post_norm: Any, attributes: Attributes) -> Array:
    """What a sublayer adds up to."""
    if post_norm is not None:
        delta = rms_norm(delta, post_norm, attributes["epsilon"])
    return hidden + attributes["residual_scale"] * delta


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


def linear(rows: Array, parts: Inputs, first: Any, bits: int, num_out: int, layer: int) -> Array:
    """Rows times a linear layer. parts: values, scales, minima, bias, down, up."""
    product = rows @ dequantized(parts[:3], bits, num_out, rows.shape[1]).T
    return with_extras(product, rows, parts[3], (first, *parts[4:]), layer)


def with_extras(
    product: Array,
    rows: Array,
    bias: Array | None,
    lora: Inputs,
    layer: int,
    is_gated: bool = False,
) -> Array:
    """A product with its bias, and LoRA in the rows from the first mask row on."""
    if bias is not None:
        product = product + bias
    first, downs, ups = lora
    if first is not None:
        assert downs is not None
        assert ups is not None
        down = downs[layer, :, : rows.shape[1]].astype(np.float64).T
        tiles = ups[layer].astype(np.float64)
        if is_gated:  # two tiles of the gate, two of up, and so on
            sides = tiles.reshape(-1, 2, 2, *tiles.shape[1:]).swapaxes(0, 1)
            sizes = -1, *tiles.shape[1:]
            half = product.shape[1] // 2
            up = np.concatenate([outputs_of(side.reshape(sizes), half) for side in sides], axis=1)
        else:
            up = outputs_of(tiles, product.shape[1])
        product[first[0] :] += rows[first[0] :] @ down @ up
    return product


def outputs_of(tiles: Array, num_out: int) -> Array:
    """[r, num_out] of tiles [n, r, 16]."""
    return tiles.transpose(1, 0, 2).reshape(tiles.shape[1], -1)[:, :num_out]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {"silu": silu, "gelu_tanh": gelu_tanh}


def sights(inputs: Inputs, attributes: Attributes) -> list[Any]:
    """The inputs themselves; attention looks into them."""
    return [(*inputs, attributes["window"])]


def attention(qkv: Array, inputs: Inputs, attributes: Attributes) -> Array:
    """[Q, heads * D] of products [Q, (heads + 2 * kv heads) * D]."""
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
    query = turned(query, q_norm, epsilon, cos, sin, where)
    key = turned(key, k_norm, epsilon, cos, sin, where)
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


def turned(
    parts: Array, norm: Array | None, epsilon: float, cos: Any, sin: Any, positions: Array
) -> Array:
    """Heads [Q, heads, D] after their norm and the rotary embedding."""
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
    """Keys and values of slots, [kv heads, n, D] each."""
    size = pages.shape[-1] // PAGE
    keys = [pages[page, :, 0, slot::PAGE] for page, slot in places]
    values = [pages[page, :, 1, slot * size : (slot + 1) * size] for page, slot in places]
    return np.stack(keys, 1).astype(np.float64), np.stack(values, 1).astype(np.float64)


def attend(query: Array, keys: Array, values: Array, attributes: Attributes) -> Array:
    """[heads, D] of one row. query: [heads, D]."""
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
    """The inputs, with None for those at the end that are absent."""
    return [*inputs, *[None] * (count - len(inputs))]


OPERATORS = {
    "Embed": embed,
    "Sights": sights,
    "AttentionSublayer": attention_sublayer,
    "MlpSublayer": mlp_sublayer,
    "AddNorm": add_norm,
    "Head": head,
}


class ReferenceSession:
    """What `OrtBackend` uses of ONNX Runtime's session, over a NativeGraph."""

    def __init__(self, graph: NativeGraph) -> None:
        self._graph = graph

    def get_inputs(self) -> list[Any]:
        return [described(value) for value in self._graph.model.graph.input]

    def get_outputs(self) -> list[Any]:
        return [described(value) for value in self._graph.model.graph.output]

    def get_modelmeta(self) -> Any:
        properties = {entry.key: entry.value for entry in self._graph.model.metadata_props}
        return SimpleNamespace(custom_metadata_map=properties)

    def io_binding(self) -> "ReferenceBinding":
        return ReferenceBinding()

    def run_with_iobinding(self, binding: "ReferenceBinding") -> None:
        inputs = {name: array_of(value) for name, value in binding.inputs.items()}
        values = self._graph.run(inputs)
        for name, bound in binding.outputs.items():
            if bound is not None and not name.startswith("present."):
                array_of(bound)[...] = values[name]
        binding.results = [
            SimpleNamespace(numpy=lambda array=values[name]: np.float32(array))
            for name in binding.outputs
        ]


class ReferenceBinding:
    """Values by name; outputs without a value are results only."""

    def __init__(self) -> None:
        self.inputs: dict[str, ort.OrtValue] = {}
        self.outputs: dict[str, ort.OrtValue | None] = {}
        self.results: list[Any] = []

    def bind_ortvalue_input(self, name: str, value: ort.OrtValue) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: ort.OrtValue) -> None:
        self.outputs[name] = value

    def bind_output(self, name: str) -> None:
        self.outputs[name] = None

    def get_outputs(self) -> list[Any]:
        return self.results


def described(value: onnx.ValueInfoProto) -> Any:
    """Name, type and shape as ONNX Runtime says them."""
    kind = value.type.tensor_type
    names = {"float32": "float"}
    dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    shape = [
        each.dim_value if each.HasField("dim_value") else each.dim_param for each in kind.shape.dim
    ]
    return SimpleNamespace(name=value.name, type=f"tensor({names.get(dtype, dtype)})", shape=shape)


def array_of(value: ort.OrtValue) -> Array:
    """The memory of a value; `OrtValue.numpy` may copy it."""
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bool)": np.bool_}
    dtype = np.dtype(types.get(value.data_type(), np.int64))
    shape = value.shape()
    size = int(np.prod(shape)) * dtype.itemsize
    if not size:
        return np.empty(shape, dtype)
    memory = (ctypes.c_uint8 * size).from_address(value.data_ptr())
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)


def use_reference_operators(monkeypatch: pytest.MonkeyPatch, rounds: bool = False) -> None:
    """Have engines of native operators run by the reference."""
    from bita.engine import GRAPH_FILE
    from bita.runtime.backends import ort_backend

    def load(engine: Any, options: Any, graph: bytes | None = None) -> Any:
        if engine.manifest.dialect != "native":
            return loaded(engine, options, graph)
        path = engine.file(GRAPH_FILE)
        if graph is None:
            return ReferenceSession(NativeGraph.load(path, rounds))
        model = onnx.load_from_string(graph)
        onnx.load_external_data_for_model(model, str(path.parent))
        return ReferenceSession(NativeGraph(model, rounds))

    loaded = ort_backend.load_session
    monkeypatch.setattr(ort_backend, "load_session", load)
    options = ort_backend.session_options

    def session_options(engine: Any, num_threads: int) -> Any:
        is_native = engine.manifest.dialect == "native"
        return ort.SessionOptions() if is_native else options(engine, num_threads)

    monkeypatch.setattr(ort_backend, "session_options", session_options)
