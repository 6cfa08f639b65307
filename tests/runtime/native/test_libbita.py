"""The C library answers as Python does: the same tokens, text and finish reasons."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from answer_tool import AnswerTool
from cpp_programs import answer_tool
from native_engines import FEATURES, lora_adapter, native_engine, require_library
from random_drafts import prompt_ids, random_tree

from bita.adapter import random_adapter
from bita.runtime.session import Session
from bita.tree import MAX_LEVEL, Tree
from bita.tree_table import TreeTable

CAPACITY = 720
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.8, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 200, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.7, "repetition_penalty": 1.3},
    {"temperature": 1.0, "presence_penalty": 0.8, "frequency_penalty": 0.4},
    {"temperature": 1.0, "logit_bias": {5: 4.0, 9: -100.0}},
    {"temperature": 1.0, "logit_bias": {7: 2000.0, 8: 2000.5}},
    {"repetition_penalty": 1.2, "frequency_penalty": 0.5},
    {"temperature": 1.0, "presence_penalty": 1000.0},
    {"temperature": 1e-4},
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny int4 Llama: capacity 720, three masks, a prefix of 5, LoRA and the tree (5,4,3)."""
    require_library()
    return native_engine(FEATURES["long"], tmp_path_factory.mktemp("native"), "int4", CAPACITY).path


@pytest.fixture(scope="module")
def session(engine: Path) -> Session:
    return Session.open(engine, num_threads=1)


@pytest.fixture(scope="module")
def tool(engine: Path) -> Iterator[AnswerTool]:
    with answer_tool(engine) as tool:
        yield tool


def tables() -> list[TreeTable]:
    """Make tables that choose random trees by available masks and guess level; half have costs."""
    found = []
    for seed in range(3):
        rng = random.Random(seed)
        trees = [random_tree(seed + 10 * number) for number in range(4)]
        trees = [tree.with_guesses(rng.randint(0, 3)) for tree in trees]
        levels = (0, *sorted(rng.sample(range(1, MAX_LEVEL), 2)))
        by_state = tuple(tuple(rng.randrange(4) for _ in levels) for _ in range(4))
        table = TreeTable(tuple(trees), levels, by_state)
        found.append(table)
        found.append(table.with_costs([1 + 0.05 * row for row in range(table.num_rows)]))
    return found


def assert_same(found: dict[str, Any], session: Session, prompt: Any, **options: Any) -> None:
    """Assert that an answer of the C library equals Python's."""
    wanted = session.generate(prompt, **options)
    assert "error" not in found, found
    assert found["token_ids"] == wanted.token_ids
    assert found["text"] == wanted.text
    assert found["finish"] == wanted.finish_reason


