"""Hostile chat templates: every kind of growth reaches a limit and ends quickly in an error."""

import contextlib
import time
from typing import Any

import hostile_templates
import pytest
from deadlines import stopped_if_it_hangs
from hostile_templates import MAX_SECONDS, REFUSED
from jinja2.defaults import DEFAULT_TESTS
from measured_costs import costs_of

from bita.errors import PromptError
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.template_charges import STRING_METHODS
from bita.runtime.text.template_filters import FILTER_CHARGES, TEST_CHARGES
from bita.runtime.text.template_meter import Meter, Size, TemplateLimits
from bita.runtime.text.template_sandbox import MeteredEnvironment

LONG = {"role": "user", "content": "x" * 60}


def growing(step: str, start: str = "'xx'") -> str:
    return f"{{% set ns = namespace(s={start}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}"


TWINS = growing("{% set ns.s = [ns.s, ns.s] %}", "(1,)")
HOSTILE = {
    "nested loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "large range": "{{ range(10 ** 9) | list }}",
    "repeated text": "{{ 'x' * 10 ** 10 }}",
    "repeated list": "{{ [1] * 10 ** 10 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "large integers": growing("{% set ns.s = ns.s * ns.s %}", "9"),
    "doubling by ~": growing("{% set ns.s = ns.s ~ ns.s %}"),
    "doubling by +": growing("{% set ns.s = ns.s + ns.s %}"),
    "doubling by a block": growing("{% set x %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = x %}"),
    "doubling by %": growing("{% set ns.s = '%s%s' % (ns.s, ns.s) %}"),
    "doubling by format": growing("{% set ns.s = '{0}{0}'.format(ns.s) %}"),
    "doubling lists, printed": TWINS + "{{ ns.s }}",
    "doubling lists, as JSON": TWINS + "{{ ns.s | tojson }}",
    "doubling lists, compared": TWINS + "{{ ns.s == 1 }}",
    "doubling tuples, hashed": TWINS.replace("[", "(").replace("]", ")") + "{{ {}[ns.s] }}",
    "macro tree": "{% macro m(n) %}{{ m(n-1) ~ m(n-1) if n }}{% endmacro %}{{ m(60) }}",
    "endless macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in range(9) recursive %}{% if loop.depth < 5 %}"
    "{{ loop(range(99999)) }}{% endif %}{% endfor %}",
    "join": "{{ (['x' * 7000000] * 200000) | join }}",
    "join method": "{{ ('x' * 7000000).join(['x'] * 200000) }}",
    "replace": "{{ ('x' * 3000000) | replace('x', 'y' * 3000000) }}",
    "replace method": "{{ ('x' * 3000000).replace('', 'y' * 3000000) }}",
    "width": "{{ '%999999999999d' % 1 }}",
    "width by value": "{{ '%*d' % (999999999999, 1) }}",
    "format width": "{{ '{:>999999999999}'.format(1) }}",
    "format width by value": "{{ '{:>{}}'.format(1, 999999999999) }}",
    "center": "{{ 'x'.center(999999999999) }}",
    "integer method": "{{ (1).to_bytes(999999999999) }}",
    "indent": "{{ 'x\n' | indent(999999999999) }}",
    "JSON indent": "{{ [1] | tojson(indent=999999999999) }}",
    "text in a loop": "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "text in a block": "{% set x %}{% for i in range(99999) %}"
    + "x" * 9999
    + "{% endfor %}{% endset %}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_quickly(name: str) -> None:
    limits = TemplateLimits(steps=250_000)
    with (
        stopped_if_it_hangs(),
        pytest.raises(PromptError, match=r"template (?!fails with (Memory|Value)Error)"),
    ):
        ChatTemplate(HOSTILE[name], limits=limits).render([LONG])


def test_negative_sizes_give_no_credit() -> None:
    source = "{{ 'x' | indent(-9999999) }}{{ 'x' * -9999999 }}{{ 'x' * 3000000 }}"
    with pytest.raises(PromptError, match="makes more than 2000000 characters; shorten"):
        ChatTemplate(source, limits=TemplateLimits(work_characters=2_000_000)).render([LONG])


def test_the_time_limit_holds_if_steps_are_slow() -> None:
    loop = "{% for i in range(99999) %}{% if 'y' in s %}{% endif %}{% endfor %}"
    source = "{% set s = 'x' * 5000000 %}" + loop
    with pytest.raises(PromptError, match=r"takes more than 0.2 s; shorten"):
        ChatTemplate(source, limits=TemplateLimits(seconds=0.2)).render([LONG])


def test_the_length_of_a_prompt_is_limited() -> None:
    limits = TemplateLimits(output_characters=100)
    with pytest.raises(PromptError, match="makes a prompt of over 100 characters; shorten"):
        ChatTemplate("{{ messages[0].content * 2 }}", limits=limits).render([LONG])


@pytest.fixture(scope="module")
def costs() -> dict[str, dict[str, Any]]:
    """The costs of each template, in a process that may use 1 GB for all of them."""
    return costs_of(hostile_templates)


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_uninterruptible_operations_are_charged_in_advance(
    name: str, costs: dict[str, dict[str, Any]]
) -> None:
    """A filter, test, operator or method of Python runs to its end, however long it takes."""
    assert costs[name]["seconds"] < MAX_SECONDS + 1
    end = costs[name]["end"]
    assert end.startswith("the chat template ")
    assert "Memory" not in end
    assert len(end) < 1500


def test_every_filter_test_and_method_is_charged() -> None:
    """This includes all of Jinja's own, and detects additions of a new version."""
    environment = MeteredEnvironment()
    own = {"indent", "join", "replace", "tojson"}
    internal = {name for name in environment.filters if name.startswith(" ")}
    assert environment.filters.keys() - internal == FILTER_CHARGES.keys() | own
    assert environment.tests.keys() == TEST_CHARGES.keys() == DEFAULT_TESTS.keys()
    for name, function in (*environment.filters.items(), *environment.tests.items()):
        code = getattr(function, "__code__", None)  # `functools.wraps` copies the module
        where = code.co_filename if code else function.__module__
        assert "template_" in where, name
    allowed = {name for name in dir(str) if environment.is_safe_attribute("", name, None)}
    assert allowed == STRING_METHODS.keys()
    values: tuple[Any, ...] = ([], (), 1, 1.5, b"", range(1), {}.items(), len)
    for value in values:
        for name in dir(value):
            assert not environment.is_safe_attribute(value, name, getattr(value, name)), name


def test_lists_that_share_parts_are_measured_by_their_printed_size() -> None:
    meter = Meter(TemplateLimits())
    value: Any = ("ab", 1)
    for _ in range(5):
        value = [value, {"k": value}]
    text = repr(value)
    size = meter.size(value)
    assert size.parts == text.count("(") * 3 + text.count("[") + text.count("{") * 2
    assert size.characters == 2 * text.count("'ab'") + text.count("'k'")
    assert size.depth == 11
    assert meter.size(value) == size
    assert meter.size(("x", [])) == Size(3, 1, 2)


def test_a_size_of_2_to_the_60_is_computed_at_once() -> None:
    meter = Meter(TemplateLimits(steps=1000))
    value: Any = ("x",)
    for _ in range(60):
        value = (value, value)
    assert meter.size(value).characters == 2**60


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a b' | title }} {{ ' x ' | trim }} {{ 'xyx' | trim('x') }}", "A B x y"),
        ("{{ [3, 1] | sort | join(',') }} {{ [1, 2] | max }} {{ 'x' is upper }}", "1,3 2 False"),
        ("{{ 4 is even }} {{ 9 is divisibleby(3) }} {{ 3 is odd }}", "True True True"),
        ("{{ 'a,b'.split(',', 1) }} {{ 'a b c'.rsplit(maxsplit=1) }}", "['a', 'b'] ['a b', 'c']"),
        ("{{ 'x\ny'.splitlines(keepends=true) | length }} {{ 'abc'.rfind('c') }}", "2 2"),
        ("{{ '%s-%05.2f' % ('a', 1.5) }} {{ '{:>4}|{a}'.format(1, a=2) }}", "a-01.50    1|2"),
        ("{{ '7' | int + '1.5' | float }} {{ 7 // 2 }} {{ 2 ** 10 }} {{ 7 % 4 }}", "8.5 3 1024 3"),
        (
            "{{ dict(a=1) | dictsort }} {{ (1, 2)[::-1] }} {{ [1] * 3 }}",
            "[('a', 1)] (2, 1) [1, 1, 1]",
        ),
        ("{% for i in [1, 1, 2] %}{{ loop.changed(i) }} {% endfor %}", "True False True "),
        ("{{ {'a': [1, {'b': 2}]} | tojson(indent=1) | length }}", "37"),
        ("{% set a, b = (1, 2) %}{{ a ~ b }}{{ {'x': 1}.get('y', 'z') }}", "12z"),
    ],
)
def test_common_template_features_work(source: str, text: str) -> None:
    assert ChatTemplate(source).render([{"role": "system", "content": "Answer."}]) == text


