"""Writes the reference in docs/python.md from the docstrings: python docs/python_reference.py.

What stands above the marker is written by hand. --check: exit status 1 if the page is not what
would be written.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import griffe

PAGE = Path(__file__).with_name("python.md")
MARKER = "<!-- What follows is written by docs/python_reference.py from the docstrings. -->\n"
OBJECTS = (
    *("Session", "Options", "Generation", "Conversation", "Grammar", "TokenLogprob", "Stats"),
    *("Tree", "TreeTable", "Adapter"),
    *("BitaError", "EngineError", "PromptError", "PromptTooLongError", "TreeError"),
    *("MissingExtraError",),
)
LINE = 88  # characters of a signature


def page() -> str:
    """The whole text of docs/python.md."""
    head = PAGE.read_text(encoding="utf-8").split(MARKER)[0]
    package = griffe.load("bita", search_paths=[Path(__file__).parents[1]])
    return head + MARKER + "".join(line + "\n" for line in _reference(package))


def _reference(package: griffe.Object) -> Iterator[str]:
    for name in OBJECTS:
        each = package[name].final_target
        yield from ("", f"### {each.name}", "", f"`from bita import {each.name}`", "")
        yield _docstring(each)
        fields = [member for member in _members(each) if _meaning(member)]
        if fields:
            yield from ("", "| field | default | meaning |", "|---|---|---|")
        for field in fields:
            default = str(field.value or "").replace("field(default_factory=dict)", "{}")
            yield f"| `{field.name}` | `{default}` | {_meaning(field)} |".replace("``", "")
        for member in _members(each):
            if member.docstring and not _meaning(member):
                yield from ("", f"#### {each.name}.{member.name}", "", *_signature(member), "")
                yield _docstring(member)


def _members(each: griffe.Object) -> list[griffe.Object]:
    found = [member for member in each.members.values() if not member.is_alias]
    named = [member for member in found if not member.name.startswith("_")]
    return sorted(named, key=lambda member: member.lineno or 0)


def _docstring(each: griffe.Object) -> str:
    return each.docstring.value if each.docstring else ""


def _meaning(member: griffe.Object) -> str | None:
    """The comment beside a field."""
    if not member.is_attribute or "property" in member.labels or member.lineno is None:
        return None
    assert isinstance(member.filepath, Path)
    line = member.filepath.read_text(encoding="utf-8").splitlines()[member.lineno - 1]
    comment = re.search(r"  # (.+)$", line)
    return comment[1].replace("|", "\\|") if comment else None


def _signature(member: griffe.Object) -> Iterator[str]:
    """A code block: name, parameters, and what comes back."""
    if isinstance(member, griffe.Attribute):
        yield from ("```python", f"{member.name}: {member.annotation}", "```")
        return
    assert isinstance(member, griffe.Function)
    parameters, is_open = [], True
    for each in list(member.parameters)[0 if "staticmethod" in member.labels else 1 :]:
        kind = each.kind
        if kind is griffe.ParameterKind.keyword_only and is_open:
            parameters.append("*")
        is_open = is_open and kind is not griffe.ParameterKind.keyword_only
        stars = "**" if kind is griffe.ParameterKind.var_keyword else ""
        default = "" if each.default is None or stars else f" = {each.default}"
        parameters.append(f"{stars}{each.name}: {each.annotation}{default}")
    back = f" -> {member.returns}"
    whole = f"{member.name}({', '.join(parameters)}){back}"
    yield "```python"
    if len(whole) <= LINE:
        yield whole
    else:
        yield from (f"{member.name}(", *(f"    {each}," for each in parameters), f"){back}")
    yield "```"


def main(argv: Sequence[str]) -> int:
    text = page()
    if "--check" in argv:
        return int(PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
