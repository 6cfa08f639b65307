"""Responses from a loopback server: token ids in every form, retries, and helpful errors."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from make_tiny_engine import write_plain_model
from tiny_models import EOS_ID

from bita.data.endpoint import ENCODED_AGAIN, EndpointGenerator, EndpointOptions
from bita.data.generate_data import DataLimits, FilePrompts, generate_data
from bita.data.model_texts import ModelTexts
from bita.errors import TuningError
from bita.export.sources import open_checkpoint

Reply = tuple[int, dict[str, str], bytes]
FOX = "the quick fox"
HANG_UP, ECHO = 0, 1  # instead of a status: close the connection, or return the prompt


class Server(ThreadingHTTPServer):
    """A server that answers with `replies` in order, the last one forever; records requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Reply] = []
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        replies, requests = self.server.replies, self.server.requests
        requests.append((self.path, dict(self.headers), body))
        status, headers, answer = replies[0] if len(replies) == 1 else replies.pop(0)
        if status == HANG_UP:
            return
        if status == ECHO:
            status, headers, answer = choice("length", token_ids=body["prompt"])
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> ModelTexts:
    directory = write_plain_model(tmp_path_factory.mktemp("plain"))
    return ModelTexts.of(open_checkpoint(str(directory)))


def choice(finish: str, **values: Any) -> Reply:
    answer = {"choices": [{"index": 0, "text": FOX, "finish_reason": finish, **values}]}
    return 200, {}, json.dumps(answer).encode()


def generator(server: Server, texts: ModelTexts, **options: Any) -> EndpointGenerator:
    settings = {"num_parallel": 1, "backoff_s": 0.0, "num_retries": 2, **options}
    return EndpointGenerator(EndpointOptions(server.url, "tiny", **settings), texts)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (choice("stop", token_ids=[5, 6, EOS_ID]), ([5, 6, EOS_ID], "eos")),
        (choice("stop", token_ids=[5, 6], stop_reason=None), ([5, 6, EOS_ID], "eos")),
        (choice("stop", token_ids=[]), ([EOS_ID], "eos")),
        (choice("length", token_ids=[5, 6, 7, 8]), ([5, 6, 7, 8], "length")),
        (choice("length", token_ids=[5, EOS_ID, 7]), ([5, EOS_ID], "eos")),
        (choice("stop", logprobs={"tokens": ["token_id:5", "token_id:1"]}), ([5, 1], "eos")),
    ],
)
def test_token_ids_are_read_in_every_form(
    server: Server, texts: ModelTexts, reply: Reply, expected: tuple[list[int], str]
) -> None:
    server.replies = [reply]
    endpoint = generator(server, texts)
    assert list(endpoint.complete([[4, 9]], 4)) == [expected]
    assert endpoint.warnings == ()
    path, headers, body = server.requests[0]
    assert (path, body["prompt"], body["max_tokens"]) == ("/v1/completions", [4, 9], 4)
    assert body["temperature"] == 0
    assert body["repetition_penalty"] == 1  # a model's generation config may set another value
    assert body["return_token_ids"] is body["return_tokens_as_token_ids"] is True
    assert "Authorization" not in headers


def test_re_encoded_text_is_recorded_as_a_warning(
    server: Server, texts: ModelTexts, tmp_path: Path
) -> None:
    server.replies = [choice("stop", logprobs={"tokens": ["the", " quick", " fox"]})]
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a tree"}\n{"prompt": "a mask"}')
    endpoint = generator(server, texts, num_parallel=2)
    data = generate_data(
        texts, FilePrompts(path), endpoint, tmp_path / "data", DataLimits(None, 30)
    )
    ids = (*texts.codec.encode(FOX, add_special_tokens=False), EOS_ID)
    assert [conversation.response_ids for conversation in data] == [ids, ids]
    info = json.loads((tmp_path / "data" / "info.json").read_text())
    assert info["warnings"] == [ENCODED_AGAIN]


def test_answers_keep_the_order_of_the_prompts(server: Server, texts: ModelTexts) -> None:
    server.replies = [(ECHO, {}, b"")]
    prompts = [[index + 4] for index in range(12)]
    answers = generator(server, texts, num_parallel=4).complete(prompts, 4)
    assert list(answers) == [(prompt, "length") for prompt in prompts]


@pytest.mark.parametrize(
    "failure", [(429, {"Retry-After": "0"}, b""), (503, {}, b""), (0, {}, b"")]
)
def test_temporary_failures_are_retried(server: Server, texts: ModelTexts, failure: Reply) -> None:
    server.replies = [failure, failure, choice("length", token_ids=[5])]
    assert list(generator(server, texts).complete([[4]], 4)) == [([5], "length")]
    assert len(server.requests) == 3
    server.replies, server.requests = [failure], []
    with pytest.raises(TuningError, match=rf"{server.url}/v1/completions failed 3 times") as error:
        generator(server, texts).complete([[4]], 4)
    assert failure[0] == HANG_UP or f"status {failure[0]}" in str(error.value)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {}, b"bad key"), r"status 401: bad key; give the server's API key"),
        ((404, {}, b"no model tiny"), r"status 404: no model tiny; check the URL and the name"),
        ((400, {}, b"prompt too long"), r"v1/completions .* status 400: prompt too long"),
        ((200, {}, b"<html>"), r"answered b'<html>', which is not JSON"),
        ((200, {}, b'{"choices": []}'), r"not a completion \(IndexError"),
        ((200, {}, b"[1]"), r"answered \[1\], which is not a completion"),
        ((200, {}, b"[" * 10**5), r"which is not JSON"),
        (choice("length", token_ids=[1, "2"]), r"'2' is not a token id"),
        (choice("length", token_ids=[True]), r"True is not a token id"),
        (choice("length", token_ids=[-1]), r"-1 is not a token id"),
        (choice("length", token_ids=[10**30]), r"10+ is not a token id"),
        (choice("length", token_ids=[]), r"empty completion with finish_reason 'length'"),
    ],
)
def test_permanent_failures_are_explained(
    server: Server, texts: ModelTexts, reply: Reply, message: str
) -> None:
    server.replies = [reply]
    with pytest.raises(TuningError, match=message) as error:
        generator(server, texts, api_key="secret-key").complete([[4]], 4)
    assert "secret-key" not in str(error.value)
    assert server.requests[0][1]["Authorization"] == "Bearer secret-key"
    assert len(server.requests) == (2 if reply[0] == 400 else 1)


def test_a_server_that_refuses_extra_fields_gets_a_plain_request(
    server: Server, texts: ModelTexts
) -> None:
    server.replies = [(400, {}, b"unknown field return_token_ids"), choice("stop")]
    endpoint = generator(server, texts)
    endpoint.complete([[4], [5]], 30)
    bodies = [body for _, _, body in server.requests]
    assert ["return_token_ids" in body for body in bodies] == [True, False, False]


def test_a_refused_connection_is_reported(server: Server, texts: ModelTexts) -> None:
    server.server_close()
    with pytest.raises(TuningError, match=r"failed 3 times, last with .*refused"):
        generator(server, texts).complete([[4]], 4)


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/v1/", "http://h:1/v1/completions"])
def test_the_url_may_be_given_in_any_form(url: str) -> None:
    assert EndpointOptions(url, "tiny").completions_url == "http://h:1/v1/completions"