DEEP = {
    "look-ups": "{{ messages[0]" + ".a[0]" * 90 + " }}",
    "filters": "{{ messages" + "|trim" * 90 + " }}",
    "many filters": "{{ messages" + "|trim" * 300 + " }}",
    "lists": "{{ " + "[" * 80 + "]" * 80 + " }}",
    "sums": "{{ 1" + " + 1" * 200 + " }}",
}


@pytest.mark.parametrize("name", DEEP)
def test_nested_templates_compile_quickly(name: str) -> None:
    """Jinja's constant folding takes time cubic in the depth: 0.4 to 17 s for these."""
    times = []
    for _ in range(3):  # the garbage collector may run in one of them
        began = time.process_time()
        with contextlib.suppress(PromptError):  # Python's compiler accepts at most 200 levels
            ChatTemplate(DEEP[name])
        times.append(time.process_time() - began)
    assert min(times) < 0.3


def test_compiling_has_a_time_limit() -> None:
    loops = "{% for a in messages %}" * 100 + "{% endfor %}" * 100
    began = time.process_time()
    with pytest.raises(PromptError, match=r"template takes more than 0\.1 s to compile; use a sim"):
        ChatTemplate(loops * 28, limits=TemplateLimits(seconds=0.1))
    assert time.process_time() - began < 2
