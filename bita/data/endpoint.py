"""Responses from a server with OpenAI's completions API, such as vLLM or llama.cpp.

Prompts are sent as token ids, and token ids are requested in both ways that vLLM supports. A server
that returns only text works too: its text is encoded again, which may give other ids than the model
chose, and the data carry a warning.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from bita.data.dataset import MAX_IDS
from bita.data.generators import Completion, cut_at_eos
from bita.data.model_texts import ModelTexts
from bita.errors import TuningError
from bita.json_values import parse_json, shown

ENCODED_AGAIN = "the endpoint gave text without token ids; the text was encoded again"
MAX_ANSWER_BYTES = 1 << 26
TOKEN_ID = "token_id:"  # vLLM's prefix of ids in fields for strings
# Fields beyond OpenAI's API. Without the penalty, servers take it from the generation config.
_EXTRAS: dict[str, Any] = {
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "logprobs": 1,
    "repetition_penalty": 1.0,
    "skip_special_tokens": False,
}


@dataclass(frozen=True)
class EndpointOptions:
    """Address of a server, and limits of requests to it."""

    url: str  # base URL, with or without /v1
    model: str  # name of the model on the server
    api_key: str | None = None
    num_parallel: int = 32  # concurrent requests
    timeout_s: float = 300.0  # per request
    num_retries: int = 5  # after 429, 5xx and failed connections
    backoff_s: float = 1.0  # wait before the first retry; doubles with each
    max_backoff_s: float = 60.0

    @property
    def completions_url(self) -> str:
        base = self.url.rstrip("/").removesuffix("/completions")
        return f"{base if base.endswith('/v1') else base + '/v1'}/completions"


class EndpointGenerator:
    """Requests greedy completions from a server, for several prompts at once.

    Raises TuningError with URL and status if a request finally fails; earlier responses are kept,
    so the run can be continued.
    """

    def __init__(self, options: EndpointOptions, texts: ModelTexts) -> None:
        self.name = f"endpoint serving {options.model}"
        self.options: Mapping[str, Any] = {"served_model": options.model}
        self.batch_size = options.num_parallel
        self.warnings: tuple[str, ...] = ()
        self._settings = options
        self._texts = texts
        self._extras: Mapping[str, Any] = _EXTRAS

    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Sequence[Completion]:
        """Send one request per prompt, `num_parallel` at a time."""
        with ThreadPoolExecutor(self._settings.num_parallel) as pool:
            return list(pool.map(lambda ids: self._complete(ids, max_new_tokens), prompts))

    def _complete(self, prompt_ids: Sequence[int], max_new_tokens: int) -> Completion:
        body = {
            "model": self._settings.model,
            "prompt": list(prompt_ids),
            "max_tokens": max_new_tokens,
            "temperature": 0.0,
            "top_p": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
        }
        extras = self._extras
        try:
            answer = post_json(self._settings, {**body, **extras})
        except _RefusedError:
            if not extras:
                raise
            answer = post_json(self._settings, body)  # the server accepts only OpenAI's fields
            self._extras = {}
        return self._read(answer, max_new_tokens)

    def _read(self, answer: Any, max_new_tokens: int) -> Completion:
        try:
            choice = answer["choices"][0]
            token_ids, finish = self._token_ids(choice), choice.get("finish_reason")
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise TuningError(
                f"{self._settings.completions_url} answered {shown(answer)}, which is "
                f"not a completion ({error!r:.200}); give a server with OpenAI's /v1/completions"
            ) from error
        eos_ids = self._texts.eos_ids
        completion = cut_at_eos(token_ids[:max_new_tokens], eos_ids)
        if completion.finish == "length" and finish == "stop" and len(token_ids) < max_new_tokens:
            stop = choice.get("stop_reason")  # the id in vLLM, unless it is the first EOS
            return Completion([*token_ids, stop if stop in eos_ids else eos_ids[0]], "eos")
        if not completion.token_ids:
            raise TuningError(
                f"{self._settings.completions_url} gave an empty completion with finish_reason "
                f"{finish!r}; check the server's log"
            )
        return completion

    def _token_ids(self, choice: Mapping[str, Any]) -> list[int]:
        if isinstance(choice.get("token_ids"), list):
            return _check_ids(choice["token_ids"])
        tokens = (choice.get("logprobs") or {}).get("tokens")
        if tokens and all(str(token).startswith(TOKEN_ID) for token in tokens):
            return _check_ids([int(token.removeprefix(TOKEN_ID)) for token in tokens])
        self.warnings = (ENCODED_AGAIN,)
        return self._texts.codec.encode(choice["text"], add_special_tokens=False)


def _check_ids(token_ids: list[Any]) -> list[int]:
    """Return the ids. Raises ValueError for values that cannot be token ids."""
    for token_id in token_ids:
        if type(token_id) is not int or not 0 <= token_id < MAX_IDS:
            raise ValueError(f"{shown(token_id)} is not a token id")
    return token_ids


class _RefusedError(TuningError):
    """The server rejected the request as invalid (400 or 422)."""


def post_json(options: EndpointOptions, body: Mapping[str, Any]) -> Any:
    """Return the server's JSON answer; retry after 429, 5xx and failed connections.

    The wait is `backoff_s`, doubled each time, or that of Retry-After, but never more than
    `max_backoff_s`. Raises TuningError with URL, status and the server's message.
    """
    for attempt in range(options.num_retries + 1):
        try:
            return _post_once(options, body)
        except _BusyError as busy:
            if attempt == options.num_retries:
                raise TuningError(
                    f"{options.completions_url} failed {attempt + 1} times, last with {busy}; "
                    "check the server, then run the same command again to continue"
                ) from busy
            wait_s = busy.wait_s or options.backoff_s * 2**attempt
            time.sleep(min(wait_s, options.max_backoff_s))
    raise AssertionError("unreachable: the last attempt returns or raises")


class _BusyError(Exception):
    """A failure that may be temporary."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s  # requested by the server; 0 if it does not say


