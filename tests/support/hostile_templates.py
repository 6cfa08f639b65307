"""Chat templates that take minutes or gigabytes if nothing limits them.

As a script it renders each of them with little memory, and prints the costs as JSON.
"""

import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_BYTES = 1 << 30  # limit for all of them together
MAX_SECONDS = 1.5  # limit of one rendering
MAX_COMPILE_SECONDS = 60.0  # generous, because rendering is under test, also on a busy machine
_LOOP = "{% for i in range(60) %}"
# Values that share their parts: 60 lists print as 2^60.
_START = "{% set ns = namespace(x=(1,), y=(1,)) %}"
TUPLES = _START + _LOOP + "{% set ns.x = (ns.x, ns.x) %}{% endfor %}"
LISTS = _START + _LOOP + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
DICTS = _START + _LOOP + "{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}"
TWO = (  # equal but not identical; 2^45 so that they are not too deep
    _START + "{% for i in range(45) %}{% set ns.x = (ns.x, ns.x) %}"
    "{% set ns.y = (ns.y, ns.y) %}{% endfor %}"
)
_MACRO = "{% macro m(a) %}{{ a }}{% endmacro %}"
_EIGHT = "('a' * 8000000)"
_FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}"
_END = "{% endfor %}{% endfor %}"
_DOTS = "a." * 30_000 + "a"

_FILTERS = (
    *("upper", "lower", "title", "capitalize", "trim", "string", "escape", "e", "safe", "join"),
    *("unique", "tojson", "sort", "min", "max", "dictsort", "indent", "replace('a', 'b')"),
    *("map('upper')", "map('string')", "reject('upper')", "select('in', [1])", "tojson(indent=4)"),
    *("reverse | string", "list | string", "first | string", "trim('x')", "int", "float"),
)
_TESTS = ("upper", "lower", "eq 1", "equalto 1", "in [1]", "ne 1", "lt ns.x", "ge ns.x", "sameas 1")
_COMPARISONS = {
    "==": "ns.x == ns.y",
    "!=": "ns.x != ns.y",
    "<": "ns.x < ns.y",
    "in": "ns.x in [ns.y]",
    "not in": "ns.x not in (ns.y,)",
    "is eq": "ns.x is eq ns.y",
    "is in": "ns.x is in [ns.y]",
    "sort": "[ns.x, ns.y] | sort",
    "max": "[ns.x, ns.y] | max | length",
    "unique": "[ns.x, ns.y] | unique | list | length",
    "select": "[ns.x] | select('eq', ns.y) | list | length",
    "dicts": "{1: ns.x} == {1: ns.y}",
    "values": "ns.x in {1: ns.y}.values()",
    "items": "(1, ns.x) in {1: ns.y}.items()",
}
_USES = {
    "printed": "ns.x",
    "concatenated": "ns.x ~ ''",
    "a key": "{ns.x: 1} | length",
    "looked up": "{}[ns.x]",
    "got": "{}.get(ns.x)",
    "in dict()": "dict([(ns.x, 1)])",
    "in dict() on the fly": "dict([(ns.x, 1)] | map('list'))",
    "in namespace()": "namespace([(ns.x, 1)])",
    "%s": "'%s' % (ns.x,)",
    "%r": "'%r' % (ns.x,)",
    "%(a)s": "'%(a)s' % {'a': ns.x}",
    "format": "'{}'.format(ns.x)",
    "format by name": "'{a!r}'.format(a=ns.x)",
    "format_map": "'{a}'.format_map({'a': ns.x})",
    "raised": "raise_exception(ns.x)",
    "joined": "'-'.join([ns.x | string])",
    "sliced": "ns.x[::1] | string",
    "added": "(ns.x + ns.x) | string",
    "multiplied": "(ns.x * 2) | string",
    "missing": "[1][ns.x] + 1",
}

