"""A Jinja environment for templates of unknown origin: bounded in time, memory and reach.

Chat templates come with models, that is from strangers. Jinja's sandbox keeps them from Python's
internals, not from nested loops or from strings that double. Here the parsed template is rewritten
so that every loop iteration, printed piece, `~` and comparison is charged to a meter; calls and
operators are charged on their way through the sandbox; and only filters and methods of built-in
types known to be bounded are there at all. What is allowed renders as in transformers.
"""

from collections.abc import Callable
from typing import Any

from jinja2 import ext, nodes, runtime, utils
from jinja2.exceptions import TemplateSyntaxError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bita.runtime.text import template_meter as meter
from bita.runtime.text.template_filters import metered_filters, metered_tests, template_globals

# Left out: what pads to a width, or goes by a table (center, zfill, expandtabs, translate, …).
_STRING_METHODS = frozenset(
    (
        *("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha"),
        *("isascii", "isdecimal", "isdigit", "islower", "isnumeric", "isspace", "istitle"),
        *("isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix"),
        *("replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split", "splitlines"),
        *("startswith", "strip", "swapcase", "title", "upper"),
    )
)
_DICT_METHODS = frozenset(("get", "items", "keys", "values"))
_JINJA_OBJECTS = (
    *(runtime.LoopContext, runtime.Macro, runtime.Undefined, runtime.TemplateReference),
    *(utils.Namespace, utils.Cycler, utils.Joiner),
)
# Filters that the rewriting puts in; a name that begins with a space cannot be written.
_INTERNAL_FILTERS: dict[str, Callable[..., Any]] = {
    " charged": meter.charged,
    " compared": meter.compared,
    " counted": meter.Counted,
    " text": meter.text,
}


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates that charge `template_meter.current_meter` while they are rendered."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
        )
        self.filters = metered_filters() | _INTERNAL_FILTERS
        self.tests.update(metered_tests())
        self.globals = template_globals()

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _charge_everything(template)
        template.set_environment(self)
        return template

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Of built-in types only methods that are known to be bounded, of Jinja's all but _x."""
        if isinstance(obj, str):
            return attr in _STRING_METHODS
        if isinstance(obj, dict):
            return attr in _DICT_METHODS
        return isinstance(obj, _JINJA_OBJECTS) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's own guard of str.format, with its output charged."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def metered_format(*args: Any, **kwargs: Any) -> str:
            meter.charge_format(value.__self__, [args, kwargs])
            return wrapped(*args, **kwargs)

        return metered_format

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look up, after charging the hash of a tuple."""
        return super().getitem(obj, meter.compared(argument))

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Compute, after charging the result."""
        meter.charge_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call, charging before what could make much of little, and otherwise the result."""
        owner = getattr(__obj, "__self__", None)
        method = getattr(__obj, "__name__", "")
        if isinstance(owner, str) and method == "replace" and len(args) >= 2:
            meter.charge_replace(owner, *args[:2])
        elif isinstance(owner, str) and method == "join" and args:
            args = (meter.listed(args[0]),)
            meter.charge_join(owner, args[0])
        elif isinstance(owner, dict):
            meter.compared(args)
        return meter.charged(super().call(__context, __obj, *args, **kwargs))


class _Generation(ext.Extension):
    """{% generation %}: marks the assistant's words for training; the text is what is inside."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _charge_everything(template: nodes.Template) -> None:
    """Put a charging filter around everything that the sandbox has no hook for, in place."""
    for loop in list(template.find_all(nodes.For)):
        if loop.recursive:
            raise TemplateSyntaxError("recursive loops are not supported", loop.lineno)
        loop.iter = _filtered(loop.iter, " counted")
    for output in list(template.find_all(nodes.Output)):
        output.nodes = [_filtered(_constant(child), " text") for child in output.nodes]
    for concatenation in list(template.find_all(nodes.Concat)):
        concatenation.nodes = [_filtered(child, " text") for child in concatenation.nodes]
    for comparison in list(template.find_all(nodes.Compare)):
        comparison.expr = _filtered(comparison.expr, " compared")
        for operand in comparison.ops:
            operand.expr = _filtered(operand.expr, " compared")
    for pair in list(template.find_all(nodes.Pair)):
        pair.key = _filtered(pair.key, " compared")
    for item in list(template.find_all(nodes.Getitem)):
        if isinstance(item.arg, nodes.Slice):
            item.node = _filtered(item.node, " charged")


def _constant(node: nodes.Expr) -> nodes.Expr:
    """Literal text as an expression, which can be filtered."""
    if isinstance(node, nodes.TemplateData):
        return nodes.Const(node.data, lineno=node.lineno)
    return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
