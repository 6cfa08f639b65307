"""Plan a request: its prompts, its options, and how its answers are parsed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bita.errors import PromptError
from bita.runtime.options import Options
from bita.runtime.serving.errors import RequestError, blaming
from bita.runtime.serving.requests import AnswerRequest, ChatRequest
from bita.runtime.text.answer_parts import AnswerReader
from bita.runtime.text.call_form import CallForm
from bita.runtime.text.call_grammar import CallGrammars
from bita.runtime.text.call_rule import CallRule
from bita.runtime.text.chat_prompt import ChatPrompt, PromptWish, chat_prompt
from bita.runtime.text.codec import TextCodec
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.grammar_size import is_simple
from bita.runtime.text.prompt_encoder import Prompt, PromptEncoder
from bita.runtime.text.reasoning import Reasoning, effort_variables
from bita.runtime.text.tools import Tool, ToolChoice

MAX_BLAMED = 4  # tools that are checked to find an invalid one, at most a second each


@dataclass(frozen=True)
class Plan:
    """The engine's input for a request, and how its answers are parsed."""

    prompts: Sequence[Prompt]
    options: Options
    eos_ids: Sequence[int] | None = None  # argument of `Session.start`
    continues: bool | None = None  # argument of `Session.start`
    reader: Callable[[], AnswerReader] | None = None  # creates a parser; None: all is content
    tools: Sequence[Tool] = ()

    def check_grammars(self, check: Callable[[Grammar], None]) -> None:
        """Raise RequestError if answers cannot follow a grammar; name an invalid tool.

        check: raises PromptError for an invalid grammar.
        """
        options = self.options
        grammars = (options.grammar, None if options.calls is None else options.calls.grammar)
        for grammar in grammars:
            if grammar is None:
                continue
            if grammar.kind != "calls":
                with blaming("response_format"):
                    check(grammar)
                continue
            with blaming("tools"):
                try:
                    check(grammar)
                except PromptError as error:
                    self._blame_a_tool(check)
                    raise error

    def _blame_a_tool(self, check: Callable[[Grammar], None]) -> None:
        """Raise PromptError with the name of a tool whose schema is invalid on its own."""
        schemas = [(each.name, Grammar.json_schema(each.parameters)) for each in self.tools]
        doubtful = [pair for pair in schemas if not is_simple("json_schema", pair[1].text)]
        for name, grammar in doubtful[:MAX_BLAMED]:
            try:
                check(grammar)
            except PromptError as error:
                raise PromptError(f"tools: the parameters of {name!r}: {error}") from error


def make_plan(
    asked: AnswerRequest,
    encoder: PromptEncoder,
    defaults: Mapping[str, Any],
    token_limit: int,
) -> Plan:
    """Return the plan of a request. Raises RequestError or PromptError if it is invalid."""
    options = asked.options(defaults, token_limit)
    _check_ids(options, encoder.codec)
    if not isinstance(asked, ChatRequest):
        return Plan(asked.prompts(), options)
    return _ChatPlanner(asked, encoder, options).plan()


def _check_ids(options: Options, codec: TextCodec) -> None:
    """Raise RequestError if an option contains a token id that the model does not have."""
    size = codec.num_tokens if codec.num_rows is None else codec.num_rows
    for name in ("logit_bias", "stop_token_ids"):
        for token in getattr(options, name):
            if not 0 <= token < size:
                raise RequestError(
                    400, f"{name}: token id {token} is not in [0, {size})", param=name
                )


class _ChatPlanner:
    def __init__(self, asked: ChatRequest, encoder: PromptEncoder, options: Options) -> None:
        self._asked = asked
        self._encoder = encoder
        self._options = options

    def plan(self) -> Plan:
        with blaming("tool_choice"):
            choice = self._asked.choice()
        with blaming("messages"):
            prompt = self._prompt(choice)
        form = self._form() if choice.tools else None
        options = self._options if form is None else self._with_calls(form, choice, prompt)
        shown = _shown_ids(self._encoder.codec, form, prompt.reasoning)
        if shown:
            options = replace(options, shown_token_ids=shown)
        names = [tool.name for tool in choice.tools]
        has_format = self._options.grammar is not None and not choice.must_call
        reasoning = prompt.reasoning if form is not None or not has_format else None
        is_plain = form is None and reasoning is None
        return Plan(
            [prompt.token_ids],
            options,
            self._encoder.defaults.chat_eos_ids,
            self._asked.continue_final_message or options.grammar is not None,
            None if is_plain else lambda: AnswerReader(form, names, reasoning),
            choice.tools,
        )

    def _form(self) -> CallForm:
        assert self._encoder.template is not None
        return self._encoder.template.tool_forms.form

    def _prompt(self, choice: ToolChoice) -> ChatPrompt:
        asked, template = self._asked, self._encoder.template
        source = "" if template is None else template.source
        given = asked.chat_template_kwargs or {}
        variables = {**effort_variables(source, asked.reasoning_effort), **given}
        begins = asked.add_generation_prompt is not False
        tools = (asked.tools or ()) if choice.tools else ()  # the same prompt for every choice
        wish = PromptWish(tools, variables, begins, bool(asked.continue_final_message))
        return chat_prompt(self._encoder, asked.messages, wish)

    def _with_calls(self, form: CallForm, choice: ToolChoice, prompt: ChatPrompt) -> Options:
        """Return the options with a grammar for calls, in the whole answer or in parts of it."""
        options, reasoning = self._options, prompt.reasoning
        if options.ignore_eos:
            raise RequestError(
                400,
                "ignore_eos cannot be combined with tools; leave one of them out",
                param="ignore_eos",
            )
        grammars = CallGrammars(form, self._encoder.codec)
        with blaming("tools"):
            if choice.must_call:
                whole = grammars.whole(choice.tools, choice.is_single, reasoning)
                return replace(options, grammar=whole)
            if options.grammar is not None:
                schema = _schema_of(options.grammar)
                whole = grammars.whole(choice.tools, choice.is_single, reasoning, schema)
                return replace(options, grammar=whole)
            rest = grammars.rest(choice.tools, choice.is_single)
        may_repeat = form.repeats and not choice.is_single
        rule = CallRule(form.trigger, form.has_plain_start, rest, may_repeat, reasoning)
        return replace(options, calls=rule)


def _schema_of(grammar: Grammar) -> Mapping[str, Any]:
    """Return the JSON schema of an answer that may be a call instead."""
    schema = grammar.schema
    if schema is None:
        raise RequestError(
            400,
            f"response_format of kind {grammar.kind} cannot be combined with tools that may be "
            "called; use json_schema, or leave out one of them",
            param="response_format",
        )
    return schema


def _shown_ids(
    codec: TextCodec, form: CallForm | None, reasoning: Reasoning | None
) -> tuple[int, ...]:
    """Return the special tokens that are needed to parse calls and reasoning."""
    texts = [] if form is None else [form.opening, form.middle, form.closing, form.join or ""]
    texts += [] if reasoning is None else [reasoning.opening, reasoning.closing]
    marks = codec.hidden_tokens.items()
    return tuple(token for token, mark in marks if mark and any(mark in text for text in texts))
