"""Where a user's turn begins and ends in a model's chat template, found by rendering a sentinel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bita.data.model_texts import ModelTexts
from bita.data.prompts import Messages
from bita.errors import ModelError
from bita.runtime.text.chat_template import LostMessageError

SENTINEL = "BitaSentinel7391"


@dataclass(frozen=True)
class UserTurn:
    """A place for a user's words.

    before_ids: the conversation up to where they begin. end_ids: tokens that end them. stop_ids:
    those and all other special tokens, which have no place in a turn. end_text: the text that the
    template puts after them, for templates that end a turn without a special token; "" without a
    template. space: what the template puts in front of the first word, a space or nothing.
    opening_ids: the first words, if they are given; they are the last of before_ids.
    """

    before_ids: tuple[int, ...]
    end_ids: frozenset[int]
    stop_ids: frozenset[int]
    end_text: str
    space: str = ""
    opening_ids: tuple[int, ...] = ()

    @classmethod
    def after(cls, messages: Messages, texts: ModelTexts) -> "UserTurn":
        """The user's turn that follows `messages`, which may be none.

        Without a chat template, a text begins at BOS, and only an empty `messages` has a turn.
        Raises ModelError or PromptError if the template has no such place.
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
        # A space of its own in front of a word is not how tokenizers cut text.
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
        """This place for a turn that begins with `words`; what is sampled follows them."""
        ids = tuple(texts.codec.encode(self.space + words, add_special_tokens=False))
        return replace(self, before_ids=(*self.before_ids, *ids), opening_ids=ids)

    def words(self, token_ids: Sequence[int], texts: ModelTexts) -> str | None:
        """The user's words of a sampled turn; None if it does not end, or ends as none does.

        token_ids: what was sampled after `before_ids`. Without a template nothing marks an end, and
        all of it is taken.
        """
        is_stopped = bool(token_ids) and token_ids[-1] in self.stop_ids
        sampled = token_ids[:-1] if is_stopped else token_ids
        text = texts.codec.decode((*self.opening_ids, *sampled))
        if self.end_text and self.end_text in text:
            return text[: text.index(self.end_text)].strip()
        if is_stopped:
            return text.strip() if token_ids[-1] in self.end_ids else None
        return None if self.end_text else text.strip()
