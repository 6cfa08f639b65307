"""A generator and a sampler without a model; their tokens depend on prompt and seed."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from tiny_models import EOS_ID

from bita.data.generators import Completion
from bita.runtime.text.codec import TextCodec

TEXT = "mask token tree step draft model answer question garden river music engine paper"
WORDS = tuple(re.findall(r"\w+", TEXT))
END_ID = EOS_ID  # the tiny template ends every turn with it


class Killed(BaseException):
    """A kill, which like KeyboardInterrupt nothing may catch."""


class HashGenerator:
    """A generator whose ids depend on the prompt and, like rounding errors, on the batch size.

    It raises Killed instead of completing batch number `kill_at`.
    """

    name = "hash"

    def __init__(self, batch_size: int = 4, kill_at: int | None = None) -> None:
        self.options: Mapping[str, Any] = {"batch_size": batch_size}
        self.batch_size = batch_size
        self.warnings: tuple[str, ...] = ()
        self.num_calls = 0
        self._kill_at = kill_at

    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Sequence[Completion]:
        if self.num_calls == self._kill_at:
            raise Killed
        self.num_calls += 1
        return [self._one(ids, len(prompts), max_new_tokens) for ids in prompts]

    def _one(self, ids: Sequence[int], num_prompts: int, max_new_tokens: int) -> Completion:
        rng = np.random.default_rng([*ids, num_prompts])
        answer = rng.integers(4, 300, max_new_tokens).tolist()
        if answer[0] % 3 == 0:
            return Completion(answer, "length")
        return Completion([*answer[: answer[0] % max_new_tokens], EOS_ID], "eos")


class WordSampler:
    """A sampler of random words; of ten turns, about two do not end and three are the same."""

    name = "words"

    def __init__(self, codec: TextCodec, batch_size: int = 5, words: Sequence[str] = WORDS) -> None:
        self.options: Mapping[str, Any] = {"batch_size": batch_size}
        self.batch_size = batch_size
        self.num_sampled = 0
        self._codec = codec
        self._words = words

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_new_tokens: int,
        stop_ids: Collection[int],
    ) -> Sequence[Sequence[int]]:
        self.num_sampled += len(prompts)
        assert END_ID in stop_ids
        return [self._one(seed)[:max_new_tokens] for seed in seeds]

    def _one(self, seed: int) -> list[int]:
        rng = np.random.default_rng(seed)
        kind = rng.integers(10)
        words = rng.choice(self._words, 8) if kind > 2 else self._words[:8]
        ids = self._codec.encode(" ".join(words), add_special_tokens=False)
        return ids * 30 if kind > 7 else [*ids, END_ID]
