"""Compare pieces with their template on thousands of conversations.

If they differ for a content with a text that the template names, or for one of white space only,
the pieces no longer cover such contents. If they differ otherwise, the template has no pieces.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, product

from bita.export.chat_pieces_form import (
    FOLLOWERS,
    ChatPieces,
    Piece,
    Refusal,
    RefusedError,
    State,
    UncoveredError,
)
from bita.export.chat_pieces_probe import Domain, Literals, Prober, UnfrozenError

_SEED = 20
_ALL_ROLES_LENGTH, _THREE_ROLES_LENGTH = 5, 6  # up to which all sequences are tried
_NUM_RANDOM, _MAX_RANDOM_LENGTH = 300, 20
_LONG = (60, 300)  # messages
_MAX_NUMBER = 2_047  # of the template that may be a count of messages or characters
_MAX_NUMBERS = 6
_MIN_TEXT = 3  # characters of a text that is left uncovered: shorter ones are in many contents
_MAX_SHOWN = 6  # roles of a conversation
_MAX_NARROWINGS = 60
_CONTENTS = (
    *("", "Hi", " ", "\n", "  Hi there \n", "\n\nHi\r\n", "\t\u00a0Hi\u2003", "\x1c\x85Hi\u3000"),
    *(
        "\u200bHi\ufeff",
        "日本語 é \U0001f600",
        "e\u0301",
        "12",
        "007",
        "3.5",
        "'",
        "\"a\" 'b'",
        "\\n",
    ),
    *("{{ messages }}", "{% if x %}", "{# c #}", "<|im_start|>user\nHi<|im_end|>", "<s>[INST] a"),
    *("</s>", "<start_of_turn>model\n", "<|eot_id|>", "<|end|>", "<think>\nhm\n</think>\n\nYes."),
    *("<think>", "a</think>", "<think></think>", "&lt;b&gt; & <b>", "{'a': 1}", '{"a": [1]}'),
    *("None", "True", "false", "/no_think", "a\nb\n\nc", "x" * 3000, "word " * 400, "HELLO", "ß İ"),
    *("\u2028", "a\x00b", "[]", "user", "a" * 63),
)

Conversation = list[dict[str, str]]


def prove(pieces: ChatPieces, prober: Prober, domain: Domain) -> ChatPieces:
    """Return pieces that agree with their template on all conversations tried.

    They may cover fewer contents than the given ones.

    Raises:
        UnfrozenError: if there are no such pieces.
    """
    num_narrowings = 0
    for conversation in _conversations(pieces, prober, domain):
        for prompt in (False, True):
            while not _agrees(pieces, prober, conversation, prompt):
                num_narrowings += 1
                if num_narrowings > _MAX_NARROWINGS:
                    raise UnfrozenError("its output depends on too many texts in contents")
                pieces = _narrow(pieces, prober, conversation, prompt)
    return pieces


def _agrees(pieces: ChatPieces, prober: Prober, conversation: Conversation, prompt: bool) -> bool:
    """Return whether template and pieces render the same text; True if it is not covered."""
    try:
        found: str | None = pieces.render(conversation, prompt)
    except UncoveredError:
        return True
    except RefusedError:
        found = None
    wanted = prober.render(conversation, prompt, with_date=True)
    return found is None if isinstance(wanted, Refusal) else found == wanted


def _narrow(
    pieces: ChatPieces, prober: Prober, conversation: Conversation, prompt: bool
) -> ChatPieces:
    """Return pieces that do not cover a content for which they and the template differ."""
    shrunk = [{**message, "content": prober.word} for message in conversation]
    if not _agrees(pieces, prober, shrunk, prompt):
        roles = ", ".join(message["role"] for message in conversation[:_MAX_SHOWN])
        more = f" and {len(conversation) - _MAX_SHOWN} more" if conversation[_MAX_SHOWN:] else ""
        raise UnfrozenError(
            f"its prompt for messages of the roles {roles}{more} is not made of the same pieces as "
            f"other prompts"
        )
    shrunk = [dict(message) for message in conversation]
    for message in shrunk:
        content, message["content"] = message["content"], prober.word
        if _agrees(pieces, prober, shrunk, prompt):
            message["content"] = content
    for message in shrunk:
        role, content = message["role"], message["content"]
        if content == prober.word:
            continue
        if not content.strip():
            return _without(pieces, role, None)
        for text in sorted(prober.literals.texts, key=len, reverse=True):
            if len(text.strip()) < _MIN_TEXT or text not in content:
                continue
            message["content"] = content.replace(text, "x")
            if _agrees(pieces, prober, shrunk, prompt):
                return _without(pieces, role, text)
            message["content"] = content
    roles = " and ".join({m["role"]: None for m in shrunk if m["content"] != prober.word})
    raise UnfrozenError(f"its output depends on the content of a message of role {roles}")


def _without(pieces: ChatPieces, role: str, text: str | None) -> ChatPieces:
    """Return pieces without contents of a role that hold `text`; None: without blank contents."""

    def narrowed(piece: Piece | Refusal) -> Piece | Refusal:
        if isinstance(piece, Refusal):
            return piece
        if text is None:
            return replace(piece, covers_blank=False)
        return (
            piece if text in piece.uncovered else replace(piece, uncovered=(*piece.uncovered, text))
        )

    states = tuple(
        State(
            {
                key: narrowed(piece) if key[0] == role else piece
                for key, piece in each.pieces.items()
            },
            each.to,
            each.ends,
        )
        for each in pieces.states
    )
    return replace(pieces, states=states)


def _conversations(pieces: ChatPieces, prober: Prober, domain: Domain) -> Iterator[Conversation]:
    """Yield all short sequences of roles, then random and long ones that the pieces cover."""
    contents = _Contents(prober.literals)
    alive = tuple(role for role in domain.roles if _is_alive(pieces, role))
    for roles in _short_sequences(alive):
        if domain.has(roles):
            yield contents.conversation(roles)
    rng = contents.rng
    for _ in range(_NUM_RANDOM):
        yield contents.conversation(_walk(pieces, rng, rng.randint(1, _MAX_RANDOM_LENGTH)))
    for length in (*_LONG, *_near(prober.literals.numbers)):
        yield [{"role": role, "content": "Hi"} for role in _walk(pieces, rng, length)]


def _is_alive(pieces: ChatPieces, role: str) -> bool:
    """Return whether some conversation has the role."""
    return any(
        isinstance(state.pieces[role, follower], Piece)
        for state in pieces.states
        for follower in FOLLOWERS
    )


def _short_sequences(roles: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for length in range(1, _THREE_ROLES_LENGTH + 1):
        some = roles if length <= _ALL_ROLES_LENGTH else [r for r in roles if r != "tool"]
        yield from product(some, repeat=length)


def _walk(pieces: ChatPieces, rng: random.Random, length: int) -> tuple[str, ...]:
    """Return the roles of a random conversation that the pieces do not refuse before its end."""
    roles: list[str] = []
    number = 0
    while len(roles) < length:
        state = pieces.states[number]
        open_roles = [
            role
            for role in state.to
            if any(isinstance(state.pieces[role, follower], Piece) for follower in FOLLOWERS)
        ]
        if not open_roles:
            break
        roles.append(rng.choice(open_roles))
        number = state.to[roles[-1]]
    return tuple(roles) or ("user",)


def _near(numbers: Sequence[int]) -> list[int]:
    """Return sizes around the template's numbers, at which its output may change."""
    some = [number for number in numbers if 6 < number <= _MAX_NUMBER][:_MAX_NUMBERS]
    return [number + i for number in some for i in (-1, 0, 1)]


class _Contents:
    """An endless supply of contents: all of them in random order, again and again."""

    def __init__(self, literals: Literals) -> None:
        self.rng = random.Random(_SEED)
        texts = literals.texts
        self._pool = [*_CONTENTS, *("x" * length for length in _near(literals.numbers))]
        for text in texts:
            self._pool += [text, text.upper()]
            self._pool += [f"{text}Hi", f"Hi {text}", f" {text}\n\nHi {text}\n"]
        pairs = [*pairwise(texts), *zip(texts, texts[2:], strict=False)]
        pairs += list(product(literals.starts, literals.ends))[:20] * 4
        self._pool += [f"{first}Hi{second}" for first, second in pairs]
        self._left: list[str] = []

    def conversation(self, roles: Sequence[str]) -> Conversation:
        return [{"role": role, "content": self._next()} for role in roles]

    def _next(self) -> str:
        if not self._left:
            self._left = self.rng.sample(self._pool, len(self._pool))
        return self._left.pop()
