"""A store for pages of token sequences that had to leave the cache, found by their tokens.

The cache decides how a page keeps its rows: as a copy or in place. Sequences with the same
beginning share pages, and the least recently used page is dropped first. Pages form a tree over
prefixes of token ids: SGLang's RadixAttention (arXiv 2312.07104).
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import ref


class Kept(Protocol):
    """Cached rows of a few tokens, kept while other texts use the cache."""

    @property
    def num_bytes(self) -> int: ...

    def restore(self, cache: Any, num_tokens: int) -> None:
        """Append the rows of the first `num_tokens` tokens to the text in the store's cache."""

    def release(self) -> None:
        """Drop the rows, which cannot be restored afterwards."""


class Keeping(Protocol):
    """The part of a cache that a store uses."""

    def keep(self, start: int, stop: int) -> Kept:
        """Return the rows of tokens [start, stop) of its text."""


@dataclass(eq=False)
class Page:
    """A page of tokens that follow those of its parents, and their kept rows."""

    tokens: tuple[int, ...] = ()
    kept: Kept | None = None
    children: "dict[tuple[int, ...], Page]" = field(default_factory=dict)
    _parent: "ref[Page] | None" = None  # weak, so that caches are freed with their stores

    @property
    def parent(self) -> "Page | None":
        """The preceding page; None for the first, which has no tokens."""
        return None if self._parent is None else self._parent()

    def append(self, tokens: tuple[int, ...], kept: Kept) -> "Page":
        """Add a page that follows this one."""
        page = Page(tokens, kept, _parent=ref(self))
        self.children[tokens] = page
        return page


class PageStore:
    """Finds cached rows by token ids.

    max_bytes: limit for all pages together; 0 keeps nothing.
    page_tokens: tokens of a page; a sequence's last page may have fewer.
    min_tokens: minimum number of tokens that make a leaving text worth keeping.
    """

    def __init__(self, max_bytes: int, page_tokens: int, min_tokens: int = 0) -> None:
        self.max_bytes = max_bytes
        self.min_tokens = min_tokens
        self.num_bytes = 0
        self._page_tokens = page_tokens
        self._start = Page()
        self._used: OrderedDict[Page, None] = OrderedDict()  # least recently first

    def save(self, token_ids: Sequence[int], cache: Keeping) -> None:
        """Keep the rows of the text in a cache that are not kept yet, as far as there is room.

        token_ids: tokens of the text.
        """
        page, ids = self._start, tuple(token_ids)
        for start in range(0, len(ids), self._page_tokens):
            tokens = ids[start : start + self._page_tokens]
            known = page.children.get(tokens) or self._beginning_with(tokens, page)
            page = known or self._add(page, tokens, cache.keep(start, start + len(tokens)))
        self._touch(page)
        while self.num_bytes > self.max_bytes and self.drop_oldest():
            pass

    def restore(self, token_ids: Sequence[int], cache: Keeping) -> None:
        """Append the longest known beginning of a sequence to a cache in which a text was begun."""
        page = self._start
        for page, count in self._known(tuple(token_ids)):
            assert page.kept is not None
            page.kept.restore(cache, count)
        self._touch(page)

    def match_length(self, token_ids: Sequence[int]) -> int:
        """Return how many leading tokens of a sequence are known."""
        return sum(count for _, count in self._known(tuple(token_ids)))

    def drop_oldest(self) -> bool:
        """Drop the least recently used page; return False if there is none."""
        if not self._used:
            return False
        self._drop(next(iter(self._used)))
        return True

    def clear(self) -> None:
        """Drop all pages."""
        while self.drop_oldest():
            pass

    def _known(self, ids: tuple[int, ...]) -> Iterator[tuple[Page, int]]:
        """Yield the pages of a sequence's beginning, and how many tokens of each it shares."""
        page, start = self._start, 0
        while start < len(ids):
            tokens = ids[start : start + self._page_tokens]
            full = page.children.get(tokens)
            if full is None:
                common = [
                    (common_length(each.tokens, tokens), each) for each in page.children.values()
                ]
                count, nearest = max(common, key=lambda item: item[0], default=(0, page))
                if count:
                    yield nearest, count
                return
            yield full, len(tokens)
            page, start = full, start + len(tokens)

    def _beginning_with(self, tokens: tuple[int, ...], page: Page) -> Page | None:
        """Return a child of `page` that begins with these tokens, if they are not a full page."""
        if len(tokens) == self._page_tokens:
            return None
        following = page.children.items()
        return next((each for key, each in following if key[: len(tokens)] == tokens), None)

    def _add(self, parent: Page, tokens: tuple[int, ...], kept: Kept) -> Page:
        shorter = [each for key, each in parent.children.items() if key == tokens[: len(key)]]
        for each in shorter:  # a last page that the sequence has outgrown
            self._drop(each)
        page = parent.append(tokens, kept)
        self._used[page] = None
        self.num_bytes += kept.num_bytes
        return page

    def _touch(self, page: Page) -> None:
        """Note the use of a page and its parents; parents always count as more recently used."""
        while (parent := page.parent) is not None:
            self._used.move_to_end(page)
            page = parent

    def _drop(self, page: Page) -> None:
        assert page.parent is not None
        assert page.kept is not None
        del page.parent.children[page.tokens]
        del self._used[page]
        self.num_bytes -= page.kept.num_bytes
        page.kept.release()


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading tokens two sequences have in common."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(at for at in range(shorter) if left[at] != right[at])
