"""Filters, tests and functions for chat templates, each of which charges the meter."""

import functools
import json
from collections.abc import Callable, Iterable, Sized
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import filters, nodes, pass_eval_context, utils
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import safe_range

from bita.json_values import shown
from bita.runtime.text import template_meter as meter
from bita.runtime.text.template_charges import (
    charge_join,
    charge_lines,
    charge_replace,
    charge_strip,
)

_MAX_INDENT = 16
_MAX_DATE_FORMAT = 256
_MAX_NUMBER_CHARACTERS = 400
_MAX_INTEGER_BITS = 1_024
_WORD_CHARACTERS = 32  # charged per character, since each may begin a word


class TemplateRefusalError(TemplateError):
    """Raised by raise_exception: the template refuses the messages."""


def _glance(*args: Any) -> None:
    """Charge a filter that inspects only the value itself, or returns an iterator.

    The items of an iterator are charged one by one.
    """
    meter.check_time()


def _walk(value: Any, *args: Any) -> None:
    """Charge a filter that visits all items of a list before it returns."""
    meter.spend(meter.own_size(value) * (8 if isinstance(value, str) else 1), steps=0)


def _print(*args: Any) -> None:
    """Charge a filter that prints, compares or hashes its arguments."""
    for value in args:
        meter.weigh(value)


def _compare(*args: Any) -> None:
    """Charge a test that compares its arguments."""
    for value in args:
        meter.charge_comparison(value)


def _sort(value: Any, *args: Any) -> None:
    """Charge a filter that compares the items of a list with each other."""
    length = len(value) if isinstance(value, Sized) else 1
    meter.weigh(value, times=max(length.bit_length(), 1))
    if isinstance(value, str):
        meter.spend(8 * length, steps=length)
    _print(*args)


def _calculate(*args: Any) -> None:
    """Charge a calculation with short numbers, or with strings that contain one."""
    for value in args:
        if isinstance(value, str) and len(value) > _MAX_NUMBER_CHARACTERS:
            raise meter.TemplateLimitError(f"reads a number of {len(value)} characters")
        if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
            raise meter.TemplateLimitError(f"computes with more than {_MAX_INTEGER_BITS} bits")
    _print(*args)


def _divide(*args: Any) -> None:
    """Charge a calculation with numbers only, since `%` formats a string."""
    if any(isinstance(value, str) for value in args):
        raise TypeError("a text cannot be divided")
    _calculate(*args)


def _title(value: Any, *args: Any) -> None:
    """Charge a filter that splits a string into words."""
    meter.spend(_WORD_CHARACTERS * meter.weigh(value).characters)


def _trim(value: Any, chars: Any = None) -> None:
    charge_strip(meter.text(value), chars)


# The available filters of Jinja, with the charge before each call; the result is charged too.
# Filters that pad to a width or repeat are missing (center, round, batch, slice, wordwrap, …).
FILTER_CHARGES: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("count", "d", "default", "first", "last", "length"), _glance),
    **dict.fromkeys(("items", "map", "reject", "rejectattr", "select", "selectattr"), _glance),
    **dict.fromkeys(("list", "reverse"), _walk),
    **dict.fromkeys(("capitalize", "e", "escape", "lower", "safe", "string", "upper"), _print),
    **dict.fromkeys(("dictsort", "max", "min", "sort", "unique"), _sort),
    **dict.fromkeys(("abs", "float", "int"), _calculate),
    "title": _title,
    "trim": _trim,
}
TEST_CHARGES: dict[str, Callable[..., None]] = {
    **dict.fromkeys(
        (
            *("boolean", "callable", "defined", "escaped", "false", "filter", "float", "integer"),
            *("iterable", "mapping", "none", "number", "sameas", "sequence", "string", "test"),
            *("true", "undefined"),
        ),
        _glance,
    ),
    **dict.fromkeys(
        (
            *("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge"),
            *("<", "lt", "lessthan", "<=", "le", "in"),
        ),
        _compare,
    ),
    **dict.fromkeys(("lower", "upper"), _print),
    **dict.fromkeys(("divisibleby", "even", "odd"), _divide),
}


