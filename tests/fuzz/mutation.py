"""Seeded mutations of JSON values, texts and bytes, with values that parsers often mishandle."""

import copy
import json
import random
import struct
from collections.abc import Sequence
from typing import Any

NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64),
    *(10**30, -(10**30), 0.0, -0.0, 0.5, 1.5, 1e-320, 1e38, 1e39, 1e308, -1e308),
    *(float("inf"), float("-inf"), float("nan")),
)
TEXTS = (
    *("", " ", "0", "a/b", "../up", "/etc/passwd", "\x00", "é", "\ud800", "\U0001f600", "nan"),
    *("x" * 300, "[1]", "null", "{}", "none", "default", "linear", "yarn", "<|end|>", "%s%n"),
)
DEEP = 100_000  # far beyond the recursion limit
MANY = 5_000


class Mutator:
    """Mutates values; a generator with the same seed yields the same mutations.

    Args:
        rng: The source of all choices.
        words: Keys and strings that have a meaning to the parser under test.
    """

    def __init__(self, rng: random.Random, words: Sequence[str] = ()) -> None:
        self.rng = rng
        self.words = words

    def value(self) -> Any:
        """Return a random value of any type."""
        choice = self.rng.randrange(10)
        if choice < 4:
            return self.rng.choice(NUMBERS)
        if choice < 7:
            return self.text_value()
        return self.rng.choice(
            (None, True, False, [], {}, [[]], [None], {"": {}}, [0] * 40, list(range(300)))
        )

    def text_value(self) -> str:
        return self.rng.choice(self.words if self.words and self.rng.random() < 0.5 else TEXTS)

    def mutate(self, value: Any) -> Any:
        """Return a copy of a JSON value that was changed one to four times."""
        mutated = copy.deepcopy(value)
        for _ in range(self.rng.choice((1, 1, 1, 2, 4))):
            mutated = self._change(mutated)
        return mutated

    def json_bytes(self, value: Any) -> bytes:
        """Serialize a mutated value as JSON, sometimes corrupting the text as well."""
        text = json.dumps(self.mutate(value), ensure_ascii=self.rng.random() < 0.5)
        data = text.encode("utf-8", "surrogatepass")
        choice = self.rng.randrange(40)
        if choice == 0:
            return self.mutate_bytes(data)
        if choice == 1:
            return self._deep(data)
        if choice == 2:
            return data.replace(b"1", b"1" * MANY, 1)
        return data

    def mutate_bytes(self, data: bytes) -> bytes:
        """Return the bytes after one to four flips, cuts, copies or overwritten numbers."""
        mutated = bytearray(data)
        for _ in range(self.rng.choice((1, 1, 2, 4))):
            self._change_bytes(mutated)
        return bytes(mutated)

    def text(self, parts: Sequence[str], most: int = 12) -> str:
        """Concatenate randomly chosen parts, at most `most` of them."""
        return "".join(self.rng.choice(parts) for _ in range(self.rng.randint(1, most)))

    def _change(self, root: Any) -> Any:
        holders = _holders(root)
        if not holders or self.rng.random() < 0.02:
            return self.value()
        holder, key = self.rng.choice(holders)
        choice = self.rng.randrange(8)
        if choice == 0:
            del holder[key]
        elif choice == 1:
            other, other_key = self.rng.choice(holders)
            holder[key] = copy.deepcopy(other[other_key])
        elif choice == 2:
            self._add(holder)
        elif choice == 3:
            holder[key] = self._near(holder[key])
        else:
            holder[key] = self.value()
        return root

    def _add(self, holder: Any) -> None:
        if isinstance(holder, dict):
            holder[self.text_value()] = self.value()
        else:
            holder.insert(self.rng.randint(0, len(holder)), self.value())

    def _near(self, value: Any) -> Any:
        """Return a value close to this one, mostly of the same type."""
        if isinstance(value, bool) or value is None:
            return not value
        if isinstance(value, (int, float)):
            return self.rng.choice(
                (value + 1, value - 1, -value, value * 2, value / 2, value + 0.5)
            )
        if isinstance(value, str):
            return self.rng.choice((value + "x", value[1:], value.upper(), value * 3, [value]))
        if isinstance(value, list):
            return self.rng.choice(
                (value * 2, value[1:], value[::-1], [value], dict.fromkeys("ab"))
            )
        return [value]

    def _deep(self, data: bytes) -> bytes:
        at = self.rng.randint(0, len(data))
        opening = self.rng.choice((b"[", b'{"a":'))
        return data[:at] + opening * DEEP + data[at:]

    def _change_bytes(self, data: bytearray) -> None:
        start = self.rng.randint(0, max(len(data) - 1, 0))
        length = min(self.rng.choice((1, 1, 2, 4, 8, 64)), len(data) - start)
        choice = self.rng.randrange(6)
        if choice == 0 and data:
            data[start] ^= 1 << self.rng.randrange(8)
        elif choice == 1:
            data[start : start + length] = (
                bytes([self.rng.choice((0, 1, 0x7F, 0x80, 255))]) * length
            )
        elif choice == 2:
            del data[start : start + length]
        elif choice == 3:
            data[start:start] = data[start : start + length] * self.rng.choice((1, 2, 100))
        elif choice == 4:
            number = self.rng.choice((0, 1, 2**16, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1))
            data[start : start + 8] = struct.pack("<Q", number)[: self.rng.choice((4, 8))]
        else:
            del data[start:]


def _holders(root: Any) -> list[tuple[Any, Any]]:
    """List every position in a JSON value: its list or object, and its index or key."""
    found: list[tuple[Any, Any]] = []
    waiting = [root]
    while waiting:
        holder = waiting.pop()
        if isinstance(holder, (dict, list)):
            for key, value in holder.items() if isinstance(holder, dict) else enumerate(holder):
                found.append((holder, key))
                waiting.append(value)
    return found
