"""A Jinja environment for templates of unknown origin, bounded in time, memory and access.

Chat templates come with models, so they are untrusted. Jinja's sandbox keeps them from Python's
internals, but not from nested loops or from strings that double. Here the parsed template is
rewritten so that every loop iteration, printed piece, `~`, comparison and list is charged to a
meter. Calls, look-ups and operators are charged on their way through the sandbox. Only filters and
methods of built-in types that are known to be bounded are available. What is allowed renders as in
transformers.
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

_JINJA_ARGUMENTS = frozenset(
    ("_loop_vars", "_block_vars")
)  # arguments that Jinja adds and `call` removes
_DICT_METHODS = frozenset(("get", "items", "keys", "values"))
_JINJA_OBJECTS = (
    *(runtime.LoopContext, runtime.Macro, runtime.Undefined, runtime.TemplateReference),
    *(utils.Namespace, utils.Cycler, utils.Joiner),
)
# Filters inserted by the rewriting. Templates cannot write names that begin with a space.
_INTERNAL_FILTERS: dict[str, Callable[..., Any]] = {
    " charged": meter.charge_result,
    " compared": meter.charge_comparison,
    " counted": meter.Counted,
    " made": meter.charge_literal,
    " text": meter.text,
}


class _BoundedGenerator(CodeGenerator):
    """A code generator that raises TemplateLimitError at the deadline."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        environment = self.environment
        assert isinstance(environment, MeteredEnvironment)
        if time.monotonic() > environment.deadline:
            raise TemplateLimitError(f"takes more than {environment.seconds:g} s to compile")
        return super().visit(node, *args, **kwargs)


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates that charge `template_meter.current_meter` during rendering."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    code_generator_class = _BoundedGenerator

    def __init__(self, seconds: float = TemplateLimits.seconds) -> None:
        """Create an environment. seconds: time limit for compiling, from now on."""
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, ext.loopcontrols],
            optimized=False,  # constant folding takes cubic time in the nesting depth
        )
        self.filters = metered_filters() | _INTERNAL_FILTERS
        self.tests.clear()
        self.tests.update(metered_tests())
        self.globals = template_globals()
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _add_charges(template)
        template.set_environment(self)
        return template

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Allow the bounded methods of built-in types, and the public attributes of Jinja's."""
        if isinstance(obj, str):
            return attr in STRING_METHODS
        if isinstance(obj, dict):
            return attr in _DICT_METHODS
        return isinstance(obj, _JINJA_OBJECTS) and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Charge the output of str.format, and apply Jinja's own guard."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def metered_format(*args: Any, **kwargs: Any) -> str:
            charge_format(value.__self__, [args, kwargs])
            return wrapped(*args, **kwargs)

        return metered_format

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look up an item, after charging the hash of its key."""
        return super().getitem(obj, meter.charge_comparison(argument))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Look up an attribute, after checking the time."""
        meter.check_time()
        return super().getattr(obj, attribute)

    def call_binop(self, context: runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator, after charging its result."""
        charge_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call an object. Expensive methods are charged before, the result after the call."""
        meter.spend(OBJECT_CHARACTERS * (1 + len(args) + len(kwargs)), steps=0)
        owner = getattr(__obj, "__self__", None)
        method = getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            given = {name: kwargs[name] for name in kwargs.keys() - _JINJA_ARGUMENTS}
            args = charge_method(owner, method, args, given)
        elif isinstance(owner, (dict, runtime.LoopContext)):  # hash, and compare
            meter.charge_comparison((*args, *kwargs.values()))
        return meter.charge_result(super().call(__context, __obj, *args, **kwargs))


class _Generation(ext.Extension):
    """The tag {% generation %}, which marks the assistant's words; writes its content."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _add_charges(template: nodes.Template) -> None:
    """Wrap everything for which the sandbox has no hook in a charging filter, in place."""
    for loop in list(template.find_all(nodes.For)):
        if loop.recursive:
            raise TemplateSyntaxError("recursive loops are not supported", loop.lineno)
        loop.iter = _wrap(loop.iter, " counted")
    for output in list(template.find_all(nodes.Output)):
        output.nodes = [_wrap(_as_constant(child), " text") for child in output.nodes]
    for concatenation in list(template.find_all(nodes.Concat)):
        concatenation.nodes = [_wrap(child, " text") for child in concatenation.nodes]
    for comparison in list(template.find_all(nodes.Compare)):
        comparison.expr = _wrap(comparison.expr, " compared")
        for operand in comparison.ops:
            operand.expr = _wrap(operand.expr, " compared")
    for pair in list(template.find_all(nodes.Pair)):
        pair.key = _wrap(pair.key, " compared")
    for item in list(template.find_all(nodes.Getitem)):
        if isinstance(item.arg, nodes.Slice):
            item.node = _wrap(item.node, " charged")
    _ChargeLists().visit(template)


class _ChargeLists(NodeTransformer):
    """Wraps literals of lists, tuples and dicts in a charging filter."""

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802  (Jinja's interface)
        return _wrap(self.generic_visit(node), " made")

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return _wrap(self.generic_visit(node), " made")

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _wrap(node, " made") if node.ctx == "load" else node


def _as_constant(node: nodes.Expr) -> nodes.Expr:
    """Turn literal text into an expression, which can be filtered."""
    if isinstance(node, nodes.TemplateData):
        return nodes.Const(node.data, lineno=node.lineno)
    return node


def _wrap(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
