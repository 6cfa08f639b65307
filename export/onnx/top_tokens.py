"""The best token ids of each row of logits, at less cost than one TopK over the vocabulary."""

import numpy as np
import onnx_ir as ir

from bita.export.onnx.writer import FLOAT, INT64, GraphWriter


def top_tokens(
    graph: GraphWriter,
    logits: ir.Value,
    vocab_size: int,
    num_ranks: int,
    by_elements: bool = False,
) -> tuple[ir.Value, ir.Value]:
    """Return the largest logits [R, k] of each row and their ids, best first.

    Column 0 is the argmax; among equal logits, the lowest id comes first there. The k best logits
    are in the k blocks with the largest maxima, so TopK runs only on these. This takes 0.3 ms
    instead of 0.8 ms for 39 rows of 49152 logits (Zen 5, 2 threads); ArgMax alone takes 0.6 ms.

    Args:
        graph: The graph.
        logits: [R, V].
        vocab_size: V.
        num_ranks: k.
        by_elements: Whether to gather the blocks by GatherElements instead of GatherND, which is up
            to 30 % faster on CPUs.
    """
    width = block_width(vocab_size, num_ranks)
    k = graph.constant([num_ranks])
    if width is None:
        values, ids = graph.ops("TopK", logits, k, num_outputs=2)
        return values, ids
    blocks = graph.op("Reshape", logits, graph.constant([0, -1, width]))
    maxima = graph.op("ReduceMax", blocks, graph.constant([2]), keepdims=0)
    _, best_blocks = graph.ops("TopK", maxima, k, num_outputs=2)
    # Blocks are sorted in ascending order, so that equal logits keep the order of their ids.
    # They are sorted as floats, since some versions of TensorRT do not sort integers; the numbers
    # are small enough to be exact.
    as_floats = graph.op("Cast", best_blocks, to=FLOAT)
    ascending, _ = graph.ops("TopK", as_floats, k, num_outputs=2, largest=0)
    sorted_blocks = graph.op("Cast", ascending, to=INT64)
    index = graph.op("Unsqueeze", sorted_blocks, graph.constant([2]))
    if by_elements:
        start = graph.op("Mul", index, graph.constant([width]))
        elements = graph.op("Add", start, graph.constant(np.arange(width)))
        candidate_ids = graph.op("Reshape", elements, graph.constant([0, num_ranks * width]))
        candidates = graph.op("GatherElements", logits, candidate_ids, axis=1)
        values, places = graph.ops("TopK", candidates, k, num_outputs=2)
        return values, graph.op("GatherElements", candidate_ids, places, axis=1)
    candidates = graph.op("GatherND", blocks, index, batch_dims=1)
    flat = graph.op("Reshape", candidates, graph.constant([0, num_ranks * width]))
    values, places = graph.ops("TopK", flat, k, num_outputs=2)
    rank = graph.op("Div", places, graph.constant([width]))
    block = graph.op("GatherElements", sorted_blocks, rank, axis=1)
    within = graph.op("Sub", places, graph.op("Mul", rank, graph.constant([width])))
    start = graph.op("Mul", block, graph.constant([width]))
    return values, graph.op("Add", start, within)


def block_width(vocab_size: int, num_ranks: int) -> int | None:
    """Return the divisor of the vocabulary with the least work for TopK; None if none halves it."""
    widths = [width for width in range(2, vocab_size // num_ranks + 1) if vocab_size % width == 0]
    best = min(widths, key=lambda width: vocab_size // width + num_ranks * width, default=None)
    if best is None or vocab_size // best + num_ranks * best > vocab_size // 2:
        return None
    return best
