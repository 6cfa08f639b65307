"""Typed reading of untrusted values: JSON files, and metadata of model files.

`parse_json` and `read_json_object` raise one clear error for anything that a broken or hostile file
may hold: bytes that are not UTF-8, endless nesting, a pipe instead of a file. `Fields` reads the
values of an object by name and type and collects what is wrong with them, so that one error names
every fault.
"""

import json
import math
import re
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from bita.errors import BitaError, raise_faults

MAX_JSON_BYTES = 256 << 20  # the largest JSON file in use is a tokenizer of 35 MB
MAX_OBJECT_BYTES = 16 << 20  # for files that become Python objects of up to 25 times their size
MAX_FLOAT = float.fromhex("0x1.fffffep+127")  # largest float32
MAX_INDEX = 2**63 - 1
MAX_SHOWN = 60  # characters of a wrong value in a message

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # surrogates, perhaps unpaired
T = TypeVar("T")
_REQUIRED: Any = object()


def parse_json(data: str | bytes, refuses_twice: bool = False) -> Any:
    """Return the value of a JSON text. Raises ValueError with a message of one line.

    This is JSON as Python reads it: NaN and Infinity are numbers, and the last of several equal
    keys counts, unless `refuses_twice`. Texts must be valid Unicode, without unpaired surrogates.
    """
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        value = json.loads(text, object_pairs_hook=_unique if refuses_twice else None)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except UnicodeEncodeError as error:
        raise ValueError("a text in it holds half a surrogate pair") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} occurs twice")
        found[name] = value
    return found


def read_json(
    path: Path, error: type[BitaError], fix: str, max_bytes: int = MAX_OBJECT_BYTES
) -> Any:
    """Read the value in a JSON file. Raises `error`, which names the file and ends with `fix`."""
    try:
        return parse_json(read_regular_file(path, max_bytes))
    except OSError as cause:
        raise error(f"{path} cannot be read ({cause.strerror or cause}); {fix}") from cause
    except ValueError as cause:
        raise error(f"{path} is not readable JSON ({cause}); {fix}") from cause


def read_json_object(
    path: Path, error: type[BitaError], fix: str, max_bytes: int = MAX_OBJECT_BYTES
) -> dict[str, Any]:
    """Read the object in a JSON file. Raises `error`, which names the file and ends with `fix`."""
    content = read_json(path, error, fix, max_bytes)
    if not isinstance(content, dict):
        raise error(f"{path} holds {shown(content)}, not a JSON object; {fix}")
    return content


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file of at most `max_bytes`. Raises OSError or ValueError.

    Pipes and devices are refused before they are opened: reading one may block forever.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > max_bytes:
        raise ValueError(f"it has {status.st_size} bytes; at most {max_bytes} are read")
    return path.read_bytes()


def shown(value: Any) -> str:
    """Return a value's text for a message, on one line and shortened if it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"({type(value).__name__}, nested too deeply to be shown)"
    except ValueError:  # Python does not print integers of more than 4300 digits
        text = f"({type(value).__name__}, with too many digits to be shown)"
    text = " ".join(text.split())
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def printable(text: str) -> str:
    """Escape the characters of a text that would control a terminal, or cannot be encoded."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


