"""Endpoints that do not generate answers: models, tokenization and server properties."""

from collections.abc import Awaitable, Callable
from time import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from bita import __version__
from bita.json_values import shown
from bita.runtime.serving.errors import RequestError, blaming
from bita.runtime.serving.request_values import (
    json_object,
    read_messages,
    read_token_ids,
    read_tool_list,
    read_variables,
    without_nulls,
)
from bita.runtime.session import Session
from bita.runtime.text.chat_prompt import PromptWish, chat_prompt

ReadBody = Callable[[Request], Awaitable[bytes]]
_FLAGS = {"add_special_tokens": True, "add_generation_prompt": True, "with_pieces": False}


class Endpoints:
    """Handlers that do not need the engine.

    Args:
        session: Session that is served.
        names: Names of the model.
        num_running: Maximum number of answers generated at the same time.
        read_body: Returns the bytes of a request after checking their type and size.
    """

    def __init__(
        self, session: Session, names: list[str], num_running: int, read_body: ReadBody
    ) -> None:
        self._session = session
        self._names = names
        self._num_running = num_running
        self._read_body = read_body
        self.created = int(time())

    async def tokenize(self, request: Request) -> Response:
        """Return the token ids of a text ("prompt", or llama.cpp's "content") or of messages."""
        data = without_nulls(json_object(await self._read_body(request)))
        flags = _flags(data)
        if "messages" in data:
            token_ids = self._encode_messages(data, flags["add_generation_prompt"])
        else:
            field = "prompt" if "prompt" in data else "content"
            text = data.get(field)
            if not isinstance(text, str):
                raise RequestError(
                    400,
                    f"{field} is {shown(text)}; pass a text as prompt or content, or messages",
                    param=field,
                )
            adds = flags["add_special_tokens"]
            with blaming(field):
                token_ids = self._session.codec.encode(text, add_special_tokens=adds)
        tokens: list[Any] = token_ids
        if flags["with_pieces"]:
            tokens = [{"id": token, "piece": self._piece(token)} for token in token_ids]
        body = {"tokens": tokens, "count": len(tokens)}
        return JSONResponse({**body, "max_model_len": self._session.max_prompt_tokens})

    def _encode_messages(self, data: dict[str, Any], begins_answer: bool) -> list[int]:
        try:
            messages = read_messages(data["messages"])
        except ValueError as error:
            raise RequestError(400, f"messages: {error}", param="messages") from error
        try:
            tools = read_tool_list(data.get("tools", []))
            variables = read_variables(data.get("chat_template_kwargs", {}))
        except ValueError as error:
            raise RequestError(400, str(error)) from error
        with blaming("messages"):
            wish = PromptWish(tools, variables, begins_answer)
            return list(chat_prompt(self._session.encoder, messages, wish).token_ids)

    def _piece(self, token: int) -> str | list[int]:
        """Return the text of a token, or its bytes if they are part of a character."""
        data = self._session.codec.token_bytes[token]
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return list(data)
        return text or self._session.codec.tokenizer.id_to_token(token) or ""

    async def detokenize(self, request: Request) -> Response:
        """Return the text of token ids, including special tokens."""
        data = without_nulls(json_object(await self._read_body(request)))
        try:
            token_ids = read_token_ids(data.get("tokens"))
        except ValueError as error:
            raise RequestError(400, f"tokens: {error}", param="tokens") from error
        size = self._session.engine.manifest.vocab_size
        for token in token_ids:
            if not 0 <= token < size:
                raise RequestError(
                    400, f"tokens: {shown(token)} is not in [0, {size})", param="tokens"
                )
        text = self._text(token_ids)
        return JSONResponse({"content": text, "prompt": text})

    def _text(self, token_ids: list[int]) -> str:
        """Return the text of token ids with the strings of special tokens."""
        codec = self._session.codec
        pieces: list[str] = []
        run: list[int] = []
        for token in token_ids:
            if token in codec.hidden_tokens:
                pieces += [codec.decode(run), codec.hidden_tokens[token]]
                run = []
            else:
                run.append(token)
        return "".join([*pieces, codec.decode(run)])

    async def models(self, request: Request) -> Response:
        """List all names of the model."""
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._names]})

    async def model(self, request: Request) -> Response:
        """Return the description of one name of the model."""
        name = request.path_params["name"]
        self.check_model(name)
        return JSONResponse(self._card(name))

    def check_model(self, name: str | None) -> None:
        """Raise RequestError if the model does not have this name; None is always valid."""
        if name is not None and name not in self._names:
            raise RequestError(
                404,
                f"there is no model {name!r:.100}; this server has "
                f"{', '.join(map(repr, self._names)):.500}",
                code="model_not_found",
                param="model",
            )

    def _card(self, name: str) -> dict[str, Any]:
        card = {"id": name, "object": "model", "created": self.created}
        return {**card, "owned_by": "bita-edge", "max_model_len": self._session.max_prompt_tokens}

    async def props(self, request: Request) -> Response:
        """Return the properties that clients of llama.cpp's server read.

        They include the context size, the chat template and the special tokens.
        """
        encoder, engine = self._session.encoder, self._session.engine
        special = encoder.defaults.special_tokens
        return JSONResponse(
            {
                "default_generation_settings": {"n_ctx": engine.manifest.capacity},
                "total_slots": self._num_running,
                "model_alias": self._names[0],
                "model_names": self._names,
                "max_prompt_tokens": self._session.max_prompt_tokens,
                "vocab_size": engine.manifest.vocab_size,
                "chat_template": None if encoder.template is None else encoder.template.source,
                "bos_token": special.get("bos_token", ""),
                "eos_token": special.get("eos_token", ""),
                "modalities": {"vision": False, "audio": False},
                "build_info": f"bita-edge {__version__}",
            }
        )


def _flags(data: dict[str, Any]) -> dict[str, bool]:
    """Return the flags of a request. llama.cpp's "add_special" has a different default."""
    if "content" in data:
        data = {"add_special_tokens": data.get("add_special", False), **data}
    flags = {name: data.get(name, default) for name, default in _FLAGS.items()}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise RequestError(400, f"{name} is {shown(value)}; pass true or false", param=name)
    return flags
