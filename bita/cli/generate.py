"""`bita generate`: answer one prompt on the screen."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from bita.cli.shared.answers import (
    add_answer_options,
    add_sampling,
    add_session,
    answer_options_of,
    open_session,
    sampling_of,
)
from bita.cli.shared.flags import add_command, text
from bita.cli.shared.streams import MAX_TEXT, as_unicode

if TYPE_CHECKING:
    from bita.runtime.decoding.stats import Stats
    from bita.runtime.generation import Generation
    from bita.runtime.session import Session


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "generate",
        "answer a prompt with an engine",
        'bita generate engines/smollm2-135m-instruct-int4 "Why is the sky blue?"',
    )
    add_session(parser)
    parser.add_argument(
        "prompt", type=text, help="the user's message; - reads it from standard input"
    )
    parser.add_argument("--raw", action="store_true", help="continue the text, no chat template")
    parser.add_argument("--system", type=text, help="a system message before the prompt")
    add_answer_options(parser, max_new_tokens=256)
    add_sampling(parser, default="greedy")
    parser.add_argument(
        "--stats", action="store_true", help="figures of the answer, to standard error"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.errors import PromptError

    options = {**answer_options_of(args), **sampling_of(args)}
    session = open_session(args)
    prompt = _read_input() if args.prompt == "-" else args.prompt
    raw = args.raw or not session.has_chat_template
    if raw and args.system:
        raise PromptError("--system needs a chat template; drop --raw, or put it into the prompt")
    if not prompt.strip():
        raise PromptError("the prompt is empty; give some text")
    roles = [("system", args.system)] if args.system else []
    messages = [{"role": role, "content": words} for role, words in [*roles, ("user", prompt)]]
    answer = session.stream(prompt if raw else messages, **options)
    for piece in answer:
        print(piece, end="", flush=True)
    print()
    if args.stats:
        print(summary(session, answer), file=sys.stderr)
    return 0


def _read_input() -> str:
    """Standard input as text. Raises PromptError."""
    from bita.errors import PromptError

    found = sys.stdin.read(MAX_TEXT + 1)
    if len(found) > MAX_TEXT:
        raise PromptError(f"standard input has over {MAX_TEXT} characters; give a shorter prompt")
    try:
        return as_unicode(found, sys.stdin.encoding or "utf-8")
    except UnicodeError as error:
        raise PromptError(f"standard input is not UTF-8 ({error}); convert it first") from error


def summary(session: "Session", answer: "Generation") -> str:
    """One line of figures of the answer."""
    stats = session.stats
    reused = f", {answer.num_reused} of it cached" if answer.num_reused else ""
    return (
        f"[{len(answer.token_ids)} tokens, {answer.finish_reason}; prompt of "
        f"{len(answer.prompt_ids)}{reused}, in {stats.prefill_ms:.0f} ms; "
        f"{stats.tokens_per_second:.1f} tokens/s, {stats.tokens_per_step:.2f} tokens per step; "
        f"{memory_text(stats)}; tree: {session.tree}]"
    )


def memory_text(stats: "Stats") -> str:
    """Peaks, for people."""
    memory = stats.memory.decoding
    on_gpu = f", {memory.gpu / 1e6:.0f} MB of it on the GPU" if memory.gpu else ""
    return f"memory {(memory.host + memory.gpu) / 1e6:.0f} MB{on_gpu}"
