"""The C library reports invalid requests and files, and its sessions remain usable."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from answer_tool import AnswerTool
from cpp_programs import answer_tool
from native_engines import FEATURES, native_engine, require_library
from random_drafts import prompt_ids

from bita.runtime.session import Session
from bita.tree import Tree


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny int4 Llama with a capacity of 720."""
    require_library()
    return native_engine(FEATURES["long"], tmp_path_factory.mktemp("native"), "int4", 720).path


@pytest.fixture(scope="module")
def session(engine: Path) -> Session:
    return Session.open(engine, num_threads=1)


@pytest.fixture(scope="module")
def tool(engine: Path) -> Iterator[AnswerTool]:
    with answer_tool(engine) as tool:
        yield tool


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"token_ids": []}, -4, "the prompt is empty; give at least one token"),
        ({"token_ids": [1, -1]}, -4, "token ids must be in [0, 320); the prompt has -1"),
        ({"token_ids": [320]}, -4, "token ids must be in [0, 320); the prompt has 320"),
        ({"token_ids": [1] * 800}, -4, "the prompt has 800 tokens; this engine holds 714: "),
        ({"token_ids": [1], "options": {"temperature": -1.0}}, -4, "temperature is -1; pass a "),
        ({"token_ids": [1], "options": {"top_p": 2.0}}, -4, "top_p is 2; pass a finite number "),
        ({"token_ids": [1], "options": {"max_new_tokens": -1}}, -4, "max_new_tokens is -1; pass "),
        ({"token_ids": [1], "options": {"top_k": -1, "min_p": 7}}, -4, "2 faults:\n  - min_p is 7"),
        ({"token_ids": [1], "options": {"stop": [""]}}, -4, "number 0 is empty, which every text "),
        ({"token_ids": [1], "options": {"logit_bias": {"999": 1.0}}}, -4, "token id 999 is not in"),
        ({"token_ids": [1], "options": {"stop_token_ids": [-3]}}, -4, "token id -3 is not in"),
        ({"token_ids": [1], "options": {"drafts": 9}}, -5, "options.drafts is 9; pass 0 to 2"),
        ({"token_ids": [1], "options": {"logprobs": 21}}, -4, "num_best is 21; pass an integer "),
        ({"token_ids": [1], "options": {"logprobs": -1}}, -4, "num_best is -1; pass an integer "),
        ({"messages": []}, -4, "there are 0 messages; pass 1 to 2048"),
        (
            {"messages": [{"role": "wizard", "content": "Hi"}]},
            -4,
            "has the role 'wizard'; use one ",
        ),
    ],
)
def test_invalid_requests_are_reported(
    request_: dict[str, Any], status: int, message: str, tool: AnswerTool, session: Session
) -> None:
    found = tool.ask(session="bad", **request_)
    assert found["status"] == status
    assert message in found["error"]
    # the session still answers valid requests
    ids = prompt_ids(1)
    good = tool.answer(session="bad", token_ids=ids, options={"max_new_tokens": 5})
    wanted = session.generate(ids, 5)
    assert (good["token_ids"], good["text"]) == (wanted.token_ids, wanted.text)
    assert good["finish"] == wanted.finish_reason


def test_invalid_files_of_a_session_are_reported(tool: AnswerTool, tmp_path: Path) -> None:
    tree = tmp_path / "tree.json"
    tree.write_text(Tree.chain(30, 3).to_json(), encoding="utf-8")
    adapter = tmp_path / "adapter.safetensors"
    adapter.write_bytes(b"x" * 100)
    wide = tmp_path / "wide.json"
    wide.write_text(Tree.triangle((17,)).to_json(), encoding="utf-8")
    for files, status, message in (
        ({"tree": str(tmp_path / "no.json")}, -3, "no.json cannot be read (No such file"),
        (
            {"tree": str(wide)},
            -3,
            "the tree does not fit the engine: rank 17 is used; the engine gives",
        ),
        ({"adapter": str(adapter)}, -2, "adapter.safetensors is not a whole safetensors file"),
    ):
        found = tool.ask(session=str(files), **files, token_ids=[1])
        assert found["status"] == status
        assert message in found["error"]
