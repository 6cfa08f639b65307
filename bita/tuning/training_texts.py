"""The texts of a run, and their order, which is the same after every restart."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bita.errors import TuningError

MIN_RESPONSE = 2  # a group after the last prompt token drafts the second token of a response


@dataclass(frozen=True)
class TrainingText:
    """A conversation."""

    token_ids: tuple[int, ...]  # prompt and response
    num_prompt: int  # number of them that belong to the prompt


def cut_text(prompt: Sequence[int], response: Sequence[int], max_tokens: int) -> TrainingText:
    """Return a text of at most `max_tokens`; cut a long prompt at its start."""
    room = max(max_tokens - len(response), max_tokens // 2)
    kept = tuple(prompt)[-room:]
    return TrainingText((*kept, *response)[:max_tokens], len(kept))


def usable(texts: Sequence[TrainingText]) -> list[TrainingText]:
    """Return the texts with a long enough response. Raises TuningError if there are none."""
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
    """Split into texts to train on and texts to evaluate on; the latter are at most a fifth."""
    order = np.random.default_rng([seed, 2]).permutation(len(texts))
    count = min(num_held_out, len(texts) // 5)
    held_out = set(order[:count].tolist())
    train = [text for index, text in enumerate(texts) if index not in held_out]
    return train, [text for index, text in enumerate(texts) if index in held_out]


def batch_of(
    texts: Sequence[TrainingText], step: int, batch_size: int, seed: int
) -> list[TrainingText]:
    """Return the texts of one step; each epoch has all texts once, in an order of its own."""
    first = step * batch_size
    return [_text_at(texts, place, seed) for place in range(first, first + batch_size)]


def _text_at(texts: Sequence[TrainingText], place: int, seed: int) -> TrainingText:
    epoch, index = divmod(place, len(texts))
    order = np.random.default_rng([seed, 1, epoch]).permutation(len(texts))
    return texts[int(order[index])]
