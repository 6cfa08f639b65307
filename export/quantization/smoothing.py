"""What makes the activations of 8-bit products small enough, and the static scales of these.

SmoothQuant (arXiv 2211.10438): a channel of the input that is k times as large as the others costs
all of them log2 k bits. Dividing it by a factor and multiplying its weights by the same changes
nothing but that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bita.export.quantization.scales import MIN_SCALE
from bita.tensors import Float32Array

# Label of a linear layer -> [in], the largest magnitude seen in each channel of its input.
Ranges = Mapping[str, Float32Array]

# Label of a linear layer -> [in], the sum over rows of the squares of each input.
Squares = Mapping[str, Float32Array]

ALPHA = 0.5  # how much of the input's unevenness goes to the weights, 0 to 1
# The same for scales of each row. KL to float32 of the default model: 0.037 without, 0.012 with
# 0.5 or 0.6, 0.021 with 0.75; by maxima instead of root mean squares 0.015.
ROW_ALPHA = 0.6
MIN_FACTOR = np.float32(2.0**-14)  # float16 has all its digits for it, and for 1 over it
LEAST = 1e-3  # of the largest, for inputs that calibration saw little of


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
    columns = _largest_weights(weights)
    used = (largest > 0) & (columns > 0)
    factors = np.ones_like(largest)
    factors[used] = largest[used] ** alpha / columns[used] ** (1 - alpha) if alpha else 1
    factors = np.clip(factors, MIN_FACTOR, 1 / MIN_FACTOR)
    factors = factors.astype(np.float16).astype(np.float32)  # as the graph has them
    return Smoothing(factors, np.float32(scale_of((largest / factors).max(), most)))


def smoothing_factors(squares: Float32Array, weights: Iterable[Float32Array]) -> Float32Array:
    """As the factors of `smoothing`, for activations with a scale for each row.

    squares: [in], sums of the squares of each input, whose root mean square counts here.
    """
    columns = _largest_weights(weights)
    inputs = np.sqrt(squares)
    inputs = np.maximum(inputs, LEAST * inputs.max() or 1.0)
    columns = np.maximum(columns, LEAST * columns.max() or 1.0)
    logs = ROW_ALPHA * np.log(inputs) - (1 - ROW_ALPHA) * np.log(columns)
    factors: Float32Array = np.exp(logs - logs.mean()).astype(np.float32)
    return factors


def _largest_weights(weights: Iterable[Float32Array]) -> Float32Array:
    """[in], of pieces [n, in]."""
    largest: Float32Array = np.max([np.abs(piece).max(0) for piece in weights], axis=0)
    return largest


def scale_of(largest: "Float32Array | np.float32", most: float) -> Float32Array:
    """The scale, a float16 number, by which `largest` becomes `most`."""
    scale = np.maximum(largest / np.float32(most), MIN_SCALE)
    rounded: Float32Array = scale.astype(np.float16).astype(np.float32)
    return rounded
