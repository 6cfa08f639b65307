"""`bita serve` as clients see it, through the openai library and plain HTTP."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from running_server import MESSAGES, Running, running

from bita.errors import PromptError, PromptTooLongError

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "maximum": 99}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tiny_engine: Path) -> Iterator[Running]:
    with running(tiny_engine, max_body_bytes=4000, max_messages=5) as server:
        yield server


def test_an_answer_equals_that_of_the_engine(server: Running) -> None:
    alone = server.alone(MESSAGES)
    answer = server.client().chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20)
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role) == (alone.text, "assistant")
    assert choice.finish_reason == {"eos": "stop", "length": "length"}[alone.finish_reason]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(alone.prompt_ids)
    assert answer.usage.completion_tokens == len(alone.token_ids)
    assert answer.usage.total_tokens == len(alone.prompt_ids) + len(alone.token_ids)
    assert (answer.model, answer.object) == ("tiny", "chat.completion")
    assert answer.system_fingerprint


def test_a_stream_gives_the_same_answer_in_pieces(server: Running) -> None:
    alone = server.alone(MESSAGES, 40, temperature=0.9, seed=5)
    stream = server.client().chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_completion_tokens=40,
        temperature=0.9,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == alone.text
    assert len(chunks) > 10
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert all(chunk.usage is None for chunk in chunks[:-1])
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens == len(alone.token_ids)
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_second_turn_is_cached(server: Running) -> None:
    client = server.client()
    first = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4)
    client.completions.create(model="tiny", prompt="Something else", max_tokens=9)
    again = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=4)
    assert again.choices[0].message == first.choices[0].message
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_options_reach_the_engine(server: Running) -> None:
    client = server.client()
    options: dict[str, Any] = {
        "temperature": 1.1,
        "top_p": 0.95,
        "seed": 3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.3,
        "stop": ["q", "zz"],
    }
    ours: dict[str, Any] = {
        "top_k": 50,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "stop_token_ids": [9],
    }
    alone = server.alone(MESSAGES, 30, logit_bias={40: 2.0}, **options, **ours)
    found = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=30,
        logit_bias={"40": 2},
        extra_body=ours,
        **options,
    )
    assert found.choices[0].message.content == alone.text
    assert found.usage is not None
    assert found.usage.completion_tokens == len(alone.token_ids)


def test_choices_and_prompts_equal_separate_answers(server: Running) -> None:
    client = server.client()
    several = server.other.generate_several("The quick", 3, 12, temperature=1.0, seed=8)
    found = client.completions.create(
        model="tiny", prompt="The quick", n=3, max_tokens=12, temperature=1, seed=8
    )
    assert [choice.text for choice in found.choices] == [each.text for each in several]
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    assert found.usage is not None
    assert found.usage.prompt_tokens == len(several[0].prompt_ids)
    assert found.usage.completion_tokens == sum(len(each.token_ids) for each in several)
    prompts = ["One", "Two"]
    found = client.completions.create(model="tiny", prompt=prompts, max_tokens=5)
    assert [c.text for c in found.choices] == [server.alone(p, 5).text for p in prompts]
    ids = server.other.encode("One")
    for token_ids in (ids, [ids]):
        found = client.completions.create(model="tiny", prompt=token_ids, max_tokens=5)
        assert found.choices[0].text == server.alone(ids, 5).text
    default = client.completions.create(model="tiny", prompt="One", extra_body={"ignore_eos": True})
    assert default.usage is not None
    assert default.usage.completion_tokens == 16
    chunks = list(
        client.completions.create(model="tiny", prompt=prompts, max_tokens=5, stream=True)
    )
    for index, prompt in enumerate(prompts):
        pieces = [c.choices[0].text for c in chunks if c.choices[0].index == index]
        assert "".join(pieces) == server.alone(prompt, 5).text


def test_logprobs_equal_those_of_the_engine(server: Running) -> None:
    alone = server.alone(MESSAGES, 10, logprobs=3)
    client = server.client()
    whole = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=10, logprobs=True, top_logprobs=3
    )
    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    assert content is not None
    assert [each.logprob for each in content] == pytest.approx(
        [each.logprob for each in alone.logprobs[: alone.num_text_tokens]], abs=1e-4
    )
    assert all(len(each.top_logprobs) == 3 for each in content)
    assert b"".join(bytes(each.bytes or ()) for each in content).decode(errors="replace") == (
        alone.text
    )
    streamed = []
    for chunk in client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=10, logprobs=True, top_logprobs=3, stream=True
    ):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content or []
    assert [each.token for each in streamed] == [each.token for each in content]
    text = client.completions.create(model="tiny", prompt="The quick", max_tokens=6, logprobs=2)
    logprobs = text.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert "�" in token or text.choices[0].text[offset:].startswith(token)
    assert math.exp((logprobs.token_logprobs or [1])[0]) <= 1


@pytest.mark.parametrize(
    "shape",
    [
        {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        {"type": "json_object"},
        {"type": "regex", "regex": "[a-f]{2,5}"},
        {"type": "grammar", "grammar": 'start: "yes" | "no"'},
        {"type": "text"},
    ],
)
def test_answers_follow_the_response_format(server: Running, shape: Any) -> None:
    answer = server.client().chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=200, response_format=shape
    )
    text = answer.choices[0].message.content or ""
    if shape["type"] == "json_schema":
        assert set(json.loads(text)) == {"ok", "n"}
        assert answer.choices[0].finish_reason == "stop"
    elif shape["type"] == "json_object":
        assert text.startswith("{")
    elif shape["type"] == "regex":
        assert 2 <= len(text) <= 5
        assert set(text) <= set("abcdef")
    elif shape["type"] == "grammar":
        assert text in ("yes", "no")


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"temperature": -1}, 400, "temperature is -1.0; pass a finite number from 0 to 1e+30"),
    ({"temperature": "hot"}, 400, "temperature: Input should be a valid number (given: 'hot')"),
    ({"top_p": 2, "min_p": 3}, 400, "top_p is 2.0"),
    ({"n": 0}, 400, "n: Input should be greater than or equal to 1 (given: 0)"),
    ({"n": 99}, 400, "less than or equal to 16"),
    ({"max_tokens": 0}, 400, "max_tokens: Input should be greater than or equal to 1"),
    ({"messages": []}, 400, "messages: there are none; pass at least one message"),
    ({"messages": MESSAGES * 6}, 400, "there are 6 messages; send at most 5"),
    ({"messages": [{"role": "user"}]}, 400, "content"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "wizard"),
    ({"messages": [{"role": "user", "content": "word " * 400}]}, 400, "this engine holds"),
    ({"model": "gpt-5"}, 404, "there is no model 'gpt-5'; this server has 'tiny'"),
    (
        {"tools": [{"type": "function"}]},
        400,
        "tools.0.function is None; pass an object with a name",
    ),
    ({"web_search_options": {}, "audio": {}}, 400, "not supported here: web_search_options, audio"),
    ({"functions": [{}]}, 400, "not supported here: functions; use tools"),
    ({"top_logprobs": 3}, 400, "top_logprobs needs logprobs: true"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "less than or equal to 20"),
    ({"logit_bias": {"x": 1}}, 400, "'x' is not a token id"),
    ({"logit_bias": {"999": 1}}, 400, "token id 999 is not in [0, 320)"),
    ({"stop": [""]}, 400, "is empty"),
    ({"response_format": {"type": "xml"}}, 400, "response_format.type: Input should be 'text'"),
    ({"response_format": {"type": "json_schema"}}, 400, "json_schema is missing"),
    ({"response_format": {"type": "regex", "regex": "["}}, 400, "regex grammar is not usable"),
    ({"ignore_eos": True, "response_format": {"type": "json_object"}}, 400, "ignore_eos cannot"),
]


@pytest.mark.parametrize(("change", "status", "message"), BAD)
def test_invalid_requests_are_refused(
    server: Running, change: dict[str, Any], status: int, message: str
) -> None:
    response = server.post(json={"model": "tiny", "messages": MESSAGES, **change})
    error = response.json()["error"]
    assert (response.status_code, set(error)) == (status, {"message", "type", "param", "code"})
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    if "this engine holds" in message:
        assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (PromptTooLongError("other words"), "context_length_exceeded"),
        (PromptError("the model says: this engine holds nothing"), None),
    ],
)
def test_the_error_code_does_not_depend_on_the_message(
    server: Running, monkeypatch: pytest.MonkeyPatch, refusal: PromptError, code: str | None
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise refusal

    monkeypatch.setattr(server.session, "start", refuse)
    error = server.post(json={"model": "tiny", "messages": MESSAGES}).json()["error"]
    assert (error["message"], error["code"]) == (str(refusal), code)


def test_fields_without_effect_are_accepted(server: Running) -> None:
    neutral: dict[str, Any] = {
        "tools": [],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "store": True,
        "user": "me",
        "metadata": {"run": "1"},
        "prompt_cache_key": "x",
        "safety_identifier": "y",
        "verbosity": "low",
        "reasoning_effort": "high",
        "modalities": ["text"],
        "service_tier": "auto",
    }
    response = server.post(json={"messages": MESSAGES, "max_tokens": 3, **neutral})
    assert response.status_code == 200


def test_malformed_requests_are_refused(server: Running) -> None:
    assert (
        server.post(content="{", headers={"Content-Type": "application/json"})
        .json()["error"]["message"]
        .startswith("the body is not valid JSON")
    )
    deep = server.post(content="[" * 3000, headers={"Content-Type": "application/json"})
    assert "nested too deeply" in deep.json()["error"]["message"]
    assert server.post(json=[1]).status_code == 400
    assert (
        server.post(content=b"\xff", headers={"Content-Type": "application/json"}).status_code
        == 400
    )
    assert server.post(content="{}", headers={"Content-Type": "text/plain"}).status_code == 415
    large = server.post(json={"messages": [{"role": "user", "content": "x" * 5000}]})
    assert (large.status_code, large.json()["error"]["message"]) == (
        413,
        "the body has over 4000 bytes",
    )
    assert httpx.get(f"{server.url}/v2").json()["error"]["message"] == "there is no /v2"
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405
    assert server.post("completions", json={"prompt": []}).status_code == 400
    assert server.post("completions", json={"prompt": ["a"] * 17}).status_code == 400
    assert server.post("completions", json={"prompt": "a", "suffix": "b"}).status_code == 400
    with pytest.raises(openai.NotFoundError, match="there is no model 'nope'"):
        server.client().models.retrieve("nope")


def test_models_health_and_metrics_are_served(server: Running) -> None:
    models = server.client().models
    assert [model.id for model in models.list()] == ["tiny"]
    assert models.retrieve("tiny").owned_by == "bita-edge"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    steps, tokens = server.metric("bita_steps_total"), server.metric("bita_generated_tokens_total")
    asked = server.metric('bita_requests_total{endpoint="/v1/completions",status="200"}')
    answer = server.client().completions.create(model="tiny", prompt="One two", max_tokens=30)
    assert answer.usage is not None
    server.wait_until(lambda: server.metric("bita_generated_tokens_total") > tokens)
    now = server.metric("bita_generated_tokens_total")
    assert now - tokens == answer.usage.completion_tokens
    assert server.metric("bita_steps_total") > steps
    assert (
        server.metric('bita_requests_total{endpoint="/v1/completions",status="200"}') == asked + 1
    )
    assert server.metric("bita_tokens_per_step") >= 1
    for name in ("bita_step_seconds_count", "bita_first_token_seconds_sum", "process_resident"):
        assert server.metric(name) > 0
