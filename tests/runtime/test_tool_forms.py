"""Tools in chat templates: forms of calls found by probing, or supplied for templates without."""

import random
from typing import Any

import pytest
from chat_templates import PIECES, SPECIAL_TOKENS
from speed import thorough_but
from tool_templates import DEEPSEEK, LLAMA31, MISTRAL, QWEN, SMOLLM3, WITH_TOOLS, XML

from bita.errors import PromptError
from bita.runtime.text.answer_parts import AnswerReader, Part
from bita.runtime.text.call_form import HERMES, ID_SLOT, CallForm
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.reasoning import Reasoning
from bita.runtime.text.template_meter import TemplateLimits
from bita.runtime.text.tools import read_tools

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TOOLS = read_tools([WEATHER])
USER: dict[str, Any] = {"role": "user", "content": "Is it warm in Oslo?"}
CALL: dict[str, Any] = {
    "id": "call_5c1f23d09e0b4f0c8a7d",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
}
CALLED: dict[str, Any] = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT: dict[str, Any] = {"role": "tool", "tool_call_id": CALL["id"], "content": "21"}
FORMS = {
    "qwen": HERMES,
    "llama 3.1": CallForm('{"name": "', '", "parameters": ', "}", None),
    "mistral": CallForm(
        '[TOOL_CALLS] [{"name": "',
        '", "arguments": ',
        f', "id": "{ID_SLOT}"}}]',
        f', "id": "{ID_SLOT}"}}, {{"name": "',
    ),
    "mistral, new": CallForm("[TOOL_CALLS]", "[ARGS]", "", "[TOOL_CALLS]"),
    "smollm3": HERMES,
    "deepseek": CallForm(
        "<|calls_begin|><|call_begin|>function<|sep|>",
        "\n```json\n",
        "\n```<|call_end|><|calls_end|>",
        "\n```<|call_end|>\n<|call_begin|>function<|sep|>",
    ),
    "thinks first": CallForm(
        '<TOOLCALL>[{"name": "', '", "arguments": ', "}]</TOOLCALL>", '}, {"name": "'
    ),
}
TRIGGERS = {
    **{"qwen": "<tool_call>", "llama 3.1": '{"name"', "mistral": "[TOOL_CALLS]"},
    **{"mistral, new": "[TOOL_CALLS]", "smollm3": "<tool_call>", "deepseek": "<|calls_begin|>"},
    "thinks first": "<TOOLCALL>",
}


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, SPECIAL_TOKENS)


def render(source: str, messages: list[dict[str, Any]], with_tools: bool = True) -> str:
    chat = template(source)
    changed, variables = chat.with_tools(messages, TOOLS if with_tools else ())
    return chat.render(changed, True, variables)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_the_form_of_calls_is_found_in_the_template(name: str) -> None:
    forms = template(WITH_TOOLS[name]).tool_forms
    assert forms.form == FORMS[name]
    assert forms.form.trigger == TRIGGERS[name]
    assert forms.variable == ("xml_tools" if name == "smollm3" else "tools")
    assert forms.writes_calls == (name != "smollm3")
    assert forms.wants_short_ids == (name == "mistral")
    assert forms.takes_text == (name == "deepseek")


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_calls_in_a_conversation_have_the_form_of_the_template(name: str) -> None:
    text = render(WITH_TOOLS[name], [USER, CALLED, RESULT])
    form = FORMS[name]
    beginning, end = form.write([("weather", '{"city": "Oslo"}')]).split("000000000")[0], "21"
    assert text.count(beginning) == 1
    assert end in text[text.index(beginning) :]


@pytest.mark.parametrize("name", sorted({*PIECES} - {"mistral, last", "qwen 2.5", "qwen 3"}))
def test_templates_without_tools_get_them_in_plain_messages(name: str) -> None:
    text = render(PIECES[name], [USER, CALLED, RESULT, {"role": "user", "content": "Thanks."}])
    assert text.count('"name":"weather","description":"The weather in a city."') == 1
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert text.count(call) == 1
    rest = text[text.index(call) :]
    assert "21" in rest
    assert "Thanks." in rest
    assert "None" not in text


def test_tools_calls_and_results_become_plain_messages() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    results: list[dict[str, Any]] = [RESULT, {**RESULT, "content": "22"}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        USER,
        CALLED,
        *results,
    ]
    tool = (
        '{"name":"weather","description":"The weather in a city.","parameters":'
        '{"type":"object","properties":{"city":{"type":"string"}}}}'
    )
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert render(source, messages) == (
        f"[system]Be brief.\n\nYou can call these functions:\n{tool}\n"
        "To call one, answer in this form:\n"
        '<tool_call>\n{"name": "NAME", "arguments": {ARGUMENTS}}\n</tool_call>'
        f"[user]Is it warm in Oslo?[assistant]{call}"
        "[user]<tool_response>\n21\n</tool_response>\n<tool_response>\n22\n</tool_response>"
    )


