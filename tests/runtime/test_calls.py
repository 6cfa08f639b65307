"""Tool calls under a grammar: they are valid, may start in a free answer, and equal with a tree."""

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tool_templates import WITH_TOOLS

from bita.adapter import random_adapter
from bita.errors import PromptError
from bita.runtime.decoding.chooser import CallSwitch, Chooser
from bita.runtime.decoding.drafting import accept
from bita.runtime.options import Options
from bita.runtime.session import Session
from bita.runtime.text.answer_parts import AnswerReader, Part
from bita.runtime.text.call_form import HERMES, CallForm
from bita.runtime.text.call_grammar import CallGrammars
from bita.runtime.text.call_rule import CallRule, CallWatch
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.grammar import GrammarMatcher
from bita.runtime.text.reasoning import Reasoning
from bita.runtime.text.tools import Tool, read_tools
from bita.tree import Tree

KIND = {"enum": ["tree", "draft"]}
PARAMETERS = {
    "type": "object",
    "properties": {
        "kind": {"$ref": "#/$defs/kind"},
        "sizes": {"type": "array", "items": {"type": "integer", "maximum": 9}, "maxItems": 2},
    },
    "required": ["kind"],
    "$defs": {"kind": KIND},
}
TOOLS = read_tools(
    [
        {"type": "function", "function": {"name": "grow", "parameters": PARAMETERS}},
        {"type": "function", "function": {"name": "grow_more"}},
    ]
)
NAMES = [tool.name for tool in TOOLS]
FORMS = {name: ChatTemplate(source).tool_forms.form for name, source in WITH_TOOLS.items()}
MARKED = CallForm("<|user|>[", "](", ")", ")<|user|>[")  # uses a special token of the engine


@pytest.fixture(scope="module")
def session(tiny_engine: Path) -> Session:
    return Session.open(tiny_engine, num_threads=1)


def sample_text(session: Session, matcher: GrammarMatcher, seed: int) -> str:
    """Sample a text from the tokens that a grammar allows."""
    draws, codec = random.Random(seed), session.codec
    ids: list[int] = []
    while not matcher.is_complete and len(ids) < 900:
        token = draws.choice(matcher.allowed().tolist())
        ids.append(token)
        matcher.take(token)
    special = codec.special_tokens
    pieces = [special.get(each, "").encode() or codec.token_bytes[each] for each in ids]
    return b"".join(pieces).decode().replace("<|end|>", "")


def check_calls(parts: list[Part]) -> int:
    """Assert that all parts are valid calls, and count the calls."""
    names: list[str] = []
    arguments: list[str] = []
    for part in parts:
        assert part.kind in ("call", "arguments")
        if part.kind == "call":
            names.append(part.text)
            arguments.append("")
        else:
            arguments[-1] += part.text
    for name, text in zip(names, arguments, strict=True):
        given = json.loads(text)
        if name == "grow":
            assert set(given) <= {"kind", "sizes"}
            assert given["kind"] in KIND["enum"]
            assert all(size <= 9 for size in given.get("sizes", []))
        else:
            assert (name, given) == ("grow_more", {})
    return len(names)


@pytest.mark.parametrize("is_single", [True, False])
@pytest.mark.parametrize("name", [*FORMS, "marked"])
def test_every_text_of_a_call_grammar_is_read_as_valid_calls(
    session: Session, name: str, is_single: bool
) -> None:
    form = {**FORMS, "marked": MARKED}[name]
    grammars = CallGrammars(form, session.codec)
    whole, rest = grammars.whole(TOOLS, is_single), grammars.rest(TOOLS, is_single)
    counts = []
    for seed in range(8):
        for grammar, before in ((whole, ""), (rest, form.trigger)):
            text = before + sample_text(session, session._loaded.grammars.compile(grammar), seed)
            reader = AnswerReader(form, NAMES)
            counts.append(check_calls([*reader.push(text), *reader.close()]))
    assert min(counts) == 1
    assert (max(counts) > 1) == (not is_single and form.join is not None)


def test_thinking_may_precede_calls(session: Session) -> None:
    text = "<think>\nWhat <tool_call>?</think>\n" + HERMES.write([("grow_more", "{}")])
    for starts_inside in (True, False):
        grammar = CallGrammars(HERMES, session.codec).whole(TOOLS, True, Reasoning(starts_inside))
        given = text.removeprefix("<think>") if starts_inside else text
        matcher = session._loaded.grammars.compile(grammar)
        assert matcher.take_text(given.encode())
        assert session.eos_ids[0] in matcher.allowed()
        bare = session._loaded.grammars.compile(grammar)
        assert bare.take_text(HERMES.write([("grow_more", "{}")]).encode())
        assert (session.eos_ids[0] in bare.allowed()) == (not starts_inside)


