"""Bodies of answers, whole or in pieces."""

import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from bita.runtime.decoding.chooser import TokenLogprob
from bita.runtime.generation import Generation
from bita.runtime.serving.draft_marks import DraftMarks
from bita.runtime.text.codec import TextCodec

FINISH = {
    **dict.fromkeys(("eos", "stop", "grammar"), "stop"),
    **dict.fromkeys(("length", "capacity", "timeout"), "length"),
}


@dataclass
class Form:
    """How one request is answered.

    is_chat: of /v1/chat/completions, else of /v1/completions. num_choices: answers to each prompt.
    with_marks: say which tokens were drafts.
    """

    is_chat: bool
    model: str
    fingerprint: str
    codec: TextCodec
    with_logprobs: bool
    num_choices: int = 1
    with_marks: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._told: Counter[int] = Counter()  # tokens of each choice
        self._offsets: Counter[int] = Counter()  # characters of their text
        self._marks: defaultdict[int, DraftMarks] = defaultdict(DraftMarks)  # of each choice

    def whole(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """The answer to a request without `stream`."""
        choices = [self._choice(index, generation) for index, generation in enumerate(generations)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": self.usage(generations)}

    def opening(self, index: int) -> dict[str, Any]:
        """The first piece of a choice."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, text: str, generation: Generation) -> dict[str, Any] | None:
        """What was added to a choice since the last piece; None if that is nothing to tell."""
        logprobs = self._new_logprobs(index, generation)
        if not text and not logprobs:
            return None
        if self.is_chat:
            chunk = self._chunk(index, {"content": text}, logprobs, None)
        else:
            chunk = self._text_chunk(index, text, logprobs, None)
        if self.with_marks:
            chunk["choices"][0]["bita"] = self._marks[index].of_piece(text, generation)
        return chunk

    def closing(self, index: int, generation: Generation) -> dict[str, Any]:
        """The last piece of a choice."""
        finish = FINISH[generation.finish_reason or "stop"]
        if self.is_chat:
            chunk = self._chunk(index, {}, None, finish)
        else:
            chunk = self._text_chunk(index, "", None, finish)
        if self.with_marks:
            chunk["choices"][0]["bita"] = self._marks[index].of_end("", generation)
        return chunk

    def usage_chunk(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """What `include_usage` asks for."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage(generations)}

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": self.fingerprint}

    def _choice(self, index: int, generation: Generation) -> dict[str, Any]:
        finish = FINISH[generation.finish_reason or "stop"]
        logprobs = self._new_logprobs(index, generation)
        shared = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        if self.with_marks:
            shared["bita"] = self._marks[index].of_end(generation.text, generation)
        if self.is_chat:
            message = {"role": "assistant", "content": generation.text, "refusal": None}
            return {**shared, "message": message}
        return {**shared, "text": generation.text}

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: Any, finish: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _text_chunk(
        self, index: int, text: str, logprobs: Any, finish: str | None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return {**self._head("text_completion"), "choices": [choice]}

    def _new_logprobs(self, index: int, generation: Generation) -> dict[str, Any] | None:
        """Of the tokens that were not told yet, if logprobs are wanted and there are any."""
        if not self.with_logprobs:
            return None
        tokens = generation.logprobs[self._told[index] : generation.num_text_tokens]
        self._told[index] += len(tokens)
        if not tokens:
            return None
        if self.is_chat:
            return {"content": [self._content(each) for each in tokens], "refusal": None}
        return self._text_logprobs(index, tokens)

    def _content(self, each: TokenLogprob) -> dict[str, Any]:
        best = [self._token(*pair) for pair in each.best]
        return {**self._token(each.token_id, each.logprob), "top_logprobs": best}

    def _text_logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        texts = [self._text(each.token_id) for each in tokens]
        offsets = list(accumulate(map(len, texts), initial=self._offsets[index]))
        self._offsets[index] = offsets.pop()
        best = [{self._text(token): value for token, value in each.best} for each in tokens]
        return {
            "tokens": texts,
            "token_logprobs": [each.logprob for each in tokens],
            "top_logprobs": best,
            "text_offset": offsets,
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._text(token_id)
        given = list(self.codec.token_bytes[token_id])
        return {"token": text, "logprob": logprob, "bytes": given}

    def _text(self, token_id: int) -> str:
        known = self.codec.token_bytes[token_id].decode("utf-8", "replace")
        return known or self.codec.tokenizer.id_to_token(token_id) or ""

    def usage(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """Tokens of prompts, each counted once, and of all answers to them."""
        prompts = generations[:: self.num_choices]
        prompt_tokens = sum(len(each.prompt_ids) for each in prompts)
        new = sum(len(each.token_ids) for each in generations)
        cached = sum(each.num_reused for each in prompts)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": new,
            "total_tokens": prompt_tokens + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
