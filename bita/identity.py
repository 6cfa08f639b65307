"""Identity of the model of an adapter or engine: dimensions, and a coarse fingerprint of weights.

The fingerprint is coarse on purpose. A re-quantized copy (bf16, Q8, Q4) of a model must count as
the same model, as does a light fine-tune of it. A model of the same shape with other weights must
not.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from bita.errors import ModelError, raise_faults
from bita.json_values import Fields, parse_json, shown
from bita.tensors import EMBEDDINGS, Float32Array, TensorSource, head_dim_of, row_chunks

Fingerprint = Mapping[str, tuple[float, ...]]

# Q4 leaves a relative error of about 0.1 (cosine 0.995), Q2_K one of about 0.3 (cosine 0.95).
# Cosines of independent weights of one shape spread around 0 by 1/sqrt(32) = 0.18.
SAME_WEIGHTS_COSINE = 0.9
EMBEDDING_ROWS = 1024
MAX_DIMENSION, MAX_TENSORS = 10**9, 100  # far beyond any model; an identity has three tensors
_ROW_SIGNS, _COLUMN_SIGNS = 4, 8  # their product is the number of floats per tensor
_SEED = 20240122  # part of the format: another seed would give other fingerprints
_DIMENSIONS = ("num_layers", "hidden_size", "num_kv_heads", "head_dim", "vocab_size")
# Two names of one decoder: GGUF files of Mistral models give their architecture as "llama".
_ALIASES = {"mistral": "llama"}


@dataclass(frozen=True)
class ModelIdentity:
    """Identity of a model, made by `identify`; adapter files and manifests store it as JSON."""

    architecture: str  # `model_type` of transformers
    num_layers: int
    hidden_size: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    fingerprint: Fingerprint  # 32 floats of unit norm by tensor name

    def differences(self, other: "ModelIdentity") -> list[str]:
        """Return every difference from `other`, with this model's value first; empty if the same.

        "mistral" and "llama" are one architecture, because GGUF does not distinguish them.
        """
        faults = []
        if _canonical(self.architecture) != _canonical(other.architecture):
            faults.append(f"architecture {self.architecture!r} against {other.architecture!r}")
        for name in _DIMENSIONS:
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                faults.append(f"{name} {ours} against {theirs}")
        return faults + self._weight_differences(other)

    def _weight_differences(self, other: "ModelIdentity") -> list[str]:
        shared = sorted(self.fingerprint.keys() & other.fingerprint.keys())
        if not shared:
            return ["no tensor is in both fingerprints, so the weights cannot be compared"]
        return [
            f"weights are of another model: {name} has cosine {cosine:.2f}, "
            f"the same weights have at least {SAME_WEIGHTS_COSINE}"
            for name in shared
            if not (cosine := _cosine(self.fingerprint[name], other.fingerprint[name]))
            >= SAME_WEIGHTS_COSINE
        ]

    def to_json(self) -> str:
        """Return compact JSON on one line; `identify` has rounded fingerprints to four digits."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "ModelIdentity":
        """Read what `to_json` writes. Raises ModelError that lists every invalid field."""
        try:
            data = parse_json(text)
        except ValueError as error:
            raise ModelError(f"model identity is not JSON ({error}); write it again") from error
        if not isinstance(data, dict):
            raise ModelError(f"model identity is a JSON {type(data).__name__}, not an object")
        values = Fields(data)
        architecture = values.text("architecture")
        dimensions = {name: values.whole(name, least=1, most=MAX_DIMENSION) for name in _DIMENSIONS}
        fingerprint = _read_fingerprint(values)
        values.check(ModelError, "model identity")
        return cls(architecture=architecture, fingerprint=fingerprint, **dimensions)


