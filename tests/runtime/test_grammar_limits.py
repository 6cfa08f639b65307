"""What grammars may cost: hostile ones end soon, usual ones are not refused, little is kept."""

import json
import re
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_grammars
import pytest
from deadlines import stopped_if_it_hangs
from hostile_grammars import HOSTILE, write_large_tokenizer
from make_tiny_engine import TINY_ENGINE
from measured_costs import costs_of
from speed import slow_but
from tokenizers import Tokenizer
from usual_grammars import GRAMMARS, OTHERS, SCHEMAS

from bita.errors import PromptError
from bita.runtime.session import Session
from bita.runtime.text import grammar as grammar_module
from bita.runtime.text import grammar_trial
from bita.runtime.text.grammar import MAX_KEPT, MAX_MASKS, Grammar, GrammarCompiler
from bita.runtime.text.grammar_size import is_simple

TRIED = {"patterns", "pydantic", "merged", "mapping", "words", "arithmetic", "query"}
DOUBLING = Grammar(*HOSTILE["intersected patterns"])


@pytest.fixture(scope="module")
def costs() -> dict[str, dict[str, Any]]:
    """What each hostile grammar cost, in a process that has 500 MB for all of them."""
    return costs_of(hostile_grammars)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_are_answered_soon(name: str, costs: dict[str, dict[str, Any]]) -> None:
    """Refused in words, or compiled, within two seconds of the processor; each step too."""
    assert costs[name]["seconds"] < 2
    end = costs[name]["end"]
    slowest = re.fullmatch(r"slowest step (.*)", end)
    if slowest:
        assert float(slowest[1]) < 2
    else:
        told = r"(at a step: )?the (grammar|json_schema|regex|lark)"
        assert re.match(rf"{told} .*(is not usable|takes more|nested too|followed further)", end)
        assert "backtrace" not in end


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    file = tmp_path_factory.mktemp("large") / "tokenizer.json"
    write_large_tokenizer(file)
    return GrammarCompiler(Tokenizer.from_file(str(file)), 30_000, [0])


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(TINY_ENGINE, num_threads=1)


@pytest.mark.parametrize("name", slow_but(GRAMMARS, "event", "words", "merged"))
def test_usual_grammars_work(name: str, session: Session, compiler: GrammarCompiler) -> None:
    compiler.compile(GRAMMARS[name]).allowed()
    num_complete = 0
    for seed in range(3):
        options: dict[str, Any] = {"temperature": 1.0, "seed": seed, "grammar": GRAMMARS[name]}
        answer = session.generate([5, 9, 77, seed], 300, **options)
        if answer.finish_reason in ("grammar", "eos"):
            num_complete += 1
            if name in SCHEMAS:
                assert isinstance(json.loads(answer.text), (dict, list, float, int))
        else:
            assert answer.finish_reason in ("length", "capacity")
    if name in ("moderation", "date", "choice", "2000 choices", "enums of 200", "point"):
        assert num_complete


