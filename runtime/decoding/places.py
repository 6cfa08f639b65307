"""The places of texts that are decoded together: a cache for each, in the same pages."""

from collections.abc import Collection
from weakref import WeakKeyDictionary

from bita.adapter import Adapter
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.decoding.shared_cache import SharedCache


class Place(SharedCache):
    """One of them."""

    cache: PagedCache

    def release(self) -> None:
        """Keep the text's rows if they are wanted again, and give up its pages."""
        self.keep()
        self.invalidate()
        self.cache.release()

    def exchange(self, other: "Place") -> None:
        """Let each of two places have the other's text."""
        mine, others = self.holder, other.holder
        self.cache.exchange(other.cache)
        self.hold(others)
        other.hold(mine)


class Places:
    """The places of an engine's texts. They share one store.

    main: the place of a text that is decoded alone, whose cache the backend's own steps use.
    """

    def __init__(self, main: Place) -> None:
        self.main = main
        self._all = [main]
        self._last: WeakKeyDictionary[TokenSequence, Place] = WeakKeyDictionary()

    def hold(self, sequence: TokenSequence) -> Place | None:
        """The place that a sequence has; None if it has none."""
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
        """A place for a sequence, with as much of its beginning as is known, up to but without its
        last token. busy: sequences that keep theirs.
        """
        place = self.hold(sequence) or self._free(busy)
        place.take(sequence, adapter)
        return place

    def bring_home(self, sequence: TokenSequence) -> None:
        """Move a sequence that has another place to the main one. Nothing is copied."""
        place = self.hold(sequence)
        if place is not None and place is not self.main:
            self.main.exchange(place)

    def publish(self) -> None:
        """Let texts that begin alike share the rows of those that have a place already."""
        for place in self._all:
            if not place.is_published:
                place.publish()

    def clear_main(self) -> None:
        """Let the main place be free, and its text have another one."""
        if self.main.holder is not None:
            self.main.exchange(self._free([self.main.holder]))

    def release(self, sequence: TokenSequence) -> None:
        """Give up a sequence's place, if it has one."""
        place = self.hold(sequence)
        if place is not None:
            place.release()

    def end(self, sequence: TokenSequence) -> None:
        """Give up the place of a sequence that has ended. The main place keeps it until another
        sequence comes there.
        """
        place = self.hold(sequence)
        if place is not None and place is not self.main:
            place.release()

    def release_others(self, busy: Collection[TokenSequence]) -> bool:
        """Give up the places of all sequences but these; says whether there were any."""
        idle = [each for each in self._all if each.cache.length and each.holder not in busy]
        for place in idle:
            place.release()
        return bool(idle)

    def invalidate(self) -> None:
        """Mark the rows of all places invalid."""
        for place in self._all:
            place.invalidate()

    def forget(self) -> None:
        """Forget every sequence, so that each is computed again."""
        self.invalidate()
        for place in self._all[1:]:
            place.cache.release()
        self.main.store.clear()

    def _free(self, busy: Collection[TokenSequence]) -> Place:
        """A place that none of these sequences has, the main one if possible: its text may begin
        alike.
        """
        free = [place for place in self._all if place.holder not in busy]
        if not free:
            free = [Place(self.main.cache.beside(), store=self.main.store)]
            self._all += free
        return free[0]
