"""`bita generate`: answer one prompt."""

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
from bita.cli.shared.output import add_json, json_report
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
        stdout="the answer; figures (--stats, --compare) and progress go to standard error",
    )
    add_session(parser)
    parser.add_argument(
        "prompt", type=text, help="the user's message; - reads it from standard input"
    )
    parser.add_argument(
        "--raw", action="store_true", help="continue the prompt as it is, without a chat template"
    )
    parser.add_argument("--system", type=text, help="a system message before the prompt")
    add_answer_options(parser, max_new_tokens=256)
    add_sampling(parser, default="greedy")
    parser.add_argument(
        "--stats", action="store_true", help="print figures of the answer to standard error"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="then answer again with and without drafts, alternately, and report both speeds and "
        "whether the texts are the same; exit status 1 if they differ in mode exact",
    )
    add_json(parser, "the answer with its token ids and all figures")
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
    with json_report(args.json) as report:
        answer = _answer(session, asked, options, args)
        report |= answer_facts(session, answer)
        if not args.compare:
            return 0
        gain = _measure_gain(session, asked, options)
        report["compare"] = gain_facts(gain, session)
        if not args.json:
            print("", *gain_lines(gain, session), sep="\n", file=sys.stderr)
        return int(gain.parting is not None and session.mode == "exact")


def _answer(
    session: "Session", prompt: "Prompt", options: dict[str, Any], args: argparse.Namespace
) -> "Generation":
    """Generate the answer, printing it as it grows."""
    answer = session.stream(prompt, **options)
    for piece in answer:
        if not args.json:
            print(piece, end="", flush=True)
    if not args.json:
        print(flush=True)
    if args.stats and not args.json:
        print(summary(session, answer), file=sys.stderr)
    return answer


def answer_facts(session: "Session", answer: "Generation") -> dict[str, Any]:
    """Return an answer and its figures for JSON."""
    stats = session.stats
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": len(answer.prompt_ids),
        "seed": answer.seed,
        "mode": session.mode,
        "tree": str(session.tree),
        "stats": {
            "new_tokens": len(answer.token_ids),
            "cached_prompt_tokens": answer.num_reused,
            "prefill_ms": stats.prefill_ms,
            "decode_ms": sum(stats.step_ms),
            "decode_steps": stats.num_steps,
            "tokens_per_second": stats.tokens_per_second,
            "tokens_per_step": stats.tokens_per_step,
            "peak_host_bytes": stats.memory.decoding.host,
            "peak_gpu_bytes": stats.memory.decoding.gpu,
        },
    }


def _measure_gain(session: "Session", prompt: "Prompt", options: dict[str, Any]) -> "DraftGain":
    """Time the same answer with and without drafts."""
    from bita.calibration.draft_gain import measure_gain
    from bita.cli.shared.progress import progress_bars

    others = {name: value for name, value in options.items() if name != "max_new_tokens"}
    with progress_bars() as show:
        return measure_gain(
            session,
            prompt,
            options["max_new_tokens"],
            others,
            on_progress=lambda done, total: show("with and without drafts", done, total),
        )


def gain_facts(gain: "DraftGain", session: "Session") -> dict[str, Any]:
    """Return the gain of drafts for JSON; speeds are null if the answer is too short to time."""
    has_drafts, is_timed = not session.tree.is_ar, bool(gain.ratio)
    from_masks, from_text = gain.per_step
    measured = has_drafts and is_timed
    return {
        "runs": len(gain.plain),
        "new_tokens": gain.num_tokens,
        "has_drafts": has_drafts,
        "plain_tokens_per_second": gain.plain_speed if is_timed else None,
        "drafted_tokens_per_second": gain.drafted_speed if measured else None,
        "speedup": gain.ratio if measured else None,
        "mask_tokens_per_step": from_masks if measured else None,
        "ngram_tokens_per_step": from_text if measured else None,
        "tokens_per_step": 1 + from_masks + from_text if measured else None,
        "same_text": gain.parting is None,
        "first_difference": gain.parting,
    }


def gain_lines(gain: "DraftGain", session: "Session") -> list[str]:
    """Return the gain of drafts as a line for each figure."""
    lines = [
        f"The answer has {gain.num_tokens} tokens; {len(gain.plain)} runs each, alternately:",
        f"  plainly      {gain.plain_speed:7.1f} tokens/s",
    ]
    if session.tree.is_ar:
        return [*lines, "  this engine decodes plainly; --tree ngrams:2 tries drafts"]
    if not gain.ratio:
        return ["  the answer is too short to be timed; ask for more tokens"]
    verdict = f"{gain.ratio:.2f} times as fast"
    if gain.ratio <= 1:
        verdict += "; drafts did not pay here, `bita calibrate tree` finds a tree that does"
    masks, text = (round(drafts, 2) for drafts in gain.per_step)  # so that the sum adds up
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
    """Read standard input as text. Raises PromptError."""
    from bita.errors import PromptError

    found = sys.stdin.read(MAX_TEXT + 1)
    if len(found) > MAX_TEXT:
        raise PromptError(
            f"standard input has more than {MAX_TEXT} characters; give a shorter prompt"
        )
    try:
        return as_unicode(found, sys.stdin.encoding or "utf-8")
    except UnicodeError as error:
        raise PromptError(f"standard input is not UTF-8 ({error}); convert it first") from error


def summary(session: "Session", answer: "Generation") -> str:
    """Return the figures of an answer on one line."""
    stats = session.stats
    reused = f", {answer.num_reused} of it cached" if answer.num_reused else ""
    return (
        f"[{len(answer.token_ids)} tokens, {answer.finish_reason}; prompt of "
        f"{len(answer.prompt_ids)}{reused}, in {stats.prefill_ms:.0f} ms; "
        f"{stats.tokens_per_second:.1f} tokens/s, {stats.tokens_per_step:.2f} tokens per step; "
        f"{memory_text(stats)}; tree: {session.tree}]"
    )


def memory_text(stats: "Stats") -> str:
    """Return the peaks of memory as a text."""
    memory = stats.memory.decoding
    on_gpu = f", {memory.gpu / 1e6:.0f} MB of it on the GPU" if memory.gpu else ""
    return f"memory {(memory.host + memory.gpu) / 1e6:.0f} MB{on_gpu}"
