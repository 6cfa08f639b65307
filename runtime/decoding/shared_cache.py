"""Which token sequence a cache holds, and what happens when another one wants it."""

from bita.adapter import Adapter
from bita.runtime.backends.cache import Cache
from bita.runtime.backends.page_store import PageStore, common_length
from bita.runtime.decoding.sequence import TokenSequence


class SharedCache:
    """Lets token sequences take turns in one cache.

    What two sequences have in common at their beginnings is computed once. Rows of a sequence that
    is wanted again are kept, up to `max_bytes`, in the store that the cache makes. The caller holds
    the engine's lock.

    store: instead of one of its own, that of another place in the same pages.
    """

    def __init__(self, cache: Cache, max_bytes: int = 0, store: PageStore | None = None) -> None:
        self.store = cache.new_store(max_bytes) if store is None else store
        self.cache = cache
        self._holder: TokenSequence | None = None
        self._published: TokenSequence | None = None  # whose rows others may share
        self._text_number = 0  # the cache's, as long as nobody else has started a text in it

    @property
    def holder(self) -> TokenSequence | None:
        """The sequence whose rows the cache has; None if nothing is known of them."""
        return self._holder if self._text_number == self.cache.text_number else None

    def take(self, sequence: TokenSequence, adapter: Adapter) -> None:
        """Fill the cache with as much of a sequence's beginning as is known, up to but without its
        last token; `cache.length` says how much that is.
        """
        if self.holder is sequence and self.cache.adapter is adapter:
            return
        needed = sequence.token_ids[:-1]
        common = self._common(needed, adapter)
        self._keep_holder(common)
        self.invalidate()  # until the cache has been filled
        if self.store.match_length(needed) > common:
            self.cache.start(adapter)
            self.store.restore(needed, self.cache)
        else:
            self.cache.start(adapter, common)
        self.hold(sequence)

    def hold(self, sequence: TokenSequence | None) -> None:
        """Note whose rows the cache has."""
        self._holder, self._text_number = sequence, self.cache.text_number

    def publish(self) -> None:
        """Keep the rows of the text in the cache, so that others that begin alike share them."""
        held = self.holder
        if held is not None and self.store.max_bytes:
            self.store.save(held.token_ids[: self.cache.length], self.cache)
            self._published = held

    @property
    def is_published(self) -> bool:
        """Whether `publish` has been called for the text in the cache, if there is one."""
        return self.holder is None or self._published is self.holder

    def invalidate(self) -> None:
        """Mark the cached rows invalid."""
        self._holder = None

    def forget(self) -> None:
        """Forget every sequence, so that each is computed again."""
        self.invalidate()
        self.store.clear()

    def keep(self) -> None:
        """Keep the rows of the text in the cache if they are wanted again."""
        self._keep_holder(0)

    def _common(self, needed: list[int], adapter: Adapter) -> int:
        """How many tokens at the cache's beginning can stay."""
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
