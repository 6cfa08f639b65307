"""Bodies of requests: what is honoured, what means nothing here, and what is refused."""

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
from bita.runtime.serving.errors import RequestError
from bita.runtime.serving.request_values import (
    json_object,
    read_biases,
    read_messages,
    read_prompt,
    read_stops,
    read_token_ids,
    told,
    without_nulls,
)
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.prompt_encoder import Prompt

MOST_CHOICES = 16
MAX_FAULTS = 5  # that an answer lists
LEAST_SEED = -(2**63)  # OpenAI's are signed
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
    """What both kinds of requests have. top_k to draft_marks are additions of ours."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    model: str | None = None
    n: Annotated[StrictInt, Field(ge=1, le=MOST_CHOICES)] = 1
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
    user: str | None = None
    top_k: StrictInt | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    ignore_eos: StrictBool | None = None
    stop_token_ids: Annotated[list[int] | None, PlainValidator(read_token_ids)] = None
    drafts: StrictBool = True  # False: decoded plainly
    draft_marks: StrictBool = False  # which tokens were drafts, and figures of the steps

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
        given["seed"] = None if self.seed is None else _seed(self.seed)
        given["logit_bias"] = self.logit_bias
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

    messages: Annotated[list[dict[str, Any]], PlainValidator(read_messages)]
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

    prompt: Annotated[Prompt | list[Prompt], PlainValidator(read_prompt)]
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = 16
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None

    def prompts(self) -> list[Prompt]:
        prompt: Any = self.prompt
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [prompt]
        return list(prompt)

    def num_logprobs(self) -> int | None:
        return self.logprobs

    def token_limit(self) -> int | None:
        return self.max_tokens


Kind = TypeVar("Kind", bound=AnswerRequest)


def parsed(kind: type[Kind], body: bytes) -> Kind:
    """The request in a body. Raises RequestError that lists a few of the faults.

    A field that is null has its default. Time and memory grow with the body, whatever it holds:
    lists are looked at up to their first wrong item.
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
        if value not in NEUTRAL.get(name, ())
    ]
    if refused:
        names = ", ".join(f"{name:.60}" for name in refused[:MAX_FAULTS])
        more = f" and {len(refused) - MAX_FAULTS} more" if len(refused) > MAX_FAULTS else ""
        message = f"not supported here: {names}{more}; leave that out"
        raise RequestError(400, message, code="unsupported_parameter", param=refused[0])
    return request


def _faults(error: ValidationError) -> tuple[str, str | None]:
    """What is wrong, in one line, and the first field at fault."""
    errors = error.errors(include_url=False)
    faults = [_fault(each) for each in errors[:MAX_FAULTS]]
    if len(errors) > MAX_FAULTS:
        faults.append(f"and {len(errors) - MAX_FAULTS} more")
    first = errors[0]["loc"]
    return "; ".join(dict.fromkeys(faults)), str(first[0]) if first else None


def _fault(each: Mapping[str, Any]) -> str:
    place = ".".join(f"{part!s:.60}" for part in each["loc"])
    text = each["msg"].removeprefix("Value error, ")
    given = "" if each["type"] in ("missing", "value_error") else f" (given: {told(each['input'])})"
    return f"{place}: {text:.200}{given}"


def _seed(seed: int) -> int:
    """The seed as ours, which are not negative. Raises PromptError."""
    if not LEAST_SEED <= seed < SEEDS:
        raise PromptError(f"seed is {shown(seed)}; pass an integer from -2^63 to 2^64 - 1")
    return seed % SEEDS
