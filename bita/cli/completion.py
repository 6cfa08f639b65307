"""`bita completion`: a script that teaches a shell the commands and flags of `bita`."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bita.cli.shared.flags import add_command

SHELLS = ("bash", "zsh", "tcsh")
DIRECTORIES = ("engine", "other", "work")  # arguments of these names are directories
FILES = ("model", "subject", "generator", "adapter")  # texts that may name a file or a directory


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "completion",
        "print the script that completes commands, flags and paths in a shell",
        "bita completion bash > ~/.local/share/bash-completion/completions/bita",
        stdout="the script; source it, or save it where the shell looks for completions",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that the script is for")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import shtab

    from bita.cli.main import command_parser

    parser = command_parser()
    for action in _actions(parser):
        _describe_values(action, shtab.FILE, shtab.DIRECTORY)
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield all flags and arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)


def _describe_values(action: argparse.Action, file: Any, directory: Any) -> None:
    """Let the shell complete the values of a flag or an argument: paths, or known names."""
    if action.choices is not None or action.nargs == 0:
        return
    known = _known_values(action.dest)
    if known:
        action.choices = known
    elif action.dest in DIRECTORIES:
        action.complete = directory  # type: ignore[attr-defined]
    elif action.type is Path or action.dest in FILES:
        action.complete = file  # type: ignore[attr-defined]


def _known_values(name: str) -> Sequence[str]:
    """Return the usual values of flags whose values are checked later, with the engine at hand."""
    from bita.dialect_spec import DIALECTS
    from bita.manifest import CHOICES

    known: dict[str, Sequence[str]] = {**CHOICES, "dialect": tuple(DIALECTS)}
    return known.get(name, ())
