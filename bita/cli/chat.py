"""`bita chat`: a conversation in the terminal."""

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bita.cli.generate import summary
from bita.cli.shared.answers import add_sampling, add_session, open_session, sampling_of
from bita.cli.shared.flags import add_command, text
from bita.cli.shared.streams import MAX_TEXT, as_unicode
from bita.errors import PromptError

if TYPE_CHECKING:
    from bita.runtime.conversation import Conversation
    from bita.runtime.generation import Generation
    from bita.runtime.session import Session

HELP = """\
/stats   figures of the last answer     /clear   start again
/undo    take back the last message     /retry   another answer to it (with a temperature)
/help    this list                      /quit    leave; so does Ctrl-D
A line that ends in \\ continues on the next one; \"\"\" begins and ends a text of several lines.
Ctrl-C stops an answer."""
HISTORY_LINES = 1000
BLOCK = '"""'


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "chat",
        "talk with an engine",
        "bita chat engines/smollm2-135m-instruct-int4 --temperature 0.7",
        stdout="the answers and the replies to commands; figures (--stats) and errors go to "
        "standard error",
        more=["Without a terminal it answers the lines of standard input, one after the other."],
    )
    add_session(parser)
    parser.add_argument("--system", type=text, help="a system message")
    parser.add_argument(
        "--max-new-tokens", type=int, default=1024, help="longest answer (default 1024)"
    )
    parser.add_argument(
        "--overflow",
        choices=("drop_oldest", "refuse"),
        default="drop_oldest",
        help="what to do when the conversation outgrows the cache; default: drop its oldest turns",
    )
    parser.add_argument(
        "--stats", action="store_true", help="print figures of each answer to standard error"
    )
    add_sampling(parser, default="what the model's authors recommend, otherwise greedy")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.runtime.options import Options

    session = open_session(args)
    given = {"max_new_tokens": args.max_new_tokens, **session.sampling, **sampling_of(args)}
    Options.of(**given)
    start = [{"role": "system", "content": args.system}] if args.system else []
    chat = Chat(session, session.conversation(start, args.overflow), given, args.stats)
    if not sys.stdin.isatty():
        chat.talk(_lines(lambda: sys.stdin.readline(MAX_TEXT)))
        return 0
    print(f"{args.engine}, tree: {session.tree}. /help lists the commands.")
    with _history():
        chat.talk(_typed())
    return 0


class Chat:
    """A conversation that answers typed messages and follows commands."""

    def __init__(
        self,
        session: "Session",
        conversation: "Conversation",
        options: dict[str, Any],
        shows_stats: bool,
    ) -> None:
        """Start with a conversation; `options` are fields of Options for every answer."""
        self._session = session
        self._conversation = conversation
        self._options = options
        self._shows_stats = shows_stats
        self._start = [*conversation.messages]
        self._last: Generation | None = None

    def talk(self, inputs: Iterator[str]) -> None:
        """Answer messages and follow commands until /quit or the end of the input."""
        commands: dict[str, Callable[[], None]] = {
            "/help": lambda: print(HELP),
            "/stats": lambda: print(self._figures()),
            "/clear": self._clear,
            "/undo": self._undo,
            "/retry": self._retry,
        }
        for typed in inputs:
            word = typed.strip()
            if word in ("/quit", "/exit"):
                return
            if not word:
                continue
            try:
                if word in commands:
                    commands[word]()
                elif re.fullmatch(r"/\w+", word):
                    print(f"there is no {word}; /help lists the commands")
                else:
                    self._answer(_unicode(typed))
            except PromptError as error:
                print(f"bita: {error}", file=sys.stderr)

    def _answer(self, text: str) -> None:
        self._session.reset_stats()
        with _interrupts(self._stop):
            self._last = answer = self._conversation.send(text, **self._options)
            for piece in answer:
                print(piece, end="", flush=True)
        print()
        if answer.finish_reason in ("cancelled", "length", "capacity"):
            print(f"[{answer.finish_reason}]")
        if self._conversation.num_dropped:
            print(f"[{self._conversation.num_dropped} messages left out, the cache is full]")
        if self._shows_stats:
            print(self._figures(), file=sys.stderr)

    def _figures(self) -> str:
        """Return the statistics of the last answer. Raises PromptError if there is none."""
        if self._last is None:
            raise PromptError("there is no answer yet")
        return summary(self._session, self._last)

    def _clear(self) -> None:
        self._conversation = self._session.conversation(self._start, self._conversation.overflow)
        print("started again")

    def _undo(self) -> None:
        print(f"taken back: {self._conversation.undo()}")

    def _retry(self) -> None:
        self._answer(self._conversation.undo())

    def _stop(self) -> None:
        if self._last is not None:
            self._last.cancel()


def _unicode(typed: str) -> str:
    """Return a typed line as Unicode. Raises PromptError if it is not text."""
    try:
        return as_unicode(typed, sys.stdin.encoding or "utf-8")
    except UnicodeError as error:
        raise PromptError(f"that is not UTF-8 ({error}); type it again") from error


def _typed() -> Iterator[str]:
    """Yield texts typed at a prompt. Ctrl-C drops a line, Ctrl-D ends the input."""

    def read() -> str:
        try:
            return input("> ") + "\n"
        except EOFError:
            return ""

    while True:
        try:
            yield from _lines(read)
        except KeyboardInterrupt:
            print("\n(Ctrl-D or /quit leaves)")
            continue
        print()
        return


def _lines(read: Callable[[], str]) -> Iterator[str]:
    """Yield texts of one line or several; `read` returns a line with its end, or "" at the end."""
    while line := read():
        text = line.rstrip("\n")
        if text.lstrip().startswith(BLOCK):
            yield _block(text.lstrip()[len(BLOCK) :], read)
            continue
        while text.endswith("\\") and (line := read()):
            text = text[:-1] + "\n" + line.rstrip("\n")
        yield text


def _block(text: str, read: Callable[[], str]) -> str:
    """Return the text between two BLOCK marks; `text` follows the first."""
    while BLOCK not in text and (line := read()):
        text += "\n" + line.rstrip("\n")
    return text.split(BLOCK)[0].strip("\n")


@contextlib.contextmanager
def _interrupts(cancel: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C call `cancel` while the block runs."""
    before = signal.signal(signal.SIGINT, lambda *_: cancel())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Keep typed lines for the arrow keys from one chat to the next."""
    try:
        import readline
    except ImportError:  # on Windows
        yield
        return
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = home / "bita" / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
