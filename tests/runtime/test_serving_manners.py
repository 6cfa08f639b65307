"""Behavior that clients of other servers rely on: echoes, names, hosts, tokens and keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import MESSAGES, Running, running

from bita.cli.main import main
from bita.runtime.decoding.prompt_scores import score_prompt
from bita.runtime.serving.hosts import host_name


@pytest.fixture(scope="module")
def server(tiny_engine: Path) -> Iterator[Running]:
    settings: dict[str, Any] = {
        "other_names": ["gpt-4o", "tiny"],
        "api_key": "s3cret",
        "allowed_hosts": ("127.0.0.1", "Tiny.Example"),
    }
    with running(tiny_engine, **settings) as server:
        yield server


KEY = {"Authorization": "Bearer s3cret"}


def get(server: Running, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", headers={**KEY, **headers})


def post(server: Running, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", headers=KEY, json=body, timeout=30)


def test_a_model_has_several_names(server: Running) -> None:
    client = server.client(api_key="s3cret")
    assert [each.id for each in client.models.list()] == ["tiny", "gpt-4o"]
    assert client.models.retrieve("gpt-4o").id == "gpt-4o"
    for name in ("tiny", "gpt-4o"):
        answer = client.chat.completions.create(model=name, messages=MESSAGES, max_tokens=2)
        assert answer.model == name
    refused = post(server, "/v1/chat/completions", model="other", messages=MESSAGES)
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")
    assert "this server has 'tiny', 'gpt-4o'" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:80", 200),
        ("tiny.example", 200),
        ("TINY.example:8000", 200),
        ("evil.com", 400),
        ("127.0.0.1.evil.com:80", 400),
        ("[::1]:80", 400),
        ("tiny.example:80:90", 400),
    ],
)
def test_refused_hosts_get_a_json_error_that_names_the_flag(
    server: Running, host: str, status: int
) -> None:
    response = get(server, "/v1/models", Host=host)
    assert response.status_code == status
    if status == 400:
        assert "--allow-host" in response.json()["error"]["message"]
        assert response.json()["error"]["code"] == "host_not_allowed"


@pytest.mark.parametrize(
    ("header", "name"),
    [("A.b:80", "a.b"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("::1", "::1"), ("", "")],
)
def test_a_host_is_read_without_its_port(header: str, name: str) -> None:
    assert host_name(header) == name


@pytest.mark.parametrize("name", ["http://a", "a:80", "a b", "a/b"])
def test_invalid_host_names_are_refused(
    tiny_engine: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tiny_engine), "--port", "0", "--allow-host", name]) == 2
    assert f"--allow-host {name!r} is not a host name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("BEARER  s3cret", 200),
        ("Bearer s3cre", 401),
        ("Bearer", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
        ("Bearer S3cret", 401),
        ("", 401),
    ],
)
def test_the_bearer_scheme_is_case_insensitive(server: Running, header: str, status: int) -> None:
    assert get(server, "/v1/models", Authorization=header).status_code == status


def score_ids(server: Running, ids: list[int]) -> list[float]:
    other = server.other
    with other.lock:
        scores = score_prompt(other.backend, other.adapter, ids, 0)
    return [each.logprob for each in scores]


def test_scores_of_a_prompt_equal_those_of_decoding_it(server: Running) -> None:
    prompt = server.other.encode("The quick brown fox")
    answer = server.alone(prompt, 150, logprobs=2, ignore_eos=True)
    whole = [*prompt, *answer.token_ids]
    scores = score_ids(server, whole)
    assert len(scores) == len(whole) - 1
    expected = [each.logprob for each in answer.logprobs]
    assert scores[len(prompt) - 1 :] == pytest.approx(expected, abs=1e-4)
    assert all(score <= 0 for score in scores)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 5])
@pytest.mark.parametrize("as_ids", [False, True])
def test_a_prompt_is_echoed_with_its_logprobs(
    server: Running, max_tokens: int, as_ids: bool, streams: bool
) -> None:
    text = "The quick brown fox"
    ids = server.other.encode(text)
    answer = server.alone(ids if as_ids else text, max(max_tokens, 1), logprobs=1)
    new = answer.token_ids[: answer.num_text_tokens] if max_tokens else []
    client = server.client(api_key="s3cret")
    found: Any = client.completions.create(
        model="tiny",
        prompt=ids if as_ids else text,
        max_tokens=max_tokens,
        echo=True,
        logprobs=1,
        temperature=0,
        stream=streams,
    )
    choices = [chunk.choices[0] for chunk in found] if streams else found.choices
    logprobs = [choice.logprobs for choice in choices if choice.logprobs]
    assert "".join(choice.text for choice in choices) == text + (answer.text if max_tokens else "")
    values = [value for each in logprobs for value in each.token_logprobs]
    assert values[0] is None
    assert values[1:] == pytest.approx(score_ids(server, [*ids, *new]), abs=1e-4)
    best = [each for one in logprobs for each in one.top_logprobs]
    assert best[0] is None
    assert all(len(each) == 1 for each in best[1:])
    offsets = [each for one in logprobs for each in one.text_offset]
    assert offsets[: len(ids)] == [
        len(server.other.codec.decode(ids[:place])) for place in range(len(ids))
    ]
    assert choices[-1].finish_reason in ("length", "stop")


def test_several_prompts_are_echoed_with_their_answers(server: Running) -> None:
    prompts = ["One", "Two three"]
    found = post(server, "/v1/completions", prompt=prompts, echo=True, max_tokens=2, n=2, seed=1)
    texts = [choice["text"] for choice in found.json()["choices"]]
    assert [text.startswith(prompts[place // 2]) for place, text in enumerate(texts)] == [True] * 4
    alone = post(server, "/v1/completions", prompt=prompts, echo=True, max_tokens=0).json()
    assert [choice["text"] for choice in alone["choices"]] == prompts
    assert alone["usage"]["completion_tokens"] == 0
    assert server.server.line.num_taken == 0


def test_max_tokens_0_requires_echo(server: Running) -> None:
    for path, body in (
        ("/v1/completions", {"prompt": "a", "max_tokens": 0}),
        ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 0}),
    ):
        error = post(server, path, **body).json()["error"]
        assert error["param"] == "max_tokens"


def test_text_survives_tokenizing_and_detokenizing(server: Running) -> None:
    text = "The quick <|end|> brown"
    for field in ("prompt", "content"):
        found = post(server, "/tokenize", **{field: text}).json()
        adds = field == "prompt"
        assert found["tokens"] == server.other.codec.encode(text, add_special_tokens=adds)
        assert found["count"] == len(found["tokens"])
        assert found["max_model_len"] == server.other.max_prompt_tokens
        back = post(server, "/detokenize", tokens=found["tokens"]).json()
        assert back["content"] == back["prompt"] == text
    pieces = post(server, "/tokenize", content=text, with_pieces=True).json()["tokens"]
    assert "".join(each["piece"] for each in pieces) == text
    chat = post(server, "/tokenize", messages=MESSAGES).json()["tokens"]
    assert chat == server.other.encode(MESSAGES)
    cut = post(server, "/tokenize", messages=MESSAGES, add_generation_prompt=False).json()["tokens"]
    assert chat[: len(cut)] == cut != chat


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"content": "a", "with_pieces": 1}, "with_pieces"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ("/detokenize", {"tokens": [999]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_invalid_text_and_tokens_are_refused(
    server: Running, path: str, body: dict[str, Any], param: str
) -> None:
    response = post(server, path, **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_props_describe_the_server(server: Running) -> None:
    props = get(server, "/props").json()
    assert props["default_generation_settings"]["n_ctx"] == server.other.engine.manifest.capacity
    assert "<|assistant|>" in props["chat_template"]
    assert props["model_names"] == ["tiny", "gpt-4o"]
    assert props["total_slots"] == server.server.line._max_running
    assert httpx.get(f"{server.url}/props").status_code == 401


PARAMS = [
    ({"temperature": -1}, "temperature"),
    ({"top_p": 3}, "top_p"),
    ({"frequency_penalty": 1e9}, "frequency_penalty"),
    ({"seed": 2**70}, "seed"),
    ({"stop": [""]}, "stop"),
    ({"logit_bias": {"-": 1}}, "logit_bias"),
    ({"logit_bias": {"9999": 1}}, "logit_bias"),
    ({"stop_token_ids": [9999]}, "stop_token_ids"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "regex", "regex": "["}}, "response_format"),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "response_format"),
    ({"messages": [{"role": "user", "content": "word " * 400}]}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"n": 0}, "n"),
]


@pytest.mark.parametrize(("change", "param"), PARAMS)
def test_refusals_name_their_field(server: Running, change: dict[str, Any], param: str) -> None:
    body = {"messages": MESSAGES, **change}
    response = post(server, "/v1/chat/completions", **body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_likelihoods_of_continuations_can_be_compared(server: Running) -> None:
    """Do what lm-eval does: get the logprobs of a continuation, and whether it is greedy."""
    context = server.other.encode("The quick")
    (best,) = server.alone(context, 1, ignore_eos=True).token_ids
    found = {}
    for token in (best, best + 1):
        body = {"echo": True, "max_tokens": 1, "logprobs": 1, "temperature": 0}
        reply = post(server, "/v1/completions", prompt=[*context, token], **body).json()
        logprobs = reply["choices"][0]["logprobs"]
        place = len(context)
        (top,) = logprobs["top_logprobs"][place]
        is_greedy = top == logprobs["tokens"][place]
        assert is_greedy == (token == best)
        found[token] = logprobs["token_logprobs"][place]
    assert found[best] > found[best + 1]


def test_scoring_a_prompt_does_not_change_other_answers(server: Running) -> None:
    other = server.other
    expected = server.alone(MESSAGES, 30).token_ids
    other.forget()
    running = other.stream(MESSAGES, 30)
    for number, _ in enumerate(running):
        if number % 4 == 1:
            longest = [5 + each % 90 for each in range(other.max_prompt_tokens)]
            assert len(score_ids(server, longest)) == len(longest) - 1
    assert running.token_ids == expected
