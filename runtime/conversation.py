"""A conversation that computes every turn once: prefill starts at the first new token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

from bita.errors import PromptError
from bita.runtime.generation import Generation
from bita.runtime.options import Options
from bita.runtime.text.prompt_encoder import PromptEncoder

Overflow = Literal["refuse", "drop_oldest"]


class Answering(Protocol):
    """The part of a session that a conversation uses."""

    @property
    def has_chat_template(self) -> bool: ...

    @property
    def max_prompt_tokens(self) -> int: ...

    def start(
        self,
        prompt: Sequence[int],
        options: Options,
        *,
        is_kept: bool | None = None,
        on_end: Callable[[Generation], None] = ...,
        eos_ids: Sequence[int] | None = None,
    ) -> Generation:
        """Start an answer to token ids, which `eos_ids` end; call `on_end` with it at its end."""


@dataclass(frozen=True)
class _Known:
    """The beginning of the conversation's text, and the token ids it was encoded or decoded as."""

    text: str = ""
    ids: tuple[int, ...] = ()


class Conversation:
    """Messages and the answers to them. Create one with `Session.conversation`.

    The tokens of an answer are kept as the model wrote them: encoding its text again could give
    other tokens, which would invalidate the cache. A conversation must not be shared between
    threads, but several threads may each have one on the same session.

    Attributes:
        messages: All messages, including dropped ones. Change the list only between answers.
        overflow: What to do when the messages do not fit the cache. "refuse" raises PromptError
            and changes nothing. "drop_oldest" leaves out the oldest messages, up to the next user
            message and never a system message at the start, until there is room for the answer
            (`max_new_tokens`, but at most half the cache).
        num_dropped: Messages left out of the last prompt.
    """

    def __init__(
        self,
        session: Answering,
        encoder: PromptEncoder,
        messages: Sequence[Mapping[str, Any]] = (),
        overflow: Overflow = "refuse",
    ) -> None:
        if not session.has_chat_template:
            raise PromptError(
                "this engine's model has no chat template; use Session.generate or `bita generate`"
            )
        if overflow not in get_args(Overflow):
            raise PromptError(f"overflow {overflow!r} is not one of {get_args(Overflow)}")
        self.messages: list[dict[str, Any]] = [dict(message) for message in messages]
        self.overflow = overflow
        self.num_dropped = 0
        self._session = session
        self._encoder = encoder
        self._known = _Known()
        self._running: Generation | None = None

    def send(self, content: str, **options: Any) -> Generation:
        """Add a user message and start the answer; iterate over the result to get its text.

        An answer that is still running is cancelled first; its text so far stays in `messages`.

        Args:
            content: Text of the message.
            options: Fields of `Options`.

        Raises:
            PromptError: if the prompt or an option is invalid; the message is not added then.
        """
        return self._start([{"role": "user", "content": content}], Options.of(**options))

    def answer(self, **options: Any) -> Generation:
        """Start an answer to `messages` as they are; use it if the last is not the assistant's."""
        return self._start([], Options.of(**options))

    def undo(self) -> str:
        """Remove the last user message and everything after it; return that message's text.

        Raises:
            PromptError: if there is no user message.
        """
        self._end_running()
        places = [at for at, each in enumerate(self.messages) if each["role"] == "user"]
        if not places:
            raise PromptError("there is no message to undo")
        content = str(self.messages[places[-1]]["content"])
        del self.messages[places[-1] :]
        return content

    def fork(self) -> "Conversation":
        """Return a copy that continues independently; the common beginning is computed once."""
        self._end_running()
        other = Conversation(self._session, self._encoder, self.messages, self.overflow)
        other._known = self._known
        return other

    def _start(self, added: list[dict[str, Any]], options: Options) -> Generation:
        self._end_running()
        prompt, num_dropped = self._fit([*self.messages, *added], options)

        def note(generation: Generation) -> None:
            self.messages.append({"role": "assistant", "content": generation.text})
            self._known = _known_after(prompt, generation)

        ends = self._encoder.defaults.chat_eos_ids
        running = self._session.start(prompt.ids, options, is_kept=True, on_end=note, eos_ids=ends)
        self.messages += added
        self.num_dropped, self._running = num_dropped, running
        return running

    def _end_running(self) -> None:
        if self._running is not None and self._running.finish_reason is None:
            self._running.cancel()
            self._running.run()

    def _fit(self, messages: list[dict[str, Any]], options: Options) -> tuple[_Known, int]:
        """Return the prompt of as many messages as fit, and how many were left out."""
        limit = self._session.max_prompt_tokens
        room = min(options.max_new_tokens, limit // 2)
        prompt, num_dropped = self._prompt(messages), 0
        if self.overflow == "refuse":
            return prompt, 0
        while len(prompt.ids) > limit - room:
            oldest = _oldest(messages)
            if oldest is None:
                return prompt, num_dropped  # `Session.start` refuses it if it does not fit
            messages = messages[: oldest.start] + messages[oldest.stop :]
            num_dropped += len(oldest)
            prompt = self._prompt(messages)
        return prompt, num_dropped

    def _prompt(self, messages: Sequence[Mapping[str, Any]]) -> _Known:
        """Return the text of messages as a prompt that reuses the tokens of its known beginning."""
        text, codec, known = self._encoder.render(messages), self._encoder.codec, self._known
        rest = text.removeprefix(known.text)
        if known.text and len(rest) < len(text) and codec.starts_special(rest):
            return _Known(text, (*known.ids, *codec.encode(rest, add_special_tokens=False)))
        return _Known(text, tuple(codec.encode(text, add_special_tokens=False)))


def _known_after(prompt: _Known, generation: Generation) -> _Known:
    """Return the known text after an answer, without a final EOS, which the template writes."""
    ids = generation.token_ids
    if generation.finish_reason == "eos":
        ids = ids[:-1]
    if generation.finish_reason == "stop":
        return prompt  # the tokens contain more than the text
    return replace(prompt, text=prompt.text + generation.text, ids=(*prompt.ids, *ids))


def _oldest(messages: Sequence[Mapping[str, Any]]) -> range | None:
    """Return the oldest messages that may be dropped: no system message, no last question."""
    start = 1 if messages and messages[0]["role"] == "system" else 0
    users = [at for at, each in enumerate(messages) if each["role"] == "user" and at > start]
    return range(start, users[0]) if users else None
