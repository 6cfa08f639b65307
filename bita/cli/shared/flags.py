"""Flags of several commands, and types of their values."""

import argparse
from difflib import get_close_matches
from typing import Any, NoReturn

from bita.cli.shared.streams import as_unicode
from bita.json_values import printable

TREE_HELP = (
    "ar, chain, triangle (5,4,3), widths such as 3,2,1, ngrams:N (N guesses from the text, no "
    "masks), or a JSON file"
)

MAX_THREADS = 1024
MAX_MESSAGE = 500  # characters of what argparse says


class CommandParser(argparse.ArgumentParser):
    """A parser that takes whole flags only, and answers for its own command.

    What it does not know is an error with its usage and the nearest flag.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._about(unknown))
        return known, unknown

    def error(self, message: str) -> NoReturn:
        super().error(printable(message[:MAX_MESSAGE]))

    def _about(self, unknown: list[str]) -> str:
        flags = [each.split("=")[0] for each in unknown if each.startswith("-")]
        if not flags:
            return f"too many arguments: {' '.join(unknown)}; quote a text of several words"
        known = self._option_string_actions
        near = [name for name in known if name.startswith(flags[0])]
        near = near or get_close_matches(flags[0], known, 1)
        hint = near[0] if near else "--help, which lists what there is"
        return f"no flag {flags[0]}; did you mean {hint}?"


def add_command(
    subparsers: Any, name: str, help_line: str, example: str
) -> argparse.ArgumentParser:
    """A parser of one command, with its example and the options that all commands share."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=help_line,
        description=help_line[0].upper() + help_line[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def add_backend(parser: argparse.ArgumentParser) -> None:
    """--backend of commands that run an engine."""
    parser.add_argument(
        "--backend",
        help="what executes the steps; default: what the engine was built for; ort-cpu runs any",
    )


def add_threads(parser: argparse.ArgumentParser) -> None:
    """--threads of commands that run an engine on processors."""
    parser.add_argument(
        "--threads", type=_threads, default=0, help="0: one per physical core that it may use"
    )


def text(argument: str) -> str:
    """A text of Unicode, for argparse. The system hands over bytes, which may be none."""
    try:
        return as_unicode(argument)
    except UnicodeError as error:
        raise argparse.ArgumentTypeError(f"{argument!a:.100} is not UTF-8") from error


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def not_negative(text: str) -> int:
    """A whole number from 0, for argparse."""
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
