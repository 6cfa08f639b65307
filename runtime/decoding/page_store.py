"""Pages, in host memory, with keys and values of token sequences that had to leave the cache.

Sequences that begin alike share pages. The least recently used page goes first. Pages form a tree
over prefixes of token ids: SGLang's RadixAttention (arXiv 2312.07104), here for one sequence at a
time.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from bita.tensors import FloatArray

PAGE_TOKENS = 32
Read = Callable[[int, int], FloatArray]  # tokens [start, stop) -> their rows [2L, H, n, D], a copy


@dataclass(eq=False)
class Page:
    """Up to PAGE_TOKENS tokens after those of its parents. rows: [2L, H, n, D]."""

    tokens: tuple[int, ...]
    parent: "Page | None"
    rows: FloatArray | None = None
    children: "dict[tuple[int, ...], Page]" = field(default_factory=dict)


class PageStore:
    """Finds cached rows by token ids. max_bytes: of all pages together; 0 keeps nothing."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.clear()

    def save(self, token_ids: Sequence[int], read: Read) -> None:
        """Keep a sequence's rows, as far as they are not there and there is room."""
        page, ids = self._start, tuple(token_ids)
        for start in range(0, len(ids), PAGE_TOKENS):
            tokens = ids[start : start + PAGE_TOKENS]
            known = page.children.get(tokens) or _beginning_with(tokens, page)
            page = known or self._add(page, tokens, read(start, start + len(tokens)))
        self._touch(page)
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._used)))

    def match(self, token_ids: Sequence[int]) -> list[FloatArray]:
        """Rows [2L, H, n, D] of the longest known beginning of a sequence, piece by piece."""
        pieces = []
        page = self._start
        for page, count in self._known(tuple(token_ids)):
            assert page.rows is not None
            pieces.append(page.rows[:, :, :count])
        self._touch(page)
        return pieces

    def match_length(self, token_ids: Sequence[int]) -> int:
        """How many tokens at the beginning of a sequence are known."""
        return sum(count for _, count in self._known(tuple(token_ids)))

    def clear(self) -> None:
        """Forget all sequences."""
        self.num_bytes = 0
        self._start = Page((), None)
        self._used: OrderedDict[Page, None] = OrderedDict()  # least recently first

    def _known(self, ids: tuple[int, ...]) -> Iterator[tuple[Page, int]]:
        """The pages of a sequence's beginning, and how many tokens of each."""
        page, start = self._start, 0
        while start < len(ids):
            tokens = ids[start : start + PAGE_TOKENS]
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

    def _add(self, parent: Page, tokens: tuple[int, ...], rows: FloatArray) -> Page:
        shorter = [each for key, each in parent.children.items() if key == tokens[: len(key)]]
        for each in shorter:  # a last page that the sequence has outgrown
            self._drop(each)
        page = Page(tokens, parent, rows)
        parent.children[tokens] = page
        self._used[page] = None
        self.num_bytes += rows.nbytes
        return page

    def _touch(self, page: Page) -> None:
        """Note the use of a page and its parents, which always count as used after it."""
        while page.parent is not None:
            self._used.move_to_end(page)
            page = page.parent

    def _drop(self, page: Page) -> None:
        assert page.parent is not None
        assert page.rows is not None
        del page.parent.children[page.tokens]
        del self._used[page]
        self.num_bytes -= page.rows.nbytes


def common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginnings."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(at for at in range(shorter) if left[at] != right[at])


def _beginning_with(tokens: tuple[int, ...], page: Page) -> Page | None:
    """A page after `page` that begins with these tokens."""
    if len(tokens) == PAGE_TOKENS:
        return None
    return next((each for key, each in page.children.items() if key[: len(tokens)] == tokens), None)
