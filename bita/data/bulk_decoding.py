"""Decoding many prompts on an engine of native operators, a row of each in a step.

As soon as an answer ends the next prompt takes its place, so steps stay full to the end.
"""

from collections.abc import Callable, Collection, Sequence
from typing import cast

from bita.runtime.backends.ort_backend import OrtBackend
from bita.runtime.backends.text_batch import Results, TextBatch
from bita.runtime.session import Session

BULK_TEXTS = 16  # in a step: with more, tokens take hardly less time each

# (results, the number of the prompt of each row, the tokens that each has got) -> token ids
Pick = Callable[[Results, Sequence[int], Sequence[int]], Sequence[int]]


def new_batch(
    session: Session,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    with_logits: bool = False,
) -> TextBatch:
    """A batch that holds BULK_TEXTS of the prompts with their new tokens.

    Raises EngineError for an engine without native operators.
    """
    size = min(BULK_TEXTS, len(prompts))
    capacity = session.engine.manifest.capacity
    max_tokens = min(max(map(len, prompts)) + max_new_tokens, capacity)
    backend = cast(OrtBackend, session.backend)  # pages are only its own
    return TextBatch(backend, session.adapter.identity, size, max_tokens, with_logits)


def decode_in_bulk(
    batch: TextBatch,
    prompts: Sequence[Sequence[int]],
    pick: Pick,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> list[list[int]]:
    """New tokens of each prompt, up to and with the first of `stop_ids`.

    An answer ends where the batch has no room for more of its text. Raises EngineError.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    waiting = iter(range(len(prompts)))
    live: dict[int, int] = {}  # place in the batch: prompt
    free = list(range(batch.size))

    def goes_on(prompt: int) -> bool:
        answer = answers[prompt]
        room = batch.max_tokens - len(prompts[prompt])
        return len(answer) < min(max_new_tokens, room) and answer[-1] not in stop_ids

    while True:
        while free and (prompt := next(waiting, None)) is not None:
            results = batch.begin(free[-1], list(prompts[prompt]))
            answers[prompt].extend(pick(results, [prompt], [0]))
            if goes_on(prompt):
                live[free.pop()] = prompt
        if not live:
            return answers
        rows = list(live.values())
        results = batch.go_on(list(live), [answers[prompt][-1] for prompt in rows])
        picked = pick(results, rows, [len(answers[prompt]) for prompt in rows])
        for (place, prompt), token_id in zip(list(live.items()), picked, strict=True):
            answers[prompt].append(token_id)
            if not goes_on(prompt):
                free.append(place)
                del live[place]
