"""Smooth the activations of 8-bit products, and choose their static scales.

SmoothQuant (arXiv 2211.10438): an input channel that is k times as large as the others costs all
channels log2 k bits. Dividing it by a factor and multiplying its weights by the same factor avoids
that without changing the product.
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

ALPHA = 0.5  # share of the input's unevenness that moves to the weights, 0 to 1
# Alpha for activations with a scale for each row. KL of the default model to float32:
# - 0.037 without smoothing
# - 0.012 with alpha 0.5 or 0.6
# - 0.021 with alpha 0.75
# - 0.015 with maxima instead of root mean squares
ROW_ALPHA = 0.6
MIN_FACTOR = np.float32(2.0**-14)  # float16 represents it, and 1 over it, with all digits
LEAST = 1e-3  # minimum as a share of the largest, for inputs that were small in calibration


@dataclass(frozen=True, eq=False)
class Smoothing:
    """The smoothing of a layer's input."""

    factors: Float32Array  # [in]; the input is divided, the weights' columns are multiplied by them
    input_scale: np.float32  # step between two values of the divided input


def smoothing(
    largest: Float32Array, weights: Iterable[Float32Array], most: float, alpha: float = ALPHA
) -> Smoothing:
    """Return the smoothing of a layer with static scales.

    A channel that was always zero, or is never used, stays unchanged.

    Args:
        largest: The largest magnitude of each channel of the input, [in].
        weights: The weights of the layer in pieces [n, in].
        most: The largest value of the type that the input is rounded to.
        alpha: The share of unevenness that moves to the weights; 0 for no smoothing.
    """
    columns = _largest_weights(weights)
    used = (largest > 0) & (columns > 0)
    factors = np.ones_like(largest)
    factors[used] = largest[used] ** alpha / columns[used] ** (1 - alpha) if alpha else 1
    factors = np.clip(factors, MIN_FACTOR, 1 / MIN_FACTOR)
    factors = factors.astype(np.float16).astype(np.float32)  # as the graph has them
    return Smoothing(factors, np.float32(scale_of((largest / factors).max(), most)))


def smoothing_factors(squares: Float32Array, weights: Iterable[Float32Array]) -> Float32Array:
    """Return smoothing factors for activations with a scale for each row.

    Args:
        squares: Sums of the squares of each input, [in]; their roots replace the largest
            magnitudes of `smoothing`.
        weights: The weights of the layer in pieces [n, in].
    """
    columns = _largest_weights(weights)
    inputs = np.sqrt(squares)
    inputs = np.maximum(inputs, LEAST * inputs.max() or 1.0)
    columns = np.maximum(columns, LEAST * columns.max() or 1.0)
    logs = ROW_ALPHA * np.log(inputs) - (1 - ROW_ALPHA) * np.log(columns)
    factors: Float32Array = np.exp(logs - logs.mean()).astype(np.float32)
    return factors


def _largest_weights(weights: Iterable[Float32Array]) -> Float32Array:
    """Return the largest magnitude of each column, [in], of pieces [n, in]."""
    largest: Float32Array = np.max([np.abs(piece).max(0) for piece in weights], axis=0)
    return largest


def scale_of(largest: "Float32Array | np.float32", most: float) -> Float32Array:
    """Return the scale, a float16 number, that maps `largest` to `most`."""
    scale = np.maximum(largest / np.float32(most), MIN_SCALE)
    rounded: Float32Array = scale.astype(np.float16).astype(np.float32)
    return rounded
