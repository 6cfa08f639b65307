"""`bita chat` at a terminal and with piped input."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bita.cli.chat import Chat, _lines
from bita.runtime.decoding.sequence import TokenSequence
from bita.runtime.session import Session
from bita.tree import Tree

CHAT = [sys.executable, "-m", "bita", "chat"]


def run_piped(engine: Path, text: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [*CHAT, str(engine), "--threads", "1", *map(str, args)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60)


class Terminal:
    """A `bita chat` process with a pseudo-terminal of its own."""

    def __init__(self, engine: Path, home: Path, *args: object) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "XDG_STATE_HOME": str(home), "TERM": "dumb"}
        self.process = subprocess.Popen(
            [*CHAT, str(engine), "--threads", "1", *map(str, args)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        self._text = ""

    def expect(self, pattern: str, timeout_s: float = 30) -> str:
        """Read until `pattern` appears, and return the output up to its end.

        Fail if no output arrives for `timeout_s` seconds.
        """
        while not (match := re.search(pattern, self._text)):
            is_readable = select.select([self._master], [], [], timeout_s)[0]
            assert is_readable, f"nothing after {self._text!r}, which has no {pattern!r}"
            self._text += os.read(self._master, 65536).decode(errors="replace")
        seen, self._text = self._text[: match.end()], self._text[match.end() :]
        return seen

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def interrupt_until(self, pattern: str) -> None:
        """Interrupt until `pattern` appears; CPython misses interrupts before `input` waits."""
        for _ in range(30):
            self.interrupt()
            try:
                self.expect(pattern, timeout_s=0.5)
            except AssertionError:
                continue
            return
        raise AssertionError(f"no {pattern!r} after interrupts")


@contextmanager
def open_terminal(engine: Path, home: Path, *args: object) -> Iterator[Terminal]:
    chat = Terminal(engine, home, *args)
    try:
        yield chat
    finally:
        chat.process.kill()
        chat.process.wait()


def test_a_piped_chat_answers_each_line(tiny_engine: Path) -> None:
    session = Session.open(tiny_engine, num_threads=1)
    talk = session.conversation([{"role": "system", "content": "Short."}])
    expected = [
        talk.send(text, max_new_tokens=12).run() for text in ("Hello", "two\nlines", "a\n b")
    ]
    text = 'Hello\ntwo\\\nlines\n\n"""a\n b"""\n/stats\n/quit\nnever\n'
    result = run_piped(tiny_engine, text, "--system", "Short.", "--max-new-tokens", 12)
    assert (result.returncode, result.stderr) == (0, "")
    for answer in expected:
        assert answer.text in result.stdout
    reused = f"prompt of {len(expected[-1].prompt_ids)}, {expected[-1].num_reused} of it cached"
    assert reused in result.stdout
    assert result.stdout.count("tokens per step") == 1
    assert "never" not in result.stdout


def test_commands_change_the_conversation_or_explain_why_not(tiny_engine: Path) -> None:
    text = "/stats\n/undo\nHello\n/retry\n/undo\n/undo\n/clear\n/nope\n/help\n/etc is a path\n"
    result = run_piped(tiny_engine, text, "--max-new-tokens", 6)
    lines = result.stderr.splitlines()
    assert lines == [
        "bita: there is no answer yet",
        "bita: there is no message to undo",
        "bita: there is no message to undo",
    ]
    first, second = (part.split("\n")[0] for part in result.stdout.split("[length]\n")[:2])
    assert first == second  # greedy decoding: a retry gives the same answer
    for part in ("taken back: Hello", "started again", "there is no /nope", "/stats   figures"):
        assert part in result.stdout
    assert result.stdout.count("[length]") == 3


@pytest.mark.slow
def test_a_bad_option_ends_the_chat_before_its_first_answer(tiny_engine: Path) -> None:
    for flags, message in (
        (("--temperature", "-1"), "temperature is -1.0; pass a finite number from 0 to 1e+30"),
        (("--top-p", "2", "--seed", "-3"), "2 faults: top_p is 2.0"),
        (("--max-new-tokens", "0"), "max_new_tokens is 0"),
    ):
        result = run_piped(tiny_engine, "Hello\n", *flags)
        assert (result.returncode, result.stdout) == (2, "")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_message_that_is_too_long_is_refused_and_the_chat_continues(tiny_engine: Path) -> None:
    result = run_piped(tiny_engine, f"{'word ' * 300}\nHello\n", "--max-new-tokens", 5)
    assert result.returncode == 0
    assert "this engine holds" in result.stderr
    assert "[length]" in result.stdout


def test_ctrl_c_stops_the_answer_but_not_the_program(tiny_engine: Path, tmp_path: Path) -> None:
    with open_terminal(tiny_engine, tmp_path, "--max-new-tokens", 330, "--tree", "ar") as chat:
        chat.expect("/help lists")
        chat.expect("> ")
        chat.type("Hello tree\n")
        chat.expect("Hello tree\r?\n.")
        chat.interrupt()
        chat.expect(r"\[(cancelled|capacity|length)\]\r?\n> ")  # the answer may end first
        chat.interrupt_until("Ctrl-D or /quit leaves")
        chat.type("/stats\n")
        chat.expect("tokens per step")
        chat.expect("> ")  # readline may drop what is typed before it takes over the terminal
        chat.type("\x04")
        assert chat.process.wait(timeout=20) == 0


def test_an_interrupt_takes_effect_within_a_step(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session.open(tiny_engine, tree=Tree.root_only(), num_threads=1)
    decoder, steps = session.decoder, list[int]()
    step = decoder.step

    def interrupt_fourth_step(sequence: TokenSequence) -> list[int]:
        steps.append(len(sequence.token_ids))
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(sequence)

    monkeypatch.setattr(decoder, "step", interrupt_fourth_step)
    before = signal.getsignal(signal.SIGINT)
    talk = session.conversation()
    Chat(session, talk, {"max_new_tokens": 50}, False).talk(iter(["Hello", "Again"]))
    out = capsys.readouterr().out
    assert out.count("[cancelled]") == out.count("[length]") == 1
    assert len(steps) == 4 + 50
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 2
    assert signal.getsignal(signal.SIGINT) is before


def test_input_lines_are_saved_for_the_next_chat(tiny_engine: Path, tmp_path: Path) -> None:
    pytest.importorskip("readline")
    with open_terminal(tiny_engine, tmp_path, "--max-new-tokens", 3) as chat:
        chat.expect("> ")
        chat.type("Hello tree\n")
        chat.expect(r"\[length\]|> ")
        chat.type("/quit\n")
        assert chat.process.wait(timeout=20) == 0
    history = (tmp_path / "bita" / "chat_history").read_text()
    assert "Hello tree" in history


def test_backslashes_and_triple_quotes_join_lines() -> None:
    def read_texts(*lines: str) -> list[str]:
        rest = iter(lines)
        return list(_lines(lambda: next(rest, "")))

    assert read_texts("a\n", "b") == ["a", "b"]
    assert read_texts("a\\\n", "b\\\n", "c\n", "d\n") == ["a\nb\nc", "d"]
    assert read_texts("a\\\n") == ["a\\"]
    assert read_texts('"""a\n', 'b"""\n', "c\n") == ["a\nb", "c"]
    assert read_texts('"""\n', "a\n", "\n", "b\n", '"""\n') == ["a\n\nb"]
    assert read_texts('"""one"""\n') == ["one"]
    assert read_texts('"""no end\n') == ["no end"]
