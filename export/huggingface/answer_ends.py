"""The tokens that end an answer, from the files of a Hugging Face model directory."""

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
    """The tokens that end an answer."""

    eos_ids: tuple[int, ...]  # end every text, most usual first
    turn_end_ids: tuple[int, ...]  # also end answers to messages

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
        """Determine the tokens that end an answer.

        As in transformers, eos_ids are those of generation_config.json, else of config.json, else
        the tokenizer's eos_token. Without ids in generation_config.json, usual turn ends that occur
        in the template precede them. Chats end at two more tokens: the tokenizer's eos_token, if it
        is a special token, and the token that the template writes after an answer.

        Args:
            directory: The model directory.
            config: config.json.
            generation: generation_config.json; {} if there is none.
            template: The chat template; None if there is none.
            special_tokens: Special tokens by name.
            codec: The codec, whose `num_rows` are those of the model. Ids that the model does not
                have are left out, since no answer can contain them.

        Raises:
            ModelError: if no token ends an answer, or an id is invalid.
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
            lacks = f"the model has none of the ids {shown([*given])}" if given else "none is named"
            raise ModelError(
                f"{directory} does not say which token ends an answer ({lacks}); add "
                '{"eos_token_id": ID} as generation_config.json'
            )
        more = dict.fromkeys(i for i in _within(turn_ends, codec.num_rows) if i not in eos_ids)
        return cls(eos_ids, tuple(more))


def _within(ids: tuple[int, ...], num_rows: int | None) -> tuple[int, ...]:
    return tuple(i for i in ids if num_rows is None or i < num_rows)


def _ids(subject: str, values: Mapping[str, Any]) -> tuple[int, ...]:
    """Read `eos_token_id`: one id, a list of ids, or null."""
    fields = Fields(values)
    value = values.get("eos_token_id")
    if isinstance(value, list):
        ids = fields.wholes("eos_token_id", most=MAX_ID)
    else:
        one = fields.whole_or_null("eos_token_id", most=MAX_ID)
        ids = () if one is None else (one,)
    fields.check(ModelError, subject)
    return tuple(dict.fromkeys(ids))
