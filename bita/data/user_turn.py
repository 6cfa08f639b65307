"""Boundaries of a user's turn in a model's chat template, found by rendering a sentinel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bita.data.model_texts import ModelTexts
from bita.data.prompts import Messages
from bita.errors import ModelError
from bita.runtime.text.chat_template import LostMessageError

SENTINEL = "BitaSentinel7391"


@dataclass(frozen=True)
class UserTurn:
    """The place of a user's words in a conversation."""

    before_ids: tuple[int, ...]  # the conversation before the words
    end_ids: frozenset[int]  # tokens that end the turn
    stop_ids: frozenset[int]  # `end_ids` and all other special tokens, invalid inside a turn
    end_text: str  # the template's text after the words; "" without a template
    space: str = ""  # the template's space before the first word, if any
    opening_ids: tuple[int, ...] = ()  # given first words, which end `before_ids`

    @classmethod
    def after(cls, messages: Messages, texts: ModelTexts) -> "UserTurn":
        """Return the user's turn that follows `messages`, which may be empty.

        Without a chat template, the text begins at BOS and `messages` must be empty. Raises
        ModelError or PromptError if the template has no such place.
        """
        if texts.template is None:
            if messages:
                raise ModelError("the model has no chat template; its prompts have one turn")
            return cls(texts.bos_ids, frozenset(texts.eos_ids), texts.special_ids, "")
        turn = {"role": "user", "content": SENTINEL}
        try:
            text = texts.template.render([*messages, turn], add_generation_prompt=False)
        except LostMessageError:
            text = ""
        if text.count(SENTINEL) != 1:
            raise ModelError(
                f"the chat template writes a user's message {text.count(SENTINEL)} times, so its "
                "turn cannot be found; give prompts in a file"
            )
        before, after = text.split(SENTINEL)
        # Tokenizers join a space with the word after it, so it is not encoded separately.
        before_ids = texts.codec.encode(before.rstrip(" "), add_special_tokens=False)
        after_ids = texts.codec.encode(after, add_special_tokens=False)
        ends = [token_id for token_id in after_ids if token_id in texts.special_ids][:1]
        return cls(
            tuple(before_ids) or texts.bos_ids,
            frozenset([*ends, *texts.eos_ids]),
            texts.special_ids,
            after.strip(),
            " " if before.endswith(" ") else "",
        )

    def opened(self, words: str, texts: ModelTexts) -> "UserTurn":
        """Return the place of a turn that begins with `words`, which sampled tokens follow."""
        ids = tuple(texts.codec.encode(self.space + words, add_special_tokens=False))
        return replace(self, before_ids=(*self.before_ids, *ids), opening_ids=ids)

    def words(self, token_ids: Sequence[int], texts: ModelTexts) -> str | None:
        """Return the user's words of a turn; None if it does not end, or ends in a wrong way.

        `token_ids` were sampled after `before_ids`. Without a template there is no end marker, and
        all of them are used.
        """
        is_stopped = bool(token_ids) and token_ids[-1] in self.stop_ids
        sampled = token_ids[:-1] if is_stopped else token_ids
        text = texts.codec.decode((*self.opening_ids, *sampled))
        if self.end_text and self.end_text in text:
            return text[: text.index(self.end_text)].strip()
        if is_stopped:
            return text.strip() if token_ids[-1] in self.end_ids else None
        return None if self.end_text else text.strip()
