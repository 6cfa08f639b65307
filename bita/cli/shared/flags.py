"""The parser of commands, flags that several commands share, and types of their values."""

import argparse
import sys
import textwrap
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, NoReturn

from bita.cli.shared.streams import as_unicode
from bita.json_values import printable

TREE_HELP = (
    "ar, chain, triangle (5,4,3), widths such as 3,2,1, ngrams:N (N guesses from the text, no "
    "masks), or a JSON file"
)

MAX_THREADS = 1024
MAX_MESSAGE = 500  # characters of an error message of argparse
WIDTH = 78  # columns of the texts around the flags in --help


class CommandParser(argparse.ArgumentParser):
    """A parser that refuses abbreviated flags and suggests the name of unknown ones.

    An unknown flag is an error of the command that it was given to, with that command's usage.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        given = sys.argv[1:] if args is None else args
        flags = self._unknown_flags(given)
        if flags:
            self.error(self._suggest_flag(flags[0]))
        known, unknown = super().parse_known_args(given, namespace)
        if unknown:
            self.error(self._describe(unknown))
        return known, unknown

    def error(self, message: str) -> NoReturn:
        super().error(printable(message[:MAX_MESSAGE]))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError that suggests the nearest choice for one that does not exist."""
        if action.choices is None or value in action.choices:
            return
        choices = [str(each) for each in action.choices]
        near = get_close_matches(str(value), choices, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(choices)
        raise argparse.ArgumentError(action, f"{value!r} is not one of {known}{hint}")

    def _unknown_flags(self, args: Sequence[str]) -> list[str]:
        """Return the long flags in `args`, up to `--` or a command, that this parser lacks.

        An unknown flag is reported before a missing argument, which is often its consequence.
        """
        own = takewhile(lambda word: word != "--", args)
        if self._subparsers is not None:
            own = takewhile(lambda word: word.startswith("-"), own)
        names = [each.split("=")[0] for each in own if each.startswith("--")]
        known = self._option_string_actions
        # as argparse does, take a word with a space for a text
        return [name for name in names if name not in known and " " not in name]

    def _describe(self, unknown: list[str]) -> str:
        flags = [each.split("=")[0] for each in unknown if each.startswith("-")]
        if flags:
            return self._suggest_flag(flags[0])
        return f"too many arguments: {' '.join(unknown)}; quote a text of several words"

    def _suggest_flag(self, flag: str) -> str:
        known = self._option_string_actions
        near = [name for name in known if name.startswith(flag)]
        near = near or get_close_matches(flag, known, 1)
        hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
        return f"no flag {flag}; {hint}"


def add_command(
    subparsers: Any,
    name: str,
    help_line: str,
    example: str,
    stdout: str,
    more: Iterable[str] = (),
) -> argparse.ArgumentParser:
    """Add the parser of one command, with the flag that all commands share.

    Args:
        subparsers: What the command is added to.
        name: Name of the command.
        help_line: What it does, for the list of commands; the description in its own help.
        example: One command line that works.
        stdout: What the command prints to standard output.
        more: Paragraphs that the help adds.
    """
    paragraphs = (f"{help_line[0].upper()}{help_line[1:]}.", *more)
    wrapped = textwrap.fill(stdout, WIDTH, initial_indent="  ", subsequent_indent="  ")
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help_line,
        description="\n\n".join(textwrap.fill(each, WIDTH) for each in paragraphs),
        epilog=f"standard output:\n{wrapped}\n\nexample:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add --backend to a command that runs an engine."""
    parser.add_argument(
        "--backend",
        help="library that executes the steps; default: the one that the engine was built for; "
        "ort-cpu runs any engine",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --threads to a command that runs an engine on a CPU."""
    parser.add_argument(
        "--threads",
        type=_threads,
        default=0,
        help="threads of the CPU; 0 (default): one for each physical core that it may use",
    )


def text(argument: str) -> str:
    """Return an argument as Unicode text; the system passes bytes, which may be invalid."""
    try:
        return as_unicode(argument)
    except UnicodeError as error:
        raise argparse.ArgumentTypeError(f"{argument!a:.100} is not UTF-8") from error


def positive(text: str) -> int:
    """Read a whole number above 0, for argparse."""
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def not_negative(text: str) -> int:
    """Read a whole number, 0 or above, for argparse."""
    number = _whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is below 0")
    return number


def _threads(text: str) -> int:
    number = not_negative(text)
    if number > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{number} is above {MAX_THREADS}")
    return number


def _whole(text: str) -> int:
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
    if abs(number) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is beyond 2^63")
    return number
