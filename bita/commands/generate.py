"""`bita generate`: answer one prompt on the screen."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.commands import TREE_HELP, add_backend, add_command, not_negative, positive

if TYPE_CHECKING:
    from bita.runtime.session import Session
    from bita.runtime.stats import Stats


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "generate",
        "answer a prompt with an engine",
        'bita generate engines/smollm2-135m-instruct-int4 "Why is the sky blue?"',
    )
    parser.add_argument("engine", type=Path, help="engine directory")
    parser.add_argument("prompt", help="the user's message; - reads it from standard input")
    parser.add_argument("--raw", action="store_true", help="continue the text, no chat template")
    parser.add_argument("--system", help="a system message before the prompt")
    parser.add_argument("--max-new-tokens", type=positive, default=256)
    parser.add_argument("--stop", action="append", default=[], help="end at this text (repeatable)")
    parser.add_argument("--tree", help=f"{TREE_HELP}; default: the engine's own")
    add_backend(parser)
    parser.add_argument("--threads", type=not_negative, default=0, help="0: one per physical core")
    parser.add_argument("--stats", action="store_true", help="figures behind the answer")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.commands.trees import read_tree
    from bita.errors import PromptError
    from bita.runtime.session import Session

    session = Session.open(args.engine, num_threads=args.threads, backend=args.backend)
    if args.tree:
        session = session.using(tree=read_tree(args.tree, session.adapter.num_masks))
    text = sys.stdin.read() if args.prompt == "-" else args.prompt
    raw = args.raw or not session.has_chat_template
    if raw and args.system:
        raise PromptError("--system needs a chat template; drop --raw, or put it into the prompt")
    if not text.strip():
        raise PromptError("the prompt is empty; give some text")
    roles = [("system", args.system)] if args.system else []
    messages = [{"role": role, "content": words} for role, words in [*roles, ("user", text)]]
    answer = session.stream(text if raw else messages, args.max_new_tokens, args.stop)
    for piece in answer:
        print(piece, end="", flush=True)
    print()
    if args.stats:
        print(summary(session, answer.finish_reason))
    return 0


def summary(session: "Session", finish_reason: str | None) -> str:
    """One line of figures of the answer."""
    stats = session.stats
    return (
        f"[{stats.num_tokens + 1} tokens, {finish_reason}; prompt of {stats.num_prompt_tokens} in "
        f"{stats.prefill_ms:.0f} ms; {stats.tokens_per_second:.1f} tokens/s, "
        f"{stats.tokens_per_step:.2f} tokens per step; {memory_text(stats)}; tree: {session.tree}]"
    )


def memory_text(stats: "Stats") -> str:
    """Peaks, for people."""
    memory = stats.memory.decoding
    on_gpu = f", {memory.gpu / 1e6:.0f} MB of it on the GPU" if memory.gpu else ""
    return f"memory {(memory.host + memory.gpu) / 1e6:.0f} MB{on_gpu}"