REFUSED: dict[str, str] = {
    **{f"tuples | {name}": f"{TUPLES}{{{{ ns.x | {name} }}}}" for name in _FILTERS[:25]},
    **{f"lists | {name}": f"{LISTS}{{{{ ns.x | {name} }}}}" for name in _FILTERS[:15]},
    **{f"dicts | {name}": f"{DICTS}{{{{ ns.x | {name} }}}}" for name in _FILTERS[:9]},
    **{f"dicts | {name}": f"{DICTS}{{{{ ns.x | {name} }}}}" for name in ("dictsort", "tojson")},
    **{f"tuples is {name}": f"{TUPLES}{{{{ ns.x is {name} }}}}" for name in _TESTS[:-1]},
    **{f"equal trees, {name}": f"{TWO}{{{{ {text} }}}}" for name, text in _COMPARISONS.items()},
    **{f"tuples, {name}": f"{TUPLES}{{{{ {text} }}}}" for name, text in _USES.items()},
    "equal trees, changed": TWO
    + "{% for i in [1, 2] %}{{ loop.changed(ns.x if i == 1 else ns.y) }}{% endfor %}",
    "tuples in a macro": TUPLES + _MACRO + "{{ m(ns.x) }}",
    "tuples in a block": TUPLES + "{% set y %}{{ ns.x }}{% endset %}",
    "tuples, escaped": TUPLES + "{% autoescape true %}{{ ns.x }}{% endautoescape %}",
    # formats
    "brackets in a key": "{{ '%((a))9999999999d' % {'(a)': 1} }}",
    "precision": "{{ '%.9999999999f' % 1.5 }}",
    "many fields": "{{ ('%(' * 4000000) % 1 }}",
    "digits of another script": "{{ '%٩٩٩٩٩٩٩٩٩d' % 1 }}",
    "many braces": "{{ ('{}' * 8000000).format(1) }}",
    "attributes of a field": "{{ ('{0' + '.a' * 8000000 + '}').format(1) }}",
    "precision of a field": "{{ '{:.99999999f}'.format(1.5) }}",
    "width of safe text": "{{ ('{:>999999999}' | safe).format(1) }}",
    "% of safe text": "{{ ('%999999999d' | safe) % 1 }}",
    "odd formats": "{{ '%9999999999d' is odd }}",
    "even formats": "{{ '%9999999999d' is even }}",
    "division formats": "{{ '%9999999999d' is divisibleby(3) }}",
    "selected formats": "{{ ['%999999999d'] | select('odd') | list }}",
    # integers
    "large quotient": "{{ ('z' * 8000000) | int(0, 32) // (('y' * 4000000) | int(0, 32)) }}",
    "large remainder": "{{ ('z' * 8000000) | int(0, 32) % 7 }}",
    "large sum": _START
    + "{% for i in range(9999) %}{% set ns.x = (ns.x if i else 1) * 9 %}{% endfor %}",
    # searches
    "strip by many": f"{{{{ {_EIGHT}.strip('b' * 8000000 + 'a') }}}}",
    "trim by many": f"{{{{ {_EIGHT} | trim('b' * 8000000 + 'a') }}}}",
    "rfind": f"{{{{ {_EIGHT}.rfind('ab' + 'a' * 4000000) }}}}",
    "rindex": f"{{{{ {_EIGHT}.rindex('ab' + 'a' * 4000000) }}}}",
    "rsplit": f"{{{{ {_EIGHT}.rsplit('ab' + 'a' * 4000000) }}}}",
    "rpartition": f"{{{{ {_EIGHT}.rpartition('ab' + 'a' * 4000000) }}}}",
    # many pieces
    "split": "{{ ('a ' * 7000000).split(' ') | length }}",
    "split at spaces": "{{ ('a ' * 7000000).split() | length }}",
    "split by name": "{{ ('ax' * 7000000).split(maxsplit=-1, sep='x') | length }}",
    "split at rare spaces": "{{ ('a\u2009' * 7000000).split() | length }}",
    "lines": "{{ ('\\n' * 15000000).splitlines() | length }}",
    "rare lines": "{{ ('\u2028' * 15000000).splitlines() | length }}",
    "rare lines, indented": "{{ ('x\u2028' * 1000000) | indent('y' * 10000) }}",
    "letters": "{{ ('a' * 15000000) | list | length }}",
    "letters, sorted": "{{ ('a' * 15000000) | sort | length }}",
    "letters, the last": "{{ ('ab' * 7000000) | max }}",
    "words": "{{ ('a-' * 7000000) | title | length }}",
    "long separators": "{{ range(1000) | list | tojson(separators=('x' * 100000, 'y')) }}",
    "attributes, sorted": f"{{{{ range(99999) | sort(attribute='{_DOTS}') | length }}}}",
    "attributes, mapped": f"{{{{ range(99999) | map(attribute='{_DOTS}') | list }}}}",
    # what is kept
    "dicts kept": f"{_START}{_FOREVER}{{% set ns.x = {{'a': ns.x, 'b': 1, 'c': 2}} %}}{_END}",
    "tuples kept": f"{_START}{_FOREVER}{{% set ns.x = (ns.x, 1, 2, 3, 4, 5) %}}{_END}",
    "namespaces kept": f"{_START}{_FOREVER}{{% set ns.x = namespace(a=ns.x) %}}{_END}",
    "cyclers kept": f"{_START}{_FOREVER}{{% set ns.x = cycler(ns.x, *range(900)) %}}{_END}",
    "slices kept": "{% set s = [1] * 1000000 %}{% for i in range(99999) %}"
    "{% set x = s[1:] %}{% endfor %}",
    # long without a loop
    "long chain": "{% set s = 'a' * 15000000 %}" + "{{ s.islower() }}" * 3000,
    "deep macros": "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(40) }}",
    "a block in itself": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "long error": "{{ {}['x' * 15000000].y }}",
    "long refusal": "{{ raise_exception('x' * 15000000) }}",
}


def _costs() -> Iterator[dict[str, Any]]:
    from bita.errors import PromptError
    from bita.runtime.text.chat_template import ChatTemplate
    from bita.runtime.text.template_meter import TemplateLimits

    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_BYTES, resource.RLIM_INFINITY))
    for name, source in REFUSED.items():
        template = ChatTemplate(source, limits=TemplateLimits(seconds=MAX_COMPILE_SECONDS))
        template.limits = TemplateLimits(seconds=MAX_SECONDS)
        began, end = time.process_time(), "rendered"
        try:
            template.render([{"role": "user", "content": "Hi"}])
        except PromptError as refusal:
            end = str(refusal)
        yield {"name": name, "seconds": time.process_time() - began, "end": end}


if __name__ == "__main__":
    for cost in _costs():
        print(json.dumps(cost), flush=True)
