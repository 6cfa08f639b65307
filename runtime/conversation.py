"""A conversation whose turns are computed once: only what is new of a prompt is read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

from bita.errors import PromptError
from bita.runtime.generation import Generation
from bita.runtime.options import Options
from bita.runtime.text.prompt_encoder import PromptEncoder

Overflow = Literal["refuse", "drop_oldest"]


class Answering(Protocol):
    """What a conversation asks of its session."""

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
        """Start an answer to token ids; `on_end` is called with it when one of `eos_ids` or
        something else has ended it.
        """


@dataclass(frozen=True)
class _Known:
    """The beginning of a prompt's text, and the token ids that it had so far."""

    text: str = ""
    ids: tuple[int, ...] = ()


class Conversation:
    """Messages and the answers to them; made by `Session.conversation`.

    messages: all that was said, dropped ones too; add to it only between answers. overflow: what
    happens when they do not fit the cache: "refuse" raises PromptError and leaves everything as it
    was; "drop_oldest" leaves out the oldest messages but a system message, up to the next one of
    the user, until there is room for the answer (max_new_tokens, but half the cache at most).
    num_dropped: messages left out of the last prompt.

    An answer's tokens stay as the model wrote them; encoding its text again might give others, and
    the cache would be of no use. Not to be shared between threads; several conversations may.
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
        """Add a message of the user and start the answer; iterate over the result for its text.

        options: fields of `Options`. An answer that still runs is cancelled first; what there is of
        it stays in `messages`. Raises PromptError, and then nothing has been added.
        """
        return self._start([{"role": "user", "content": content}], Options.of(**options))

    def answer(self, **options: Any) -> Generation:
        """Start an answer to `messages` as they are, when the last is not the assistant's."""
        return self._start([], Options.of(**options))

    def undo(self) -> str:
        """Forget the last message of the user and what came behind it; return that message."""
        self._end_running()
        places = [at for at, each in enumerate(self.messages) if each["role"] == "user"]
        if not places:
            raise PromptError("there is no message to undo")
        content = str(self.messages[places[-1]]["content"])
        del self.messages[places[-1] :]
        return content

    def fork(self) -> "Conversation":
        """Another conversation that goes on from here; what both share is computed once."""
        self._end_running()
        other = Conversation(self._session, self._encoder, self.messages, self.overflow)
        other._known = self._known
        return other

    def _start(self, added: list[dict[str, Any]], options: Options) -> Generation:
        self._end_running()
        prompt, num_dropped = self._fitting([*self.messages, *added], options)

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

    def _fitting(self, messages: list[dict[str, Any]], options: Options) -> tuple[_Known, int]:
        """The prompt of the messages, or of so many that it fits, and how many were left out."""
        most = self._session.max_prompt_tokens
        room = min(options.max_new_tokens, most // 2)
        prompt, num_dropped = self._prompt(messages), 0
        if self.overflow == "refuse":
            return prompt, 0
        while len(prompt.ids) > most - room:
            oldest = _oldest(messages)
            if oldest is None:
                return prompt, num_dropped  # refused when it is started, if it does not fit
            messages = messages[: oldest.start] + messages[oldest.stop :]
            num_dropped += len(oldest)
            prompt = self._prompt(messages)
        return prompt, num_dropped

    def _prompt(self, messages: Sequence[Mapping[str, Any]]) -> _Known:
        """The text of messages, its beginning with the tokens that it had before."""
        text, codec, known = self._encoder.render(messages), self._encoder.codec, self._known
        rest = text.removeprefix(known.text)
        if known.text and len(rest) < len(text) and codec.starts_special(rest):
            return _Known(text, (*known.ids, *codec.encode(rest, add_special_tokens=False)))
        return _Known(text, tuple(codec.encode(text, add_special_tokens=False)))


def _known_after(prompt: _Known, generation: Generation) -> _Known:
    """What is known when an answer has ended; an EOS at its end is written by the template."""
    ids = generation.token_ids
    if generation.finish_reason == "eos":
        ids = ids[:-1]
    if generation.finish_reason == "stop":
        return prompt  # the tokens say more than the text
    return replace(prompt, text=prompt.text + generation.text, ids=(*prompt.ids, *ids))


def _oldest(messages: Sequence[Mapping[str, Any]]) -> range | None:
    """The oldest messages that may go: not a system message at the start, nor the last question."""
    start = 1 if messages and messages[0]["role"] == "system" else 0
    users = [at for at, each in enumerate(messages) if each["role"] == "user" and at > start]
    return range(start, users[0]) if users else None
