"""Flags of several commands, and types of their values."""

import argparse
from typing import Any

TREE_HELP = (
    "ar, chain, triangle (5,4,3), widths such as 3,2,1, ngrams:N (N guesses from the text, no "
    "masks), or a JSON file"
)


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


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from error
