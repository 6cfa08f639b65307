"""Limits and metering of the cost of rendering a chat template.

The functions charge the meter of the current rendering. A single Python operation cannot be
interrupted, so whatever can take long, or create much from little, is charged before it runs. Lists
with shared parts are charged as trees, which is how they are printed, compared and hashed.
"""

import time
from collections.abc import Collection, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from jinja2.runtime import Undefined

_LISTS = (list, tuple, range, KeysView, ValuesView, ItemsView)
_SCALARS = (int, float, type(None), Undefined)
OBJECT_CHARACTERS = 16  # charged per new object
_ITEM_CHARACTERS = 8  # charged per item of a list: the size of a reference
_ENTRY_CHARACTERS = 32  # charged per entry of a dict
_MAX_DEPTH = 64  # of nested lists that are printed or compared


class TemplateLimitError(Exception):
    """A template exceeds a limit."""


@dataclass(frozen=True)
class TemplateLimits:
    """Limits of a template. Real ones need a hundredth of them for ordinary conversations."""

    template_characters: int = 100_000  # of the source; real templates have at most 30 000
    messages: int = 2_048  # of one conversation
    output_characters: int = 2_000_000  # of the rendered prompt
    work_characters: int = 16_000_000  # created during rendering, 1 to 4 bytes each
    steps: int = 1_000_000  # iterations, calls, look-ups, filters and prints; about 1 µs each
    seconds: float = 5.0  # wall clock time, checked in every step; applies to compiling too


@dataclass
class Spent:
    """Steps taken and characters created by renderings so far."""

    steps: int = 0
    characters: int = 0


class Size(NamedTuple):
    """The size of a value as a tree: parts, characters of its texts, and depth of nesting."""

    parts: int
    characters: int
    depth: int


class Meter:
    """The remaining budget of one rendering."""

    def __init__(self, limits: TemplateLimits) -> None:
        self.limits = limits
        self.steps = limits.steps
        self.characters = limits.work_characters
        self.deadline = time.monotonic() + limits.seconds
        # Sizes of lists by id(). The list is kept so that its id is not reused. Lists never change,
        # since they have no methods in the sandbox.
        self._sizes: dict[int, tuple[Any, Size]] = {}

    def spend(self, characters: int = 0, steps: int = 1) -> None:
        """Charge steps and created characters. Raises TemplateLimitError beyond a limit."""
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0:
            raise TemplateLimitError(f"takes more than {self.limits.steps} steps")
        if self.characters < 0:
            raise TemplateLimitError(f"makes more than {self.limits.work_characters} characters")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"takes more than {self.limits.seconds} s")

    def size(self, value: Any, depth: int = 0) -> Size:
        """Measure a value, each list in it once. depth: number of lists that contain it."""
        if isinstance(value, str):
            return Size(1, len(value), 0)
        if isinstance(value, _SCALARS):
            return Size(1, value.bit_length() // 3 if isinstance(value, int) else 0, 0)
        known = self._sizes.get(id(value))
        size = known[1] if known else self._measure(value, depth)
        if depth + size.depth > _MAX_DEPTH:
            raise TemplateLimitError(f"prints or compares lists nested more than {_MAX_DEPTH} deep")
        return size

    def _measure(self, value: Any, depth: int) -> Size:
        if depth >= _MAX_DEPTH:
            raise TemplateLimitError(f"prints or compares lists nested more than {_MAX_DEPTH} deep")
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


# Set while a template is rendered, but not while it is compiled. Jinja's constant folding therefore
# fails on everything metered, and leaves it to the rendering.
current_meter: ContextVar[Meter] = ContextVar("current_meter")


def spend(characters: int = 0, steps: int = 1) -> None:
    """Charge the current rendering."""
    current_meter.get().spend(characters, steps)


def weigh(value: Any, times: int = 1, indent: int = 0) -> Size:
    """Charge printing, comparing or hashing `value`, including nested lists.

    times: number of repetitions. indent: characters printed before every item per level of depth.
    """
    meter = current_meter.get()
    size = meter.size(value)
    meter.spend(times * (size.characters + indent * size.depth * size.parts), times * size.parts)
    return size


def charge_comparison(value: Any) -> Any:
    """Charge comparing, searching or hashing a value, and return the value."""
    if isinstance(value, (Mapping, *_LISTS)):
        weigh(value)
    else:
        check_time()
    return value


def check_time() -> None:
    """Check the time before a cheap operation, such as a search in a text."""
    spend(steps=0)


def charge_literal(value: Any) -> Any:
    """Charge a list or dict literal of the template, and return it."""
    spend(own_size(value), steps=0)
    return value


def text(value: Any) -> str:
    """Print a value like Jinja, after charging it."""
    weigh(value)
    return str(value)


def charge_result(result: Any) -> Any:
    """Charge a new value by its length and return it; an iterator becomes a list."""
    if isinstance(result, Iterator):
        return to_list(result)
    spend(own_size(result))
    return result


def to_list(items: Iterable[Any]) -> list[Any]:
    """List `items`, charging each of them: an iterator may be endless."""
    charge = current_meter.get().spend
    result = []
    for item in items:
        charge(_ITEM_CHARACTERS)
        result.append(item)
    return result


def own_size(value: Any) -> int:
    """Return the characters to charge for a value itself, without its items."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return OBJECT_CHARACTERS + _ENTRY_CHARACTERS * len(value)
    if isinstance(value, (list, tuple)):
        return OBJECT_CHARACTERS + _ITEM_CHARACTERS * len(value)
    return 0


class Counted:
    """The items of a loop, with each iteration charged."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items if isinstance(items, Collection) else to_list(items)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        charge = current_meter.get().spend
        for item in self._items:
            charge()
            yield item
