"""Allocation of cache pages, which texts take one by one and share for common beginnings."""

from collections.abc import Callable
from dataclasses import dataclass, field

from bita.engine import PAGE_SLOTS
from bita.errors import EngineError

Copy = Callable[[int, int], None]  # copies one page's content to another page


class PagesInUseError(EngineError):
    """Every page is in use; ending a text may free some."""


class PagePool:
    """Page numbers with reference counts; page lists and stores hold the references."""

    def __init__(self, num_pages: int) -> None:
        self._num_pages = num_pages
        self._num_known = 0  # pages that have been used; all from here on are free
        self._free: list[int] = []  # free pages that have been used
        self._uses: dict[int, int] = {}  # number of holders of each page in use

    @property
    def num_free(self) -> int:
        return self._num_pages - self._num_known + len(self._free)

    def allocate(self) -> int:
        """Return a free page. Raises PagesInUseError if there is none.

        A page that has been used before is preferred, since it already has memory.
        """
        if not self.num_free:
            raise PagesInUseError(
                f"all {self._num_pages} pages of the cache are in use; end a text first"
            )
        if self._free:
            page = self._free.pop()
        else:
            page, self._num_known = self._num_known, self._num_known + 1
        self._uses[page] = 1
        return page

    def share(self, page: int) -> int:
        """Add a holder to a page, and return the page."""
        self._uses[page] += 1
        return page

    def release(self, page: int) -> None:
        """Remove a holder from a page; without holders it is free."""
        self._uses[page] -= 1
        if not self._uses[page]:
            del self._uses[page]
            self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Return whether a page has several holders, so that none of them may write to it."""
        return self._uses[page] > 1


@dataclass
class PageList:
    """The pages of one text, in the order of its slots."""

    pool: PagePool
    pages: list[int] = field(default_factory=list)

    def num_missing(self, start: int, stop: int) -> int:
        """Return how many free pages `reach` needs."""
        pages = self.pages[start // PAGE_SLOTS : num_pages(stop)]
        return max(num_pages(stop) - len(self.pages), 0) + sum(map(self.pool.is_shared, pages))

    def reach(self, start: int, stop: int, copy: Copy) -> None:
        """Take pages up to slot `stop`, and make those of slots [start, stop) exclusive.

        copy: called for each shared page before a new page replaces it.

        Raises PagesInUseError if there are too few pages.
        """
        while len(self.pages) < num_pages(stop):
            self.pages.append(self.pool.allocate())
        for index in range(start // PAGE_SLOTS, num_pages(stop)):
            page = self.pages[index]
            if self.pool.is_shared(page):
                own = self.pool.allocate()
                copy(page, own)
                self.pages[index] = own
                self.pool.release(page)

    def append(self, page: int) -> None:
        """Append a page of another holder, which is shared from now on."""
        self.pages.append(self.pool.share(page))

    def cut(self, length: int) -> list[int]:
        """Remove and return the pages after the first `length` slots; the caller releases them."""
        first = num_pages(length)
        rest = self.pages[first:]
        del self.pages[first:]
        return rest


def num_pages(num_slots: int) -> int:
    """Return the number of pages for a number of slots."""
    return -(-num_slots // PAGE_SLOTS)
