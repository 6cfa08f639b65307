"""Verify losslessness: compare the text that an engine's tree decodes with the text of AR.

Both run on the same engine, with the same weights and cache. The text must not change even if the
drafts are garbage, so an adapter of random numbers is tried too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from bita.adapter import Adapter, random_adapter
from bita.runtime.session import Prompt, Session
from bita.tree import Tree

# A smaller gap between the two best logits may change sign with another order of summation.
# float32 noise was measured at 1e-5; 8-bit activations amplify it to about 0.2.
NEAR_TIE = {"fp32": 1e-3, "fp16": 1e-3, "int8": 0.5, "int4": 0.5, "fp8": 0.5}
# Maps token ids to the gap between the two best logits after them; None if it is meaningless.
Margin = Callable[[Sequence[int]], float | None]
GREEDY: Mapping[str, Any] = {}  # options of greedy decoding
RANDOM_SCALE = 3.0  # times the largest mask embedding, so that random drafts are garbage


@dataclass(frozen=True)
class Divergence:
    """The first difference between two texts."""

    prompt_index: int  # from 0
    position: int  # index among the new tokens, from 0
    expected: int | None  # token id; None if the reference has ended
    found: int | None  # token id; None if the text has ended
    margin: float | None  # between the reference's two best logits; None for sampled text

    def is_near_tie(self, tolerance: float) -> bool:
        """Whether rounding may explain the divergence. A margin of NaN explains nothing."""
        return self.margin is None or self.margin < tolerance


@dataclass
class Comparison:
    """Comparison of one way to decode with its reference over all prompts."""

    name: str
    tolerance: float  # largest margin of a near-tie
    num_prompts: int = 0
    num_tokens: int = 0
    tokens_per_step: float = 0.0
    tokens_per_second: float = 0.0  # of decoding alone; 0.0 if not measured
    ar_tokens_per_second: float = 0.0  # of the reference, likewise
    divergences: list[Divergence] = field(default_factory=list)

    @property
    def num_identical(self) -> int:
        return self.num_prompts - len(self.divergences)

    @property
    def forbidden(self) -> list[Divergence]:
        """Divergences that the engine's mode does not allow."""
        if self.tolerance == 0:
            return self.divergences
        return [item for item in self.divergences if not item.is_near_tie(self.tolerance)]


def verify(
    session: Session,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 128,
    on_prompt: Callable[[int], None] = lambda _: None,
    sampling: Mapping[str, Any] = GREEDY,
) -> list[Comparison]:
    """Compare the session's tree with AR, with its own adapter and with a random one.

    In mode "exact" every divergence is forbidden. In mode "tree" only those with a margin above the
    precision's near-tie are; in sampled text none is, since rounding may move a draw across the
    border between two tokens.

    Args:
        session: Session whose tree is verified.
        prompts: Prompts to answer.
        max_new_tokens: Limit of each answer.
        on_prompt: Called with 1 after each answer, three times per prompt.
        sampling: Fields of `Options`; empty decodes greedily. Its seed is that of the first prompt
            and increases by 1 with each further prompt.

    Returns:
        A comparison for the session's own adapter and one for the random adapter.
    """
    options = [
        {**sampling, "seed": sampling.get("seed", 0) + number} if sampling else {}
        for number in range(len(prompts))
    ]
    manifest = session.engine.manifest
    tolerance = 0.0 if session.mode == "exact" else NEAR_TIE[manifest.precision]
    plain = session.using(tree=Tree.root_only())
    expected = []
    for prompt, given in zip(prompts, options, strict=True):
        expected.append(_answer_alone(plain, prompt, max_new_tokens, given))
        on_prompt(1)
    ar_tokens_per_second = plain.stats.tokens_per_second
    comparisons = []
    for name, adapter in (("own adapter", None), ("random adapter", garbage(session.adapter))):
        drafting = session.using(adapter=adapter)
        comparison = Comparison(name, tolerance)
        for prompt, given, tokens in zip(prompts, options, expected, strict=True):
            found = _answer_alone(drafting, prompt, max_new_tokens, given)
            margin = (
                margin_after(plain.margin, session.encode(prompt)) if not given else _unknown_margin
            )
            compare(comparison, tokens, found, margin)
            on_prompt(1)
        comparison.tokens_per_step = drafting.stats.tokens_per_step
        comparison.tokens_per_second = drafting.stats.tokens_per_second
        comparison.ar_tokens_per_second = ar_tokens_per_second
        comparisons.append(comparison)
    return comparisons


def _answer_alone(
    session: Session, prompt: Prompt, max_new_tokens: int, options: Mapping[str, Any]
) -> list[int]:
    """Return the tokens of an answer that starts with an empty cache."""
    session.forget()
    return session.generate(prompt, max_new_tokens, **options).token_ids


def _unknown_margin(token_ids: Sequence[int]) -> None:
    return None


def compare(
    comparison: Comparison,
    expected: Sequence[int],
    found: Sequence[int],
    margin: Margin,
) -> None:
    """Add one prompt to the comparison.

    Args:
        comparison: Comparison to extend.
        expected: New tokens of the reference.
        found: New tokens to compare with them.
        margin: Margin of the reference after a prefix of `expected`.
    """
    position = first_difference(expected, found)
    if position is not None:
        comparison.divergences.append(
            Divergence(
                comparison.num_prompts,
                position,
                expected=_at(expected, position),
                found=_at(found, position),
                margin=margin(expected[:position]),
            )
        )
    comparison.num_prompts += 1
    comparison.num_tokens += len(expected)


def margin_after(margin: Margin, prompt_ids: Sequence[int]) -> Margin:
    """Return the margin after a prompt and new tokens, as a function of the new tokens."""
    return lambda new_ids: margin([*prompt_ids, *new_ids])


def _at(token_ids: Sequence[int], position: int) -> int | None:
    return token_ids[position] if position < len(token_ids) else None


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Return the first position at which two texts differ or one ends; None if they are equal."""
    for position, (left, right) in enumerate(zip_longest(expected, found)):
        if left != right:
            return position
    return None


def garbage(adapter: Adapter, seed: int = 0) -> Adapter:
    """Return an adapter of the same shape that contains random numbers."""
    scale = RANDOM_SCALE * float(np.abs(adapter.mask_embeddings).max())
    return random_adapter(
        adapter.identity,
        adapter.num_masks,
        adapter.prefix_length,
        max(scale, 1.0),
        seed,
        adapter.lora,
    )
