"""Bodies of responses, whole or streamed."""

import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Protocol

from bita.runtime.decoding.chooser import TokenLogprob
from bita.runtime.generation import Generation
from bita.runtime.serving.draft_marks import DraftMarks
from bita.runtime.serving.echoes import Echo
from bita.runtime.serving.messages import Deltas, finish_of, message_of
from bita.runtime.text.answer_parts import AnswerReader
from bita.runtime.text.codec import TextCodec
from bita.runtime.text.stopping import FinishReason

FINISH = {
    **dict.fromkeys(("eos", "stop", "grammar"), "stop"),
    **dict.fromkeys(("length", "capacity", "timeout"), "length"),
}


class Answer(Protocol):
    """The part of a `Generation` that responses contain."""

    @property
    def prompt_ids(self) -> Sequence[int]: ...
    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def num_text_tokens(self) -> int: ...
    @property
    def num_reused(self) -> int: ...
    @property
    def logprobs(self) -> Sequence[TokenLogprob]: ...
    @property
    def text(self) -> str: ...
    @property
    def finish_reason(self) -> FinishReason | None: ...


@dataclass
class Form:
    """The format of the response to a request."""

    is_chat: bool  # /v1/chat/completions; if not, /v1/completions
    model: str
    fingerprint: str
    codec: TextCodec
    with_logprobs: bool
    num_choices: int = 1  # answers to each prompt
    reader: Callable[[], AnswerReader] | None = None  # creates a parser; None: all is content
    echoes: Sequence[Echo] = ()  # the prompts, if they are part of the answers
    with_marks: bool = False  # report which tokens were drafts
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._num_scored: Counter[int] = Counter()  # tokens whose logprobs were sent, by choice
        self._offsets: Counter[int] = Counter()  # characters of their text
        self._deltas: dict[int, Deltas] = {}  # by choice, if answers are parsed
        self._marks: defaultdict[int, DraftMarks] = defaultdict(DraftMarks)  # by choice

    def whole(self, generations: Sequence[Answer]) -> dict[str, Any]:
        """Return the response to a request without `stream`."""
        choices = [self._choice(index, generation) for index, generation in enumerate(generations)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        body = {**self._head(kind), "choices": choices, "usage": self.usage(generations)}
        for index, generation in enumerate(generations):
            self._mark(choices[index], generation.text, generation)
        return body

    def opening(self, index: int) -> Iterator[dict[str, Any]]:
        """Yield the chunk of a choice that precedes its text, if there is one."""
        if self.is_chat:
            content = "" if self.reader is None else None
            yield self._chunk(index, {"role": "assistant", "content": content}, None, None)
        elif self.echoes:
            echo = self._echo(index)
            logprobs = self._echo_logprobs(index, echo) if self.with_logprobs else None
            yield self._text_chunk(index, echo.text, logprobs, None)

    def pieces(self, index: int, text: str, generation: Answer) -> Iterator[dict[str, Any]]:
        """Yield the chunks for text that was added to a choice."""
        logprobs = self._new_logprobs(index, generation)
        if self.reader is None:
            chunks = [*self._text_pieces(index, text, logprobs)]
        else:
            deltas = self._deltas_of(index).push(text)
            chunks = [*self._delta_chunks(index, deltas, logprobs)]
        if self.with_marks and text:
            chunks = chunks or [self._chunk(index, {}, None, None)]
            self._mark(chunks[0]["choices"][0], text, generation)
        yield from chunks

    def closing(self, index: int, generation: Answer) -> Iterator[dict[str, Any]]:
        """Yield the last chunks of a choice."""
        finish = FINISH[generation.finish_reason or "stop"]
        chunks: list[dict[str, Any]] = []
        if self.is_chat and self.reader is not None:
            deltas = self._deltas_of(index)
            chunks += self._delta_chunks(index, deltas.close(), None)
            finish = deltas.finish(finish)
        if self.is_chat:
            chunks.append(self._chunk(index, {}, None, finish))
        else:
            chunks.append(self._text_chunk(index, "", None, finish))
        self._mark(chunks[-1]["choices"][0], "", generation)
        yield from chunks

    def _mark(self, choice: dict[str, Any], text: str, generation: Answer) -> None:
        """Add draft marks for the text to a choice, and figures at the answer's end."""
        if not self.with_marks or not isinstance(generation, Generation):
            return
        marks = self._marks[choice["index"]]
        if choice["finish_reason"] is None:
            choice["bita"] = marks.of_piece(text, generation)
        else:
            choice["bita"] = marks.of_end(text, generation)

    def _text_pieces(self, index: int, text: str, logprobs: Any) -> Iterator[dict[str, Any]]:
        if not text and not logprobs:
            return
        if self.is_chat:
            yield self._chunk(index, {"content": text}, logprobs, None)
        else:
            yield self._text_chunk(index, text, logprobs, None)

    def _delta_chunks(
        self, index: int, deltas: Sequence[dict[str, Any]], logprobs: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield the chunks of some deltas; the first contains the log-probabilities."""
        if logprobs and not deltas:
            deltas = [{}]
        for place, delta in enumerate(deltas):
            yield self._chunk(index, delta, None if place else logprobs, None)

    def _deltas_of(self, index: int) -> Deltas:
        assert self.reader is not None
        if index not in self._deltas:
            self._deltas[index] = Deltas(self.reader())
        return self._deltas[index]

    def usage_chunk(self, generations: Sequence[Answer]) -> dict[str, Any]:
        """Return the chunk that `include_usage` requests."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self._head(kind), "choices": [], "usage": self.usage(generations)}

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**head, "system_fingerprint": self.fingerprint}

    def _choice(self, index: int, generation: Answer) -> dict[str, Any]:
        finish = FINISH[generation.finish_reason or "stop"]
        if not self.is_chat:
            return self._text_choice(index, generation, finish)
        logprobs = self._new_logprobs(index, generation)
        if self.reader is None:
            message = {"role": "assistant", "content": generation.text, "refusal": None}
        else:
            reader = self.reader()
            message = message_of(reader, generation.text)
            finish = finish_of(reader, finish)
        shared = {"index": index, "logprobs": logprobs, "finish_reason": finish}
        return {**shared, "message": message}

    def _text_choice(self, index: int, generation: Answer, finish: str) -> dict[str, Any]:
        text, logprobs = generation.text, None
        if self.echoes:
            echo = self._echo(index)
            text = echo.text + text
            logprobs = self._echo_logprobs(index, echo) if self.with_logprobs else None
        new = self._new_logprobs(index, generation)
        if logprobs is not None and new is not None:
            new = {name: [*logprobs[name], *new[name]] for name in new}
        shared = {"index": index, "logprobs": new or logprobs, "finish_reason": finish}
        return {**shared, "text": text}

    def _echo(self, index: int) -> Echo:
        return self.echoes[index // self.num_choices]

    def _echo_logprobs(self, index: int, echo: Echo) -> dict[str, Any]:
        """Return the log-probabilities of a prompt; its first token has none."""
        assert echo.scores is not None
        first = TokenLogprob(echo.token_ids[0], 0.0, ())
        found = self._text_logprobs(index, [first, *echo.scores])
        found["token_logprobs"][0] = found["top_logprobs"][0] = None
        return found

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

    def _new_logprobs(self, index: int, generation: Answer) -> dict[str, Any] | None:
        """Return log-probabilities not sent yet; None if there are none or they are not wanted."""
        if not self.with_logprobs:
            return None
        tokens = generation.logprobs[self._num_scored[index] : generation.num_text_tokens]
        self._num_scored[index] += len(tokens)
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
        sizes = [len(self._shown(each.token_id)) for each in tokens]
        offsets = list(accumulate(sizes, initial=self._offsets[index]))
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
        return self._shown(token_id) or self.codec.tokenizer.id_to_token(token_id) or ""

    def _shown(self, token_id: int) -> str:
        """Return a token's part of the text, which is empty for a special token."""
        return self.codec.token_bytes[token_id].decode("utf-8", "replace")

    def usage(self, generations: Sequence[Answer]) -> dict[str, Any]:
        """Return the tokens of the prompts, each counted once, and of all answers."""
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
