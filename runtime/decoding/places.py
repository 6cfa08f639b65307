"""The places of texts that are decoded together: one cache per text, in a common page pool."""

from collections.abc import Collection
from weakref import WeakKeyDictionary

from bita.adapter import Adapter
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.decoding.shared_cache import SharedCache


class Place(SharedCache):
    """The cache of one text; its pages come from the common pool."""

    cache: PagedCache

    def release(self) -> None:
        """Store the text's rows if they are wanted again, and give up its pages."""
        self.keep()
        self.invalidate()
        self.cache.release()

    def exchange(self, other: "Place") -> None:
        """Exchange the texts of two places."""
        mine, others = self.holder, other.holder
        self.cache.exchange(other.cache)
        self.hold(others)
        other.hold(mine)


class Places:
    """The places of an engine's texts, which share one store.

    main: the place of a text that is decoded alone; the backend's own steps use its cache.
    """

    def __init__(self, main: Place) -> None:
        self.main = main
        self._all = [main]
        self._last: WeakKeyDictionary[TokenSequence, Place] = WeakKeyDictionary()

    def hold(self, sequence: TokenSequence) -> Place | None:
        """Return the place of a sequence; None if it does not have one."""
        last = self._last.get(sequence)
        if last is not None and last.holder is sequence:
            return last
        found = next((place for place in self._all if place.holder is sequence), None)
        if found is not None:
            self._last[sequence] = found
        return found

    def take(
        self, sequence: TokenSequence, adapter: Adapter, busy: Collection[TokenSequence]
    ) -> Place:
        """Return a place for a sequence, filled with as much of its beginning as is known.

        The last token is never included. The sequences in `busy` keep their places.
        """
        place = self.hold(sequence) or self._free(busy)
        place.take(sequence, adapter)
        return place

    def bring_home(self, sequence: TokenSequence) -> None:
        """Move a sequence from its place to the main one, without copying."""
        place = self.hold(sequence)
        if place is not None and place is not self.main:
            self.main.exchange(place)

    def publish(self) -> None:
        """Share the rows of all texts that have a place with others that begin alike."""
        for place in self._all:
            if not place.is_published:
                place.publish()

    def clear_main(self) -> None:
        """Free the main place by moving its text to another one."""
        if self.main.holder is not None:
            self.main.exchange(self._free([self.main.holder]))

    def release(self, sequence: TokenSequence) -> None:
        """Release a sequence's place, if it has one."""
        place = self.hold(sequence)
        if place is not None:
            place.release()

    def end(self, sequence: TokenSequence) -> None:
        """Release the place of a sequence that has ended.

        The main place keeps the sequence until another one takes it.
        """
        place = self.hold(sequence)
        if place is not None and place is not self.main:
            place.release()

    def release_others(self, busy: Collection[TokenSequence]) -> bool:
        """Release the places of all sequences except `busy`; return whether there were any."""
        idle = [each for each in self._all if each.cache.length and each.holder not in busy]
        for place in idle:
            place.release()
        return bool(idle)

    def invalidate(self) -> None:
        """Mark the rows of all places invalid."""
        for place in self._all:
            place.invalidate()

    def forget(self) -> None:
        """Forget every sequence; each is recomputed when needed."""
        self.invalidate()
        for place in self._all[1:]:
            place.cache.release()
        self.main.store.clear()

    def _free(self, busy: Collection[TokenSequence]) -> Place:
        """Return a place that no `busy` sequence has.

        The main place is preferred, because its text may have the same beginning.
        """
        free = [place for place in self._all if place.holder not in busy]
        if not free:
            free = [Place(self.main.cache.new_sibling(), store=self.main.store)]
            self._all += free
        return free[0]
