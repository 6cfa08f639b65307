"""The proof of losslessness: what an engine's tree decodes against what AR decodes.

Both run on the same engine, with the same weights and cache. Drafts may be garbage and the text
must not change, so an adapter of random numbers is tried too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from bita.adapter import Adapter, random_adapter
from bita.runtime.session import Prompt, Session
from bita.tree import Tree

# Below such a gap between the two best logits, another order of summation may turn their order.
# float32 noise was measured at 1e-5; 8-bit activations amplify it to about 0.2.
NEAR_TIE = {"fp32": 1e-3, "fp16": 1e-3, "int8": 0.5, "int4": 0.5, "fp8": 0.5}
# Token ids -> gap of the two best logits after them; None where it says nothing.
Margin = Callable[[Sequence[int]], float | None]
GREEDY: Mapping[str, Any] = {}  # as options
RANDOM_SCALE = 3.0  # far beyond any embedding, so that garbage is really garbage


@dataclass(frozen=True)
class Divergence:
    """Where two texts part. prompt_index, position: from 0, position in the new tokens.

    expected, found: token ids, None where one text has ended. margin: between the two best logits
    of the reference there; None for sampled text, where it says nothing.
    """

    prompt_index: int
    position: int
    expected: int | None
    found: int | None
    margin: float | None

    def is_near_tie(self, tolerance: float) -> bool:
        """Whether rounding may explain it. A margin that is not a number explains nothing."""
        return self.margin is None or self.margin < tolerance


@dataclass
class Comparison:
    """One decoding against its reference over all prompts.

    tolerance: margin of a near-tie. tokens_per_second, ar_tokens_per_second: decoding alone; 0.0
    where it was not measured.
    """

    name: str
    tolerance: float
    num_prompts: int = 0
    num_tokens: int = 0
    tokens_per_step: float = 0.0
    tokens_per_second: float = 0.0
    ar_tokens_per_second: float = 0.0
    divergences: list[Divergence] = field(default_factory=list)

    @property
    def num_identical(self) -> int:
        return self.num_prompts - len(self.divergences)

    @property
    def forbidden(self) -> list[Divergence]:
        """The divergences that the engine's mode does not allow."""
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
    """The session's tree against AR, with its own adapter and with a random one.

    on_prompt: called with 1 after each answer, three a prompt. sampling: fields of Options, the
    first prompt's seed among them; another seed for each prompt. In mode "exact" every divergence
    is forbidden; in mode "tree" those at a margin above the precision's near-tie, and of sampled
    text none, since rounding may move a draw over the border between two tokens.
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
        expected.append(_alone(plain, prompt, max_new_tokens, given))
        on_prompt(1)
    ar_tokens_per_second = plain.stats.tokens_per_second
    comparisons = []
    for name, adapter in (("own adapter", None), ("random adapter", garbage(session.adapter))):
        drafting = session.using(adapter=adapter)
        comparison = Comparison(name, tolerance)
        for prompt, given, tokens in zip(prompts, options, expected, strict=True):
            found = _alone(drafting, prompt, max_new_tokens, given)
            margin = margin_behind(plain.margin, session.encode(prompt)) if not given else _unknown
            compare(comparison, tokens, found, margin)
            on_prompt(1)
        comparison.tokens_per_step = drafting.stats.tokens_per_step
        comparison.tokens_per_second = drafting.stats.tokens_per_second
        comparison.ar_tokens_per_second = ar_tokens_per_second
        comparisons.append(comparison)
    return comparisons


def _alone(
    session: Session, prompt: Prompt, max_new_tokens: int, options: Mapping[str, Any]
) -> list[int]:
    """The tokens of an answer that uses nothing of another one's cache."""
    session.forget()
    return session.generate(prompt, max_new_tokens, **options).token_ids


def _unknown(token_ids: Sequence[int]) -> None:
    return None


def compare(
    comparison: Comparison,
    expected: Sequence[int],
    found: Sequence[int],
    margin: Margin,
) -> None:
    """Add one prompt. margin: of the reference behind a beginning of `expected`."""
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


def margin_behind(margin: Margin, prompt_ids: Sequence[int]) -> Margin:
    """The margin behind a prompt and some new tokens, as a function of the new tokens."""
    return lambda new_ids: margin([*prompt_ids, *new_ids])


def _at(token_ids: Sequence[int], position: int) -> int | None:
    return token_ids[position] if position < len(token_ids) else None


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """The first position at which two texts differ, one ending counted; None if they are equal."""
    for position, (left, right) in enumerate(zip_longest(expected, found)):
        if left != right:
            return position
    return None


def garbage(adapter: Adapter, seed: int = 0) -> Adapter:
    """Random numbers in the shape of an adapter."""
    scale = RANDOM_SCALE * float(np.abs(adapter.mask_embeddings).max())
    return random_adapter(
        adapter.identity,
        adapter.num_masks,
        adapter.prefix_length,
        max(scale, 1.0),
        seed,
        adapter.lora,
    )