def test_json_may_replace_calls(session: Session) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    grammar = CallGrammars(HERMES, session.codec).whole(TOOLS, True, otherwise=schema)
    call = HERMES.write([("grow_more", "{}")])
    for text, is_taken in ((call, True), ('{"n":1', True), ('{ "n":1', False), ("[1", False)):
        assert session._loaded.grammars.compile(grammar).take_text(text.encode()) == is_taken


def test_objects_without_properties_are_open_unless_strict(session: Session) -> None:
    free = {"type": "object", "properties": {"any": {"type": "object"}}}
    for is_strict in (False, True):
        tool = Tool("free", parameters=free, is_strict=is_strict)
        grammar = CallGrammars(HERMES, session.codec).whole([tool], True)
        for arguments, is_taken in (('{"x"', False), ('{"any": {"x"', not is_strict)):
            text = HERMES.write([("free", arguments)]).partition(arguments)[0] + arguments
            matcher = session._loaded.grammars.compile(grammar)
            assert matcher.take_text(text.encode()) == is_taken


def test_schemas_that_are_too_large_are_refused(session: Session) -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}
    with pytest.raises(PromptError, match=r"tools: their grammar has \d+ characters"):
        CallGrammars(HERMES, session.codec).whole([Tool("a", parameters=schema)], True)


def find_trigger(session: Session, prompt: list[int]) -> tuple[str, str]:
    """Return a token's letters that first occur inside a free answer, and the text before them."""
    answer = session.generate(prompt, 60, ignore_eos=True)
    pieces = [session.codec.token_bytes[token] for token in answer.token_ids]
    for place in range(3, len(pieces)):
        before, piece = b"".join(pieces[:place]), pieces[place]
        is_first = b"".join(pieces).find(piece) == len(before)
        if is_first and len(piece) > 1 and piece.isalpha() and before[-1:].isascii():
            return piece.decode(), before.decode(errors="replace")
    raise AssertionError(answer.text)


def make_rule(session: Session, trigger: str, may_repeat: bool) -> CallRule:
    opening = f'{trigger}{{"name": "'
    form = CallForm(opening, '", "arguments": ', "};", f"}};{opening}" if may_repeat else None)
    assert form.trigger == trigger
    rest = CallGrammars(form, session.codec).rest(TOOLS, not may_repeat)
    return CallRule(form.trigger, form.has_plain_start, rest, may_repeat)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8}, {"repetition_penalty": 1.2}])
def test_a_call_in_a_free_answer_is_the_same_with_any_tree(
    session: Session, options: dict[str, Any], seed: int
) -> None:
    prompt = [5 + seed, 9, 40, 7]
    trigger, _ = find_trigger(session, prompt)
    rule = make_rule(session, trigger, may_repeat=bool(seed % 2))
    wanted = Options.of(max_new_tokens=200, calls=rule, seed=seed, **options)
    plain = session.using(tree=Tree.root_only(), min_rows=session.min_exact_rows)
    expected = plain.start(prompt, wanted).run()
    adapter = random_adapter(session.adapter.identity, 3, 2, 1.0, 3, session.adapter.lora)
    for tree in (Tree.chain(4, 2), Tree.triangle((6, 4, 2), 3)):
        found = session.using(tree=tree, adapter=adapter).start(prompt, wanted).run()
        assert (found.token_ids, found.finish_reason) == (
            expected.token_ids,
            expected.finish_reason,
        )
    before, found_trigger, rest = expected.text.partition(trigger)
    if options:  # the text differs from the one that gave the trigger
        assert not found_trigger or rest.startswith('{"name": "grow')
        return
    assert before == find_trigger(session, prompt)[1]
    assert rest.startswith('{"name": "grow')
    calls = expected.text.split(trigger)[1:]
    if rule.may_repeat:
        assert expected.finish_reason != "grammar"
    else:
        assert expected.finish_reason == "grammar"
        assert len(calls) == 1
    json.loads(calls[0].partition(";")[0])


