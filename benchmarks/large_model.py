"""Write a random Llama with the shape of Llama 3.2 1B as a GGUF file.

    python benchmarks/large_model.py OUT.gguf Q4_1 --tokenizer MODEL.gguf

Linear layers have the given format. The embedding table, which is the output layer too, has Q8_0,
and norms are float32 ones. Weights are normally distributed with a standard deviation of 0.02; a
tensor has the same weights in every format. The tokenizer is that of another GGUF file, whose
vocabulary is padded with unused tokens to the 128256 rows of the table. Memory: one quantized
tensor twice.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from export_memory import CONFIG
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize

from bita.export.gguf.file import read_gguf

STANDARD_DEVIATION = 0.02
PIECE_ROWS = 2048  # quantized at a time
NORMAL, UNUSED = 1, 5  # values of tokenizer.ggml.token_type
TOKENIZER = "tokenizer.ggml."


@dataclass(frozen=True)
class RandomTensor:
    """A tensor to write; `index` seeds its weights."""

    index: int
    name: str
    shape: tuple[int, ...]
    kind: Kind

    def data(self) -> npt.NDArray[Any]:
        """Return the data to write: ones for a vector, else random rows, quantized in pieces."""
        if len(self.shape) == 1:
            return np.ones(self.shape, np.float32)
        rng = np.random.default_rng(self.index)
        return np.concatenate([quantize(piece, self.kind) for piece in self._pieces(rng)])

    def _pieces(self, rng: np.random.Generator) -> Iterator[npt.NDArray[np.float32]]:
        num_rows, width = self.shape
        for start in range(0, num_rows, PIECE_ROWS):
            size = min(PIECE_ROWS, num_rows - start), width
            yield rng.standard_normal(size, np.float32) * np.float32(STANDARD_DEVIATION)


def tensors_of(config: dict[str, Any], kind: Kind) -> Iterator[RandomTensor]:
    """Yield all tensors of a Llama with tied embeddings, with their GGUF names."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    layer: dict[str, tuple[int, ...]] = {
        **{"attn_norm": (hidden,), "attn_q": (query, hidden), "attn_k": (kv, hidden)},
        **{"attn_v": (kv, hidden), "attn_output": (hidden, query), "ffn_norm": (hidden,)},
        **{"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)},
    }
    shapes = {"token_embd": (config["vocab_size"], hidden), "output_norm": (hidden,)}
    for index in range(config["num_hidden_layers"]):
        shapes |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
    for index, (name, shape) in enumerate(shapes.items()):
        of_matrix = Kind.Q8_0 if name == "token_embd" else kind
        stored = Kind.F32 if len(shape) == 1 else of_matrix
        yield RandomTensor(index, f"{name}.weight", shape, stored)


def add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """Add the metadata of the architecture."""
    writer.add_name(f"Random Llama, {config['num_hidden_layers']} layers")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def add_tokenizer(writer: gguf.GGUFWriter, source: dict[str, Any], vocab_size: int) -> None:
    """Add the tokenizer of another file's metadata `source`, padded to `vocab_size` tokens."""
    tokens = source[f"{TOKENIZER}tokens"]
    types = source.get(f"{TOKENIZER}token_type", np.full(len(tokens), NORMAL)).tolist()
    unused = range(len(tokens), vocab_size)
    writer.add_token_list([*tokens, *(f"[UNUSED{index}]" for index in unused)])
    writer.add_token_types([*types, *(UNUSED for _ in unused)])
    writer.add_token_merges(source[f"{TOKENIZER}merges"])
    writer.add_tokenizer_model(source[f"{TOKENIZER}model"])
    writer.add_tokenizer_pre(source[f"{TOKENIZER}pre"])
    writer.add_bos_token_id(source[f"{TOKENIZER}bos_token_id"])
    writer.add_eos_token_id(source[f"{TOKENIZER}eos_token_id"])
    writer.add_add_bos_token(bool(source.get(f"{TOKENIZER}add_bos_token", False)))
    writer.add_chat_template(source["tokenizer.chat_template"])


def write_model(path: Path, kind: Kind, tokenizer: Path, config: dict[str, Any] = CONFIG) -> None:
    """Write the GGUF file `path`; `tokenizer` is a GGUF file with a byte-level tokenizer."""
    writer = gguf.GGUFWriter(path, "llama")
    add_sizes(writer, config)
    add_tokenizer(writer, read_gguf(tokenizer).metadata, config["vocab_size"])
    tensors = list(tensors_of(config, kind))
    for tensor in tensors:
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
        size = int(np.prod(tensor.shape)) // block * block_bytes
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), size, raw_dtype=tensor.kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data())
    writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("format", help="format of linear layers, such as Q4_0 or Q4_1")
    parser.add_argument("--tokenizer", type=Path, required=True, help="GGUF file with a tokenizer")
    args = parser.parse_args()
    partial = args.out.with_name(f"{args.out.name}.partial")
    write_model(partial, Kind[args.format], args.tokenizer)
    partial.rename(args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
