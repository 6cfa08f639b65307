"""Costs of grammars: hostile ones end quickly, usual ones are accepted, little is kept."""

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
from speed import thorough_but
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
    """The costs of each hostile grammar, in a process that may use 500 MB for all of them."""
    return costs_of(hostile_grammars)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_quickly(name: str, costs: dict[str, dict[str, Any]]) -> None:
    """They are refused with a message or compiled within two CPU seconds; so is each step."""
    assert costs[name]["seconds"] < 2
    end = costs[name]["end"]
    slowest = re.fullmatch(r"slowest step (.*)", end)
    if slowest:
        assert float(slowest[1]) < 2
    else:
        opening = r"(at a step: )?the (grammar|json_schema|regex|lark)"
        assert re.match(rf"{opening} .*(is not usable|takes more|nested too|followed further)", end)
        assert "backtrace" not in end


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> GrammarCompiler:
    file = tmp_path_factory.mktemp("large") / "tokenizer.json"
    write_large_tokenizer(file)
    return GrammarCompiler(Tokenizer.from_file(str(file)), 30_000, [0])


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.open(TINY_ENGINE, num_threads=1)


@pytest.mark.parametrize("name", thorough_but(GRAMMARS, "event", "words", "merged"))
def test_usual_grammars_give_valid_answers(
    name: str, session: Session, compiler: GrammarCompiler
) -> None:
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


def test_results_of_trials_are_remembered(
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


def test_a_trial_that_nobody_wants_is_abandoned(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trials that wait for their turn are abandoned too, and the process ends."""
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
        # no delay here: a fast processor refuses the grammar in half a second
        assert all(thread.is_alive() for thread in threads)
        is_wanted.clear()
        for thread in threads:
            thread.join()
    assert messages == ["the answer is no longer wanted"] * 3
    assert not grammar_trial._one_at_a_time.locked()


def test_many_grammars_take_little_memory(compiler: GrammarCompiler) -> None:
    before = _resident_bytes()
    for index in range(100):
        schema = {**SCHEMAS["person"], "title": f"number {index}"}
        matcher = compiler.compile(Grammar.json_schema(schema))
        for _ in range(10):
            matcher.take(int(matcher.allowed()[-1]))
        matcher.close()
    assert len(compiler._kept) <= MAX_KEPT
    assert _resident_bytes() - before < 200 << 20


def test_a_compiled_grammar_is_reused_until_its_limit_of_masks(compiler: GrammarCompiler) -> None:
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


def test_a_failed_grammar_does_not_affect_the_next_answer(session: Session) -> None:
    prompt, hostile = [5, 9, 77], Grammar(*HOSTILE["repetitions of repetitions"])
    before = session.generate(prompt, 20).token_ids
    for _ in range(2):
        with pytest.raises(PromptError, match=r"cannot be followed further: .* simplify it"):
            session.generate(prompt, 20, grammar=hostile)
    assert session.generate(prompt, 20).token_ids == before


def test_compiling_a_grammar_counts_towards_the_timeout(
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
    longest = _longest_stall(lambda: compiler.compile(GRAMMARS["2000 choices"]))
    large = Grammar.json_schema({"enum": [[i, [i, {"a": i}]] for i in range(1200)]})
    assert max(longest, _longest_stall(lambda: compiler.compile(large))) < 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ud800", "half a surrogate pair at character 0"),
        (7, "the regex grammar is 7; pass a text"),
    ],
)
def test_grammars_that_are_not_text_are_refused(text: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        Grammar.regex(text)


def test_lark_is_never_read_as_json(compiler: GrammarCompiler) -> None:
    """llguidance would read JSON as a list of grammars, which may have their own options."""
    with pytest.raises(PromptError, match="the lark grammar is not usable"):
        compiler.compile(Grammar.lark('{"grammars": [{"lark_grammar": "start: /.*/"}]}'))


@pytest.mark.parametrize("name", OTHERS)
def test_other_notations_give_answers(name: str, session: Session) -> None:
    text = session.generate([5, 9], 40, grammar=OTHERS[name], temperature=1.0, seed=1).text
    assert text
    if name == "2000 choices":
        assert re.fullmatch(r"Product of number \d{1,4}", text)


def _longest_stall(work: Callable[[], object]) -> float:
    """Return the longest time in seconds during which another thread could not run."""
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
