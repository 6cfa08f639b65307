"""A Jinja environment for templates of unknown origin: bounded in time, memory and reach.

Chat templates come with models, that is from strangers. Jinja's sandbox keeps them from Python's
internals, not from nested loops or from strings that double. Here the parsed template is rewritten
so that every loop iteration, printed piece, `~`, comparison and list is charged to a meter; calls,
look-ups and operators are charged on their way through the sandbox; and only filters and methods of
built-in types known to be bounded are there at all. What is allowed renders as in transformers.
"""

import time
from collections.abc import Callable
from typing import Any

from jinja2 import ext, nodes, runtime, utils
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import TemplateSyntaxError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from bita.runtime.text import template_meter as meter
from bita.runtime.text.template_charges import (
    STRING_METHODS,
    charge_format,
    charge_method,
    charge_operator,
)
from bita.runtime.text.template_filters import metered_filters, metered_tests, template_globals
from bita.runtime.text.template_meter import (
    OBJECT_CHARACTERS,
    TemplateLimitError,
    TemplateLimits,
)

_JINJA_ARGUMENTS = frozenset(("_loop_vars", "_block_vars"))  # which `call` takes off
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
    " made": meter.made,
    " text": meter.text,
}


class _BoundedGenerator(CodeGenerator):
    """Raises TemplateLimitError where generating the code takes longer than it may."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        environment = self.environment
        assert isinstance(environment, MeteredEnvironment)
        if time.monotonic() > environment.deadline:
            raise TemplateLimitError(f"takes more than {environment.seconds:g} s to compile")
        return super().visit(node, *args, **kwargs)


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates that charge `template_meter.current_meter` while they are rendered."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    code_generator_class = _BoundedGenerator

    def __init__(self, seconds: float = TemplateLimits.seconds) -> None:
        """seconds: in which a template has to be compiled, from now on."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, ext.loopcontrols],
            optimized=False,  # folding constants takes the cube of how deep an expression is nested
        )
        self.filters = metered_filters() | _INTERNAL_FILTERS
        self.tests.clear()
        self.tests.update(metered_tests())
        self.globals = template_globals()
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _charge_everything(template)
        template.set_environment(self)
        return template

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Of built-in types only methods that are known to be bounded, of Jinja's all but _x."""
        if isinstance(obj, str):
            return attr in STRING_METHODS
        if isinstance(obj, dict):
            return attr in _DICT_METHODS
        return isinstance(obj, _JINJA_OBJECTS) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja's own guard of str.format, with its output charged."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def metered_format(*args: Any, **kwargs: Any) -> str:
            charge_format(value.__self__, [args, kwargs])
            return wrapped(*args, **kwargs)

        return metered_format

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look up, after charging the hash of a tuple."""
        return super().getitem(obj, meter.compared(argument))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Look up by name, and look at the time."""
        meter.look()
        return super().getattr(obj, attribute)

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Compute, after charging the result."""
        charge_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call, charging before what could take long or make much, and then the result."""
        meter.spend(OBJECT_CHARACTERS * (1 + len(args) + len(kwargs)), steps=0)
        owner = getattr(__obj, "__self__", None)
        method = getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            given = {name: kwargs[name] for name in kwargs.keys() - _JINJA_ARGUMENTS}
            args = charge_method(owner, method, args, given)
        elif isinstance(owner, (dict, runtime.LoopContext)):  # hash, and compare
            meter.compared((*args, *kwargs.values()))
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
    _ChargeLists().visit(template)


class _ChargeLists(NodeTransformer):
    """Puts a charging filter around lists, tuples and dicts that are written out."""

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802  (Jinja's interface)
        return _filtered(self.generic_visit(node), " made")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _filtered(self.generic_visit(node), " made")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, " made") if node.ctx == "load" else node


def _constant(node: nodes.Expr) -> nodes.Expr:
    """Literal text as an expression, which can be filtered."""
    if isinstance(node, nodes.TemplateData):
        return nodes.Const(node.data, lineno=node.lineno)
    return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
