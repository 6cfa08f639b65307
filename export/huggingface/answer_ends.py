"""Which tokens end an answer, as the files of a Hugging Face model directory say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bita.errors import ModelError
from bita.export.turn_ends import named_turn_ends, written_turn_ends
from bita.json_values import Fields, shown
from bita.runtime.text.codec import TextCodec

MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class AnswerEnds:
    """eos_ids: of every text, most usual first. turn_end_ids: more, of answers to messages."""

    eos_ids: tuple[int, ...]
    turn_end_ids: tuple[int, ...]

    @classmethod
    def read(
        cls,
        directory: Path,
        config: Mapping[str, Any],
        generation: Mapping[str, Any],
        template: str | None,
        special_tokens: Mapping[str, str],
        codec: TextCodec,
    ) -> "AnswerEnds":
        """Raises ModelError if no token ends an answer, or an id is not one.

        eos_ids are those of transformers: generation_config.json's, else config.json's, else the
        tokenizer's eos_token. Without the first, the usual ends of a turn that occur in the
        template come before them. Chats end at two more tokens: the tokenizer's eos_token, if it is
        a special one, and the one that the template writes after an answer.

        generation: generation_config.json, {} for none. codec: its `num_rows` are the model's; an
        id that the model does not have is left out, since no answer can hold it.
        """
        given = _ids(f"{directory}/generation_config.json", generation)
        eos = codec.token_id(special_tokens.get("eos_token", ""))
        if not given:
            given = _ids(f"{directory}/config.json", config)
            if not given and eos is not None:
                given = (eos,)
            given = tuple(dict.fromkeys((*named_turn_ends(template, codec), *given)))
        written = written_turn_ends(template, special_tokens, codec)
        turn_ends = (*written, *([eos] if eos in codec.special_tokens else []))
        eos_ids = _within(given, codec.num_rows)
        if not eos_ids:
            lacks = f"of ids {shown([*given])} the model has none" if given else "none is named"
            raise ModelError(
                f"{directory} does not say which token ends an answer ({lacks}); add "
                '{"eos_token_id": ID} as generation_config.json'
            )
        more = dict.fromkeys(i for i in _within(turn_ends, codec.num_rows) if i not in eos_ids)
        return cls(eos_ids, tuple(more))


def _within(ids: tuple[int, ...], num_rows: int | None) -> tuple[int, ...]:
    return tuple(i for i in ids if num_rows is None or i < num_rows)


def _ids(subject: str, values: Mapping[str, Any]) -> tuple[int, ...]:
    """`eos_token_id`: one id, a list of them, or null."""
    fields = Fields(values)
    value = values.get("eos_token_id")
    if isinstance(value, list):
        ids = fields.wholes("eos_token_id", most=MAX_ID)
    else:
        one = fields.whole_or_null("eos_token_id", most=MAX_ID)
        ids = () if one is None else (one,)
    fields.check(ModelError, subject)
    return tuple(dict.fromkeys(ids))
