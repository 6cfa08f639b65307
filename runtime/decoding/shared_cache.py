"""Which token sequence the cache holds, and what happens when another one wants it."""

from bita.adapter import Adapter
from bita.runtime.backends.cache import Cache
from bita.runtime.backends.page_store import common_length
from bita.runtime.decoding.sequence import TokenSequence


class SharedCache:
    """Lets token sequences take turns in one cache.

    What two sequences have in common at their beginnings is computed once. Rows of a sequence that
    is wanted again are kept, up to `max_bytes`, in the store that the cache makes. The caller holds
    the engine's lock.
    """

    def __init__(self, cache: Cache, max_bytes: int = 0) -> None:
        self.store = cache.new_store(max_bytes)
        self._cache = cache
        self._holder: TokenSequence | None = None
        self._text_number = 0  # the cache's, as long as nobody else has started a text in it

    def take(self, sequence: TokenSequence, adapter: Adapter) -> None:
        """Fill the cache with as much of a sequence's beginning as is known, up to but without its
        last token; `cache.length` says how much that is.
        """
        if self._held() is sequence and self._cache.adapter is adapter:
            return
        needed = sequence.token_ids[:-1]
        common = self._common(needed, adapter)
        self._keep_holder(common)
        self.invalidate()  # until the cache has been filled
        if self.store.match_length(needed) > common:
            self._cache.start(adapter)
            self.store.restore(needed)
        else:
            self._cache.start(adapter, common)
        self._holder, self._text_number = sequence, self._cache.text_number

    def invalidate(self) -> None:
        """Mark the cached rows invalid."""
        self._holder = None

    def forget(self) -> None:
        """Forget every sequence, so that each is computed again."""
        self.invalidate()
        self.store.clear()

    def _held(self) -> TokenSequence | None:
        return self._holder if self._text_number == self._cache.text_number else None

    def _common(self, needed: list[int], adapter: Adapter) -> int:
        """How many tokens at the cache's beginning can stay."""
        held, cache = self._held(), self._cache
        if held is None or not cache.can_keep_text(adapter):
            return 0
        return common_length(held.token_ids[: cache.length], needed)

    def _keep_holder(self, common: int) -> None:
        held, cache = self._held(), self._cache
        if held is None or not held.is_wanted or not self.store.max_bytes:
            return
        if cache.length - common >= self.store.min_tokens:
            self.store.save(held.token_ids[: cache.length])
