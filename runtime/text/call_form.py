"""The text that a model writes around the name and the arguments of a tool call."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

ID_SLOT = "\ue000"  # placeholder for the id that the model gives a call
ID_PATTERN = "[a-zA-Z0-9]{9}"
_TAG = re.compile(r"<[^<>\s]{1,60}>|\[[A-Z_/]{2,40}\]")
_KEY = re.compile(r'"\s*:\s*"?\s*$')


@dataclass(frozen=True)
class CallForm:
    """The text of calls: opening NAME middle ARGUMENTS (join NAME middle ARGUMENTS)* closing."""

    opening: str
    middle: str
    closing: str  # may contain ID_SLOT
    join: str | None  # may contain ID_SLOT; None: the model writes only one call per answer
    key_separator: str = ": "  # after keys in the JSON of the arguments
    item_separator: str = ", "  # after values in the JSON of the arguments

    @cached_property
    def trigger(self) -> str:
        """Text with which a call certainly begins.

        A tag such as <tool_call>, else everything up to the key of the name, such as {"name".
        """
        tag = _TAG.match(self.opening)
        if tag is not None:
            return tag[0]
        place = self.opening.find("{")
        if self.has_plain_start:
            return _KEY.sub('"', self.opening)
        return (self.opening[:place] if place > 0 else self.opening).strip()

    @property
    def has_plain_start(self) -> bool:
        """Whether calls are unmarked: they begin with JSON at the start of the answer."""
        return self.opening[:1] in ("{", "[") and _TAG.match(self.opening) is None

    @property
    def repeats(self) -> bool:
        """Whether each of several calls begins with the trigger and ends with the closing."""
        return self.join is not None and not self.has_plain_start and self.trigger in self.join

    @property
    def rest_of_opening(self) -> str:
        """Text between the trigger and the name."""
        return self.opening[len(self.trigger) :]

    @cached_property
    def end_tag(self) -> str | None:
        """Tag that ends a call, such as </tool_call>."""
        tags = _TAG.findall(self.closing)
        return tags[-1] if tags else None

    def write(self, calls: Sequence[tuple[str, str]]) -> str:
        """Write calls, each given by its name and the JSON of its arguments."""
        between = self.join if self.join is not None else self.closing + "\n" + self.opening
        return (
            self.opening
            + between.join(f"{name}{self.middle}{arguments}" for name, arguments in calls)
            + self.closing
        ).replace(ID_SLOT, "000000000")

    def dump(self, value: object) -> str:
        """Serialize a value as JSON with the form's separators."""
        separators = (self.item_separator, self.key_separator)
        return json.dumps(value, ensure_ascii=False, separators=separators)


def tagged_form(start: str, space: str, key: str, end: str) -> CallForm:
    """Return a form with a JSON object between two tags. key: "arguments" or "parameters"."""
    opening = f'{start}{space}{{"name": "'
    closing = f"}}{space}{end}"
    return CallForm(opening, f'", "{key}": ', closing, f"{closing}\n{opening}")


HERMES = tagged_form("<tool_call>", "\n", "arguments", "</tool_call>")
_DESCRIBED = re.compile(
    r"(?P<start><[\w|]{1,40}>)(?P<space>\s{0,4})\{\s{0,4}\"name\"[^\n]{0,200}"
    r"\"(?P<key>arguments|parameters)\"[^\n]{0,200}\}\s{0,4}(?P<end></[\w|]{1,40}>)"
)


def described_form(text: str) -> CallForm | None:
    """Find a form by its example in a prompt: a JSON object between two tags."""
    found = _DESCRIBED.search(text)
    if found is None:
        return None
    return tagged_form(found["start"], found["space"], found["key"], found["end"])
