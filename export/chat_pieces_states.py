"""The automaton of a chat template, learned from conversations whose contents are single words.

Two beginnings of conversations lead to the same state if the template writes the same text after
both for every continuation of up to two messages. `chat_pieces_proof` tries longer conversations.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from bita.export.chat_pieces_form import (
    FOLLOWERS,
    WAY_AROUND,
    Part,
    Piece,
    Refusal,
    State,
    Strip,
    followers,
)
from bita.export.chat_pieces_probe import (
    REFUSED,
    ROLES,
    Domain,
    Prober,
    Roles,
    Tokens,
    UnfrozenError,
)

_MAX_STATES = 16
_NUM_FOLLOWING = 2  # messages by which states are distinguished

Place = tuple[int, str, str]  # state, role and follower
Witness = tuple[Roles, int, bool]  # roles, index of the message, whether with generation prompt
Written = tuple[Part, ...]


@dataclass(frozen=True)
class Skeleton:
    """Learned states, with contents written unchanged."""

    states: tuple[State, ...]
    witnesses: Mapping[Place, Witness]  # an accepted conversation for each place


@dataclass(frozen=True)
class _Split:
    """The text of a conversation, split at the contents."""

    before: tuple[Written | None, ...]  # text before each content; None: the content is left out
    end: Written


class Learner:
    """Learns the states that a domain's conversations lead to.

    Args:
        prober: Renders conversations with the template.
        domain: The conversations.
        moves_first: Whether a system message at the beginning is written later in the prompt, as
            by some of Mistral's templates; it is then part of other pieces.
    """

    def __init__(self, prober: Prober, domain: Domain, moves_first: bool) -> None:
        self._prober = prober
        self._domain = domain
        self._moves_first = moves_first
        self._starts: list[Roles] = [()]
        self._numbers = {self._behaviour(()): 0}

    def learn(self) -> Skeleton:
        """Return the states. Raises UnfrozenError if there are none, or too many."""
        states: list[State] = []
        witnesses: dict[Place, Witness] = {}
        while len(states) < len(self._starts):
            if len(states) == _MAX_STATES:
                raise UnfrozenError("its output for a message depends on all messages before it")
            found = self._state(self._starts[len(states)])
            witnesses |= {(len(states), *place): each for place, each in found[1].items()}
            states.append(found[0])
        return Skeleton(tuple(states), witnesses)

    def _state(self, start: Roles) -> tuple[State, dict[tuple[str, str], Witness]]:
        to: dict[str, int] = {}
        pieces: dict[tuple[str, str], Piece | Refusal] = {}
        witnesses: dict[tuple[str, str], Witness] = {}
        for role in ROLES:
            number = self._next(start, role)
            if number is not None:
                to[role] = number
            for follower in FOLLOWERS:
                pieces[role, follower], witness = self._piece(start, role, follower)
                if witness:
                    witnesses[role, follower] = witness
        return State(pieces, to, self._ends(start)), witnesses

    def _next(self, start: Roles, role: str) -> int | None:
        """Return the state after a message; None if no conversation continues with it."""
        roles = (*start, role)
        if not self._domain.has(roles):
            return None
        behaviour = self._behaviour(roles)
        if all(split is None for split in behaviour):
            return None
        if behaviour not in self._numbers:
            self._numbers[behaviour] = len(self._starts)
            self._starts.append(roles)
        return self._numbers[behaviour]

    def _behaviour(self, start: Roles) -> tuple[_Split | None, ...]:
        """Return the text after some messages, for everything that may follow."""
        found = []
        for following in self._followings(_NUM_FOLLOWING):
            for prompt in (False, True):
                split = self._split((*start, *following), prompt)
                found.append(split and _Split(split.before[len(start) :], split.end))
        return tuple(found)

    def _piece(
        self, start: Roles, role: str, follower: str
    ) -> tuple[Piece | Refusal, Witness | None]:
        """Return the piece of a message in one place, and a conversation that shows it."""
        index = len(start)
        seen: dict[Written | None, Witness] = {}
        refusal: Refusal | None = None
        for following in self._followings(_NUM_FOLLOWING):
            roles = (*start, role, *following)
            if followers(roles)[index] != follower or not self._domain.has(roles):
                continue
            for prompt in (False, True):
                split = self._split(roles, prompt)
                if split:
                    seen.setdefault(split.before[index], (roles, index, prompt))
                else:
                    refusal = refusal or self._refusal(roles, prompt)
        if not seen:
            return refusal or self._uncovered(role), None
        if len(seen) > 1:
            raise UnfrozenError(
                f"its output for a message of role {role} depends on more than the message's place"
            )
        ((before, witness),) = seen.items()
        return (Piece() if before is None else Piece(before, Strip())), witness

    def _ends(self, start: Roles) -> dict[bool, Written | Refusal]:
        ends: dict[bool, Written | Refusal] = {}
        for prompt in (False, True):
            split = self._split(start, prompt) if start else None
            ends[prompt] = split.end if split else self._refusal(start, prompt)
        return ends

    def _refusal(self, roles: Roles, prompt: bool) -> Refusal:
        """Return the refusal of a conversation that has no split."""
        found = self._prober.tokens(roles, prompt) if roles else None
        return found if isinstance(found, Refusal) else Refusal(REFUSED)

    def _uncovered(self, role: str) -> Refusal:
        return Refusal(
            f"a message of role {role} is not covered at this place: the pieces of the chat "
            f"template are for {self._domain.name}; {WAY_AROUND}",
            is_template=False,
        )

    def _followings(self, most: int) -> Iterator[Roles]:
        for length in range(most + 1):
            yield from product(self._domain.roles, repeat=length)

    def _split(self, roles: Roles, prompt: bool) -> _Split | None:
        """Split the text of a conversation; return None if it is refused."""
        if not roles or not self._domain.has(roles):
            return None
        tokens = self._prober.tokens(roles, prompt)
        return None if isinstance(tokens, Refusal) else self._split_tokens(roles, tokens)

    def _split_tokens(self, roles: Roles, tokens: Tokens) -> _Split:
        before: list[Written | None] = [None] * len(roles)
        parts: list[Part] = []
        last = -1
        for token in tokens:
            if isinstance(token, str):
                parts.append(token)
            elif token == 0 and self._moves_first and roles[0] == "system":
                parts.append(Strip())
            elif token <= last:
                raise UnfrozenError(
                    f"it writes the content of a message of role {roles[token]} more than once, or "
                    f"after the content of a later message"
                )
            else:
                before[token], parts, last = tuple(parts), [], token
        return _Split(tuple(before), tuple(parts))
