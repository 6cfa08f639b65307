"""Message contents reach a template in a form that it reads; the user's words are never lost."""

from typing import Any

import pytest

from bita.errors import PromptError
from bita.runtime.text.chat_template import ChatTemplate, LostMessageError
from bita.runtime.text.template_meter import TemplateLimits

Messages = list[dict[str, Any]]


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


STRINGS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
ADDED = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
DUMPED = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
FIRST = "{% for m in messages %}[{{ m.role }}]{{ m.content[0].text }}{% endfor %}"
EACH = (
    "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"
)
QUOTED = "{% for m in messages %}{% for p in m.content %}'{{ p.text }}'{% endfor %}{% endfor %}"
BOTH = (
    "{% for m in messages %}[{{ m.role }}]{% if m.content is string %}{{ m.content | trim }}"
    "{% else %}{% for p in m.content %}{{ p['text'] | trim }};{% endfor %}{% endif %}{% endfor %}"
)
GEMMA3 = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content if messages[0].content"
    " is string else messages[0].content[0].text %}{% set rest = messages[1:] %}{% else %}"
    "{% set first = '' %}{% set rest = messages %}{% endif %}{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}<{{ m.role }}>{{ first if loop.first }}{% if m.content is string %}{{ m.content }}"
    "{% elif m.content is iterable %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}"
    "{% endfor %}"
)


def render(source: str, messages: Messages) -> str:
    return ChatTemplate(source).render(messages, add_generation_prompt=False)


@pytest.mark.parametrize(
    ("source", "content", "expected"),
    [
        (STRINGS, "One", "[user]One"),
        (STRINGS, parts("One.", "Two."), "[user]One.\nTwo."),
        (STRINGS, ["One.", "Two."], "[user]One.\nTwo."),
        (ADDED, parts("One.", "Two."), "[user]One.\nTwo."),
        (DUMPED, parts("One"), '{"role": "user", "content": "One"}'),
        (EACH, parts("One. ", "Two."), "[user]One. Two."),
        (EACH, "One", "[user]One"),
        (EACH, ["One. ", *parts("Two.")], "[user]One. Two."),
        (FIRST, parts("One."), "[user]One."),
        (FIRST, parts("One.", "Two."), "[user]One.\nTwo."),
        (FIRST, "One", "[user]One"),
        (QUOTED, parts("One", "Two"), "'One''Two'"),
        (QUOTED, "One", "'One'"),
        (BOTH, " One ", "[user]One"),
        (BOTH, parts("One ", "Two"), "[user]One;Two;"),
        (STRINGS, [], "[user]"),
        (EACH, [], "[user]"),
    ],
)
def test_contents_are_rendered_completely(source: str, content: Any, expected: str) -> None:
    assert render(source, [user(content)]) == expected


def test_each_role_gets_the_form_that_the_template_reads() -> None:
    source = (
        "{% for m in messages %}[{{ m.role }}]{% if m.role == 'user' %}"
        "{% for p in m.content %}{{ p.text }}{% endfor %}{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    messages = [
        {"role": "system", "content": parts("Be", "brief")},
        user("Hi"),
        {"role": "assistant", "content": parts("Yes")},
        {"role": "tool", "content": parts("3", "4")},
    ]
    assert render(source, messages) == "[system]Be\nbrief[user]Hi[assistant]Yes[tool]3\n4"


@pytest.mark.parametrize("source", [EACH, BOTH, GEMMA3, STRINGS, DUMPED, ADDED])
@pytest.mark.parametrize(
    "messages",
    [
        [user("Hi there")],
        [user(parts("One. ", "Two."))],
        [{"role": "system", "content": parts("Be brief")}, user(parts("One. "))],
        [user("Hi"), {"role": "assistant", "content": "Yo"}, user("you")],
        [user("Q"), {"name": "x", "role": "assistant", "content": "A", "reasoning": "hm"}],
    ],
)
def test_contents_that_a_template_reads_render_as_in_transformers(
    source: str, messages: Messages
) -> None:
    theirs = pytest.importorskip("transformers.utils.chat_template_utils")
    has_parts = any(isinstance(message["content"], list) for message in messages)
    if source in (STRINGS, DUMPED, ADDED) and has_parts:
        pytest.skip("transformers prints the list, or fails")
    if source == EACH and not has_parts:
        pytest.skip("transformers loses the text")
    (expected,), _ = theirs.render_jinja_template([messages], chat_template=source)
    assert render(source, messages) == expected


