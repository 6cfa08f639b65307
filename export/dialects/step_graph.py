"""Export the step graph of a checkpoint in one of the dialects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bita.dialect_spec import DIALECTS
from bita.engine import GRAPH_FILE, WEIGHTS_FILE
from bita.export.architecture import Architecture
from bita.export.checkpoint import Checkpoint
from bita.export.dialects.block_linear import BlockLinear
from bita.export.dialects.decoder import Decoder
from bita.export.dialects.float_linear import FloatLinear
from bita.export.dialects.graph_options import GraphOptions
from bita.export.dialects.int8_linear import Int8Linear
from bita.export.dialects.linear import Linear
from bita.export.dialects.native_decoder import NATIVE_OPSETS, NativeDecoder
from bita.export.dialects.native_linear import NativeWeights
from bita.export.dialects.ort_dialect import OPSETS, OrtDialect
from bita.export.dialects.plain_dialect import PLAIN_OPSETS, PlainDialect
from bita.export.dialects.standard_dialect import STANDARD_OPSETS, StandardDialect
from bita.export.dialects.standard_linear import EIGHT_BITS, EightBitQdqLinear, Int4QdqLinear
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.weight_file import WeightFile
from bita.export.onnx.writer import FLOAT, FLOAT16, MICROSOFT, GraphWriter
from bita.export.quantization.gptq import Moments
from bita.export.quantization.smoothing import Ranges, Squares
from bita.runtime.backends.processor import multiplies_int8_exactly

CUDA_OPSETS = {**STANDARD_OPSETS, MICROSOFT: 1}
TYPES = {"float32": FLOAT, "float16": FLOAT16}


@dataclass(frozen=True)
class Seen:
    """Statistics of the inputs of the float32 model's linear layers, by label."""

    moments: Moments | None = None  # for rounding int4 weights
    ranges: Ranges | None = None  # for static scales of 8-bit activations
    squares: Squares | None = None  # for smoothing int8 layers with a scale for each row


NOTHING_SEEN = Seen()


@dataclass(frozen=True)
class Source:
    """The inputs from which a graph is written."""

    checkpoint: Checkpoint
    architecture: Architecture
    options: GraphOptions
    seen: Seen


def export_step_graph(
    checkpoint: Checkpoint,
    architecture: Architecture,
    directory: Path,
    options: GraphOptions,
    seen: Seen = NOTHING_SEEN,
    on_write: Callable[[int], None] = lambda _: None,
) -> None:
    """Write model.onnx and model.onnx.data into `directory`.

    Memory: the largest linear layer (without the output layer, except in int8) plus a constant.

    Args:
        checkpoint: The model; its tensors must be those of the architecture (`check_tensors`).
        architecture: The features of the decoder.
        directory: The engine directory.
        options: Settings of the graph.
        seen: Statistics for rounding and smoothing.
        on_write: Called with the size in bytes of each piece of weights written.
    """
    writer = WRITERS[options.dialect]
    compute = TYPES[DIALECTS[options.dialect].computes_in(options.precision)]
    storage = FLOAT if options.precision == "fp32" else FLOAT16
    with WeightFile(directory / WEIGHTS_FILE, on_write) as file:
        graph = GraphWriter(file, writer.opsets)
        weights = DecoderWeights(graph, checkpoint, architecture, storage, compute)
        writer.write(graph, weights, Source(checkpoint, architecture, options, seen))
        graph.save(directory / GRAPH_FILE, "bita_step")


def _ort_linear(graph: GraphWriter, weights: DecoderWeights, precision: str, seen: Seen) -> Linear:
    if precision == "int4":
        return BlockLinear(graph, weights, seen.moments)
    if precision == "int8":
        return Int8Linear(graph, weights, multiplies_int8_exactly(), seen.squares)
    return FloatLinear(graph, weights)


def _standard_linear(
    graph: GraphWriter, weights: DecoderWeights, precision: str, seen: Seen
) -> Linear:
    if precision == "int4":
        return Int4QdqLinear(graph, weights, seen.moments)
    if precision in EIGHT_BITS:
        return EightBitQdqLinear(graph, weights, precision, seen.ranges)
    return FloatLinear(graph, weights)


def _cuda_linear(graph: GraphWriter, weights: DecoderWeights, precision: str, seen: Seen) -> Linear:
    """Return standard linear layers, except for int4, for which CUDA has MatMulNBits."""
    if precision == "int4":
        return BlockLinear(graph, weights, seen.moments, FLOAT16, accuracy_level=0)
    return _standard_linear(graph, weights, precision, seen)


class Writer(Protocol):
    """Writes the graphs of a dialect."""

    @property
    def opsets(self) -> Mapping[str, int]:
        """The version of each domain's operators."""

    def write(self, graph: GraphWriter, weights: DecoderWeights, source: Source) -> None:
        """Write inputs, layers and outputs."""


@dataclass(frozen=True)
class PartsWriter:
    """Writes a decoder from the parts of a dialect."""

    kind: type[OrtDialect] | type[StandardDialect]
    linear: Callable[[GraphWriter, DecoderWeights, str, Seen], Linear]  # makes it for a precision
    opsets: Mapping[str, int]
    # GatherND of the CUDA provider copies from the host in each run. A captured graph would repeat
    # that copy from memory that is no longer valid.
    gathers_elements: bool = False

    def write(self, graph: GraphWriter, weights: DecoderWeights, source: Source) -> None:
        options = source.options
        linear = self.linear(graph, weights, options.precision, source.seen)
        dialect = self.kind(graph, weights, linear, source.architecture, options)
        decoder = Decoder(dialect, source.architecture, options.with_lora)
        decoder.write(options.num_ranks, self.gathers_elements)


class NativeWriter:
    """Writes a decoder in native operators, each of which is a whole part of it."""

    opsets = NATIVE_OPSETS

    def write(self, graph: GraphWriter, weights: DecoderWeights, source: Source) -> None:
        options, moments = source.options, source.seen.moments
        blocks = NativeWeights(graph, source.checkpoint, options.precision, moments)
        NativeDecoder(graph, weights, blocks, source.architecture, options).write()


WRITERS: Mapping[str, Writer] = {
    "ort": PartsWriter(OrtDialect, _ort_linear, OPSETS),
    "native": NativeWriter(),
    "standard": PartsWriter(StandardDialect, _standard_linear, STANDARD_OPSETS),
    "plain": PartsWriter(PlainDialect, _standard_linear, PLAIN_OPSETS),
    "cuda": PartsWriter(StandardDialect, _cuda_linear, CUDA_OPSETS, gathers_elements=True),
}
