"""Hostile chat templates: each kind of growth, and each limit, ends in an error soon."""

import pytest
from deadlines import stopped_if_it_hangs

from bita.errors import PromptError
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.template_meter import TemplateLimits

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
def test_hostile_templates_end_soon(name: str) -> None:
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


def test_time_limit_holds_where_steps_are_slow() -> None:
    loop = "{% for i in range(99999) %}{% if 'y' in s %}{% endif %}{% endfor %}"
    source = "{% set s = 'x' * 5000000 %}" + loop
    with pytest.raises(PromptError, match=r"takes more than 0.2 s; shorten"):
        ChatTemplate(source, limits=TemplateLimits(seconds=0.2)).render([LONG])


def test_prompt_length_is_limited() -> None:
    limits = TemplateLimits(output_characters=100)
    with pytest.raises(PromptError, match="makes a prompt of over 100 characters; shorten"):
        ChatTemplate("{{ messages[0].content * 2 }}", limits=limits).render([LONG])