@pytest.mark.parametrize(
    "source",
    [
        "Answer.",
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{% for m in messages %}{{ m.text }}{% endfor %}",
        "{% for m in messages if m.role != 'user' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content[5] }}{% endfor %}",
    ],
)
def test_a_template_that_drops_the_users_words_is_refused(source: str) -> None:
    for content in ("Hi there", parts("Hi there")):
        with pytest.raises(LostMessageError, match="number 0 is lost: the chat template does not"):
            render(source, [user(content)])


def test_a_lost_message_is_named() -> None:
    answer = {"role": "assistant", "content": "yes"}
    conversation = [user("elephant"), answer, user("second")]
    with pytest.raises(LostMessageError, match="number 2 is lost"):
        render("{{ messages[0].content }}", conversation)
    assert render("{{ messages[-1].content }}", conversation) == "second"  # may omit earlier turns
    shouted = "{% for m in messages %}{{ m.content | upper }} {% endfor %}"
    assert render(shouted, [user("elephant"), answer, user("日本")]) == "ELEPHANT YES 日本 "


def test_a_slow_template_is_stopped_early() -> None:
    loop = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate(loop + STRINGS, limits=TemplateLimits(steps=5000))
    with pytest.raises(PromptError, match="takes more than 5000 steps"):
        template.render([user("Hi")])


# --- answers without content --------------------------------------------------------------------

CALL = {"id": "123456789", "type": "function", "function": {"name": "w", "arguments": {"a": 1}}}
WITH_NULL = {"role": "assistant", "content": None, "tool_calls": [CALL]}
WITHOUT = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "21", "name": "w", "tool_call_id": "123456789"}
BY_NONE = (
    "{% for m in messages %}{% if m.content is none %}[null]{% elif m.content is not defined %}"
    "[nothing]{% else %}{{ m.content }}{% endif %}{{ m.tool_call_id }}{% endfor %}"
)
CALLS = (
    "{% for m in messages %}{% if m.tool_calls is defined and m.tool_calls is not none %}"
    "{{ m.tool_calls[0].function | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("source", [BY_NONE, CALLS, DUMPED])
@pytest.mark.parametrize("answer", [WITH_NULL, WITHOUT])
def test_null_and_missing_content_stay_distinct(source: str, answer: dict[str, Any]) -> None:
    theirs = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = [user("Weather?"), answer, RESULT]
    (expected,), _ = theirs.render_jinja_template([messages], chat_template=source)
    assert render(source, messages) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (STRINGS, "[user]Weather?[assistant][tool]21"),  # otherwise it would render "None"
        (ADDED, "[user]Weather?[assistant][tool]21"),
        (EACH, "[user]Weather?[assistant][tool]21"),
        (FIRST, "[user]Weather?[assistant][tool]21"),
    ],
)
def test_null_content_becomes_empty_for_templates_that_need_text(
    source: str, expected: str
) -> None:
    for answer in (WITH_NULL, WITHOUT):
        assert render(source, [user("Weather?"), answer, RESULT]) == expected


@pytest.mark.parametrize(
    "message",
    [
        user(None),
        {"role": "user"},
        {"role": "system", "content": None},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": None, "tool_calls": [CALL]},
    ],
)
def test_other_messages_need_content(message: dict[str, Any]) -> None:
    with pytest.raises(PromptError, match="number 0 has the content None; pass a string"):
        render(STRINGS, [message])
