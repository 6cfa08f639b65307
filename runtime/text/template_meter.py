"""What rendering a chat template may cost, and the operations that charge for it.

Every function here works on the meter of the rendering under way. Whatever can make much out of
little (repeating, replacing, formatting, printing nested lists) is charged before it is done.
"""

import re
import time
from collections.abc import Collection, ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from contextvars import ContextVar
from dataclasses import dataclass
from string import Formatter
from typing import Any

from jinja2.runtime import Undefined

_LISTS = (list, tuple, range, KeysView, ValuesView, ItemsView)
_SCALARS = (str, int, float, type(None), Undefined)
_ITEM_CHARACTERS = 8  # charged for an item of a list: the size of a reference
_MAX_DEPTH = 64  # of nested lists that are printed or compared
_MAX_WIDTH = 999  # of a formatted value
_MAX_INTEGER_BITS = 256
_WIDE_PERCENT = re.compile(r"%(\([^)]*\))?[-+ #]*\d*\.?(\*|\d{4})")
_WIDE_SPEC = re.compile(r"\{|\d{4}")


class TemplateLimitError(Exception):
    """A template wants more than it may have."""


@dataclass(frozen=True)
class TemplateLimits:
    """What a template may use. Real ones stay a hundred times below on usual conversations."""

    template_characters: int = 200_000  # of the template's source
    messages: int = 2_048  # of one conversation
    output_characters: int = 2_000_000  # of the rendered prompt
    work_characters: int = 16_000_000  # made on the way, 1 to 4 bytes each
    steps: int = 1_000_000  # loop iterations, calls, filters and prints; about 1 µs each
    seconds: float = 5.0  # wall clock, looked at in every step


class Meter:
    """What one rendering may still use."""

    def __init__(self, limits: TemplateLimits) -> None:
        self.limits = limits
        self.steps = limits.steps
        self.characters = limits.work_characters
        self.deadline = time.monotonic() + limits.seconds

    def spend(self, characters: int = 0) -> None:
        """Charge one step that makes so many characters; raise TemplateLimitError if too much."""
        self.steps -= 1
        self.characters -= characters
        if self.steps < 0:
            raise TemplateLimitError(f"takes more than {self.limits.steps} steps")
        if self.characters < 0:
            raise TemplateLimitError(f"makes more than {self.limits.work_characters} characters")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"takes more than {self.limits.seconds} s")


# Set while a template is rendered. It is not while one is compiled, so that Jinja's constant
# folding fails on everything metered and leaves it to the rendering.
current_meter: ContextVar[Meter] = ContextVar("current_meter")


def spend(characters: int = 0) -> None:
    """Charge one step of the rendering under way."""
    current_meter.get().spend(characters)


def weigh(value: Any, indent: int = 0) -> None:
    """Charge what printing, comparing or hashing `value` costs, lists in lists included.

    indent: characters that printing puts before every item, per level of depth.
    """
    charge = current_meter.get().spend
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _MAX_DEPTH:
            raise TemplateLimitError(f"prints or compares lists nested over {_MAX_DEPTH} deep")
        charge(indent * depth + (len(item) if isinstance(item, str) else 0))
        if isinstance(item, Mapping):
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, _LISTS):
            waiting += [(part, depth + 1) for part in item]
        elif not isinstance(item, _SCALARS):
            raise TemplateLimitError(f"prints or compares an object of type {type(item).__name__}")


def compared(value: Any) -> Any:
    """Charge what comparing a list or hashing a tuple may cost; return it."""
    if isinstance(value, (Mapping, *_LISTS)):
        weigh(value)
    return value


def text(value: Any) -> str:
    """Print a value as Jinja does."""
    weigh(value)
    return str(value)


def charged(result: Any) -> Any:
    """Charge a new value by its length; make a list of an iterator, item by item."""
    if isinstance(result, Iterator):
        return listed(result)
    spend(_size(result))
    return result


def listed(items: Iterable[Any]) -> list[Any]:
    """A list of `items`, which may be made on the fly and without end."""
    charge = current_meter.get().spend
    result = []
    for item in items:
        charge(_ITEM_CHARACTERS)
        result.append(item)
    return result


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


def charge_replace(whole: str, old: str, new: str) -> None:
    """Charge str.replace before it is done."""
    spend(len(whole) + whole.count(old) * len(new))


def charge_join(separator: str, items: list[Any]) -> None:
    """Charge str.join before it is done."""
    weigh(items)
    spend(len(separator) * len(items))


def charge_percent(pattern: str, values: Any) -> None:
    """Charge `pattern % values` before it is done; refuse wide fields."""
    if _WIDE_PERCENT.search(pattern):
        raise TemplateLimitError(f"formats to over {_MAX_WIDTH} characters: {pattern[:80]!r}")
    _charge_fields(pattern.count("%"), values)


def charge_format(pattern: str, values: Any) -> None:
    """Charge `pattern.format(...)` before it is done; refuse wide and computed fields."""
    fields = [spec for _, _, spec, _ in Formatter().parse(pattern) if spec is not None]
    if any(_WIDE_SPEC.search(spec) for spec in fields):
        raise TemplateLimitError(f"formats to over {_MAX_WIDTH} characters: {pattern[:80]!r}")
    _charge_fields(len(fields), values)


def _charge_fields(num_fields: int, values: Any) -> None:
    meter = current_meter.get()
    before = meter.characters
    weigh(values)
    meter.spend(num_fields * (_MAX_WIDTH + before - meter.characters))


def charge_operator(operator: str, left: Any, right: Any) -> None:
    """Charge a binary operator that can make its operands grow before it is done."""
    if operator == "%" and isinstance(left, str):
        charge_percent(left, right)
    elif operator == "+":
        spend(_size(left) + _size(right))
    elif operator == "*" and not (isinstance(left, int) and isinstance(right, int)):
        count = next((x for x in (left, right) if isinstance(x, int)), 0)
        spend(max(count, 0) * (_size(left) + _size(right)))
    elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = (left.bit_length(), right.bit_length())
        if (sum(bits) if operator == "*" else bits[0] * abs(right)) > _MAX_INTEGER_BITS:
            raise TemplateLimitError(f"computes an integer of over {_MAX_INTEGER_BITS} bits")


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return _ITEM_CHARACTERS * len(value) if isinstance(value, (list, tuple, dict)) else 0
