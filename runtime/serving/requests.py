"""Bodies of requests: what is honoured, what means nothing here, and what is refused."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from bita.errors import PromptError
from bita.runtime.options import Options
from bita.runtime.serving.errors import RequestError
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.prompt_encoder import Prompt

MOST_CHOICES = 16
MOST_PROMPTS = 16
# Fields of OpenAI's interface that change nothing here, as long as they have these values.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
}
Number = Annotated[float, Field(strict=True)]


class JsonSchema(BaseModel):
    """`response_format.json_schema`. Every answer is valid; strict: objects take no properties but
    those that the schema names.
    """

    model_config = ConfigDict(extra="forbid")
    name: str = ""
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What the answer matches. "regex" and "grammar" (Lark's notation) are additions of ours."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    regex: str | None = None
    grammar: str | None = None

    def to_grammar(self) -> Grammar | None:
        """Raises PromptError."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return Grammar.json_object()
        if self.type == "json_schema":
            if self.json_schema is None:
                raise PromptError("response_format.json_schema is missing")
            schema, is_strict = self.json_schema.json_schema or {}, bool(self.json_schema.strict)
            return Grammar.json_schema(schema, is_strict)
        text = self.regex if self.type == "regex" else self.grammar
        if text is None:
            raise PromptError(f"response_format.{self.type} is missing")
        return Grammar.regex(text) if self.type == "regex" else Grammar.lark(text)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: StrictBool = False
    include_obfuscation: Literal[False] = False


class AnswerRequest(BaseModel):
    """What both kinds of requests have. top_k to stop_token_ids are additions of ours."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    model: str | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MOST_CHOICES)] = 1
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    stop: str | list[str] | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    seed: StrictInt | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    ignore_eos: StrictBool | None = None
    stop_token_ids: list[StrictInt] | None = None

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def prompts(self) -> list[Prompt]:
        """What is answered."""
        raise NotImplementedError

    def options(self, defaults: Mapping[str, Any], most_new_tokens: int) -> Options:
        """Raises PromptError. defaults: for what the request does not say."""
        names = (
            *("stop", "temperature", "top_p", "top_k", "min_p", "presence_penalty"),
            *("frequency_penalty", "repetition_penalty", "ignore_eos", "stop_token_ids"),
        )
        given = {name: getattr(self, name) for name in names}
        given["seed"] = None if self.seed is None else self.seed % 2**64  # theirs may be negative
        if self.logit_bias:
            given["logit_bias"] = {_token_id(key): bias for key, bias in self.logit_bias.items()}
        if self.response_format is not None:
            given["grammar"] = self.response_format.to_grammar()
        given["logprobs"] = self.num_logprobs()
        given["max_new_tokens"] = self.token_limit() or most_new_tokens
        told = {name: value for name, value in given.items() if value is not None}
        return Options.of(**{**defaults, **told})

    def num_logprobs(self) -> int | None:
        raise NotImplementedError

    def token_limit(self) -> int | None:
        """The most new tokens, None for as many as the cache holds."""
        raise NotImplementedError


class ChatRequest(AnswerRequest):
    """POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None

    def prompts(self) -> list[Prompt]:
        return [self.messages]

    def num_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise PromptError("top_logprobs needs logprobs: true")
        return (self.top_logprobs or 0) if self.logprobs else None

    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(AnswerRequest):
    """POST /v1/completions."""

    prompt: str | list[str] | list[StrictInt] | list[list[StrictInt]]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = 16
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None

    def prompts(self) -> list[Prompt]:
        prompt = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        if not 1 <= len(prompt) <= MOST_PROMPTS:
            raise PromptError(f"there are {len(prompt)} prompts; pass 1 to {MOST_PROMPTS}")
        return list(prompt)  # type: ignore[arg-type]

    def num_logprobs(self) -> int | None:
        return self.logprobs

    def token_limit(self) -> int | None:
        return self.max_tokens


Kind = TypeVar("Kind", bound=AnswerRequest)


def parsed(kind: type[Kind], body: bytes) -> Kind:
    """The request in a body. Raises RequestError that lists every fault."""
    try:
        request = kind.model_validate(json.loads(body))
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise RequestError(400, f"the body is no JSON: {error}") from error
        faults, param = _faults(error)
        raise RequestError(400, faults, param=param) from error
    refused = [
        name
        for name, value in (request.model_extra or {}).items()
        if value is not None and value not in NEUTRAL.get(name, ())
    ]
    if refused:
        names = ", ".join(refused)
        message = f"not supported here: {names}; leave that out"
        raise RequestError(400, message, code="unsupported_parameter", param=refused[0])
    return request


def _faults(error: ValidationError) -> tuple[str, str | None]:
    """What is wrong, in one line, and the first field at fault."""
    faults = []
    for each in error.errors(include_url=False):
        place = ".".join(str(part) for part in each["loc"] if not _is_branch(part))
        given = "" if each["type"] == "missing" else f" (given: {each['input']!r:.60})"
        faults.append(f"{place or 'the body'}: {each['msg']}{given}")
    first = error.errors()[0]["loc"]
    return "; ".join(dict.fromkeys(faults)), str(first[0]) if first else None


def _is_branch(part: Any) -> bool:
    """Whether a part of a place names a type of a union, and no field."""
    return isinstance(part, str) and (part in ("str", "int") or "[" in part)


def _token_id(key: str) -> int:
    if not key.isascii() or not key.isdecimal():
        raise PromptError(f"logit_bias: {key!r:.60} is not a token id")
    return int(key)