def _post_once(options: EndpointOptions, body: Mapping[str, Any]) -> Any:
    headers = {"Content-Type": "application/json"}
    if options.api_key:
        headers["Authorization"] = f"Bearer {options.api_key}"
    url = options.completions_url
    try:
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=options.timeout_s) as response:
            answer = response.read(MAX_ANSWER_BYTES + 1)
    except urllib.error.HTTPError as error:
        raise _status_error(url, error) from error
    except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
        raise _BusyError(str(getattr(error, "reason", "") or repr(error))) from error
    except ValueError as error:
        raise TuningError(f"{url!r} is not a URL ({error}); give http://HOST:PORT") from error
    if len(answer) > MAX_ANSWER_BYTES:
        raise TuningError(
            f"{url} answered with more than {MAX_ANSWER_BYTES} bytes; give another server"
        )
    try:
        return parse_json(answer)
    except ValueError as error:
        raise TuningError(
            f"{url} answered {answer[:80]!r}, which is not JSON; give the base URL of an "
            "OpenAI-compatible server"
        ) from error


def _status_error(url: str, error: urllib.error.HTTPError) -> Exception:
    with error:
        words = " ".join(error.read(2000).decode("utf-8", "replace").split())[:300]
    if error.code == 429 or error.code >= 500:
        wait = error.headers.get("Retry-After", "")
        waits = wait.isascii() and wait.isdecimal() and len(wait) < 10
        return _BusyError(f"status {error.code}: {words}", float(wait) if waits else 0.0)
    text = f"{url} answered with status {error.code}: {words}"
    if error.code in (401, 403):
        return TuningError(f"{text}; give the server's API key")
    if error.code == 404:
        return TuningError(f"{text}; check the URL and the name of the model")
    return _RefusedError(text) if error.code in (400, 422) else TuningError(text)
