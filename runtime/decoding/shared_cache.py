"""Which text the cache holds, and what happens when another one wants it."""

from threading import RLock

from bita.adapter import Adapter
from bita.runtime.backends.cache import Cache
from bita.runtime.decoding.page_store import TextStore, common_length
from bita.runtime.decoding.sequence import DecodedText

WORTH_KEEPING = 8  # tokens; fewer are computed again as fast


class CachedTexts:
    """Texts that take turns in one cache. What two have in common at their beginnings is computed
    once; rows of a text that is wanted again are kept in host memory.

    lock: held by whoever runs steps. max_bytes: of host memory.
    """

    def __init__(self, cache: Cache, max_bytes: int = 0) -> None:
        self.lock = RLock()
        self.store = TextStore(max_bytes)
        self._cache = cache
        self._holder: DecodedText | None = None
        self._text_number = 0  # the cache's, as long as nobody else has started a text in it

    def take(self, text: DecodedText, adapter: Adapter) -> None:
        """Have the cache hold the beginning of a text, as much of it as is known, without its last
        token; `cache.length` says how much.
        """
        if self._held() is text and self._cache.adapter is adapter:
            return
        needed = text.token_ids[:-1]
        common = self._common(needed, adapter)
        self._keep_holder(common)
        stored = self.store.match(needed) if self.store.match_length(needed) > common else []
        self._cache.start(adapter)
        for rows in stored:
            self._cache.append(rows)
        if not stored:
            self._cache.length = common
        self._holder, self._text_number = text, self._cache.text_number

    def leave(self) -> None:
        """Have the cache's rows not used any more."""
        self._holder = None

    def forget(self) -> None:
        """Have every text computed anew."""
        self.leave()
        self.store.clear()

    def _held(self) -> DecodedText | None:
        return self._holder if self._text_number == self._cache.text_number else None

    def _common(self, needed: list[int], adapter: Adapter) -> int:
        """Tokens at the cache's beginning that can stay."""
        held, cache = self._held(), self._cache
        if held is None or cache.prefix_length != adapter.prefix_length:
            return 0
        return common_length(held.token_ids[: cache.length], needed)

    def _keep_holder(self, common: int) -> None:
        held, cache = self._held(), self._cache
        if held is None or not held.is_wanted or not self.store.max_bytes:
            return
        if cache.length - common >= WORTH_KEEPING:
            self.store.save(held.token_ids[: cache.length], cache.read)
