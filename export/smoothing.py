"""Linear layers as 8-bit products: static scales of activations, and what makes them small enough.

SmoothQuant (arXiv 2211.10438): a channel of the input that is k times as large as the others costs
all of them log2 k bits. Dividing it by a factor and multiplying its weights by the same changes
nothing but that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bita.export.quantize import LEAST_SCALE
from bita.tensors import Float32Array

# Label of a linear layer -> [in], the largest magnitude seen in each channel of its input.
Ranges = Mapping[str, Float32Array]

ALPHA = 0.5  # how much of the input's unevenness goes to the weights, 0 to 1


@dataclass(frozen=True, eq=False)
class Smoothing:
    """factors [in]: a layer's input is divided by them, its weights' columns are multiplied.

    input_scale: of the divided input, the step between two of its values.
    """

    factors: Float32Array
    input_scale: np.float32


def smoothing(
    largest: Float32Array, weights: Iterable[Float32Array], most: float, alpha: float = ALPHA
) -> Smoothing:
    """largest: [in], of each channel of the input. weights: pieces [n, in] of the layer.

    most: the largest value of the type that the input becomes. alpha: 0 for no smoothing.
    A channel that was always zero, or is never used, stays as it is.
    """
    columns = np.zeros_like(largest)
    for piece in weights:
        np.maximum(columns, np.abs(piece).max(0), out=columns)
    used = (largest > 0) & (columns > 0)
    factors = np.ones_like(largest)
    factors[used] = largest[used] ** alpha / columns[used] ** (1 - alpha) if alpha else 1
    factors = factors.astype(np.float16).astype(np.float32)  # as the graph has them
    return Smoothing(factors, np.float32(scale_of((largest / factors).max(), most)))


def scale_of(largest: "Float32Array | np.float32", most: float) -> Float32Array:
    """The scale, a float16 number, by which `largest` becomes `most`."""
    scale = np.maximum(largest / np.float32(most), LEAST_SCALE)
    rounded: Float32Array = scale.astype(np.float16).astype(np.float32)
    return rounded
