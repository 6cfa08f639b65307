"""Writing the step graph of a checkpoint, in one of the dialects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bita.engine import GRAPH_FILE, WEIGHTS_FILE
from bita.export.architecture import Architecture
from bita.export.checkpoint import Checkpoint
from bita.export.dialects.cuda_dialect import CudaDialect
from bita.export.dialects.cuda_linear import CudaLinear
from bita.export.dialects.decoder import Decoder, check_tensors
from bita.export.dialects.dialect import Dialect
from bita.export.dialects.ort_dialect import OPSETS, OrtDialect, storage_of
from bita.export.dialects.plain_dialect import PLAIN_OPSETS, PlainDialect
from bita.export.dialects.standard_dialect import STANDARD_OPSETS, StandardDialect
from bita.export.dialects.standard_linear import StandardLinear, compute_type
from bita.export.onnx.decoder_weights import DecoderWeights
from bita.export.onnx.weight_file import WeightFile
from bita.export.onnx.writer import MICROSOFT, GraphWriter
from bita.export.quantization.gptq import Moments
from bita.export.quantization.smoothing import Ranges, Squares
from bita.runtime.backends.processor import multiplies_int8_exactly

CUDA_OPSETS = {**STANDARD_OPSETS, MICROSOFT: 1}


@dataclass(frozen=True)
class Seen:
    """What the float32 model's linear layers were seen to read, by their labels.

    moments: what int4 weights are rounded for. ranges: what int8 and fp8 activations are scaled by
    in the standard dialect. squares: what int8 layers are smoothed for in ORT's.
    """

    moments: Moments | None = None
    ranges: Ranges | None = None
    squares: Squares | None = None


NOTHING_SEEN = Seen()


def export_step_graph(
    checkpoint: Checkpoint,
    architecture: Architecture,
    directory: Path,
    *,
    capacity: int,
    precision: str,
    num_ranks: int,
    with_lora: bool = False,
    dialect: str = "ort",
    seen: Seen = NOTHING_SEEN,
    on_write: Callable[[int], None] = lambda _: None,
) -> None:
    """Write model.onnx and model.onnx.data into `directory`.

    capacity: C, cache slots, prefix and step rows included. num_ranks: k, ids returned per row.
    with_lora: take LoRA of any rank as inputs. dialect: "ort", "standard", "plain" or "cuda".
    on_write: called with the bytes of each piece of weights written.
    Memory: the largest linear layer (the output layer excepted, but in int8) plus a constant.
    """
    check_tensors(checkpoint, architecture)
    write = _WRITERS[dialect]
    with WeightFile(directory / WEIGHTS_FILE, on_write) as weights:
        writer = write(weights, checkpoint, architecture, capacity, precision, seen)
        Decoder(writer, architecture, with_lora).write(num_ranks)
        writer.graph.save(directory / GRAPH_FILE, "bita_step")


def _ort_dialect(
    weights: WeightFile,
    checkpoint: Checkpoint,
    architecture: Architecture,
    capacity: int,
    precision: str,
    seen: Seen,
) -> Dialect:
    graph = GraphWriter(weights, OPSETS)
    stored = DecoderWeights(graph, checkpoint, architecture, storage_of(precision))
    return OrtDialect(
        *(graph, stored, architecture, capacity, precision, seen.moments, seen.squares),
        signed_int8=multiplies_int8_exactly(),
    )


def _standard_dialect(
    kind: type[StandardDialect],
    linear_kind: type[StandardLinear],
    opsets: Mapping[str, int],
    weights: WeightFile,
    checkpoint: Checkpoint,
    architecture: Architecture,
    capacity: int,
    precision: str,
    seen: Seen,
) -> Dialect:
    graph, compute = GraphWriter(weights, opsets), compute_type(precision)
    stored = DecoderWeights(graph, checkpoint, architecture, compute, compute)
    linear = linear_kind(graph, stored, precision, seen.moments, seen.ranges)
    return kind(graph, stored, linear, architecture, capacity, precision)


_WRITERS: Mapping[str, Callable[..., Dialect]] = {
    "ort": _ort_dialect,
    "standard": partial(_standard_dialect, StandardDialect, StandardLinear, STANDARD_OPSETS),
    "plain": partial(_standard_dialect, PlainDialect, StandardLinear, PLAIN_OPSETS),
    "cuda": partial(_standard_dialect, CudaDialect, CudaLinear, CUDA_OPSETS),
}
