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
    from bita.calibration.draft_gain import DraftGain
    from bita.runtime.decoding.stats import Stats
    from bita.runtime.generation import Generation
    from bita.runtime.session import Prompt, Session


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
    parser.add_argument(
        "--compare",
        action="store_true",
        help="then answer again, plainly and with drafts in turns: speeds, and whether the texts "
        "are the same; exit status 1 if they are not in mode exact",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.errors import PromptError

    options = {**answer_options_of(args), **sampling_of(args)}
    if args.compare:
        options.setdefault("seed", 0)  # the same draws for every answer, if it samples
    session = open_session(args)
    prompt = _read_input() if args.prompt == "-" else args.prompt
    raw = args.raw or not session.has_chat_template
    if raw and args.system:
        raise PromptError("--system needs a chat template; drop --raw, or put it into the prompt")
    if not prompt.strip():
        raise PromptError("the prompt is empty; give some text")
    roles = [("system", args.system)] if args.system else []
    messages = [{"role": role, "content": words} for role, words in [*roles, ("user", prompt)]]
    asked: Prompt = prompt if raw else messages
    answer = session.stream(asked, **options)
    for piece in answer:
        print(piece, end="", flush=True)
    print()
    if args.stats:
        print(summary(session, answer), file=sys.stderr)
    return _compare(session, asked, options) if args.compare else 0


def _compare(session: "Session", prompt: "Prompt", options: dict[str, Any]) -> int:
    """Time the same answer plainly and with drafts, and print what drafts gain."""
    from bita.calibration.draft_gain import ROUNDS, measure_gain
    from bita.cli.shared.progress import progress_bars

    others = {name: value for name, value in options.items() if name != "max_new_tokens"}
    with progress_bars() as show:
        gain = measure_gain(
            session,
            prompt,
            options["max_new_tokens"],
            others,
            on_progress=lambda done, total: show("plainly and with drafts", done, total),
        )
    print(f"\nThe answer has {gain.num_tokens} tokens; {ROUNDS} times each, in turns:")
    print(*gain_lines(gain, session), sep="\n")
    return int(gain.parting is not None and session.mode == "exact")


def gain_lines(gain: "DraftGain", session: "Session") -> list[str]:
    """What drafts gained, a line for each figure."""
    lines = [f"  plainly      {gain.plain_speed:7.1f} tokens/s"]
    if session.tree.is_ar:
        return [*lines, "  this engine decodes plainly; --tree chain tries drafts"]
    if not gain.ratio:
        return ["  too short to be timed; ask for more tokens"]
    verdict = f"{gain.ratio:.2f} times as fast"
    if gain.ratio <= 1:
        verdict += "; drafts did not pay here, `bita calibrate tree` measures what does"
    masks, text = (round(drafts, 2) for drafts in gain.per_step)  # so that the sum is as shown
    texts = (
        "  both texts are the same, token by token"
        if gain.parting is None
        else f"  the texts differ from new token {gain.parting} on"
    )
    return [
        *lines,
        f"  with drafts  {gain.drafted_speed:7.1f} tokens/s: {verdict}",
        f"  {1 + masks + text:.2f} tokens a step: 1 from the model, {masks:.2f} from masks, "
        f"{text:.2f} from n-grams",
        texts,
    ]


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
