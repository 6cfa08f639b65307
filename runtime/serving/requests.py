"""Bodies of requests: fields that are used, ignored, and refused."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    StrictInt,
    ValidationError,
)

from bita.errors import PromptError
from bita.json_values import shown
from bita.runtime.options import SEEDS, Options
from bita.runtime.serving.errors import RequestError, blaming
from bita.runtime.serving.request_values import (
    describe,
    json_object,
    read_biases,
    read_messages,
    read_prompt,
    read_stops,
    read_token_ids,
    read_tool_list,
    read_variables,
    without_nulls,
)
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.prompt_encoder import Prompt
from bita.runtime.text.tools import Tool, ToolChoice, read_choice

MAX_CHOICES = 16
MAX_FAULTS = 5  # listed in a response
MIN_SEED = -(2**63)  # OpenAI's seeds are signed
# Fields of other servers that are ignored, whatever their value.
IGNORED = frozenset(
    (
        *("metadata", "store", "service_tier", "user", "safety_identifier", "verbosity"),
        *("prompt_cache_key", "prompt_cache_retention", "prediction", "cache_prompt"),
        *("keep_alive", "reasoning_effort"),
    )
)
# Fields that are ignored if they have one of these values.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "suffix": ("",),
    "best_of": (1,),
}
INSTEAD = {"functions": "tools", "function_call": "tool_choice"}  # successors of obsolete fields
# The request's names of options, where they differ.
FIELD_OF = {"max_new_tokens": "max_tokens", "grammar": "response_format"}
Number = Annotated[float, Field(strict=True)]


class JsonSchema(BaseModel):
    """`response_format.json_schema`. Every answer is valid.

    strict: whether objects may only have the properties that the schema names.
    """

    model_config = ConfigDict(extra="forbid")
    name: str = ""
    description: str | None = None
    json_schema: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """Format of the answer. "regex" and "grammar" (Lark's notation) are our extensions."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    regex: str | None = None
    grammar: str | None = None

    def to_grammar(self) -> Grammar | None:
        """Return the answer's grammar, None for free text. Raises PromptError."""
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
    """The fields of both kinds of requests. `top_k` to `draft_marks` are our extensions."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    model: str | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MAX_CHOICES)] = 1
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    stop: Annotated[Sequence[str] | None, PlainValidator(read_stops)] = None
    temperature: Number | None = None
    top_p: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: Annotated[dict[int, float] | None, PlainValidator(read_biases)] = None
    seed: StrictInt | None = None
    response_format: ResponseFormat | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    ignore_eos: StrictBool | None = None
    stop_token_ids: Annotated[list[int] | None, PlainValidator(read_token_ids)] = None
    drafts: StrictBool = True  # False: decode plainly
    draft_marks: StrictBool = False  # report which tokens were drafts, and figures of the steps

    @property
    def client(self) -> str | None:
        """The client's name, if the request has one."""
        extra = self.model_extra or {}
        names = [extra.get(field) for field in ("safety_identifier", "user")]
        return next((name for name in names if isinstance(name, str) and name), None)

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def prompts(self) -> list[Prompt]:
        """Return the prompts to answer."""
        raise NotImplementedError

    def options(self, defaults: Mapping[str, Any], token_limit: int) -> Options:
        """Return the options of the answers. Raises RequestError if one is invalid.

        defaults: values for options that the request does not have.
        """
        names = (
            *("stop", "temperature", "top_p", "top_k", "min_p", "presence_penalty"),
            *("frequency_penalty", "repetition_penalty", "ignore_eos", "stop_token_ids"),
        )
        given = {name: getattr(self, name) for name in names}
        with blaming("seed"):
            given["seed"] = None if self.seed is None else _seed(self.seed)
        given["logit_bias"] = self.logit_bias
        if self.response_format is not None:
            with blaming("response_format"):
                given["grammar"] = self.response_format.to_grammar()
        given["logprobs"] = self.num_logprobs()
        given["max_new_tokens"] = self.token_limit() or token_limit
        wanted = {name: value for name, value in given.items() if value is not None}
        try:
            return Options.of(**{**defaults, **wanted})
        except PromptError as error:
            raise RequestError(400, str(error), param=_field_at_fault(wanted)) from error

    def num_logprobs(self) -> int | None:
        """Return how many most probable tokens to list; None: no log-probabilities."""
        raise NotImplementedError

    def token_limit(self) -> int | None:
        """Return the maximum number of new tokens; None: the request has no limit."""
        raise NotImplementedError


class ChatRequest(AnswerRequest):
    """POST /v1/chat/completions.

    `chat_template_kwargs`, `add_generation_prompt` and `continue_final_message` are vLLM's
    extensions.
    """

    messages: Annotated[list[dict[str, Any]], PlainValidator(read_messages)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool] | None, PlainValidator(read_tool_list)] = None
    tool_choice: Any = None
    parallel_tool_calls: StrictBool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, PlainValidator(read_variables)] = None
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None

    def choice(self) -> ToolChoice:
        """Return the tools that the answer may call. Raises PromptError."""
        return read_choice(
            self.tool_choice, self.tools or [], self.parallel_tool_calls is not False
        )

    def prompts(self) -> list[Prompt]:
        return [self.messages]

    def num_logprobs(self) -> int | None:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        return (self.top_logprobs or 0) if self.logprobs else None

    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(AnswerRequest):
    """POST /v1/completions."""

    prompt: Annotated[Prompt | list[Prompt], PlainValidator(read_prompt)]
    max_tokens: Annotated[StrictInt, Field(ge=0)] | None = 16
    echo: StrictBool = False
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None

    def prompts(self) -> list[Prompt]:
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)

    def num_logprobs(self) -> int | None:
        return self.logprobs

    def token_limit(self) -> int | None:
        return self.max_tokens  # 0: only an echo of the prompt


