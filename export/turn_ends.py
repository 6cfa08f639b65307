"""The token that ends the assistant's turn in a chat template, found by rendering a sentinel."""

from collections.abc import Mapping
from typing import Any

from bita.errors import PromptError
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.codec import TextCodec

# Tokens with which chat models end their turn, even if their files mark them as ordinary tokens.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|eom_id|>")
SENTINEL = "BitaAnswer6172"
_QUESTION = {"role": "user", "content": "BitaQuestion3905"}
_ANSWER = {"role": "assistant", "content": SENTINEL}


def named_turn_ends(template: str | None, codec: TextCodec) -> tuple[int, ...]:
    """Return the ids of those TURN_ENDS that occur in a template."""
    ids = [codec.token_id(token) for token in TURN_ENDS if template and token in template]
    return tuple(token for token in ids if token is not None)


def written_turn_ends(
    template: str | None, special_tokens: Mapping[str, str], codec: TextCodec
) -> tuple[int, ...]:
    """Return the id of the token that the template writes after an answer, or ().

    Only a special token or one of TURN_ENDS counts, since an answer has no other use for it. A
    template may end all turns but the last one, so an answer in the middle is tried next. The token
    after that answer does not count if it begins the user's turn.
    """
    if template is None:
        return ()
    try:
        rendered = ChatTemplate(template, special_tokens)
        last = _end(rendered, [_QUESTION, _ANSWER], codec)
        if last is not None:
            return (last[1],)
        middle = _end(rendered, [_QUESTION, _ANSWER, _QUESTION], codec)
        before = rendered.render([_QUESTION]).split(_QUESTION["content"])[0]
    except PromptError:  # `check_texts` reports faults of the template
        return ()
    return () if middle is None or middle[0] in before else (middle[1],)


def _end(
    template: ChatTemplate, messages: list[dict[str, Any]], codec: TextCodec
) -> tuple[str, int] | None:
    """Return string and id of the token after the answer, ignoring white space between them."""
    text = template.render(messages, add_generation_prompt=False)
    _, found, after = text.rpartition(SENTINEL)
    after = after.lstrip()
    if not found:
        return None
    match = codec.special_pattern.match(after)
    ends = [match[0]] if match else [token for token in TURN_ENDS if after.startswith(token)]
    for token in ends:
        token_id = codec.token_id(token)
        if token_id is not None:
            return token, token_id
    return None
