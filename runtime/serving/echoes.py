"""Prompts that are part of their answers, optionally with log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

from bita.runtime.decoding.chooser import TokenLogprob
from bita.runtime.session import Session
from bita.runtime.text.prompt_encoder import Prompt
from bita.runtime.text.stopping import FinishReason


@dataclass(frozen=True)
class Echo:
    """A prompt that precedes its answer."""

    text: str
    token_ids: Sequence[int]
    scores: Sequence[TokenLogprob] | None  # of all tokens but the first; None: not requested


@dataclass(frozen=True)
class NoAnswer:
    """An empty answer, for requests that want only the prompt."""

    prompt_ids: Sequence[int]
    text: str = ""
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: FinishReason | None = "length"
    num_text_tokens: int = 0
    num_reused: int = 0


def echo_of(session: Session, prompt: Prompt, num_best: int | None) -> Echo:
    """Return a prompt for its answers, with log-probabilities unless `num_best` is None.

    Log-probabilities need an additional prefill, during which the engine is locked. Raises
    PromptError if the prompt is invalid.
    """
    token_ids = session.encode(prompt)
    session.decoder.check_prompt(token_ids)
    text = prompt if isinstance(prompt, str) else session.codec.decode(token_ids)
    scores = None if num_best is None else session.score(token_ids, num_best)
    return Echo(text, token_ids, scores)