def metered_filters() -> dict[str, Callable[..., Any]]:
    """Return Jinja's bounded filters, and our own in place of unbounded ones."""
    defaults: dict[str, Any] = DEFAULT_FILTERS
    return {
        **{name: _wrap(defaults[name], charge) for name, charge in FILTER_CHARGES.items()},
        **{"indent": _indent, "join": _join, "replace": _replace, "tojson": _tojson},
    }


def metered_tests() -> dict[str, Callable[..., Any]]:
    """Return all of Jinja's tests."""
    defaults: dict[str, Any] = DEFAULT_TESTS
    return {name: _wrap(defaults[name], charge) for name, charge in TEST_CHARGES.items()}


def template_globals() -> dict[str, Any]:
    """Return the functions of templates: Jinja's without lipsum, and those of transformers."""
    return {
        "cycler": utils.Cycler,
        "dict": _make_dict,
        "joiner": utils.Joiner,
        "namespace": _Namespace,
        "raise_exception": _raise_exception,
        "range": safe_range,
        "strftime_now": _strftime_now,
    }


def _wrap(function: Callable[..., Any], charge: Callable[..., None]) -> Callable[..., Any]:
    """Wrap a filter or test so that its arguments are charged, except those that Jinja passes."""
    num_passed = int(hasattr(function, "jinja_pass_arg"))

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        charge(*args[num_passed:], *kwargs.values())
        return meter.charge_result(function(*args, **kwargs))

    return metered


def _indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    whole = meter.text(s)
    charge_lines(whole, len(width) if isinstance(width, str) else max(width, 0))
    result = filters.do_indent(whole, width, first, blank)
    meter.spend(len(result), steps=0)
    return result


@pass_eval_context
def _join(
    eval_ctx: nodes.EvalContext, value: Any, d: Any = "", attribute: str | int | None = None
) -> str:
    items = meter.to_list(value)
    charge_join(meter.text(d), items)
    result = filters.sync_do_join(eval_ctx, items, d, attribute)
    meter.spend(len(result), steps=0)
    return result


@pass_eval_context
def _replace(
    eval_ctx: nodes.EvalContext, s: Any, old: Any, new: Any, count: int | None = None
) -> str:
    charge_replace(meter.text(s), meter.text(old), meter.text(new))
    return filters.do_replace(eval_ctx, s, old, new, count)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Call json.dumps, as transformers does; Jinja's own filter escapes HTML."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= _MAX_INDENT):
        raise meter.TemplateLimitError(
            f"indents JSON by {shown(indent)} instead of 0 to {_MAX_INDENT}"
        )
    meter.weigh(x, indent=(indent or 0) + sum(map(len, separators or ())))
    result = json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    meter.spend(len(result))
    return result


class _Namespace(utils.Namespace):
    """A namespace that refuses names with a leading underscore, as transformers does."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        meter.weigh(args[1:])
        utils.Namespace.__init__(*args, **kwargs)
        for name in dict(*args[1:], **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold an attribute named {shown(name)}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    args = tuple(_materialize(each) for each in args)
    meter.weigh(args)
    return dict(*args, **kwargs)


def _materialize(items: Any) -> Any:
    """Turn an iterator into a list, which can be weighed before it is iterated over."""
    is_iterator = isinstance(items, Iterable) and not isinstance(items, Sized)
    return meter.to_list(items) if is_iterator else items


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateRefusalError(meter.text(message))


def _strftime_now(date_format: str) -> str:
    if len(date_format) > _MAX_DATE_FORMAT:
        raise meter.TemplateLimitError(f"has a date format of {len(date_format)} characters")
    return datetime.now().strftime(date_format)
