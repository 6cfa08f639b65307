"""Pages of a cache, which texts take one by one and share where they begin alike."""

from collections.abc import Callable
from dataclasses import dataclass, field

from bita.engine import PAGE_SLOTS
from bita.errors import EngineError

Copy = Callable[[int, int], None]  # the content of a page to another one


class PagesInUseError(EngineError):
    """Every page has a holder; it may help to end a text."""


class PagePool:
    """Numbers of pages, each with the number of its holders: lists, and what is kept of texts."""

    def __init__(self, num_pages: int) -> None:
        self._num_pages = num_pages
        self._num_known = 0  # pages that were taken once; those from here on are free
        self._free: list[int] = []  # of those that were taken once
        self._uses: dict[int, int] = {}  # holders of each page in use

    @property
    def num_free(self) -> int:
        return self._num_pages - self._num_known + len(self._free)

    def allocate(self) -> int:
        """A page that nobody uses, one that was used before if there is any, since that takes no
        more memory. Raises PagesInUseError if there is none left.
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
        """The page, which has one more holder from now on."""
        self._uses[page] += 1
        return page

    def release(self, page: int) -> None:
        """Note that a holder gives the page up; it is free when it has none."""
        self._uses[page] -= 1
        if not self._uses[page]:
            del self._uses[page]
            self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether the page has several holders, so that none of them may write to it."""
        return self._uses[page] > 1


@dataclass
class PageList:
    """The pages of one text, in the order of its slots."""

    pool: PagePool
    pages: list[int] = field(default_factory=list)

    def num_missing(self, start: int, stop: int) -> int:
        """How many free pages `reach` takes."""
        pages = self.pages[start // PAGE_SLOTS : num_pages(stop)]
        return max(num_pages(stop) - len(self.pages), 0) + sum(map(self.pool.is_shared, pages))

    def reach(self, start: int, stop: int, copy: Copy) -> None:
        """Take pages up to slot `stop`; those of slots [start, stop) become this list's alone.

        copy: called for each that was shared, before another one takes its place. Raises
        PagesInUseError if there are too few pages.
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
        """Share a page that has a holder, as the one that follows."""
        self.pages.append(self.pool.share(page))

    def cut(self, length: int) -> list[int]:
        """Take the pages after those of `length` slots out of the list, and return them: the caller
        holds them now, and is to release them.
        """
        first = num_pages(length)
        rest = self.pages[first:]
        del self.pages[first:]
        return rest


def num_pages(num_slots: int) -> int:
    """Pages that hold a number of slots."""
    return -(-num_slots // PAGE_SLOTS)