def walk_chain(chooser: Chooser, session: Session, held: list[int]) -> tuple[int, int]:
    """Walk a chain whose tokens are all the model's best.

    Returns:
        The number of accepted tokens, and the last token chosen.
    """
    best = np.array([*held, 40])
    logits = np.zeros((len(best), session.engine.manifest.vocab_size), np.float32)
    logits[np.arange(len(best)), best] = 9
    needs_logits = chooser.needs_logits
    step: Any = SimpleNamespace(top_ids=best[:, None], logits=logits if needs_logits else None)
    children = [[place + 1] for place in range(len(held))] + [[]]
    path, bonus = accept(children, [7, *held], chooser.choices(step), chooser.has_ended)
    return len(path) - 1, bonus


@pytest.mark.parametrize("may_repeat", [True, False])
def test_a_walk_stops_at_the_start_and_end_of_a_call(session: Session, may_repeat: bool) -> None:
    rule = make_rule(session, "he", may_repeat)
    codec, grammars = session.codec, session._loaded.grammars
    watch = CallWatch(rule, codec, frozenset())
    switch = CallSwitch(watch, lambda: grammars.compile(rule.grammar))
    chooser = Chooser(Options(calls=rule), [5], [1], 0, calls=switch)
    begins = codec.encode("ahe", add_special_tokens=False)
    assert walk_chain(chooser, session, [*begins, 41, 42]) == (len(begins) - 1, begins[-1])
    assert chooser.needs_logits
    call = codec.encode('{"name": "grow_more", "arguments": {}};', add_special_tokens=False)
    assert walk_chain(chooser, session, [*call, 41, 42]) == (len(call) - 1, call[-1])
    assert chooser.needs_logits != may_repeat
    assert chooser.matches_grammar != may_repeat
    if may_repeat:
        assert walk_chain(chooser, session, [41, 42]) == (2, 40)


def test_a_free_answer_without_calls_is_greedy_and_needs_no_logits(session: Session) -> None:
    rule = make_rule(session, "no such text", may_repeat=True)
    for seed in range(3):
        prompt = [5, 9, seed + 4]
        generation = session.start(prompt, Options(max_new_tokens=40, calls=rule))
        assert not generation.sequence.chooser.needs_logits
        assert generation.run().token_ids == session.generate(prompt, 40).token_ids
        assert not generation.sequence.chooser.needs_logits


@pytest.mark.parametrize("size", [1, 2, 5, 40])
@pytest.mark.parametrize(
    ("text", "thinks", "before"),
    [
        ("Look: <tool_call>\n{", None, "Look: <tool_call>"),
        ("<tool_ca<tool_call>", None, "<tool_ca<tool_call>"),
        ("<think><tool_call></think><tool_call>{", False, "<think><tool_call></think><tool_call>"),
        (" <thin<tool_call>{", False, " <thin<tool_call>"),
        ("<tool_call></think>a<tool_call>{", True, "<tool_call></think>a<tool_call>"),
        ("<tool_call", None, None),
        ("<think><tool_call>", False, None),
    ],
)
def test_the_trigger_is_found_in_any_tokenization(
    session: Session, text: str, thinks: bool | None, before: str | None, size: int
) -> None:
    reasoning = None if thinks is None else Reasoning(thinks)
    grammar = CallGrammars(HERMES, session.codec).rest(TOOLS, True)
    watch = CallWatch(
        CallRule("<tool_call>", False, grammar, True, reasoning), session.codec, frozenset()
    )
    found, so_far = None, b""
    for start in range(0, len(text), size):
        for token in session.codec.encode(text[start : start + size], add_special_tokens=False):
            so_far += session.codec.token_bytes[token]
            rest = watch.push(token)
            if rest is not None and found is None:
                assert so_far.endswith(rest)
                found = so_far[: len(so_far) - len(rest)].decode()
    assert found == before


@pytest.mark.parametrize(
    ("text", "is_call"), [(' \n{"name": "', 1), ('a {"name": "', 0), ('{"n":', 0)]
)
def test_a_call_without_a_marker_starts_the_answer(
    session: Session, text: str, is_call: bool
) -> None:
    grammar = CallGrammars(FORMS["llama 3.1"], session.codec).rest(TOOLS, True)
    watch = CallWatch(CallRule('{"name"', True, grammar, False), session.codec, frozenset())
    tokens = [session.codec.encode(character, add_special_tokens=False) for character in text]
    found = [rest for ids in tokens for token in ids if (rest := watch.push(token)) is not None]
    assert found == [b""] * is_call
