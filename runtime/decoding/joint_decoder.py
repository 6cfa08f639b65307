"""Decode several texts in one step: each with its own tree, and prompts in pieces.

Each text is bit-identical to what it would be alone; only the timing of its tokens differs.
Reading prompts in pieces in the same steps as running answers: Sarathi-Serve (arXiv 2403.02310),
chunked prefills.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from weakref import proxy

import numpy as np

from bita.errors import BitaError
from bita.runtime.backends.layout import prefill_layout
from bita.runtime.backends.page_pool import PagesInUseError, num_pages
from bita.runtime.backends.page_store import common_length
from bita.runtime.backends.parts import JointStep, Part
from bita.runtime.decoding.bound_trees import PlacedTree
from bita.runtime.decoding.joint_trees import JointTrees
from bita.runtime.decoding.places import Place, Places
from bita.runtime.decoding.rounds import PickedTree, finish_round
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.decoding.soundness import UnsoundError, check_sound
from bita.runtime.decoding.tree_decoder import TreeDecoder, warn_of_overflow

MAX_GAP_MS = 80.0  # duration of a step that reads prompts while other texts wait for tokens
MIN_PIECE = 32  # prompt tokens that a step may always read
MIN_SHARED = 16  # common leading tokens that make it worth waiting for another prompt
FIRST_ROW_MS = 0.5  # assumed time of a row until a step has been timed
ROW_MS_MEMORY = 0.8  # weight that the mean row time keeps with each further step


@dataclass(eq=False)
class _Share:
    """The share of a step that belongs to one text."""

    number: int  # index of the text in the step's list
    sequence: TokenSequence
    place: Place
    part: Part
    picked: PickedTree[PlacedTree] | None = None  # its tree; None while tokens are read
    level: int = 0  # confidence level of its guess
    had_masks: bool = False  # whether mask tokens had drafted for it
    ends_prompt: bool = False  # whether the piece being read is the prompt's last


class JointDecoder:
    """Runs steps for several sequences of one decoder. The caller holds the engine lock."""

    def __init__(self, decoder: TreeDecoder, step: JointStep, places: Places) -> None:
        """`step` is bound to the decoder's adapter. The decoder is referred to only weakly, so that
        it is freed with its last session.
        """
        self._decoder = proxy(decoder)
        self._places = places
        self._pages = places.main.cache.pages
        self._step = step
        self._trees = JointTrees(decoder)
        self._row_ms = FIRST_ROW_MS

    def step(self, sequences: Sequence[TokenSequence]) -> list[list[int] | BitaError]:
        """Run a step of these sequences; return the tokens it emitted for each, or its error.

        If the step or the cache has no room for all, earlier sequences in the list take
        precedence; the others emit nothing and may lose rows, which are recomputed later. A
        sequence that fails does not affect the others.
        """
        began = perf_counter()
        outcomes: list[list[int] | BitaError] = [[] for _ in sequences]
        shares = self._shares(sequences)
        shares = self._reserve_slots(shares, sequences)
        needs_logits = any(each.sequence.chooser.needs_logits for each in shares)
        ran = perf_counter()
        self._step.run([each.part for each in shares], needs_logits)
        returned = perf_counter()
        for share in shares:
            try:
                outcomes[share.number] = self._finish(share)
            except BitaError as error:
                share.place.invalidate()
                outcomes[share.number] = error
        self._count(shares, began, ran, returned)
        return outcomes

    def _shares(self, sequences: Sequence[TokenSequence]) -> list[_Share]:
        """Return the shares of a step: texts that decode, then as many prompts as there is room.

        The first prompt leaves half of the room to the others, so that short prompts need not
        wait for long ones.
        """
        decoding, reading = [], []
        for number, sequence in enumerate(sequences):
            place = self._places.hold(sequence)
            if place is not None and sequence.has_answer:
                place.take(sequence, self._decoder.adapter)
                if place.cache.length == len(sequence.token_ids) - 1:
                    decoding.append((number, sequence, place))
                    continue
            reading.append((number, sequence))
        shares = self._rounds(decoding)
        room = self._room() if shares else self._decoder.prefill_rows
        if any(self._places.hold(sequence) is None for _, sequence in reading):
            self._places.publish()
        has_masks = self._trees.wants_masks(len(sequences))
        busy = {each.sequence for each in shares}
        begun: list[TokenSequence] = []
        for count, (number, sequence) in enumerate(reading, start=1):
            if room <= 0 or self._waits(sequence, begun, has_first=bool(busy)):
                continue
            busy.add(sequence)
            place = self._places.take(sequence, self._decoder.adapter, busy)
            if sequence.has_answer and place.cache.length == len(sequence.token_ids) - 1:
                shares += self._rounds([(number, sequence, place)])
                continue
            is_last = begun or count == len(reading)
            own = room if is_last else max(room // 2, 1)
            share = self._reading(number, sequence, place, own, has_masks)
            room -= share.part.num_rows
            begun.append(sequence)
            shares.append(share)
        return shares

    def _room(self) -> int:
        """Return how many prompt rows a step may have while other texts wait for tokens."""
        fitting = int(MAX_GAP_MS / self._row_ms)
        return min(max(fitting, MIN_PIECE), self._decoder.prefill_rows)

    def _rounds(self, decoding: Sequence[tuple[int, TokenSequence, Place]]) -> list[_Share]:
        picked = self._trees.pick([(sequence, place.cache) for _, sequence, place in decoding])
        shares = []
        for (number, sequence, place), (tree, level) in zip(decoding, picked, strict=True):
            tokens = np.zeros(tree.placed.tree.num_nodes, np.int64)
            tree.fill(tokens, sequence)
            part = Part(place.cache, tree.placed.layout, tokens)
            had_masks = sequence.drafts.num_masks > 0
            shares.append(_Share(number, sequence, place, part, tree, level, had_masks))
        return shares

    def _waits(
        self, sequence: TokenSequence, begun: Sequence[TokenSequence], has_first: bool
    ) -> bool:
        """Return whether a sequence should be read in a later step.

        It should wait if a prompt in this step has the same beginning, whose rows it can share
        afterwards, or if it would take pages from earlier texts.
        """
        place, ids = self._places.hold(sequence), sequence.token_ids[:-1]
        store = self._places.main.store
        known = place.cache.length if place is not None else store.match_length(ids)
        if store.max_bytes and place is None:
            for other in begun:
                if common_length(ids, other.token_ids) >= known + MIN_SHARED:
                    return True
        missing = num_pages(len(ids) - known) + 1
        return has_first and not self._pages.make_room(missing)

    def _reading(
        self, number: int, sequence: TokenSequence, place: Place, room: int, has_masks: bool
    ) -> _Share:
        """Return a share that reads at most `room` missing tokens of a sequence.

        The last piece of a prompt includes mask rows if `has_masks`.
        """
        self._decoder.note_begun(sequence, place.cache.length)
        missing = sequence.token_ids[place.cache.length :]
        ends_prompt = not sequence.has_answer and len(missing) <= room
        if not ends_prompt:
            missing = missing[:-1][:room]
        num_masks = 0
        if ends_prompt and has_masks:
            num_masks = self._decoder.num_first_masks(sequence, place.cache, len(missing))
        layout = prefill_layout(len(missing), num_masks, 1)
        part = Part(place.cache, layout, np.array(missing, np.int64))
        return _Share(number, sequence, place, part, ends_prompt=ends_prompt)

    def _reserve_slots(
        self, shares: Sequence[_Share], sequences: Sequence[TokenSequence]
    ) -> list[_Share]:
        """Reserve cache slots for a step; return the shares that got them.

        Later texts give up their slots for earlier ones.
        """
        kept: list[_Share] = []
        given_up: set[TokenSequence] = set()
        for share in shares:
            if share.sequence in given_up:
                continue
            while not self._reserve(share):
                if self._places.release_others(set(sequences)):
                    continue
                victim = next(self._victims(share, kept, sequences), None)
                if victim is not None:
                    given_up.add(victim)
                    self._places.release(victim)
                elif kept:
                    break
                else:
                    share.part.cache.reserve(share.part.num_rows, share.part.num_rows)
            else:
                kept.append(share)
        return kept

    def _victims(
        self, share: _Share, kept: Sequence[_Share], sequences: Sequence[TokenSequence]
    ) -> Iterator[TokenSequence]:
        """Yield the sequences that may lose their places to a share, the last one first."""
        safe = {share.sequence, *(each.sequence for each in kept)}
        for each in reversed(sequences):
            if each not in safe and self._places.hold(each) is not None:
                yield each

    def _reserve(self, share: _Share) -> bool:
        try:
            share.part.cache.reserve(share.part.num_rows, share.part.num_rows)
        except PagesInUseError:
            return False
        return True

    def _finish(self, share: _Share) -> list[int]:
        """Process the step's results for a text; return the tokens that it emitted."""
        sequence, part = share.sequence, share.part
        try:
            check_sound(part, part.cache.length)
        except UnsoundError:
            if sequence.is_plain:
                raise
            sequence.is_plain = True
            warn_of_overflow()
            return []
        if share.picked is None:
            emitted = self._read(share)
        else:
            tokens = part.tokens.tolist()
            path, emitted = finish_round(share.picked, tokens, sequence, part.cache, part)
            self._decoder.stats.count_path(path, share.picked.num_guesses)
            self._trees.enter(share.picked, share.level, share.had_masks, len(emitted) - 1)
        sequence.num_read = max(sequence.num_read, part.cache.length)
        return emitted

    def _read(self, share: _Share) -> list[int]:
        sequence, part = share.sequence, share.part
        part.cache.length += len(part.tokens)
        share.place.publish()
        if not share.ends_prompt:
            return []
        sequence.drafts.read(part.top_ids[1:], part.top_logits[1:])
        token = sequence.chooser.choices(part)(0)
        sequence.extend([token])
        return [token]

    def _count(self, shares: Sequence[_Share], began: float, ran: float, returned: float) -> None:
        ended = perf_counter()
        num_rows = sum(each.part.num_rows for each in shares)
        if num_rows >= MIN_PIECE:
            row_ms = 1000 * (returned - ran) / num_rows
            self._row_ms = ROW_MS_MEMORY * self._row_ms + (1 - ROW_MS_MEMORY) * row_ms
        for share in shares:
            if share.picked is not None:
                share.sequence.count_step(ended - began)
        if all(each.picked is not None for each in shares):
            self._trees.enter_time(num_rows, 1000 * (ended - began))
        stats, record = self._decoder.stats, self._decoder.record
        if any(each.picked is not None for each in shares):
            stats.count_step(1000 * (ended - began), 1000 * (returned - ran), num_rows)
        else:
            stats.prefill_ms += 1000 * (ended - began)
        if record is not None:
            record("draft", began, ran, num_rows)
            record("backend", ran, returned, num_rows)
            record("accept and commit", returned, ended, num_rows)
