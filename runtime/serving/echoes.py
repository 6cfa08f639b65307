"""Prompts that are part of their answers, with log-probabilities where they are wanted."""

from collections.abc import Sequence
from dataclasses import dataclass

from bita.runtime.decoding.chooser import TokenLogprob
from bita.runtime.session import Session
from bita.runtime.text.prompt_encoder import Prompt
from bita.runtime.text.stopping import FinishReason


@dataclass(frozen=True)
class Echo:
    """A prompt before its answer. scores: of all its tokens but the first; None: not wanted."""

    text: str
    token_ids: Sequence[int]
    scores: Sequence[TokenLogprob] | None


@dataclass(frozen=True)
class NoAnswer:
    """What stands for the answer where only the prompt is wanted."""

    prompt_ids: Sequence[int]
    text: str = ""
    token_ids: Sequence[int] = ()
    logprobs: Sequence[TokenLogprob] = ()
    finish_reason: FinishReason | None = "length"
    num_text_tokens: int = 0
    num_reused: int = 0


def echo_of(session: Session, prompt: Prompt, num_best: int | None) -> Echo:
    """Read a prompt once more for its log-probabilities, if `num_best` is a number.

    Holds the engine meanwhile. Raises PromptError for a prompt that is not usable.
    """
    token_ids = session.encode(prompt)
    session.decoder.check_prompt(token_ids)
    text = prompt if isinstance(prompt, str) else session.codec.decode(token_ids)
    scores = None if num_best is None else session.score(token_ids, num_best)
    return Echo(text, token_ids, scores)
