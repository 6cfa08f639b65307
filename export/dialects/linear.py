"""The interface of the linear layers of every dialect."""

from collections.abc import Sequence
from typing import Protocol

import onnx_ir as ir

HEAD_LABEL = "lm_head"  # the output layer, which reads rows [R, in]; the others read [1, Q, in]


class Linear(Protocol):
    """Writes the linear layers of a graph in one precision."""

    def product(self, hidden: ir.Value, label: str, names: Sequence[str]) -> ir.Value:
        """Write the product of `hidden` and the weights of `names`, with concatenated outputs.

        Args:
            hidden: [1, Q, in], or [R, in] for the output layer.
            label: Prefix of the weights' names in the graph.
            names: Weights [out, in] of the checkpoint that share the input.
        """
