"""Tools and thinking over HTTP: valid calls, streamed in OpenAI's format, and clear errors."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_edits import copy_engine, edit_files
from hostile_grammars import HOSTILE
from running_server import Running, running
from tool_templates import TINY, TINY_THINKING

GROW: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "grow",
        "description": "Grows a tree.",
        "parameters": {
            "type": "object",
            "properties": {
                "kind": {"enum": ["oak", "fir"]},
                "height": {"type": "integer", "minimum": 1, "maximum": 99},
            },
            "required": ["kind", "height"],
        },
    },
}
HALT: dict[str, Any] = {"type": "function", "function": {"name": "halt", "strict": None}}
TOOLS: Any = [GROW, HALT]
SHORT: Any = [{"role": "user", "content": "Hi"}]
NAMED: Any = {"type": "function", "function": {"name": "grow"}}


@pytest.fixture(scope="module")
def server(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    engine = copy_engine(tiny_engine, tmp_path_factory.mktemp("tools") / "engine")
    edit_files(engine, {"chat_template.jinja": TINY.encode()})
    with running(engine, max_body_bytes=1 << 20) as server:
        yield server


@pytest.fixture(scope="module")
def thinking(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    engine = copy_engine(tiny_engine, tmp_path_factory.mktemp("thinking") / "engine")
    edit_files(engine, {"chat_template.jinja": TINY_THINKING.encode()})
    with running(engine) as server:
        yield server


def ask(server: Running, **fields: Any) -> Any:
    given = {"model": "tiny", "messages": SHORT, "temperature": 0, "max_tokens": 250, **fields}
    return server.client().chat.completions.create(**given)


def check_call(name: str, arguments: str) -> None:
    given = json.loads(arguments)
    if name == "grow":
        assert set(given) == {"kind", "height"}
        assert given["kind"] in ("oak", "fir")
        assert 1 <= given["height"] <= 99
    else:
        assert (name, given) == ("halt", {})


@pytest.mark.parametrize("allows_several", [None, True, False])
@pytest.mark.parametrize("choice", ["required", NAMED])
@pytest.mark.parametrize("seed", range(3))
def test_an_answer_that_must_call_consists_of_valid_calls(
    server: Running, choice: Any, allows_several: bool | None, seed: int
) -> None:
    answer = ask(
        server,
        tools=TOOLS,
        tool_choice=choice,
        temperature=1,
        seed=seed,
        parallel_tool_calls=allows_several,
    )
    (chosen,) = answer.choices
    calls = chosen.message.tool_calls
    assert chosen.message.content is None
    if chosen.finish_reason != "length":
        assert chosen.finish_reason == "tool_calls"
        for call in calls:
            check_call(call.function.name, call.function.arguments)
    if choice == NAMED or allows_several is False:
        assert len(calls) == 1
        assert chosen.finish_reason == "tool_calls"
    if choice == NAMED:
        assert calls[0].function.name == "grow"
    assert len({call.id for call in calls}) == len(calls)


@pytest.mark.parametrize("seed", range(3))
def test_a_stream_has_the_same_calls_in_pieces(server: Running, seed: int) -> None:
    options: Any = {"tools": TOOLS, "tool_choice": "required", "temperature": 1, "seed": seed}
    whole = ask(server, **options).choices[0]
    chunks = [chunk.choices[0] for chunk in ask(server, **options, stream=True)]
    assert all(chunk.delta.content is None for chunk in chunks)
    assert chunks[0].delta.role == "assistant"
    calls: list[dict[str, Any]] = []
    for chunk in chunks:
        for delta in chunk.delta.tool_calls or []:
            if delta.index == len(calls):
                assert (delta.type, delta.function.arguments) == ("function", "")
                calls.append({"id": delta.id, "name": delta.function.name, "arguments": ""})
                continue
            assert delta.index == len(calls) - 1
            assert (delta.id, delta.function.name, delta.type) == (None, None, None)
            calls[-1]["arguments"] += delta.function.arguments
    assert [(call["name"], call["arguments"]) for call in calls] == [
        (call.function.name, call.function.arguments) for call in whole.message.tool_calls
    ]
    assert chunks[-1].finish_reason == whole.finish_reason
    assert len(chunks) > 6


def test_the_tokens_of_a_call_spell_the_call(server: Running) -> None:
    """The logprobs have the tokens of the raw text, including the markers of the call."""
    found = ask(server, tools=TOOLS, tool_choice=NAMED, logprobs=True)
    tokens = [each.token for each in found.choices[0].logprobs.content]
    call = found.choices[0].message.tool_calls[0].function
    text = f'<tool_call>\n{{"name": "grow", "arguments": {call.arguments}}}\n</tool_call>'
    assert "".join(tokens) == text


def test_auto_and_none_do_not_change_an_answer_without_calls(server: Running) -> None:
    plain = ask(server, max_tokens=30).choices[0]
    none = ask(server, max_tokens=30, tools=TOOLS, tool_choice="none").choices[0]
    assert none.message == plain.message
    prompt = "grow;halt;<|user|>Hi<|end|><|assistant|>"
    ids = server.other.codec.encode(prompt, add_special_tokens=False)
    alone = server.alone(ids, 30).text
    for choice in ("auto", None):
        auto = ask(server, max_tokens=30, tools=TOOLS, tool_choice=choice).choices[0]
        assert auto.message.content == alone
        assert auto.message.tool_calls is None
    streamed = ask(server, max_tokens=30, tools=TOOLS, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == alone


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_free_answer_can_become_a_call(
    tiny_engine: Path, tmp_path: Path, is_stream: bool
) -> None:
    """A bias makes the start marker of calls, a special token, likely in free text."""
    engine = copy_engine(tiny_engine, tmp_path / "engine")
    marked = TINY.replace("<tool_call>", "<|user|>").replace("</tool_call>", "<|pad|>")
    edit_files(engine, {"chat_template.jinja": marked.encode()})
    with running(engine) as server:
        bias = {str(server.other.codec.token_id("<|user|>")): 100}
        options: Any = {"tools": TOOLS, "logit_bias": bias, "stream": is_stream}
        one = ask(server, **options, parallel_tool_calls=False)
        several = ask(server, **options, max_tokens=100)
        for answer, is_single in ((one, True), (several, False)):
            texts, finish = (_streamed if is_stream else _whole)(answer)
            assert finish == ("tool_calls" if is_single else "length")
            assert (len(texts) == 1) == is_single
            for name, arguments in texts[: len(texts) - (not is_single)]:
                check_call(name, arguments)


def _whole(answer: Any) -> tuple[list[list[str]], str]:
    calls = answer.choices[0].message.tool_calls
    texts = [[call.function.name, call.function.arguments] for call in calls]
    assert answer.choices[0].message.content is None
    return texts, answer.choices[0].finish_reason


def _streamed(chunks: Any) -> tuple[list[list[str]], str]:
    texts: list[list[str]] = []
    for chunk in chunks:
        assert not chunk.choices[0].delta.content
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.id:
                texts.append([delta.function.name, ""])
            texts[-1][1] += delta.function.arguments
    return texts, chunk.choices[0].finish_reason


def test_a_stop_string_inside_a_call_cuts_the_call(server: Running) -> None:
    options: Any = {"tools": TOOLS, "tool_choice": NAMED, "stop": ['", "height']}
    whole = ask(server, **options).choices[0]
    assert whole.finish_reason == "stop"
    (call,) = whole.message.tool_calls
    assert call.function.arguments in ('{"kind": "oak', '{"kind": "fir')
    chunks = [chunk.choices[0] for chunk in ask(server, **options, stream=True)]
    assert chunks[-1].finish_reason == "stop"


def test_results_of_calls_are_returned_to_the_model(server: Running) -> None:
    first = ask(server, tools=TOOLS, tool_choice=NAMED).choices[0].message
    (call,) = first.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    again = ask(server, tools=TOOLS, messages=[*SHORT, first, result], max_tokens=5)
    prompt = (
        'grow;halt;<|user|>Hi<|end|><|assistant|><tool_call>\n{"name": "grow", "arguments": '
        f"{call.function.arguments}}}\n</tool_call><|end|><|user|><tool_response>\ndone\n"
        "</tool_response><|end|><|assistant|>"
    )
    ids = server.other.codec.encode(prompt, add_special_tokens=False)
    assert again.usage.prompt_tokens == len(ids)
    assert (again.choices[0].message.content or "") == server.alone(ids, 5).text


def test_an_answer_may_be_json_or_calls(server: Running) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    kinds = set()
    for seed in range(8):
        answer = ask(server, tools=TOOLS, response_format=shape, temperature=1, seed=seed)
        message = answer.choices[0].message
        for call in message.tool_calls or []:
            check_call(call.function.name, call.function.arguments)
        if message.content is not None:
            assert message.content.startswith('{"n":')
        kinds.add(message.content is None)
    assert kinds == {True, False}


def test_thinking_is_separate_from_the_content(thinking: Running) -> None:
    server = thinking
    prompt = "<|user|>Hi<|end|><|assistant|><think>\n"
    ids = server.other.codec.encode(prompt, add_special_tokens=False)
    alone = server.alone(ids, 20).text
    thinks = {"chat_template_kwargs": {"enable_thinking": True}}
    message = ask(server, max_tokens=20, extra_body=thinks).choices[0].message
    assert (message.content, message.reasoning_content) == (None, alone.strip())
    chunks = list(ask(server, max_tokens=20, extra_body=thinks, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert all(delta.content is None for delta in deltas)
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert thought.strip() == alone.strip()
    without = ask(server, max_tokens=20, extra_body={"chat_template_kwargs": None})
    assert without.choices[0].message.content is not None


@pytest.mark.parametrize(
    ("begun", "thinks"),
    [("<think>\nWell", True), ("<think>\nWell</think>So", False), ("So", False)],
)
def test_a_started_thinking_part_is_continued(thinking: Running, begun: str, thinks: bool) -> None:
    messages = [*SHORT, {"role": "assistant", "content": begun}]
    fields = {"continue_final_message": True}
    message = ask(thinking, messages=messages, max_tokens=9, extra_body=fields).choices[0].message
    assert (message.content is None) == thinks
    assert (getattr(message, "reasoning_content", None) is not None) == thinks


def test_disabled_thinking_does_not_precede_calls(thinking: Running) -> None:
    for off in (
        {"reasoning_effort": "none"},
        {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    ):
        for seed in range(3):
            options: Any = {"tools": TOOLS, "tool_choice": NAMED, "temperature": 1, "seed": seed}
            message = ask(thinking, **options, **off).choices[0].message
            assert getattr(message, "reasoning_content", None) is None
            check_call("grow", message.tool_calls[0].function.arguments)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [{}]}, "tools", "tools.0.function is None"),
    ({"tools": [GROW, GROW]}, "tools", "tools.1.function.name: 'grow' occurs twice"),
    ({"tools": 3}, "tools", "tools: pass a list of tools (given: 3)"),
    ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "tool_choice is 'any'; pass 'none'"),
    ({"tool_choice": "required"}, "tool_choice", "there are no tools; pass some"),
    (
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
        "tool_choice",
        "names the tool 'x'; there are: grow, halt",
    ),
    ({"tools": TOOLS, "parallel_tool_calls": 1}, "parallel_tool_calls", "valid boolean"),
    (
        {"tools": TOOLS, "ignore_eos": True},
        "ignore_eos",
        "ignore_eos cannot be combined with tools",
    ),
    (
        {"tools": TOOLS, "response_format": {"type": "regex", "regex": "a"}},
        "response_format",
        "kind regex cannot be combined with tools",
    ),
    (
        {"chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs",
        "'messages' has its own field",
    ),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "pass an object"),
    ({"continue_final_message": True}, "messages", "the last message is of role user"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "add_generation_prompt",
        "exclude each other",
    ),
]


@pytest.mark.parametrize(("change", "param", "message"), BAD)
def test_errors_name_the_field(
    server: Running, change: dict[str, Any], param: str, message: str
) -> None:
    response = server.post(json={"messages": SHORT, **change})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert message in error["message"]


@pytest.mark.slow
def test_hostile_schemas_of_tools_are_refused(server: Running) -> None:
    for name in ("intersected patterns", "many optional letters"):
        kind, text = HOSTILE[name]
        inner = json.loads(text) if kind == "json_schema" else {"type": "string", "pattern": text}
        parameters = {"type": "object", "properties": {"x": inner}, "required": ["x"]}
        bad = {"type": "function", "function": {"name": "bad", "parameters": parameters}}
        for choice in ("auto", "required"):
            body = {"messages": SHORT, "tools": [GROW, bad], "tool_choice": choice, "max_tokens": 5}
            response = server.post(json=body)
            assert response.status_code == 400, name
            error = response.json()["error"]
            assert error["param"] == "tools"
            assert "the parameters of 'bad': the json_schema grammar" in error["message"]


def test_an_assistant_message_can_be_continued(server: Running) -> None:
    messages = [*SHORT, {"role": "assistant", "content": "The quick "}]
    fields = {"continue_final_message": True, "add_generation_prompt": False}
    prompt = "<|user|>Hi<|end|><|assistant|>The quick "
    ids = server.other.codec.encode(prompt, add_special_tokens=False)
    found = ask(server, messages=messages, max_tokens=9, extra_body=fields)
    assert found.choices[0].message.content == server.alone(ids, 9).text
    assert found.usage.prompt_tokens == len(ids)
    without = ask(server, max_tokens=1, extra_body={"add_generation_prompt": False})
    assert without.usage.prompt_tokens == len(
        server.other.codec.encode("<|user|>Hi<|end|>", add_special_tokens=False)
    )
