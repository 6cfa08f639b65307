"""Request bodies: null fields, and bodies designed to be expensive for a server."""

import json
import random
import time
from typing import Any

import pytest

from bita.errors import PromptError
from bita.runtime.serving.errors import RequestError, error_body
from bita.runtime.serving.requests import (
    AnswerRequest,
    ChatRequest,
    CompletionRequest,
    parse_request,
)
from bita.runtime.text.chat_template import ChatTemplate

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
TEXT: dict[str, Any] = {"prompt": "Hi"}
FIELDS = (
    *("model", "n", "stream", "stream_options", "stop", "temperature", "top_p", "logit_bias"),
    *("presence_penalty", "frequency_penalty", "seed", "response_format", "user", "max_tokens"),
    *("top_k", "min_p", "repetition_penalty", "ignore_eos", "stop_token_ids", "logprobs"),
    *("max_completion_tokens", "top_logprobs", "tools", "tool_choice", "functions", "store"),
    *("parallel_tool_calls", "modalities", "service_tier", "suffix", "echo", "best_of", "unknown"),
    *("reasoning_effort", "chat_template_kwargs", "add_generation_prompt", "metadata"),
    *("continue_final_message", "verbosity", "safety_identifier", "prompt_cache_key"),
)
KINDS = pytest.mark.parametrize(
    ("kind", "least"), [(ChatRequest, CHAT), (CompletionRequest, TEXT)], ids=["chat", "completion"]
)


def options_of(request: AnswerRequest) -> dict[str, Any]:
    return vars(request.options({}, 100))


@KINDS
@pytest.mark.parametrize("field", FIELDS)
def test_null_means_the_default(kind: type[AnswerRequest], least: Any, field: str) -> None:
    default = parse_request(kind, json.dumps(least).encode())
    found = parse_request(kind, json.dumps({**least, field: None}).encode())
    assert options_of(found) == options_of(default)
    assert (found.n, found.stream, found.includes_usage) == (1, False, False)


def test_null_means_the_default_in_nested_objects() -> None:
    inner = {"include_usage": None, "include_obfuscation": None}
    shape = {"type": "json_schema", "json_schema": {"name": None, "strict": None, "schema": {}}}
    body = {**CHAT, "stream": True, "stream_options": inner, "response_format": shape}
    found = parse_request(ChatRequest, json.dumps(body).encode())
    assert not found.includes_usage
    assert found.response_format is not None
    assert found.response_format.json_schema is not None


def test_null_inside_a_schema_is_kept() -> None:
    schema = {"enum": [None, 1], "default": None}
    shape = {"type": "json_schema", "json_schema": {"schema": schema}}
    found = parse_request(ChatRequest, json.dumps({**CHAT, "response_format": shape}).encode())
    assert found.response_format is not None
    assert found.response_format.json_schema is not None
    assert found.response_format.json_schema.json_schema == schema


WRITES_ROLES = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
NAMES_DEVELOPER = "{% for m in messages %}{% if m.role == 'developer' %}!{% endif %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (WRITES_ROLES, "<system>Be brief.<user>Hi"),
        (NAMES_DEVELOPER + WRITES_ROLES, "!<developer>Be brief.<user>Hi"),
    ],
    ids=["a template without the role", "a template that names it"],
)
def test_a_developer_message_is_a_system_message_unless_the_template_supports_it(
    template: str, text: str
) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert ChatTemplate(template).render(messages) == text
    assert messages[0]["role"] == "developer"


def items(item: str, count: int) -> str:
    return f"[{','.join([item] * count)}]"


def pairs(key: str, value: str, count: int) -> str:
    return "{" + ",".join(f'"{key}{n}":{value}' for n in range(count)) + "}"