def test_a_template_whose_calls_are_not_json_gets_another_form() -> None:
    forms = template(XML).tool_forms
    assert (forms.form, forms.variable, forms.writes_calls) == (HERMES, None, False)
    assert "<function=" not in render(XML, [USER, CALLED, RESULT])


def test_a_conversation_without_tools_does_not_probe_the_template() -> None:
    chat = template(QWEN)
    chat.with_tools([USER])
    assert "tool_forms" not in vars(chat)
    chat.with_tools([USER, CALLED, RESULT])
    assert "tool_forms" in vars(chat)


def test_probing_is_bounded_and_done_once() -> None:
    slow = "{% for i in range(20000) %}{% set x = i %}{% endfor %}" + QWEN
    chat = ChatTemplate(slow, SPECIAL_TOKENS, TemplateLimits(steps=100_000))
    assert chat.tool_forms.form == HERMES
    spent = chat.spent.steps
    assert spent < 200_000
    chat.with_tools([USER], TOOLS)
    assert chat.spent.steps == spent


def test_null_fields_of_messages_count_as_missing() -> None:
    nulls = {"tool_calls": None, "function_call": None, "refusal": None, "name": None}
    messages = [{**USER, **nulls}, {"role": "assistant", "content": "Yes.", **nulls}, USER]
    plain = [USER, {"role": "assistant", "content": "Yes."}, USER]
    for source in (LLAMA31, MISTRAL, QWEN, SMOLLM3, DEEPSEEK):
        assert render(source, messages, False) == template(source).render(plain)
    empty = {"role": "assistant", "content": "Yes.", "tool_calls": []}
    assert render(LLAMA31, [USER, empty, USER], False) == template(LLAMA31).render(plain)


BAD_TOOLS: list[tuple[Any, str]] = [
    ({}, "tools: pass a list of tools"),
    ([1], "tools.0 is 1; pass"),
    ([{"type": "custom"}], "tools.0.type is 'custom'; only 'function' is supported"),
    ([{"type": "function"}], "tools.0.function is None"),
    ([{"function": {"name": "a b"}}], "tools.0.function.name is 'a b'; use 1 to 128 letters"),
    ([WEATHER, WEATHER], "tools.1.function.name: 'weather' occurs twice"),
    ([{"function": {"name": "a", "strict": 1}}], "tools.0.function.strict of 'a' is 1"),
    ([{"function": {"name": "a", "x": 1}}], "tools.0.function.x is not supported"),
    ([{"function": {"name": "a", "description": 3}}], "description of 'a' is 3; pass a text"),
    ([{"function": {"name": "a", "parameters": [1]}}], "parameters of 'a' is \\[1\\]"),
    (
        [{"function": {"name": "a", "parameters": {"type": "array"}}}],
        "parameters of 'a' has the type 'array'; arguments are an object",
    ),
    ([{"function": {"name": f"t{i}"}} for i in range(200)], "there are 200; pass at most 128"),
    ([{"function": {"name": "a", "description": "x" * 70000}}], "70.* characters as JSON"),
]


