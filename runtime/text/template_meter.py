"""What rendering a chat template may cost, and the sizes that are charged.

Every function here works on the meter of the rendering under way. A single operation of Python
cannot be interrupted, so whatever can take long, or make much out of little, is charged before it
is done. Lists that share parts are charged as the tree that printing, comparing or hashing them
walks through.
"""

import time
from collections.abc import Collection, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2.runtime import Undefined

_LISTS = (list, tuple, range, KeysView, ValuesView, ItemsView)
_SCALARS = (int, float, type(None), Undefined)
OBJECT_CHARACTERS = 16  # charged for a new object
_ITEM_CHARACTERS = 8  # charged for an item of a list: the size of a reference
_ENTRY_CHARACTERS = 32  # charged for an entry of a dict
_MAX_DEPTH = 64  # of nested lists that are printed or compared


class TemplateLimitError(Exception):
    """A template wants more than it may have."""


@dataclass(frozen=True)
class TemplateLimits:
    """What a template may use. Real ones stay a hundred times below on usual conversations."""

    template_characters: int = 100_000  # of the source; real ones have 30 000 at most
    messages: int = 2_048  # of one conversation
    output_characters: int = 2_000_000  # of the rendered prompt
    work_characters: int = 16_000_000  # made on the way, 1 to 4 bytes each
    steps: int = 1_000_000  # iterations, calls, look-ups, filters and prints; about 1 µs each
    seconds: float = 5.0  # wall clock, looked at in every step; as long for compiling


@dataclass
class Spent:
    """What renderings have used so far: steps, and characters made on the way."""

    steps: int = 0
    characters: int = 0


class Size(NamedTuple):
    """The size of a value as a tree: parts, characters of its texts, and depth of nesting."""

    parts: int
    characters: int
    depth: int


class Meter:
    """What one rendering may still use."""

    def __init__(self, limits: TemplateLimits) -> None:
        self.limits = limits
        self.steps = limits.steps
        self.characters = limits.work_characters
        self.deadline = time.monotonic() + limits.seconds
        # Of lists, by identity, with the list, so that the identity stays its own. None changes:
        # in the sandbox lists have no methods.
        self._sizes: dict[int, tuple[Any, Size]] = {}

    def spend(self, characters: int = 0, steps: int = 1) -> None:
        """Charge for steps and the characters that they make; TemplateLimitError beyond a limit."""
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0:
            raise TemplateLimitError(f"takes more than {self.limits.steps} steps")
        if self.characters < 0:
            raise TemplateLimitError(f"makes more than {self.limits.work_characters} characters")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"takes more than {self.limits.seconds} s")

    def size(self, value: Any, depth: int = 0) -> Size:
        """Measure a value, each list in it once. depth: of the lists that it lies in."""
        if isinstance(value, str):
            return Size(1, len(value), 0)
        if isinstance(value, _SCALARS):
            return Size(1, value.bit_length() // 3 if isinstance(value, int) else 0, 0)
        known = self._sizes.get(id(value))
        size = known[1] if known else self._measured(value, depth)
        if depth + size.depth > _MAX_DEPTH:
            raise TemplateLimitError(f"prints or compares lists nested over {_MAX_DEPTH} deep")
        return size

    def _measured(self, value: Any, depth: int) -> Size:
        if depth >= _MAX_DEPTH:
            raise TemplateLimitError(f"prints or compares lists nested over {_MAX_DEPTH} deep")
        if isinstance(value, range):
            return Size(1 + len(value), 0, 1)
        if isinstance(value, Mapping):
            inner: Iterable[Any] = (part for pair in value.items() for part in pair)
        elif isinstance(value, _LISTS):
            inner = value
        else:
            raise TemplateLimitError(f"prints or compares an object of type {type(value).__name__}")
        parts, characters, deepest = 1, 0, 0
        for part in inner:
            self.spend(steps=0)
            size = self.size(part, depth + 1)
            parts += size.parts
            characters += size.characters
            deepest = max(deepest, size.depth)
        self._sizes[id(value)] = value, Size(parts, characters, deepest + 1)
        return Size(parts, characters, deepest + 1)


# Set while a template is rendered. It is not while one is compiled, so that Jinja's constant
# folding fails on everything metered and leaves it to the rendering.
current_meter: ContextVar[Meter] = ContextVar("current_meter")


def spend(characters: int = 0, steps: int = 1) -> None:
    """Charge the rendering under way."""
    current_meter.get().spend(characters, steps)


def weigh(value: Any, times: int = 1, indent: int = 0) -> Size:
    """Charge what printing, comparing or hashing `value` costs, lists in lists included.

    times: it is done. indent: characters that printing puts before every item, per level of depth.
    """
    meter = current_meter.get()
    size = meter.size(value)
    meter.spend(times * (size.characters + indent * size.depth * size.parts), times * size.parts)
    return size


def compared(value: Any) -> Any:
    """Charge what comparing, searching or hashing a value may cost; return it."""
    if isinstance(value, (Mapping, *_LISTS)):
        weigh(value)
    else:
        look()
    return value


def look() -> None:
    """Look at the time, before what takes little: to look through a text, for instance."""
    spend(steps=0)


def made(value: Any) -> Any:
    """Charge a list or dict that the template writes out; return it."""
    spend(own_size(value), steps=0)
    return value


def text(value: Any) -> str:
    """Print a value as Jinja does."""
    weigh(value)
    return str(value)


def charged(result: Any) -> Any:
    """Charge a new value by its length; make a list of an iterator, item by item."""
    if isinstance(result, Iterator):
        return listed(result)
    spend(own_size(result))
    return result


def listed(items: Iterable[Any]) -> list[Any]:
    """A list of `items`, which may be made on the fly and without end."""
    charge = current_meter.get().spend
    result = []
    for item in items:
        charge(_ITEM_CHARACTERS)
        result.append(item)
    return result


def own_size(value: Any) -> int:
    """Characters to charge for a value itself, without what lies in its items."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return OBJECT_CHARACTERS + _ENTRY_CHARACTERS * len(value)
    if isinstance(value, (list, tuple)):
        return OBJECT_CHARACTERS + _ITEM_CHARACTERS * len(value)
    return 0


class Counted:
    """What a loop runs over, with each iteration charged."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items if isinstance(items, Collection) else listed(items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        charge = current_meter.get().spend
        for item in self._items:
            charge()
            yield item
