"""Flags of commands that answer: the engine, sampling, and constraints on an answer."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.cli.shared.flags import TREE_HELP, add_backend, add_threads, positive, text

if TYPE_CHECKING:
    from bita.runtime.session import Session

SAMPLING = {
    "temperature": (float, "0: always the best token; 1: the model's own distribution"),
    "top_k": (int, "draw from the k best tokens only; 0: from all"),
    "top_p": (float, "draw from the best tokens whose probabilities add up to this; 1: from all"),
    "min_p": (
        float,
        "draw from tokens with at least this share of the best one's probability; 0: all",
    ),
    "repetition_penalty": (
        float,
        "divide the logits of tokens that occurred before by this; 1: none",
    ),
    "presence_penalty": (float, "subtract this from the logits of tokens in the answer; 0: none"),
    "frequency_penalty": (float, "subtract this for each time a token is in the answer; 0: none"),
    "seed": (int, "number that draws the same answer again; default: random"),
}


def add_session(parser: argparse.ArgumentParser) -> None:
    """Add the engine and the flags for running it, which `open_session` reads."""
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument("--tree", help=f"{TREE_HELP}; default: that of the engine")
    add_backend(parser)
    add_threads(parser)
    parser.add_argument(
        "--map-weights",
        action="store_true",
        help="read the weights from the mapped file, whose memory processes share; slower",
    )


def open_session(args: argparse.Namespace, **options: Any) -> "Session":
    """Open the session that the flags describe."""
    from bita.cli.shared.trees import read_tree
    from bita.runtime.session import Session

    options |= {"num_threads": args.threads, "map_weights": args.map_weights}
    session = Session.open(args.engine, backend=args.backend, **options)
    if args.tree:
        return session.using(tree=read_tree(args.tree, session.adapter.num_masks))
    return session


def add_sampling(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the sampling flags. `default` describes what applies without them."""
    group = parser.add_argument_group(f"sampling (default: {default})")
    for name, (kind, words) in SAMPLING.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=words)


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of `add_sampling` that were given, as fields of Options."""
    given = {name: getattr(args, name) for name in SAMPLING}
    return {name: value for name, value in given.items() if value is not None}


def add_answer_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """Add the flags that say when an answer ends and what it must match."""
    parser.add_argument(
        "--max-new-tokens",
        type=positive,
        default=max_new_tokens,
        help=f"longest answer (default {max_new_tokens})",
    )
    parser.add_argument(
        "--stop",
        type=text,
        action="append",
        default=[],
        help="end the answer before this text; repeatable",
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json-schema", type=Path, help="file with a JSON schema for the answer")
    shape.add_argument(
        "--grammar", type=Path, help="file with a grammar for the answer, in Lark's notation"
    )
    shape.add_argument(
        "--regex", type=text, help="regular expression that the whole answer must match"
    )


def answer_options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of `add_answer_options` as fields of Options. Raises PromptError."""
    options = {"max_new_tokens": args.max_new_tokens, "stop": args.stop}
    grammar = _grammar_of(args)
    return options if grammar is None else {**options, "grammar": grammar}


def _grammar_of(args: argparse.Namespace) -> Any:
    from bita.runtime.text.grammar import Grammar

    if args.json_schema:
        return Grammar.json_schema(_read(args.json_schema))
    if args.grammar:
        return Grammar.lark(_read(args.grammar))
    return None if args.regex is None else Grammar.regex(args.regex)


def _read(path: Path) -> str:
    from bita.errors import PromptError
    from bita.json_values import MAX_JSON_BYTES, read_regular_file

    try:
        return read_regular_file(path, MAX_JSON_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise PromptError(f"cannot read {path}: {error}") from error