def write_table(path: Path, table: TreeTable | Tree) -> str:
    path.write_text(table.to_json(), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("seed", range(6))
def test_greedy_answers_equal_those_of_python(
    seed: int, session: Session, tool: AnswerTool
) -> None:
    ids = prompt_ids(seed, 1 + 13 * seed)
    for drafts in (0, 1, 2):
        options = {"max_new_tokens": 40, "drafts": drafts}
        found = tool.ask(session="greedy", token_ids=ids, options=options)
        assert_same(found, session, ids, max_new_tokens=40)


@pytest.mark.parametrize("prompt", ["Hello tree", "", "A mask token \u00e9\u4e16 asks", "\n\n  x"])
def test_text_prompts_are_encoded_and_decoded_as_in_python(
    prompt: str, session: Session, tool: AnswerTool
) -> None:
    found = tool.ask(session="text", text=prompt, options={"max_new_tokens": 30})
    if not session.encode(prompt):
        assert found["error"] == "the prompt is empty; give at least one token"
        return
    assert_same(found, session, prompt, max_new_tokens=30)


def test_steps_accept_several_tokens(session: Session, tool: AnswerTool) -> None:
    found = tool.answer(
        session="steps",
        token_ids=prompt_ids(3),
        options={"max_new_tokens": 60, "ignore_eos": True, "drafts": 1},
    )
    assert found["stats"]["num_accepted"] > 0
    assert max(found["steps"]) > 1
    assert sum(found["steps"]) == len(found["token_ids"]) == 60
    assert found["stats"]["num_tokens"] == 59  # the first came from the prompt's step


@pytest.mark.parametrize("options", SAMPLINGS, ids=str)
@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
def test_sampled_answers_equal_those_of_python(
    options: dict[str, Any], seed: int, session: Session, tool: AnswerTool
) -> None:
    ids = prompt_ids(seed % 100)
    wanted = {"max_new_tokens": 30, "seed": seed, **options}
    given = {**wanted, "logit_bias": {str(k): v for k, v in options.get("logit_bias", {}).items()}}
    found = tool.ask(session="sampled", token_ids=ids, options=given)
    assert_same(found, session, ids, **wanted)
    assert found["seed"] == seed


def test_answers_without_a_seed_differ_and_report_a_seed_that_repeats_them(
    tool: AnswerTool,
) -> None:
    options = {"max_new_tokens": 20, "temperature": 3.0}
    ids = prompt_ids(1)
    first, second = (
        tool.answer(session="seedless", token_ids=ids, options=options) for _ in range(2)
    )
    assert first["token_ids"] != second["token_ids"]
    again = tool.answer(
        session="seedless", token_ids=ids, options={**options, "seed": first["seed"]}
    )
    assert again["token_ids"] == first["token_ids"]


@pytest.mark.parametrize("number", range(6))
def test_tree_tables_give_the_steps_and_answers_of_python(
    number: int, engine: Path, tool: AnswerTool, tmp_path: Path
) -> None:
    table = tables()[number]
    session = Session.open(engine, num_threads=1, tree=table)
    tree = write_table(tmp_path / "tree.json", table)
    for seed in range(3):
        ids = prompt_ids(seed, 30) * 3
        options = {"max_new_tokens": 120, "ignore_eos": True}
        name = f"table {number}"
        found = tool.ask(session=name, tree=tree, token_ids=ids, options=options)
        assert_same(found, session, ids, **options)
    # equal steps show that drafts and guesses equal Python's
    assert found["stats"]["num_steps"] == session.stats.num_steps
    assert found["stats"]["num_from_text"] == session.stats.num_from_text
    assert found["stats"]["num_guarded_steps"] == session.stats.num_guarded_steps


@pytest.mark.parametrize("seed", range(3))
def test_other_adapters_leave_the_text_unchanged(
    seed: int, engine: Path, session: Session, tool: AnswerTool, tmp_path: Path
) -> None:
    identity = session.adapter.identity
    adapter = random_adapter(identity, 1 + seed, (0, 3, 17)[seed], scale=5.0, seed=seed)
    adapter.save(tmp_path / "adapter.safetensors")
    ids = prompt_ids(seed)
    tree = write_table(tmp_path / "tree.json", Tree.chain(1 + seed))
    found = tool.ask(
        session=f"adapter {seed}",
        tree=tree,
        adapter=str(tmp_path / "adapter.safetensors"),
        token_ids=ids,
        options={"max_new_tokens": 40, "drafts": 1},
    )
    assert_same(found, session, ids, max_new_tokens=40)


def test_another_lora_adapter_drafts_as_in_python(
    engine: Path, tool: AnswerTool, tmp_path: Path
) -> None:
    adapter = lora_adapter(engine.parent / "model", seed=5)
    adapter.save(tmp_path / "adapter.safetensors")
    session = Session.open(engine, num_threads=1, adapter=adapter, tree=Tree.triangle())
    found: dict[str, Any] = {}
    for seed in range(3):
        ids = prompt_ids(seed)
        found = tool.ask(
            session="lora",
            tree=write_table(tmp_path / "tree.json", Tree.triangle()),
            adapter=str(tmp_path / "adapter.safetensors"),
            token_ids=ids,
            options={"max_new_tokens": 60, "ignore_eos": True},
        )
        assert_same(found, session, ids, max_new_tokens=60, ignore_eos=True)
    assert found["stats"]["num_accepted"] > 0
    assert found["stats"]["num_steps"] == session.stats.num_steps


def stop_options(session: Session, ids: Sequence[int]) -> list[dict[str, Any]]:
    """Return options that end an answer early, chosen from the answer without them."""
    answer = session.generate(ids, 40, ignore_eos=True)
    tokens, text = answer.token_ids, answer.text
    return [
        {"stop": [text[9:13]]},
        {"stop": [text[20:40], text[5:6]]},
        {"stop": ["never said"]},
        {"stop_token_ids": [tokens[7]]},
        {"stop_token_ids": [tokens[30]], "stop": [text[30:33]]},
        {"max_new_tokens": 1},
    ]


def test_stop_options_end_answers_as_in_python(session: Session, tool: AnswerTool) -> None:
    for seed in range(4):
        ids = prompt_ids(seed)
        for stops in stop_options(session, ids):
            options = {"max_new_tokens": 40, "ignore_eos": True, **stops}
            found = tool.ask(session="stops", token_ids=ids, options=options)
            assert_same(found, session, ids, **options)


@pytest.mark.parametrize("count", [0, 3, 20])
def test_logprobs_equal_those_of_python(count: int, session: Session, tool: AnswerTool) -> None:
    """Every token has one whatever the options, and asking for them leaves the answer unchanged."""
    ids = prompt_ids(9)
    plain = session.generate(ids, 40, ignore_eos=True)
    for options in (
        {"ignore_eos": True},
        {"temperature": 1.0, "top_k": 8, "repetition_penalty": 1.3, "seed": 4},
        {"logit_bias": {7: 2000.0}, "max_new_tokens": 9},
        {"stop_token_ids": [plain.token_ids[20]], "ignore_eos": True},
        {"stop": [plain.text[12:15]], "ignore_eos": True},
    ):
        given: dict[str, Any] = {"max_new_tokens": 40, **options, "logprobs": count}
        found = tool.ask(session="logprobs", token_ids=ids, options=given)
        assert_same(found, session, ids, **given)
        wanted = session.generate(ids, **given).logprobs
        assert len(found["logprobs"]) == len(wanted) == len(found["token_ids"])
        for (token, logprob, best), each in zip(found["logprobs"], wanted, strict=True):
            assert token == each.token_id
            assert logprob == pytest.approx(each.logprob, abs=1e-6)
            assert [one for one, _ in best] == [one for one, _ in each.best]
            assert [more for _, more in best] == pytest.approx([m for _, m in each.best], abs=1e-6)
    assert tool.ask(session="logprobs", token_ids=ids)["logprobs"] == []


def test_an_answer_ends_when_the_cache_is_full(session: Session, tool: AnswerTool) -> None:
    ids = prompt_ids(2, 650)
    found = tool.ask(
        session="full", token_ids=ids, options={"max_new_tokens": 999, "ignore_eos": True}
    )
    assert found["finish"] == "capacity"
    assert_same(found, session, ids, max_new_tokens=999, ignore_eos=True)


def test_cached_tokens_are_reused(session: Session, tool: AnswerTool) -> None:
    ids = prompt_ids(1, 100)
    first = tool.answer(session="reuse", token_ids=ids, options={"max_new_tokens": 10})
    assert first["stats"]["num_reused_tokens"] == 0
    longer = [*ids, *first["token_ids"], 5, 6]
    second = tool.ask(session="reuse", token_ids=longer, options={"max_new_tokens": 10})
    assert second["stats"]["num_reused_tokens"] >= 100
    assert_same(second, session, longer, max_new_tokens=10)
    other = [*ids[:50], 9, *ids[50:]]
    third = tool.ask(session="reuse", token_ids=other, options={"max_new_tokens": 10})
    assert third["stats"]["num_reused_tokens"] - second["stats"]["num_reused_tokens"] == 50
    assert_same(third, session, other, max_new_tokens=10)


def test_a_fork_shares_the_cache_and_continues_independently(
    session: Session, tool: AnswerTool
) -> None:
    ids = prompt_ids(4, 90)
    tool.answer(session="trunk", token_ids=ids, options={"max_new_tokens": 12})
    ways = {"trunk": [*ids, 7, 8], "branch": [*ids, 9, 10, 11]}
    for name, way in ways.items():
        found = tool.ask(session=name, fork="trunk", token_ids=way, options={"max_new_tokens": 40})
        assert_same(found, session, way, max_new_tokens=40)
        assert found["stats"]["num_reused_tokens"] == 90
    # each session still has its own text
    for name, way in ways.items():
        found = tool.ask(session=name, token_ids=way, options={"max_new_tokens": 40})
        assert_same(found, session, way, max_new_tokens=40)


def test_conversations_equal_those_of_python(session: Session, tool: AnswerTool) -> None:
    system = {"role": "system", "content": "Say little."}
    wanted = session.conversation([system])
    questions = ["What is a tree?", "  And a mask? ", "Why\n\nso?", "\u00e9\u4e16!"]
    for number, content in enumerate(questions):
        options = {"max_new_tokens": 20, "temperature": 0.8, "seed": number}
        answer = wanted.send(content, **options).run()
        messages = [system] * (number == 0) + [{"role": "user", "content": content}]
        found = tool.answer(session="talk", messages=messages, options=options)
        assert found["token_ids"] == answer.token_ids
        assert found["text"] == answer.text
    # a fork and the original conversation continue independently from here
    tool.ask(session="other talk", fork="talk")
    for name, branch in (("talk", wanted), ("other talk", wanted.fork())):
        answer = branch.send(f"I am {name}", max_new_tokens=20).run()
        found = tool.answer(
            session=name,
            messages=[{"role": "user", "content": f"I am {name}"}],
            options={"max_new_tokens": 20},
        )
        assert found["token_ids"] == answer.token_ids
        assert found["stats"]["num_reused_tokens"] > 50


def test_a_cleared_session_begins_another_conversation(session: Session, tool: AnswerTool) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    for _ in range(2):
        found = tool.ask(
            session="clear", clear=True, messages=messages, options={"max_new_tokens": 9}
        )
        assert_same(found, session, messages, max_new_tokens=9)


def test_a_long_conversation_drops_its_oldest_messages(session: Session, tool: AnswerTool) -> None:
    wanted = session.conversation([{"role": "system", "content": "Be."}], "drop_oldest")
    messages = [{"role": "system", "content": "Be."}]
    dropped = 0
    for number in range(12):
        content = f"Question {number}: " + "why " * 40
        answer = wanted.send(content, max_new_tokens=30).run()
        found = tool.answer(
            session="long talk",
            overflow=1,
            messages=[*messages, {"role": "user", "content": content}],
            options={"max_new_tokens": 30},
        )
        messages = []
        assert found["token_ids"] == answer.token_ids
        assert found["num_dropped"] == wanted.num_dropped
        dropped = found["num_dropped"]
    assert dropped > 0


def test_sessions_that_lose_their_pages_recompute_them(engine: Path, session: Session) -> None:
    """The cache holds little more than one text, so the sessions evict each other's rows."""
    with answer_tool(engine, options={"cache_bytes": 1}) as tool:
        texts = {str(seed): prompt_ids(seed, 300) for seed in range(4)}
        for turn in range(2):
            for name, ids in texts.items():
                prompt = [*ids, turn + 4]
                found = tool.ask(session=name, token_ids=prompt, options={"max_new_tokens": 30})
                assert_same(found, session, prompt, max_new_tokens=30)


def test_a_cancelled_answer_ends_and_the_session_stays_usable(
    session: Session, tool: AnswerTool
) -> None:
    ids = prompt_ids(6)
    options = {"max_new_tokens": 200, "ignore_eos": True}
    whole = session.generate(ids, 200, ignore_eos=True)
    for steps in (0, 1, 3):
        found = tool.answer(session="cancel", token_ids=ids, options=options, cancel_after=steps)
        assert found["finish"] == "cancelled"
        assert found["token_ids"] == whole.token_ids[: len(found["token_ids"])]
        assert len(found["token_ids"]) < 200
    assert_same(tool.ask(session="cancel", token_ids=ids, options=options), session, ids, **options)


def test_an_answer_ends_at_its_timeout(tool: AnswerTool) -> None:
    options = {"max_new_tokens": 600, "ignore_eos": True, "timeout_s": 1e-9}
    found = tool.answer(session="time", token_ids=prompt_ids(6), options=options)
    assert found["finish"] == "timeout"
    assert found["token_ids"] == []
