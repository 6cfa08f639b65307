"""What the base computed of the texts of a run, kept in memory for the next epochs.

Nothing that is trained reaches the rows of a text. So their keys, values and last hidden states are
the same in every epoch, and a text that is kept costs its mask rows only.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bita.tuning.mask_model import BaseContext, MaskModel
from bita.tuning.training_texts import TrainingText


@dataclass(frozen=True)
class _KeptText:
    """layers: keys and values [1, H, T, D] per layer. states: [1, T - num_prompt, hidden]."""

    layers: list[tuple[Tensor, Tensor]]
    states: Tensor

    @property
    def num_bytes(self) -> int:
        tensors = [self.states, *(side for layer in self.layers for side in layer)]
        return sum(tensor.nbytes for tensor in tensors)


class Contexts:
    """Reads batches of texts; those that were read before and fit the budget are not run again.

    budget_bytes: of memory of the host. The first texts stay, since a run visits all of them once
    per epoch. Each text is read alone, so that its bits do not depend on what is kept. 0 keeps
    nothing and reads batches whole.
    """

    def __init__(self, model: MaskModel, budget_bytes: int) -> None:
        self._model = model
        self._budget = budget_bytes
        self._room = budget_bytes
        self._kept: dict[TrainingText, _KeptText] = {}

    @property
    def num_kept(self) -> int:
        """Texts that will not be run again."""
        return len(self._kept)

    def read(self, batch: Sequence[TrainingText]) -> BaseContext:
        """The context of a batch; teachers begin after the shortest prompt."""
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
        """One context of texts of different lengths, padded with zeros at the end."""
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
    """[..., length, n]: rows [..., T, n] from `start` on, zeros before and after."""
    padded = rows.new_zeros((*rows.shape[:-2], length, rows.shape[-1]))
    padded[..., start : start + rows.shape[-2], :] = rows
    return padded