@pytest.mark.parametrize("name", GRAMMARS)
def test_no_process_is_started_for_simple_grammars(
    name: str, compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def try_grammar(text: str, *args: object) -> grammar_trial.Trial:
        tried.append(text)
        return grammar_trial.Trial(None)

    monkeypatch.setattr(grammar_module, "try_grammar", try_grammar)
    fresh = GrammarCompiler(*compiler._source)
    fresh._loaded = compiler._loaded
    fresh.compile(GRAMMARS[name])
    assert bool(tried) == (name in TRIED)
    assert bool(tried) != is_simple(GRAMMARS[name].kind, GRAMMARS[name].text)


def test_what_was_tried_is_remembered(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    patterns = GRAMMARS["patterns"]
    compiler.compile(patterns)
    with pytest.raises(PromptError, match=r"takes more than (0\.75 s|128 MB) to compile; use"):
        compiler.compile(DOUBLING)
    monkeypatch.setattr(grammar_module, "try_grammar", None)
    compiler.compile(patterns).allowed()
    with pytest.raises(PromptError, match="takes more than"):
        compiler.compile(DOUBLING)


def test_what_nobody_wants_is_given_up(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait for their turn too. The process is gone then."""
    monkeypatch.setattr(grammar_trial, "MAX_SECONDS", 100.0)
    is_wanted = threading.Event()
    is_wanted.set()
    messages: list[str] = []

    def compile_it() -> None:
        try:
            compiler.compile(DOUBLING, is_wanted.is_set)
        except PromptError as refusal:
            messages.append(str(refusal))

    compiler._verdicts.clear()
    threads = [threading.Thread(target=compile_it) for _ in range(3)]
    for thread in threads:
        thread.start()
    with stopped_if_it_hangs(30):
        while not grammar_trial._one_at_a_time.locked():
            time.sleep(0.001)
        # at once: a fast processor has refused the grammar in half a second
        assert all(thread.is_alive() for thread in threads)
        is_wanted.clear()
        for thread in threads:
            thread.join()
    assert messages == ["the answer is not wanted any more"] * 3
    assert not grammar_trial._one_at_a_time.locked()


def test_little_is_kept_of_many_grammars(compiler: GrammarCompiler) -> None:
    before = _resident_bytes()
    for index in range(100):
        schema = {**SCHEMAS["person"], "title": f"number {index}"}
        matcher = compiler.compile(Grammar.json_schema(schema))
        for _ in range(10):
            matcher.take(int(matcher.allowed()[-1]))
        matcher.close()
    assert len(compiler._kept) <= MAX_KEPT
    assert _resident_bytes() - before < 200 << 20


def test_what_is_kept_is_used_again_until_it_is_worn(compiler: GrammarCompiler) -> None:
    grammar = Grammar.regex("[a-e]*")
    matchers = [compiler.compile(grammar) for _ in range(3)]
    for matcher in matchers:
        for _ in range(MAX_MASKS // 3):
            matcher.take(int(matcher.allowed()[-1]))
    kept = compiler._kept[grammar]
    assert kept.num_masks == MAX_MASKS // 3 * 3
    for _ in range(3):
        matchers[0].allowed()
    again = compiler.compile(grammar)
    assert again.allowed().tolist() == matchers[0].allowed().tolist()
    assert compiler._kept[grammar] is not kept


def test_a_grammar_that_failed_does_not_spoil_the_next_answer(session: Session) -> None:
    prompt, hostile = [5, 9, 77], Grammar(*HOSTILE["repetitions of repetitions"])
    before = session.generate(prompt, 20).token_ids
    for _ in range(2):
        with pytest.raises(PromptError, match=r"cannot be followed further: .* simplify it"):
            session.generate(prompt, 20, grammar=hostile)
    assert session.generate(prompt, 20).token_ids == before


def test_the_time_of_an_answer_counts_what_its_grammar_takes(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = grammar_module.GrammarCompiler._judge

    def slow(*args: Any) -> Any:
        time.sleep(0.2)
        return real(*args)

    monkeypatch.setattr(grammar_module.GrammarCompiler, "_judge", slow)
    answer = session.generate([5, 9], 20, grammar=Grammar.regex("[a-d]{9}"), timeout_s=0.1)
    assert (answer.finish_reason, answer.text) == ("timeout", "")


def test_compiling_lets_other_threads_run(compiler: GrammarCompiler) -> None:
    compiler.load()
    longest = _longest_silence(lambda: compiler.compile(GRAMMARS["2000 choices"]))
    large = Grammar.json_schema({"enum": [[i, [i, {"a": i}]] for i in range(1200)]})
    assert max(longest, _longest_silence(lambda: compiler.compile(large))) < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ud800", "half a surrogate pair at character 0"),
        (7, "the regex grammar is 7; pass a text"),
    ],
)
def test_what_is_no_text_is_refused(text: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Grammar.regex(text)


def test_lark_is_never_read_as_something_else(compiler: GrammarCompiler) -> None:
    """llguidance would take JSON for a list of grammars, which may have options of their own."""
    with pytest.raises(PromptError, match="the lark grammar is not usable"):
        compiler.compile(Grammar.lark('{"grammars": [{"lark_grammar": "start: /.*/"}]}'))


@pytest.mark.parametrize("name", OTHERS)
def test_other_notations_are_as_long_as_they_say(name: str, session: Session) -> None:
    text = session.generate([5, 9], 40, grammar=OTHERS[name], temperature=1.0, seed=1).text
    assert text
    if name == "2000 choices":
        assert re.fullmatch(r"Product of number \d{1,4}", text)


def _longest_silence(work: Callable[[], object]) -> float:
    """Seconds for which another thread could not run, at most."""
    longest, is_over = 0.0, threading.Event()

    def watch() -> None:
        nonlocal longest
        last = time.monotonic()
        while not is_over.is_set():
            time.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    thread = threading.Thread(target=watch)
    thread.start()
    work()
    is_over.set()
    thread.join()
    return longest


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
