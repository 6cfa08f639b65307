"""The forms in which a chat template writes contents: stripped, or cut at a mark."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import product

from bita.export.chat_pieces_form import SPACES, Part, Piece, Refusal, State, Strip
from bita.export.chat_pieces_probe import Prober, Roles, UnfrozenError
from bita.export.chat_pieces_states import Skeleton

_ENDS = ("\n \u00a0\x1c", " \n\u00a0")  # by which the ways to strip are distinguished
_MARKED = ("\n a\n{0}\n\n b \n{0} \n\n c\n ", "a{0}b", " {0} \n", "{0}\n a \n")

Written = Callable[[str], str | None]  # from a content to the text written for it


def with_contents(prober: Prober, skeleton: Skeleton) -> tuple[State, ...]:
    """Return the states of a skeleton, with contents as the template writes them.

    Raises:
        UnfrozenError: if the template does more than strip or cut a content.
    """
    moved = _moved_strip(prober, skeleton)
    states = []
    for number, state in enumerate(skeleton.states):
        pieces: dict[tuple[str, str], Piece | Refusal] = {}
        for (role, follower), piece in state.pieces.items():
            pieces[role, follower] = piece
            if isinstance(piece, Piece) and piece.strip is not None:
                roles, index, prompt = skeleton.witnesses[number, role, follower]
                formed = replace(piece, before=_with_first(piece.before, moved))
                pieces[role, follower] = _with_content(prober, formed, roles, index, prompt)
        ends = {
            prompt: end if isinstance(end, Refusal) else _with_first(end, moved)
            for prompt, end in state.ends.items()
        }
        states.append(State(pieces, state.to, ends))
    return tuple(states)


def _with_content(prober: Prober, piece: Piece, roles: Roles, index: int, prompt: bool) -> Piece:
    written = _written_by_content(prober, roles, index, prompt)
    strip = _strip(prober, written, roles[index])
    piece = replace(piece, strip=strip)
    for mark in prober.literals.marks:
        piece = _with_mark(prober, piece, written, mark, roles[index])
    return piece


def _with_mark(prober: Prober, piece: Piece, written: Written, mark: str, role: str) -> Piece:
    """Add to a piece how contents with a mark are written."""
    probes = [each.format(mark) for each in _MARKED]
    first = written(probes[0])
    if piece.strip and first == piece.strip.of(probes[0]):
        return piece
    found = [first, *map(written, probes[1:])]
    # Contents of users are never cut: that would need the template's check for lost words.
    if role != "user" and not piece.mark and None not in found:
        tails = [probe.rpartition(mark)[2] for probe in probes]
        for cut in _strips(prober):
            if [cut.of(tail) for tail in tails] == found:
                return replace(piece, mark=mark, cut=cut)
    return replace(piece, uncovered=(*piece.uncovered, mark))


def _moved_strip(prober: Prober, skeleton: Skeleton) -> Strip:
    """Return how the first message's content is written where it is part of other pieces."""
    for roles, prompt in _conversations(skeleton):
        tokens = prober.tokens(roles, prompt)
        if not isinstance(tokens, Refusal) and 0 in tokens:
            return _strip(prober, _written_by_content(prober, roles, 0, prompt), roles[0])
    return Strip()


def _conversations(skeleton: Skeleton) -> Iterator[tuple[Roles, bool]]:
    """Yield conversations that have the first message's content outside its own piece."""
    for (number, role, follower), (roles, _, prompt) in skeleton.witnesses.items():
        piece = skeleton.states[number].pieces[role, follower]
        if isinstance(piece, Piece) and _has_first(piece.before):
            yield roles, prompt


def _has_first(parts: Sequence[Part]) -> bool:
    return any(isinstance(part, Strip) for part in parts)


def _with_first(parts: Sequence[Part], strip: Strip) -> tuple[Part, ...]:
    return tuple(strip if isinstance(part, Strip) else part for part in parts)


def _written_by_content(prober: Prober, roles: Roles, index: int, prompt: bool) -> Written:
    """Return a function that finds the text written for another content of one message.

    The other messages are single words. The function returns None if the template refuses the
    content, or if the rest of the prompt changes too.
    """
    messages = prober.conversation(roles)
    usual = prober.render(messages, prompt)
    assert isinstance(usual, str)  # it was rendered before
    before, _, after = usual.partition(messages[index]["content"])

    def written(content: str) -> str | None:
        changed = [dict(message) for message in messages]
        changed[index]["content"] = content
        text = prober.render(changed, prompt)
        if isinstance(text, Refusal) or len(text) < len(before) + len(after):
            return None
        if not text.startswith(before) or not text.endswith(after):
            return None
        return text[len(before) : len(text) - len(after)]

    return written


def _strip(prober: Prober, written: Written, role: str) -> Strip:
    probes = [f"{end}Ab{end[::-1]}" for end in _ENDS]
    found = [written(probe) for probe in probes]
    for strip in _strips(prober):
        if [strip.of(probe) for probe in probes] == found:
            return strip
    raise UnfrozenError(f"it changes the contents of messages of role {role}")


def _strips(prober: Prober) -> Iterable[Strip]:
    sets = ("", SPACES, *prober.literals.strips)
    return (Strip(left, right) for left, right in product(sets, repeat=2))
