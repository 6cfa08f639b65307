"""Float checkpoints: a model without the blocks of its file, or rewritten off their grids.

Rewriting changes the weights but not the function:

- "fold" multiplies norms into the linear layers that follow.
- "rotate" applies a random rotation for each head of the cache to the values, and its inverse to
  the layer that reads them.
- "reorder" permutes hidden and inner channels, so that neighbours in a block of 32 come from
  different blocks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bita.errors import ModelError
from bita.export.block_source import BlockType
from bita.export.checkpoint import Checkpoint, TextAssets
from bita.export.quantization.blocks import Blocks
from bita.tensors import EMBEDDINGS, HEAD, Float32Array, Int64Array

# Offset that a family adds to the weights of its norms. All these families have one norm before
# attention and one before the MLP, and have no biases.
NORM_OFFSETS = {"llama": 0.0, "mistral": 0.0, "gemma2": 1.0, "gemma3_text": 1.0}
FINAL_NORM = "model.norm.weight"
STEPS = ("fold", "rotate", "reorder")
# Tensors whose first axis is the residual stream; norms have only that axis.
WRITERS = ("o_proj.weight", "down_proj.weight", "layernorm.weight")


class ArrayCheckpoint:
    """A Checkpoint of weights in memory, with the config and the text assets of another one."""

    def __init__(self, source: Checkpoint, tensors: Mapping[str, Float32Array]) -> None:
        self.name, self.path, self.license = source.name, source.path, source.license
        self.config: dict[str, Any] = source.config
        self._source = source
        self._tensors = tensors

    def names(self) -> frozenset[str]:
        return frozenset(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensors[name].shape

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Float32Array:
        return np.ascontiguousarray(self._tensors[name][start:stop])

    def text_assets(self) -> TextAssets:
        return self._source.text_assets()


class BlocksCheckpoint(ArrayCheckpoint):
    """A checkpoint with some tensors in blocks, as in a GGUF file."""

    def __init__(
        self,
        source: Checkpoint,
        tensors: Mapping[str, Float32Array],
        blocks: Mapping[str, Blocks],
    ) -> None:
        super().__init__(source, tensors)
        self._blocks = blocks

    def block_type(self, name: str) -> BlockType | None:
        """See `BlockSource`."""
        blocks = self._blocks.get(name)
        if blocks is None:
            return None
        return BlockType("rounded", blocks.bits, blocks.minima is not None)

    def read_blocks(self, name: str, start: int = 0, stop: int | None = None) -> Blocks | None:
        """See `BlockSource`."""
        blocks = self._blocks.get(name)
        return None if blocks is None else blocks.rows(slice(start, stop))


def read_all(checkpoint: Checkpoint) -> dict[str, Float32Array]:
    """Read all tensors as floats, with 4 bytes of memory per weight."""
    return {name: checkpoint.read(name) for name in sorted(checkpoint.names())}


def rewrite(
    tensors: dict[str, Float32Array],
    config: Mapping[str, Any],
    seed: int,
    steps: Sequence[str] = STEPS,
) -> None:
    """Rewrite the tensors of a model in place with some of STEPS.

    Raises ModelError for unknown steps and unsupported families.
    """
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise ModelError(f"no rewriting {unknown[0]!r}; there are {', '.join(STEPS)}")
    biases = sorted(name for name in tensors if name.endswith(".bias"))
    if config["model_type"] not in NORM_OFFSETS or biases:
        what = f"the bias {biases[0]}" if biases else f"the family {config['model_type']}"
        raise ModelError(f"no rewriting is known for {what}; give --as-it-is")
    rng = np.random.default_rng(seed)
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}"
        if "fold" in steps:
            fold_norms(tensors, prefix, np.float32(NORM_OFFSETS[config["model_type"]]))
        if "rotate" in steps:
            rotate_values(tensors, f"{prefix}.self_attn", config, rng)
        if "reorder" in steps:
            order = rng.permutation(config["intermediate_size"])
            reorder_inner(tensors, f"{prefix}.mlp", order)
    if "reorder" in steps:
        reorder_hidden(tensors, rng.permutation(config["hidden_size"]))


def fold_norms(tensors: dict[str, Float32Array], prefix: str, offset: np.float32) -> None:
    """Multiply the columns of linear layers by the norm before them, which becomes ones.

    The family adds `offset` to the weights of norms.
    """
    before_mlp = f"{prefix}.pre_feedforward_layernorm.weight"
    if before_mlp not in tensors:
        before_mlp = f"{prefix}.post_attention_layernorm.weight"
    for norm, layers in (
        (f"{prefix}.input_layernorm.weight", ("self_attn.q", "self_attn.k", "self_attn.v")),
        (before_mlp, ("mlp.gate", "mlp.up")),
    ):
        for layer in layers:
            name = f"{prefix}.{layer}_proj.weight"
            tensors[name] = (tensors[name] * (tensors[norm] + offset)).astype(
                np.float32, copy=False
            )
        tensors[norm] = np.full_like(tensors[norm], 1 - offset)


def rotate_values(
    tensors: dict[str, Float32Array],
    attention: str,
    config: Mapping[str, Any],
    rng: np.random.Generator,
) -> None:
    """Rotate the values of each head of the cache, and rotate back in the output layer."""
    value, output = f"{attention}.v_proj.weight", f"{attention}.o_proj.weight"
    head_dim, kv_heads = config["head_dim"], config["num_key_value_heads"]
    turns = np.linalg.qr(rng.standard_normal((kv_heads, head_dim, head_dim)))[0]
    heads = tensors[value].reshape(kv_heads, head_dim, -1)
    turned = np.einsum("ked,kdn->ken", turns, heads)
    tensors[value] = turned.reshape(tensors[value].shape).astype(np.float32)
    reading = tensors[output].reshape(len(tensors[output]), kv_heads, -1, head_dim)
    turned = np.einsum("nkgd,ked->nkge", reading, turns)
    tensors[output] = turned.reshape(tensors[output].shape).astype(np.float32)


def reorder_inner(tensors: dict[str, Float32Array], mlp: str, order: Int64Array) -> None:
    """Permute the inner channels of an MLP."""
    for layer in ("gate", "up"):
        tensors[f"{mlp}.{layer}_proj.weight"] = tensors[f"{mlp}.{layer}_proj.weight"][order]
    tensors[f"{mlp}.down_proj.weight"] = tensors[f"{mlp}.down_proj.weight"][:, order]


def reorder_hidden(tensors: dict[str, Float32Array], order: Int64Array) -> None:
    """Permute the channels of the residual stream."""
    for name, weight in tensors.items():
        if name.endswith(WRITERS) or name == FINAL_NORM:
            tensors[name] = weight[order]
        elif name.endswith("_proj.weight") or name in (EMBEDDINGS, HEAD):
            tensors[name] = weight[:, order]
