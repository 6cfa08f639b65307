"""A cache shared by token sequences, and what is kept when another sequence takes it."""

from bita.adapter import Adapter
from bita.runtime.backends.cache import Cache
from bita.runtime.backends.page_store import PageStore, common_length
from bita.runtime.decoding.sequence import TokenSequence


class SharedCache:
    """Lets token sequences use one cache alternately.

    The common beginning of two sequences is computed once. Rows of a sequence that is wanted again
    are kept in the cache's store, up to `max_bytes`. The caller holds the engine lock.

    store: store of another place in the same pages. None: a new one.
    """

    def __init__(self, cache: Cache, max_bytes: int = 0, store: PageStore | None = None) -> None:
        self.store = cache.new_store(max_bytes) if store is None else store
        self.cache = cache
        self._holder: TokenSequence | None = None
        self._published: TokenSequence | None = None  # sequence whose rows others may share
        self._text_number = 0  # the cache's number while it still holds the holder's text

    @property
    def holder(self) -> TokenSequence | None:
        """The sequence whose rows the cache holds; None if that is unknown."""
        return self._holder if self._text_number == self.cache.text_number else None

    def take(self, sequence: TokenSequence, adapter: Adapter) -> None:
        """Fill the cache with as much of a sequence's beginning as is known.

        The last token is never included; `cache.length` is the number of tokens.
        """
        if self.holder is sequence and self.cache.adapter is adapter:
            return
        needed = sequence.token_ids[:-1]
        common = self._common_length(needed, adapter)
        self._keep_holder(common)
        self.invalidate()  # until the cache has been filled
        if self.store.match_length(needed) > common:
            self.cache.start(adapter)
            self.store.restore(needed, self.cache)
        else:
            self.cache.start(adapter, common)
        self.hold(sequence)

    def hold(self, sequence: TokenSequence | None) -> None:
        """Set the sequence whose rows the cache holds."""
        self._holder, self._text_number = sequence, self.cache.text_number

    def publish(self) -> None:
        """Store the rows of the cached text, so that texts with the same beginning share them."""
        held = self.holder
        if held is not None and self.store.max_bytes:
            self.store.save(held.token_ids[: self.cache.length], self.cache)
            self._published = held

    @property
    def is_published(self) -> bool:
        """Whether `publish` has been called for the cached text; True without one."""
        return self.holder is None or self._published is self.holder

    def invalidate(self) -> None:
        """Mark the cached rows invalid."""
        self._holder = None

    def forget(self) -> None:
        """Forget every sequence; each is recomputed when needed."""
        self.invalidate()
        self.store.clear()

    def keep(self) -> None:
        """Store the rows of the cached text if they are wanted again."""
        self._keep_holder(0)

    def _common_length(self, needed: list[int], adapter: Adapter) -> int:
        """Return how many tokens at the cache's beginning can stay."""
        held, cache = self.holder, self.cache
        if held is None or not cache.can_keep_text(adapter):
            return 0
        return common_length(held.token_ids[: cache.length], needed)

    def _keep_holder(self, common: int) -> None:
        held, cache = self.holder, self.cache
        if held is None or not held.is_wanted or not self.store.max_bytes:
            return
        if cache.length - common >= self.store.min_tokens:
            self.store.save(held.token_ids[: cache.length], cache)