class Fields:
    """Reads the values of an object by name and type; `faults` lists what is wrong with them.

    A missing value yields the default, or a fault if there is no default. null is a fault, except
    in the methods whose names end in `_or_null`, which return None for it. After a fault a method
    returns some value of its type, so that the caller can continue to `check`, which raises.
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        """Read from `values`; messages put `prefix` before names, such as "plan."."""
        self.values = values
        self.prefix = prefix
        self.faults: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def check(self, error: type[BitaError], subject: str) -> None:
        """Raise `error` that lists the faults, if there are any."""
        raise_faults(error, subject, self.faults)

    def whole(
        self, key: str, default: Any = _REQUIRED, least: int = 0, most: int = MAX_INDEX
    ) -> int:
        """Return a whole number from `least` to `most`; 2.0 is accepted, True is not."""
        what = _span("a whole number", least, most)
        return self._take(key, default, _whole(least, most), what, least)

    def whole_or_null(
        self, key: str, default: int | None = None, least: int = 0, most: int = MAX_INDEX
    ) -> int | None:
        return self._or_null(key, default, lambda: self.whole(key, least=least, most=most))

    def number(
        self,
        key: str,
        default: Any = _REQUIRED,
        least: float = -MAX_FLOAT,
        most: float = MAX_FLOAT,
    ) -> float:
        """Return a finite number from `least` to `most`, by default any that float32 can hold."""
        neutral = least if least > -MAX_FLOAT else 0.0
        return self._take(
            key, default, _number(least, most), _span("a number", least, most), neutral
        )

    def number_or_null(
        self,
        key: str,
        default: float | None = None,
        least: float = -MAX_FLOAT,
        most: float = MAX_FLOAT,
    ) -> float | None:
        return self._or_null(key, default, lambda: self.number(key, least=least, most=most))

    def flag(self, key: str, default: Any = _REQUIRED) -> bool:
        return self._take(key, default, _instance(bool), "true or false", False)

    def flag_or_null(self, key: str, default: bool | None = None) -> bool | None:
        return self._or_null(key, default, lambda: self.flag(key))

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        return self._take(key, default, _instance(str), "a text", "")

    def text_or_null(self, key: str, default: str | None = None) -> str | None:
        return self._or_null(key, default, lambda: self.text(key))

    def wholes(
        self, key: str, default: Any = _REQUIRED, least: int = 0, most: int = MAX_INDEX
    ) -> tuple[int, ...]:
        """Return whole numbers from `least` to `most`, given as a list or a numpy array."""
        what = _span("a list of whole numbers", least, most)
        return self._take(key, default, _items(_whole(least, most)), what, ())

    def numbers(
        self,
        key: str,
        default: Any = _REQUIRED,
        least: float = -MAX_FLOAT,
        most: float = MAX_FLOAT,
    ) -> tuple[float, ...]:
        what = _span("a list of numbers", least, most)
        return self._take(key, default, _items(_number(least, most)), what, ())

    def texts(self, key: str, default: Any = _REQUIRED) -> tuple[str, ...]:
        return self._take(key, default, _items(_instance(str)), "a list of texts", ())

    def table(self, key: str, default: Any = _REQUIRED) -> dict[str, Any]:
        return self._take(key, default, _instance(dict), "an object", {})

    def inner(self, key: str, default: Any = _REQUIRED) -> "Fields":
        """Return the fields of an inner object, which share this list of faults."""
        fields = Fields(self.table(key, default), f"{self.prefix}{key}.")
        fields.faults = self.faults
        return fields

    def _take(
        self,
        key: str,
        default: Any,
        convert: Callable[[Any], T | None],
        what: str,
        instead: T,
    ) -> T:
        if key not in self.values and default is not _REQUIRED:
            return default
        value = convert(self.values.get(key))
        if value is not None:
            return value
        found = shown(self.values[key]) if key in self.values else "missing"
        self.faults.append(f"{self.prefix}{key} is {found}, not {what}")
        return instead

    def _or_null(self, key: str, default: T | None, take: Callable[[], T]) -> T | None:
        if key not in self.values:
            return default
        return None if self.values[key] is None else take()


def _whole(least: int, most: int) -> Callable[[Any], int | None]:
    def convert(value: Any) -> int | None:
        value = _plain(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return value if type(value) is int and least <= value <= most else None

    return convert


def _number(least: float, most: float) -> Callable[[Any], float | None]:
    def convert(value: Any) -> float | None:
        value = _plain(value)
        if type(value) not in (int, float) or not least <= value <= most:  # false for NaN
            return None
        return float(value) if math.isfinite(value) else None

    return convert


def _plain(value: Any) -> Any:
    """Convert a numpy scalar to a number, and an array of one dimension to a list."""
    numpy = sys.modules.get("numpy")  # the command line's parser must not wait for its import
    if numpy is None:
        return value
    if isinstance(value, numpy.generic):
        return value.item()
    is_list = isinstance(value, numpy.ndarray) and value.ndim == 1
    return value.tolist() if is_list else value


def _instance(kind: type[T]) -> Callable[[Any], T | None]:
    return lambda value: value if isinstance(value, kind) else None


def _items(convert: Callable[[Any], T | None]) -> Callable[[Any], tuple[T, ...] | None]:
    def convert_all(value: Any) -> tuple[T, ...] | None:
        value = _plain(value)
        if not isinstance(value, (list, tuple)):
            return None
        items = [convert(item) for item in value]
        return None if any(item is None for item in items) else tuple(items)  # type: ignore[arg-type]

    return convert_all


def _span(what: str, least: float, most: float) -> str:
    lower, upper = least > -MAX_FLOAT, most < MAX_FLOAT and most != MAX_INDEX
    low, high = (str(bound) if isinstance(bound, int) else f"{bound:g}" for bound in (least, most))
    if lower and upper:
        return f"{what} of {low} to {high}"
    if lower:
        return f"{what} of {low} or more"
    return f"{what} of at most {high}" if upper else what