@pytest.mark.parametrize(("value", "message"), BAD_TOOLS)
def test_invalid_tools_are_refused_by_name_and_field(value: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_tools(value)


def test_null_fields_of_tools_mean_the_defaults() -> None:
    nulls = {"description": None, "parameters": None, "strict": None}
    (tool,) = read_tools([{"type": None, "function": {"name": "a", **nulls}}])
    (plain,) = read_tools([{"type": "function", "function": {"name": "a"}}])
    assert tool == plain


def parts_of(text: str, cuts: int, form: CallForm | None, thinks: bool | None = None) -> list[Part]:
    """Read a text in pieces of `cuts` characters and join adjacent parts of one kind."""
    reasoning = None if thinks is None else Reasoning(thinks)
    reader = AnswerReader(form, ["weather", "weather_now"], reasoning)
    pieces = [text[start : start + cuts] for start in range(0, len(text), cuts)]
    found = [part for piece in pieces for part in reader.push(piece)] + reader.close()
    joined: list[Part] = []
    for part in found:
        if joined and joined[-1].kind == part.kind != "call":
            joined[-1] = Part(part.kind, joined[-1].text + part.text)
        else:
            joined.append(part)
    return joined


def content(text: str) -> Part:
    return Part("content", text)


def call(name: str, arguments: str) -> list[Part]:
    return [Part("call", name), Part("arguments", arguments)]


ARGUMENTS = '{"city": "}\\"{[TOOL_CALLS]</tool_call>", "n": [1, {}]}'


@pytest.mark.parametrize("cuts", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("name", FORMS)
def test_calls_are_read_from_any_pieces_of_text(name: str, cuts: int) -> None:
    form = FORMS[name]
    one = form.write([("weather", ARGUMENTS)])
    assert parts_of(one, cuts, form) == call("weather", ARGUMENTS)
    assert parts_of(f"{one}\n", cuts, form) == call("weather", ARGUMENTS)
    if not form.has_plain_start:
        before = f"I will look.\n{one}"
        assert parts_of(before, cuts, form) == [
            content("I will look."),
            *call("weather", ARGUMENTS),
        ]
    if form.join is not None:
        two = form.write([("weather", ARGUMENTS), ("weather_now", "{}")])
        assert parts_of(two, cuts, form) == [
            *call("weather", ARGUMENTS),
            *call("weather_now", "{}"),
        ]


@pytest.mark.parametrize("cuts", [1, 5, 1000])
@pytest.mark.parametrize("name", FORMS)
def test_a_truncated_call_keeps_the_arguments_so_far(name: str, cuts: int) -> None:
    form = FORMS[name]
    whole = form.write([("weather", ARGUMENTS)])
    start = whole.index(ARGUMENTS)
    for size in (1, 9, len(ARGUMENTS)):
        assert parts_of(whole[: start + size], cuts, form) == call("weather", ARGUMENTS[:size])


NO_CALLS = [
    "",
    " ",
    "Hello.\n",
    "  two spaces",
    "<tool_call> is what I would write",
    '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
    '<tool_call>\n{"name": "weather", "arguments": 3}\n</tool_call>',
    "<tool_call>\n{name}\n</tool_call> and so on",
    '{"name": "unknown", "parameters": {}}',
    '{"nam": 1}',
    '{"name',
    "[TOOL_CALLS] [",
    "<tool",
    "a<tool_call",
]


@pytest.mark.parametrize("cuts", [1, 4, 1000])
@pytest.mark.parametrize("text", NO_CALLS)
@pytest.mark.parametrize("name", FORMS)
def test_text_without_a_call_is_content_including_whitespace(
    name: str, text: str, cuts: int
) -> None:
    found = parts_of(text, cuts, FORMS[name])
    assert found == ([content(text)] if text else [])


@pytest.mark.parametrize("cuts", [1, 4, 1000])
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name":"weather","arguments":{"city":"Oslo"}}</tool_call>',
        '<tool_call>\n\n{"arguments": {"city": "Oslo"}, "name": "weather"}\n</tool_call>',
        '<tool_call>[{"name": "weather", "parameters": {"city": "Oslo"}}]</tool_call>',
        '<tool_call>{"name":"weather","arguments":{"city":"Oslo"}}',
    ],
)
def test_variations_of_the_call_form_are_read_too(text: str, cuts: int) -> None:
    assert parts_of(text, cuts, HERMES) == call("weather", '{"city": "Oslo"}')


@pytest.mark.parametrize("cuts", [1, 3, 1000])
@pytest.mark.parametrize("form", [None, HERMES])
def test_thinking_is_a_separate_part(form: CallForm | None, cuts: int) -> None:
    thought = Part("reasoning", "Is <tool_call> due?\n\nNo.")
    for text, starts_inside in (
        ("<think>\nIs <tool_call> due?\n\nNo.\n</think>\n\nNo.", False),
        ("Is <tool_call> due?\n\nNo.</think>No.", True),
    ):
        assert parts_of(text, cuts, form, starts_inside) == [thought, content("No.")]
    assert parts_of("No <think> here", cuts, form, False) == [content("No <think> here")]
    assert parts_of("Never ends", cuts, form, True) == [Part("reasoning", "Never ends")]
    assert parts_of("<think>\n\n</think>\n\nYes.", cuts, form, False) == [content("Yes.")]
    assert parts_of("<thin", cuts, form, False) == [content("<thin")]


def pieces_of(form: CallForm) -> list[str]:
    """Return pieces of calls, of thinking and of other texts."""
    written = form.write([("weather", '{"a": "b"}'), ("weather_now", "{}")])
    return [
        *(form.trigger, form.opening, form.middle, form.closing, form.join or "", written),
        *(form.trigger[:-1], form.opening[:-2], written[:-3], form.end_tag or "x"),
        *(
            "weather",
            "weather_now",
            "other",
            "{",
            "}",
            '"',
            "\\",
            "{}",
            '{"city": [1, "}"]}',
            "[",
            "]",
        ),
        *("<think>", "</think>", "<thi", "</thin", " ", "\n", "\n\n", "word", "<", "é"),
    ]


@pytest.mark.parametrize("thinks", thorough_but([None, True, False], None))
@pytest.mark.parametrize("name", FORMS)
def test_parts_do_not_depend_on_the_pieces_of_a_text(name: str, thinks: bool | None) -> None:
    form, draws = FORMS[name], random.Random(len(name))
    pieces = pieces_of(form)
    kinds = set()
    for _ in range(400):
        text = "".join(draws.choices(pieces, k=draws.randint(1, 9)))
        whole = parts_of(text, 10_000, form, thinks)
        for cuts in (1, 2, 5):
            assert parts_of(text, cuts, form, thinks) == whole, text
        kinds |= {part.kind for part in whole}
    assert kinds >= {"content", "call", "arguments"} - ({"content"} if thinks else set())