Kind = TypeVar("Kind", bound=AnswerRequest)


def parse_request(kind: type[Kind], body: bytes) -> Kind:
    """Return the request in a body. Raises RequestError that lists a few of the faults.

    A field that is null has its default. Time and memory are proportional to the body's size,
    whatever it contains: a list is read up to its first invalid item.
    """
    data = without_nulls(json_object(body))
    try:
        request = kind.model_validate(data)
    except ValidationError as error:
        faults, param = _faults(error)
        raise RequestError(400, faults, param=param) from error
    refused = [
        name
        for name, value in (request.model_extra or {}).items()
        if name not in IGNORED and value not in NEUTRAL.get(name, ())
    ]
    if refused:
        names = ", ".join(f"{name:.60}" for name in refused[:MAX_FAULTS])
        more = f" and {len(refused) - MAX_FAULTS} more" if len(refused) > MAX_FAULTS else ""
        fix = f"use {INSTEAD[refused[0]]}" if refused[0] in INSTEAD else "leave it out"
        message = f"not supported here: {names}{more}; {fix}"
        raise RequestError(400, message, code="unsupported_parameter", param=refused[0])
    _check_together(request)
    return request


def _check_together(request: AnswerRequest) -> None:
    """Raise RequestError for fields that exclude each other."""
    chat = request if isinstance(request, ChatRequest) else None
    if chat is not None and chat.continue_final_message and chat.add_generation_prompt:
        raise RequestError(
            400,
            "add_generation_prompt and continue_final_message exclude each other; set one of them "
            "to false",
            param="add_generation_prompt",
        )
    if isinstance(request, CompletionRequest) and request.max_tokens == 0 and not request.echo:
        raise RequestError(
            400, "max_tokens is 0, which needs echo: true; pass 1 or more", param="max_tokens"
        )


def _field_at_fault(options: Mapping[str, Any]) -> str | None:
    """Return the first field whose option is invalid, given those before it."""
    given: dict[str, Any] = {}
    for name, value in options.items():
        given[name] = value
        try:
            Options.of(**given)
        except PromptError:
            return FIELD_OF.get(name, name)
    return None


def _faults(error: ValidationError) -> tuple[str, str | None]:
    """Return the faults in one line, and the first invalid field."""
    errors = error.errors(include_url=False)
    faults = [_fault(each) for each in errors[:MAX_FAULTS]]
    if len(errors) > MAX_FAULTS:
        faults.append(f"and {len(errors) - MAX_FAULTS} more")
    first = errors[0]["loc"]
    return "; ".join(dict.fromkeys(faults)), str(first[0]) if first else None


def _fault(each: Mapping[str, Any]) -> str:
    place = ".".join(f"{part!s:.60}" for part in each["loc"])
    text = each["msg"].removeprefix("Value error, ")
    if text.startswith(f"{place}."):  # it names an inner field
        return f"{text:.300}"
    text = text.removeprefix(f"{place}: ")
    given = (
        "" if each["type"] in ("missing", "value_error") else f" (given: {describe(each['input'])})"
    )
    return f"{place}: {text:.200}{given}"


def _seed(seed: int) -> int:
    """Return a seed of the request as one of ours, which are not negative. Raises PromptError."""
    if not MIN_SEED <= seed < SEEDS:
        raise PromptError(f"seed is {shown(seed)}; pass an integer from -2^63 to 2^64 - 1")
    return seed % SEEDS
