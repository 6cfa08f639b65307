"""Charges for operators and string methods, made before they run."""

import re
from collections.abc import Callable, Sized
from string import Formatter
from typing import Any

from bita.runtime.text.template_meter import (
    OBJECT_CHARACTERS,
    TemplateLimitError,
    check_time,
    own_size,
    spend,
    to_list,
    weigh,
)

_MAX_WIDTH = 999  # of a formatted value
_MAX_PATTERN = 1 << 16  # characters of a text with fields
_MAX_INTEGER_BITS = 256
_MAX_STRIPPED = 256  # characters to strip: each character of a text may be compared with all
_SEARCHED_PER_CHARACTER = 64  # comparisons that cost as much as creating a character
_WIDE_SPEC = re.compile(r"\{|\d{4}")
_KEY = r"\([^()]{0,64}\)"
_ODD_KEY = re.compile(rf"%(?!{_KEY})\(")  # Python accepts keys that contain brackets
_WIDE_PERCENT = re.compile(rf"%({_KEY})?[-+ #]*\d*\.?(\*|\d{{4}})")
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


def charge_operator(operator: str, left: Any, right: Any) -> None:
    """Charge a binary operator."""
    check_time()
    if operator == "%" and isinstance(left, str):
        charge_percent(left, right)
    elif isinstance(left, int) and isinstance(right, int):
        _check_integers(operator, left, right)
    elif operator == "+" and isinstance(left, Sized):
        spend(own_size(left) + own_size(right))
    elif operator == "*" and isinstance(left, int | Sized) and isinstance(right, int | Sized):
        repeated, count = (right, left) if isinstance(left, int) else (left, right)
        spend(own_size(repeated) * max(count, 0) if isinstance(count, int) else 0)


def _check_integers(operator: str, left: int, right: int) -> None:
    bits = left.bit_length(), right.bit_length()
    result = {"*": sum(bits), "**": bits[0] * abs(right)}.get(operator, max(bits))
    if result > _MAX_INTEGER_BITS:
        raise TemplateLimitError(f"computes with an integer of more than {_MAX_INTEGER_BITS} bits")


def charge_percent(pattern: str, values: Any) -> None:
    """Charge `pattern % values`; refuse wide fields."""
    _check_pattern(pattern)
    _charge_fields(pattern.count("%"), values)
    if _ODD_KEY.search(pattern) or _WIDE_PERCENT.search(pattern):
        raise TemplateLimitError(f"formats to more than {_MAX_WIDTH} characters: {pattern[:80]!r}")


def charge_format(pattern: str, values: Any) -> None:
    """Charge `pattern.format(...)`; refuse wide and computed fields."""
    _check_pattern(pattern)
    _charge_fields(pattern.count("{"), values)
    fields = (spec for _, _, spec, _ in Formatter().parse(pattern) if spec is not None)
    if any(_WIDE_SPEC.search(spec) for spec in fields):
        raise TemplateLimitError(f"formats to more than {_MAX_WIDTH} characters: {pattern[:80]!r}")


def _check_pattern(pattern: str) -> None:
    spend(len(pattern))
    if len(pattern) > _MAX_PATTERN:
        raise TemplateLimitError(f"formats with a pattern of more than {_MAX_PATTERN} characters")


def _charge_fields(num_fields: int, values: Any) -> None:
    spend(num_fields * _MAX_WIDTH)
    weigh(values, max(num_fields, 1))


def charge_replace(whole: str, old: str, new: str) -> None:
    """Charge str.replace."""
    spend(len(whole) + whole.count(old) * len(new))


def charge_join(separator: str, items: list[Any]) -> None:
    """Charge str.join."""
    weigh(items)
    spend(len(separator) * len(items))


def charge_lines(whole: str, per_line: int) -> None:
    """Charge an operation that creates `per_line` characters for each line of a text."""
    num_lines = 1 + sum(map(whole.count, _LINE_ENDS))
    spend(num_lines * per_line)


def charge_strip(whole: str, characters: Any = None) -> None:
    """Charge str.strip; refuse many characters."""
    if isinstance(characters, str) and len(characters) > _MAX_STRIPPED:
        raise TemplateLimitError(f"strips over {_MAX_STRIPPED} different characters")
    check_time()


def charge_search(whole: str, part: Any, *places: Any) -> None:
    """Charge a search from the end, which may compare the whole part at each position."""
    length = len(part) if isinstance(part, str) else 1
    spend(len(whole) * length // _SEARCHED_PER_CHARACTER)


def _charge_split(whole: str, sep: Any = None, maxsplit: Any = -1) -> None:
    if isinstance(sep, str) and sep:
        pieces = 1 + whole.count(sep)
    else:
        pieces = 1 + sum(map(whole.count, (" ", *_LINE_ENDS, "\t", "\x1f", "\xa0", "\u3000")))
        pieces += len(whole) // 8 if not whole.isascii() else 0  # rare kinds of spaces
    spend(pieces * OBJECT_CHARACTERS)


def _charge_split_from_end(whole: str, sep: Any = None, maxsplit: Any = -1) -> None:
    charge_search(whole, sep)
    _charge_split(whole, sep)


def _charge_split_lines(whole: str, keepends: Any = False) -> None:
    charge_lines(whole, OBJECT_CHARACTERS)


def _charge_time(whole: str, *args: Any) -> None:
    check_time()


# The string methods that a template can call, with their charges. Methods that pad to a width or
# use a table are missing (center, zfill, expandtabs, translate, …).
STRING_METHODS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(
        (
            *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum"),
            *("isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace"),
            *("istitle", "isupper", "lower", "partition", "removeprefix", "removesuffix"),
            *("startswith", "swapcase", "title", "upper"),
        ),
        _charge_time,
    ),
    **dict.fromkeys(("rfind", "rindex", "rpartition"), charge_search),
    **dict.fromkeys(("strip", "lstrip", "rstrip"), charge_strip),
    "join": charge_join,
    "replace": lambda whole, old, new, *rest: charge_replace(whole, old, new),
    "split": _charge_split,
    "rsplit": _charge_split_from_end,
    "splitlines": _charge_split_lines,
}


def charge_method(owner: str, method: str, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, ...]:
    """Charge a string method and return the arguments to call it with."""
    charge = STRING_METHODS.get(method)
    if charge is None:
        raise TemplateLimitError(f"calls the unknown string method {method}")
    if method == "join" and args:
        args = (to_list(args[0]), *args[1:])
    charge(owner, *args, **kwargs)
    return args