def identify(checkpoint: TensorSource) -> ModelIdentity:
    """Return the identity of a checkpoint; read three tensors in pieces of a few MB.

    Raises ModelError that lists every missing config field and tensor.
    """
    config, names = checkpoint.config, checkpoint.names()
    fields = Fields(config, "config: ")
    architecture = fields.text("model_type")
    num_layers, num_heads = (
        fields.whole(name, least=1) for name in ("num_hidden_layers", "num_attention_heads")
    )
    num_kv_heads = fields.whole_or_null("num_key_value_heads", None, least=1)
    last = f"model.layers.{num_layers - 1}.mlp.down_proj.weight"
    query, stored_query = _query_tensor(names)
    faults = fields.faults + [
        _tensor_fault(checkpoint, names, name) for name in (EMBEDDINGS, stored_query, last)
    ]
    raise_faults(ModelError, "checkpoint cannot be identified", [*filter(None, faults)])

    vocab_size, hidden_size = checkpoint.shape(EMBEDDINGS)
    head_dim = head_dim_of({**config, "hidden_size": hidden_size})
    query_rows = num_heads * head_dim
    if query_rows > checkpoint.shape(stored_query)[0]:
        raise ModelError(
            f"{stored_query} has {checkpoint.shape(stored_query)[0]} rows; the config asks for "
            f"{num_heads} heads of {head_dim}"
        )
    rows = {
        EMBEDDINGS: (EMBEDDINGS, min(EMBEDDING_ROWS, vocab_size)),
        query: (stored_query, query_rows),
        last: (last, checkpoint.shape(last)[0]),
    }
    return ModelIdentity(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_kv_heads=num_kv_heads or num_heads,
        head_dim=head_dim,
        vocab_size=vocab_size,
        fingerprint={name: _sketch(checkpoint, *tensor) for name, tensor in rows.items()},
    )


def _tensor_fault(checkpoint: TensorSource, names: frozenset[str], name: str) -> str:
    """Return why a tensor is not a matrix; empty if it is one."""
    if name not in names:
        return f"no tensor {name}"
    shape = checkpoint.shape(name)
    return "" if len(shape) == 2 and min(shape) > 0 else f"tensor {name} has shape {shape}"


def _query_tensor(names: frozenset[str]) -> tuple[str, str]:
    """Return the first query projection's names, in the fingerprint and in the file.

    Phi-3 stores q, k and v as one tensor, with q in its first rows.
    """
    query = "model.layers.0.self_attn.q_proj.weight"
    fused = "model.layers.0.self_attn.qkv_proj.weight"
    return query, fused if query not in names and fused in names else query


def _sketch(source: TensorSource, name: str, num_rows: int) -> tuple[float, ...]:
    """Return 32 sums over the first rows [num_rows, columns], scaled to unit norm.

    Each sum has its own signs. The sign of an element is its row's sign times its column's sign, so
    it depends on the position only, and the sums are two thin matrix products. They are rounded to
    four decimals. Raises ModelError if they are not finite.
    """
    rows = _signs(num_rows, _ROW_SIGNS, _SEED)
    columns = _signs(source.shape(name)[1], _COLUMN_SIGNS, _SEED + 1)
    sums = np.zeros((_ROW_SIGNS, _COLUMN_SIGNS))
    start = 0
    for chunk in row_chunks(source, name, num_rows):
        sums += rows[start : start + len(chunk)].T @ (chunk @ columns)
        start += len(chunk)
    norm = float(np.linalg.norm(sums))
    if not np.isfinite(norm):
        raise ModelError(
            f"{name} has values that are not finite, or too large to be added up; download the "
            "model again, or use another release of it"
        )
    return tuple(np.round(sums.ravel() / max(norm, 1e-30), 4).tolist())


def _signs(length: int, count: int, seed: int) -> Float32Array:
    """Return signs [length, count], +1 or -1; row i does not depend on `length`.

    The raw stream of a numpy bit generator is stable across versions, that of Generator is not.
    """
    raw = np.random.PCG64(seed).random_raw(length)
    bits = (raw[:, None] >> np.arange(count, dtype=np.uint64)) & np.uint64(1)
    return bits.astype(np.float32) * 2 - 1


def _cosine(left: tuple[float, ...], right: tuple[float, ...]) -> float:
    scale = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(np.dot(left, right)) / max(scale, 1e-30)


def _canonical(architecture: str) -> str:
    return _ALIASES.get(architecture, architecture)


def _read_fingerprint(values: Fields) -> dict[str, tuple[float, ...]]:
    tensors = values.inner("fingerprint")
    if len(tensors.values) > MAX_TENSORS:
        values.faults.append(f"fingerprint has {len(tensors.values)} tensors, not {MAX_TENSORS}")
        return {}
    sketches = {name: tensors.numbers(name, least=-1, most=1) for name in tensors.values}
    size = _ROW_SIGNS * _COLUMN_SIGNS
    values.faults += [
        f"fingerprint of {shown(name)} is not {size} numbers"
        for name, given in tensors.values.items()
        if isinstance(given, list) and len(given) != size
    ]
    return sketches
