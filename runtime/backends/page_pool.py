"""Pages of a cache, which texts take one by one and share where they begin alike."""

from dataclasses import dataclass, field

from bita.engine import PAGE_SLOTS
from bita.errors import EngineError


class PagePool:
    """Numbers of pages, each with the number of lists that it is in."""

    def __init__(self, num_pages: int) -> None:
        self._uses = [0] * num_pages
        self._free = list(range(num_pages))[::-1]  # the lowest number is taken first

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self) -> int:
        """A page that nobody uses. Raises EngineError if there is none left."""
        if not self._free:
            raise EngineError(
                f"all {len(self._uses)} pages of the cache are in use; end a text first"
            )
        page = self._free.pop()
        self._uses[page] = 1
        return page

    def share(self, page: int) -> int:
        """The page, which is in one more list from now on."""
        self._uses[page] += 1
        return page

    def release(self, page: int) -> None:
        """Take the page out of one list; it is free when it is in none."""
        self._uses[page] -= 1
        if not self._uses[page]:
            self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether the page is in several lists, so that none of them may write to it."""
        return self._uses[page] > 1


@dataclass
class PageList:
    """The pages of one text, in the order of its slots."""

    pool: PagePool
    pages: list[int] = field(default_factory=list)

    def reach(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Take pages up to slot `stop`; those of slots [start, stop) become this list's alone.

        Returns (page, other page) for each that was shared: its content is to be copied to the
        other one. Raises EngineError if there are too few pages.
        """
        while len(self.pages) < num_pages(stop):
            self.pages.append(self.pool.allocate())
        copied = []
        for index in range(start // PAGE_SLOTS, num_pages(stop)):
            page = self.pages[index]
            if self.pool.is_shared(page):
                self.pages[index] = self.pool.allocate()
                self.pool.release(page)
                copied.append((page, self.pages[index]))
        return copied

    def fork(self, length: int) -> "PageList":
        """A list that begins with the same `length` slots, in the same pages."""
        return PageList(
            self.pool, [self.pool.share(page) for page in self.pages[: num_pages(length)]]
        )

    def release(self) -> None:
        """Give all pages back."""
        while self.pages:
            self.pool.release(self.pages.pop())


def num_pages(num_slots: int) -> int:
    """Pages that hold a number of slots."""
    return -(-num_slots // PAGE_SLOTS)
