"""The texts of a run: which conversation comes in which step, the same at every start."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bita.errors import TuningError

MIN_RESPONSE = 2  # a group after the last prompt token drafts the second token of a response


@dataclass(frozen=True)
class TrainingText:
    """Token ids of prompt and response; num_prompt of them are the prompt's."""

    token_ids: tuple[int, ...]
    num_prompt: int


def cut_text(prompt: Sequence[int], response: Sequence[int], max_tokens: int) -> TrainingText:
    """A text of at most `max_tokens`; of a long prompt the beginning is left out."""
    room = max(max_tokens - len(response), max_tokens // 2)
    kept = tuple(prompt)[-room:]
    return TrainingText((*kept, *response)[:max_tokens], len(kept))


def usable(texts: Sequence[TrainingText]) -> list[TrainingText]:
    """The texts that have something to learn from. Raises TuningError if there are none."""
    kept = [text for text in texts if len(text.token_ids) - text.num_prompt >= MIN_RESPONSE]
    if not kept:
        raise TuningError(
            f"none of {len(texts)} conversations has a response of {MIN_RESPONSE} tokens; give "
            "other prompts, or a larger max_tokens"
        )
    return kept


def split_held_out(
    texts: Sequence[TrainingText], num_held_out: int, seed: int
) -> tuple[list[TrainingText], list[TrainingText]]:
    """Texts to train on and texts to evaluate on; the latter at most a fifth of all."""
    order = np.random.default_rng([seed, 2]).permutation(len(texts))
    count = min(num_held_out, len(texts) // 5)
    held_out = set(order[:count].tolist())
    train = [text for index, text in enumerate(texts) if index not in held_out]
    return train, [text for index, text in enumerate(texts) if index in held_out]


def batch_of(
    texts: Sequence[TrainingText], step: int, batch_size: int, seed: int
) -> list[TrainingText]:
    """The texts of one step: every epoch another order, a text once per epoch."""
    first = step * batch_size
    return [_text_at(texts, place, seed) for place in range(first, first + batch_size)]


def _text_at(texts: Sequence[TrainingText], place: int, seed: int) -> TrainingText:
    epoch, index = divmod(place, len(texts))
    order = np.random.default_rng([seed, 1, epoch]).permutation(len(texts))
    return texts[int(order[index])]