HOSTILE: dict[str, tuple[type[AnswerRequest], str]] = {
    "true as prompts": (CompletionRequest, f'{{"prompt":{items("true", 200_000)}}}'),
    "lists of true": (CompletionRequest, f'{{"prompt":{items("[true]", 16)}}}'),
    "lists as prompts": (CompletionRequest, f'{{"prompt":{items("[]", 130_000)}}}'),
    "brackets": (CompletionRequest, f'{{"prompt":{items("[]", 300_000)}}}'),
    "numbers as messages": (ChatRequest, f'{{"messages":{items("1", 400_000)}}}'),
    "texts as stops": (ChatRequest, f'{{"messages":[{{}}],"stop":{items("7", 400_000)}}}'),
    "true as token ids": (
        ChatRequest,
        f'{{"messages":[{{}}],"stop_token_ids":{items("true", 200_000)}}}',
    ),
    "wrong biases": (ChatRequest, f'{{"messages":[{{}}],"logit_bias":{pairs("x", "1", 90_000)}}}'),
    "huge biases": (ChatRequest, f'{{"messages":[{{}}],"logit_bias":{pairs("", "1e39", 90_000)}}}'),
    "a bias of 5000 digits": (
        ChatRequest,
        f'{{"messages":[{{}}],"logit_bias":{{"{"9" * 5000}":1}}}}',
    ),
    "a seed of 5000 digits": (ChatRequest, f'{{"messages":[{{}}],"seed":{"9" * 5000}}}'),
    "a seed of 4000 digits": (ChatRequest, f'{{"messages":[{{}}],"seed":-{"9" * 4000}}}'),
    "a temperature of 4000 digits": (
        ChatRequest,
        f'{{"messages":[{{}}],"temperature":{"9" * 4000}}}',
    ),
    "unknown fields": (
        ChatRequest,
        f'{{"messages":[{{}}],{pairs("x", "1", 90_000)[1:]}',
    ),
    "unknown inner fields": (
        ChatRequest,
        f'{{"messages":[{{}}],"response_format":{pairs("x", "1", 90_000)}}}',
    ),
    "unknown fields of a schema": (
        ChatRequest,
        '{"messages":[{}],"response_format":{"type":"json_schema",'
        f'"json_schema":{pairs("x", "1", 90_000)}}}}}',
    ),
    "unknown stream options": (
        ChatRequest,
        f'{{"messages":[{{}}],"stream_options":{pairs("x", "1", 90_000)}}}',
    ),
    "a list in every field": (
        ChatRequest,
        "{" + ",".join(f'"{field}":{items("true", 3000)}' for field in FIELDS) + "}",
    ),
    "many tools": (
        ChatRequest,
        '{"messages":[{}],"tools":' + items('{"function":{"name":"a"}}', 30_000) + "}",
    ),
    "tools that are numbers": (ChatRequest, f'{{"messages":[{{}}],"tools":{items("1", 400_000)}}}'),
    "a large tool": (
        ChatRequest,
        '{"messages":[{}],"tools":[{"function":{"name":"a","description":"'
        + "x" * 900_000
        + '"}}]}',
    ),
    "unknown fields of a tool": (
        ChatRequest,
        f'{{"messages":[{{}}],"tools":[{{"function":{pairs("x", "1", 90_000)}}}]}}',
    ),
    "a tool of wrong names": (
        ChatRequest,
        f'{{"messages":[{{}}],"tools":[{{"function":{{"name":{pairs("x", "1", 90_000)}}}}}]}}',
    ),
    "variables of the renderer": (
        ChatRequest,
        '{"messages":[{}],"chat_template_kwargs":{"messages":[]}}',
    ),
    "deep nesting": (ChatRequest, '{"messages":' + "[" * 60_000 + "]" * 60_000 + "}"),
    "nesting that can be read": (ChatRequest, '{"messages":' + "[" * 900 + "]" * 900 + "}"),
    "a long name": (ChatRequest, f'{{"messages":[{{}}],"{"x" * 900_000}":1}}'),
    "control characters": (ChatRequest, f'{{"messages":[{{}}],"{chr(92)}u0001{chr(92)}u0001":1}}'),
    "half a pair": (ChatRequest, r'{"messages":[{"role":"user","content":"\ud800"}]}'),
    "halves in the wrong order": (ChatRequest, r'{"messages":[{}],"user":"\ude00\ud83d"}'),
    "half a pair as a name": (ChatRequest, r'{"messages":[{}],"\uD800":1}'),
    "not an object": (ChatRequest, items("1", 300_000)),
    "a text": (ChatRequest, '"' + "x" * 900_000 + '"'),
    "NaN": (ChatRequest, '{"messages":[{}],"temperature":NaN}'),
}


