"""The filters, tests and functions a chat template may use, each charging the meter."""

import functools
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import filters, nodes, pass_eval_context, utils
from jinja2.defaults import DEFAULT_FILTERS, DEFAULT_TESTS
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.sandbox import safe_range

from bita.runtime.text import template_meter as meter

# Left out: what pads to a width or repeats (center, round, batch, slice, wordwrap, urlize, …).
_BOUNDED_FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "e", "escape", "first", "float", "int"),
    *("items", "last", "length", "list", "lower", "map", "reject", "rejectattr", "reverse"),
    *("safe", "select", "selectattr", "title", "trim", "upper"),
)
_DEEP_FILTERS = ("dictsort", "max", "min", "sort", "string", "unique")  # compare or print items
_DEEP_TESTS = (
    *("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge"),
    *("<", "lt", "lessthan", "<=", "le", "in"),
)
_MAX_INDENT = 16
_MAX_DATE_FORMAT = 256


class TemplateRefusalError(TemplateError):
    """What raise_exception raises: the template does not take these messages."""


def metered_filters() -> dict[str, Callable[..., Any]]:
    """The bounded ones of Jinja's filters, and ours in place of those that are not bounded."""
    defaults: dict[str, Any] = DEFAULT_FILTERS
    return {
        **{name: _metered(defaults[name]) for name in _BOUNDED_FILTERS},
        **{name: _metered(defaults[name], is_deep=True) for name in _DEEP_FILTERS},
        "indent": _indent,
        "join": _join,
        "replace": _replace,
        "tojson": _tojson,
    }


def metered_tests() -> dict[str, Callable[..., Any]]:
    """Those of Jinja's tests that compare, charged; the others cost next to nothing."""
    defaults: dict[str, Any] = DEFAULT_TESTS
    return {name: _metered(defaults[name], is_deep=True) for name in _DEEP_TESTS}


def template_globals() -> dict[str, Any]:
    """What a template can call: Jinja's own without lipsum, and what transformers adds."""
    return {
        "cycler": utils.Cycler,
        "dict": _make_dict,
        "joiner": utils.Joiner,
        "namespace": _Namespace,
        "raise_exception": _raise_exception,
        "range": safe_range,
        "strftime_now": _strftime_now,
    }


def _metered(function: Callable[..., Any], is_deep: bool = False) -> Callable[..., Any]:
    """Charge a filter or test; `is_deep` if it compares or prints what is in its arguments."""

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        if is_deep:
            for value in (*args, *kwargs.values()):
                meter.compared(value)
        return meter.charged(function(*args, **kwargs))

    return metered


def _indent(s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    whole = meter.text(s)
    num_characters = len(width) if isinstance(width, str) else max(width, 0)
    meter.spend(num_characters * (whole.count("\n") + 1))
    return filters.do_indent(whole, width, first, blank)


@pass_eval_context
def _join(
    eval_ctx: nodes.EvalContext, value: Any, d: Any = "", attribute: str | int | None = None
) -> str:
    items = meter.listed(value)
    meter.charge_join(meter.text(d), items)
    return filters.sync_do_join(eval_ctx, items, d, attribute)


@pass_eval_context
def _replace(
    eval_ctx: nodes.EvalContext, s: Any, old: Any, new: Any, count: int | None = None
) -> str:
    meter.charge_replace(meter.text(s), meter.text(old), meter.text(new))
    return filters.do_replace(eval_ctx, s, old, new, count)


def _tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """json.dumps, as in transformers; Jinja's own escapes HTML."""
    if indent is not None and not 0 <= indent <= _MAX_INDENT:
        raise meter.TemplateLimitError(f"indents JSON by {indent}, the limit is {_MAX_INDENT}")
    meter.weigh(x, (indent or 0) + sum(map(len, separators or ())))
    result = json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    meter.spend(len(result))
    return result


class _Namespace(utils.Namespace):
    """Refuses names that begin with an underscore, as transformers does."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        utils.Namespace.__init__(*args, **kwargs)
        for name in dict(*args[1:], **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold an attribute named {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    meter.compared(args)
    return dict(*args, **kwargs)


def _raise_exception(message: Any) -> NoReturn:
    raise TemplateRefusalError(meter.text(message))


def _strftime_now(date_format: str) -> str:
    if len(date_format) > _MAX_DATE_FORMAT:
        raise meter.TemplateLimitError(f"has a date format of {len(date_format)} characters")
    return datetime.now().strftime(date_format)
