"""The base's results for the texts of a run, kept in memory for later epochs.

Trained parameters do not affect the rows of a text. Their keys, values and last hidden states are
therefore the same in every epoch, and for a text that is kept only the mask rows are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bita.tuning.mask_model import BaseContext, MaskModel
from bita.tuning.training_texts import TrainingText


@dataclass(frozen=True)
class _KeptText:
    """The base's results for one text."""

    layers: list[tuple[Tensor, Tensor]]  # keys and values [1, H, T, D] per layer
    states: Tensor  # [1, T - num_prompt, hidden]

    @property
    def num_bytes(self) -> int:
        tensors = [self.states, *(side for layer in self.layers for side in layer)]
        return sum(tensor.nbytes for tensor in tensors)


class Contexts:
    """Reads batches of texts; kept texts are not run again.

    Texts are kept until `budget_bytes` of host memory are used. The first texts stay, since a run
    visits each text once per epoch. Each text is read separately, so that its bits do not depend on
    what is kept. With a budget of 0 nothing is kept, and whole batches are read.
    """

    def __init__(self, model: MaskModel, budget_bytes: int) -> None:
        self._model = model
        self._budget = budget_bytes
        self._room = budget_bytes
        self._kept: dict[TrainingText, _KeptText] = {}

    @property
    def num_kept(self) -> int:
        """Number of texts that will not be run again."""
        return len(self._kept)

    def read(self, batch: Sequence[TrainingText]) -> BaseContext:
        """Return the context of a batch; teacher rows begin after the shortest prompt."""
        if not self._budget:
            first = min(text.num_prompt for text in batch)
            return self._model.read([text.token_ids for text in batch], first)
        return self._join([self._text(text) for text in batch], batch)

    def _text(self, text: TrainingText) -> _KeptText:
        if found := self._kept.get(text):
            return found
        context = self._model.read([text.token_ids], text.num_prompt)
        read = _KeptText(
            [(keys.cpu(), values.cpu()) for keys, values in context.layers],
            context.states.cpu().clone(),
        )
        if read.num_bytes <= self._room:
            self._kept[text] = read
            self._room -= read.num_bytes
        return read

    def _join(self, texts: Sequence[_KeptText], batch: Sequence[TrainingText]) -> BaseContext:
        """Join texts of different lengths into one context, padded with zeros at the end."""
        longest = max(len(text.token_ids) for text in batch)
        first = min(text.num_prompt for text in batch)
        device = self._model.device
        layers = []
        for index in range(len(texts[0].layers)):
            keys, values = (
                torch.cat([_pad(text.layers[index][side], 0, longest) for text in texts])
                for side in (0, 1)
            )
            layers.append((keys.to(device), values.to(device)))
        states = torch.cat(
            [
                _pad(kept.states, text.num_prompt - first, longest - first)
                for kept, text in zip(texts, batch, strict=True)
            ]
        )
        return BaseContext(layers, states.to(device), first)


def _pad(rows: Tensor, start: int, length: int) -> Tensor:
    """Pad rows [..., T, n], which begin at `start`, with zeros to [..., length, n]."""
    padded = rows.new_zeros((*rows.shape[:-2], length, rows.shape[-1]))
    padded[..., start : start + rows.shape[-2], :] = rows
    return padded