def refusal_of(kind: type[AnswerRequest], body: bytes) -> str | None:
    """Return the answer to a refused body, or None if it is accepted."""
    try:
        options_of(parse_request(kind, body))
    except RequestError as refusal:
        answer = refusal.body()
    except PromptError as refusal:
        answer = error_body(str(refusal), "invalid_request_error")
    else:
        return None
    return json.dumps(answer, ensure_ascii=False).encode().decode()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_body_is_refused_quickly_with_a_short_answer(name: str) -> None:
    kind, body = HOSTILE[name]
    began = time.thread_time()
    answer = refusal_of(kind, body.encode())
    assert time.thread_time() - began < 0.5
    assert answer is not None
    assert len(answer) < 2000


@pytest.mark.parametrize("body", [b"\xff", b'{"messages":"\xed\xa0\x80"}', "{}".encode("utf-16")])
def test_a_body_that_is_not_utf_8_is_refused(body: bytes) -> None:
    assert "is not UTF-8" in (refusal_of(ChatRequest, body) or "")


def test_surrogate_pairs_and_escaped_text_are_accepted() -> None:
    content = '\U0001f600 \\ud800 "\\'
    body = json.dumps({"messages": [{"role": "user", "content": content}]})
    request = parse_request(ChatRequest, body.encode())
    assert request.messages[0]["content"] == content


@pytest.mark.parametrize("seed", [-(2**63), -1, 0, 2**64 - 1])
def test_seeds_of_either_sign_are_accepted(seed: int) -> None:
    body = json.dumps({**CHAT, "seed": seed}).encode()
    assert options_of(parse_request(ChatRequest, body))["seed"] == seed % 2**64


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64, 10**40])
def test_seeds_beyond_a_machine_word_are_refused(seed: int) -> None:
    assert "pass an integer from -2^63 to 2^64 - 1" in (
        refusal_of(ChatRequest, json.dumps({**CHAT, "seed": seed}).encode()) or ""
    )


WRONG = (
    *(
        "null",
        "true",
        "0",
        "-1",
        "2",
        "0.5",
        "1e39",
        "1e308",
        "1e-320",
        "1e400",
        "NaN",
        "-Infinity",
    ),
    *("9" * 30, "9" * 4300, "9" * 4301, '""', '"x"', r'"\ud800"', "[]", "{}", "[null]", "[[]]"),
    *('{"5":1e39}', '{"5":true}', '{"-1":1}', "[5,5.0]", "[" * 300 + "]" * 300, '["",""]'),
)


@pytest.mark.parametrize("number", range(4))
def test_mutated_bodies_are_accepted_or_refused(number: int) -> None:
    """Whatever a body contains, only a refusal is raised, and it is short."""
    random_ = random.Random(number)
    kinds: list[type[AnswerRequest]] = [ChatRequest, CompletionRequest]
    num_accepted = 0
    for _ in range(700):
        kind = random_.choice(kinds)
        least = CHAT if kind is ChatRequest else TEXT
        fields = {name: json.dumps(value) for name, value in least.items()}
        for _ in range(random_.randint(0, 3)):
            fields[random_.choice((*FIELDS, *least))] = random_.choice(WRONG)
        text = "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
        body = bytearray(text.encode())
        if random_.random() < 0.1:
            body[random_.randrange(len(body))] = random_.randrange(256)
        answer = refusal_of(kind, bytes(body))
        num_accepted += answer is None
        assert answer is None or len(answer) < 2000
    assert 100 < num_accepted < 600
