"""The C library answers as Python does on engines without native operators."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answer_tool import AnswerTool
from cpp_programs import answer_tool
from native_engines import FEATURES, lora_adapter, native_engine
from random_drafts import prompt_ids
from speed import slow_but

from bita.adapter import random_adapter
from bita.runtime.session import Session
from bita.tree import Tree

KINDS: dict[str, dict[str, Any]] = {
    "ort fp32 exact": {"precision": "fp32", "dialect": "ort"},
    "ort fp32 tree": {"precision": "fp32", "dialect": "ort", "mode": "tree"},
    "ort int8": {"precision": "int8", "dialect": "ort"},
    "ort int4 without LoRA": {"precision": "int4", "dialect": "ort", "with_lora": False},
    "ort fp16": {"precision": "fp16", "dialect": "ort"},
    "plainly": {"precision": "fp32", "dialect": "ort", "tree": Tree.root_only()},
    "standard": {"precision": "fp32", "dialect": "standard"},
    "plain dialect": {"precision": "fp32", "dialect": "plain"},
}


@pytest.fixture(scope="module", params=slow_but(KINDS, "ort fp32 exact", "ort int8", "standard"))
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine")
    return native_engine(FEATURES["long"], folder, capacity=500, **KINDS[request.param]).path


@pytest.fixture(scope="module")
def session(engine: Path) -> Session:
    return Session.open(engine, num_threads=1)


@pytest.fixture(scope="module")
def tool(engine: Path) -> Iterator[AnswerTool]:
    with answer_tool(engine) as tool:
        yield tool


def assert_same(found: dict[str, Any], session: Session, prompt: Any, **options: Any) -> None:
    wanted = session.generate(prompt, **options)
    assert "error" not in found, found
    assert found["token_ids"] == wanted.token_ids
    assert found["text"] == wanted.text
    assert found["finish"] == wanted.finish_reason


def test_answers_equal_those_of_python(session: Session, tool: AnswerTool) -> None:
    for seed in range(4):
        ids = prompt_ids(seed, 5 + 70 * seed)  # one or several pieces, across two buckets
        for options in (
            {"max_new_tokens": 60, "ignore_eos": True},
            {"max_new_tokens": 40, "temperature": 0.8, "seed": seed, "repetition_penalty": 1.1},
        ):
            found = tool.ask(session="answers", token_ids=ids, options=options)
            assert_same(found, session, ids, **options)
    assert found["stats"]["num_steps"] == session.stats.num_steps


def test_sessions_and_forks_keep_separate_texts(session: Session, tool: AnswerTool) -> None:
    texts = {"one": prompt_ids(7, 90), "two": prompt_ids(8, 40)}
    for name, ids in texts.items():
        tool.answer(session=name, token_ids=ids, options={"max_new_tokens": 8})
    tool.ask(session="branch", fork="one")
    texts["branch"] = [*texts["one"], 9, 10]
    for name, ids in texts.items():
        prompt = [*ids, 5, 6]
        found = tool.ask(session=name, token_ids=prompt, options={"max_new_tokens": 30})
        assert_same(found, session, prompt, max_new_tokens=30)
        assert found["stats"]["num_reused_tokens"] > 30


def test_another_adapter_drafts_as_in_python(
    engine: Path, session: Session, tool: AnswerTool, tmp_path: Path
) -> None:
    if session.engine.manifest.lora_rank:
        adapter = lora_adapter(engine.parent / "model", prefix_length=3, seed=5)
    else:
        adapter = random_adapter(session.adapter.identity, 2, 9, scale=0.4, seed=5)
    adapter.save(tmp_path / "adapter.safetensors")
    tree = Tree.triangle((3, 2))
    (tmp_path / "tree.json").write_text(tree.to_json(), encoding="utf-8")
    side = Session.open(engine, num_threads=1, adapter=adapter, tree=tree)
    for seed in range(2):
        ids = prompt_ids(seed)
        found = tool.ask(
            session="adapter",
            tree=str(tmp_path / "tree.json"),
            adapter=str(tmp_path / "adapter.safetensors"),
            token_ids=ids,
            options={"max_new_tokens": 40, "ignore_eos": True},
        )
        assert_same(found, side, ids, max_new_tokens=40, ignore_eos=True)
    assert found["stats"]["num_steps"] == side.stats.num_steps
