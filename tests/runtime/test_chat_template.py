"""Chat templates: golden prompts, equality with transformers, refusals, and hostile templates."""

import threading
from pathlib import Path
from typing import Any

import pytest

from bita.errors import EngineError, PromptError
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.template_meter import TemplateLimits

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message ~ "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/...') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""
QWEN3 = """\
{%- set ns = namespace(last=messages|length - 1, seen=[]) %}
{%- for message in messages[::-1] %}
    {%- if message.role == "user" and message.content is string %}
        {%- set ns.last = (messages|length - 1) - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- macro turn(role, content) %}
<|im_start|>{{ role }}
{{ content }}<|im_end|>
{% endmacro %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set ns.seen = ns.seen + [message.role] %}
    {%- if message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}
            {%- set content = '<think>\\n\\n</think>\\n\\n' ~ content %}
        {%- endif %}
        {%- generation %}{{ turn(message.role, content) }}{% endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>' ~ (call.function | tojson) ~ '</tool_call>' }}
        {%- endfor %}
    {%- else %}
        {{- turn(message.role, content | replace('<', '&lt;')) }}
    {%- endif %}
{%- endfor %}
{{- ns.seen | unique | join(', ') }}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}
{%- endif %}
"""
MISTRAL = """\
{{- bos_token }}
{%- set ns = namespace(index=0) %}
{%- for message in messages %}
    {%- if message.role == 'system' and loop.first %}
        {%- set ns.system = message.content %}
    {%- elif message.role == 'user' %}
        {%- if tools is not none and loop.last %}
            {{- '[AVAILABLE_TOOLS] [' }}
            {%- for tool in tools %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, value in tool.items() if key != 'return' %}
                    {%- if value is string %}
                        {{- '"' + key + '": "' + value + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + value | tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{ ', ' }}{% endif %}
                {%- endfor %}
                {{- '}}' if loop.last else '}}, ' }}
            {%- endfor %}
            {{- ']' }}
        {%- endif %}
        {{- '[INST] ' ~ (ns.system ~ '\\n\\n' if ns.system is defined else '') }}
        {{- message.content ~ '[/INST]' }}
        {%- set ns.index = ns.index + 1 %}
    {%- elif message.role == 'assistant' and message.tool_calls is defined %}
        {%- for call in message.tool_calls %}
            {%- set out = call.function | tojson %}
            {{- '[TOOL_CALLS] [' ~ out[:-1] ~ ', "id": "' ~ '%09d' % ns.index ~ '"}]' }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content | trim + eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + '}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('Only user, system, assistant and tool roles are supported') }}
    {%- endif %}
{%- endfor %}
"""
GEMMA3 = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""
SMOLLM3 = """\
{%- set defaults = namespace(mode='/think', custom='') %}
{%- if messages[0].role == 'system' %}
    {%- set text = messages[0].content %}
    {%- if '/no_think' in text %}{% set defaults.mode = '/no_think' %}{% endif %}
    {%- set defaults.custom = text.replace('/no_think', '').replace('/think', '').rstrip() %}
{%- endif %}
{%- if enable_thinking is defined and not enable_thinking %}
    {%- set defaults.mode = '/no_think' %}
{%- endif %}
{{- '<|im_start|>system\\n' }}## Metadata

Today: {{ strftime_now('%d %B %Y') }}
Reasoning Mode: {{ defaults.mode }}

{%- if tools %}
    {%- set ns = namespace(xml='<tools>\\n') %}
    {%- for tool in tools %}
        {%- set ns.xml = ns.xml ~ (tool | string) ~ '\\n' %}
    {%- endfor %}
    {{- '\\n\\n### Tools\\n' ~ ns.xml + '</tools>' }}
{%- endif %}
{{- '\\n' ~ defaults.custom ~ '<|im_end|>\\n' }}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- generation %}
        {%- if defaults.mode == '/think' %}
            {{- '<|im_start|>assistant\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}
        {%- else %}
            {{- '<|im_start|>assistant\\n<think>\\n\\n</think>\\n' + content + '<|im_end|>\\n' }}
        {%- endif %}
        {%- endgeneration %}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n' + message.content | string + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
LLAMA3_TOOLS = """\
{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if builtin_tools is defined or tools is not none %}{{ 'Environment: ipython\\n' }}{% endif %}
{%- if builtin_tools is defined %}
    {{- 'Tools: ' + builtin_tools | reject('equalto', 'code_interpreter') | join(', ') }}
{%- endif %}
{{- system_message + '<|eot_id|>' }}
{%- if tools is not none and messages | length != 0 %}
    {%- set first = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
    {%- for t in tools %}{{ t | tojson(indent=4) + '\\n\\n' }}{% endfor %}
    {{- first + '<|eot_id|>' }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role in ['ipython', 'tool'] or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{ raise_exception('one call') }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", ' }}
        {%- for key, value in call.arguments | items %}
            {{- key + '="' ~ value ~ '"' + ('' if loop.last else ', ') }}
        {%- endfor %}
        {{- '"parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
"""
TEMPLATES = {
    **{"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "qwen3": QWEN3, "mistral": MISTRAL},
    **{"gemma3": GEMMA3, "smollm3": SMOLLM3, "llama3 with tools": LLAMA3_TOOLS},
}
SPECIAL_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>"}

USER: dict[str, Any] = {"role": "user", "content": " <Hi> & 'you'\n日本 "}
ASSISTANT: dict[str, Any] = {"role": "assistant", "content": "<think>\nhm</think>\n\nYes."}
SYSTEM: dict[str, Any] = {"role": "system", "content": "Be brief."}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"function": {"name": "add", "arguments": {"a": [1, None], "b": "é<"}}}],
}
TOOL: dict[str, Any] = {"role": "tool", "content": "3"}
CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ASSISTANT, USER],
    "tools": [SYSTEM, USER, CALL, TOOL, ASSISTANT],
}


def test_golden_chatml() -> None:
    assert ChatTemplate(CHATML).render([{"role": "user", "content": "Hi"}]) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_golden_gemma_without_generation_prompt() -> None:
    prompt = ChatTemplate(GEMMA, SPECIAL_TOKENS).render([USER, ASSISTANT], False)
    assert prompt == (
        "<bos><start_of_turn>user\n<Hi> & 'you'\n日本<end_of_turn>\n"
        "<start_of_turn>model\n<think>\nhm</think>\n\nYes.<end_of_turn>\n"
    )


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_in_transformers(
    name: str, conversation: str, add_generation_prompt: bool
) -> None:
    theirs = pytest.importorskip("transformers.utils.chat_template_utils")
    source, messages = TEMPLATES[name], CONVERSATIONS[conversation]
    template = ChatTemplate(source, SPECIAL_TOKENS)
    extras = {"tools": [{"name": "add", "parameters": {"b": [1.5, True]}}]}
    options = {"chat_template": source, "add_generation_prompt": add_generation_prompt}
    try:
        ((expected,), _) = theirs.render_jinja_template(
            [messages], **options, **extras, **SPECIAL_TOKENS, enable_thinking=False
        )
    except Exception:
        with pytest.raises(PromptError):
            template.render(messages, add_generation_prompt)
        return
    variables = {**extras, "enable_thinking": False}
    assert template.render(messages, add_generation_prompt, variables) == expected


def test_content_parts_are_joined_and_messages_are_not_modified() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}]
    assert ChatTemplate("{{ messages[0].content }}").render(messages) == "a\nb"
    assert messages == [{"role": "user", "content": parts}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "there are 0 messages; pass 1 to"),
        ("Hi", "messages is of type str; pass a list of"),
        ([USER] * 5000, "there are 5000 messages; pass 1 to 2048"),
        (["Hi"], "messages: number 0 is 'Hi'; pass"),
        ([USER, {"role": "bot", "content": ""}], "number 1 has the role 'bot'; use one of system"),
        ([{"role": "user"}], "number 0 has the content None; pass a string"),
        ([{"role": "user", "content": 3}], "number 0 has the content 3; pass a string"),
        (
            [{"role": "user", "content": [{"type": "image"}]}],
            "content part {'type': 'image'}; only",
        ),
        ([{**USER, "x": object()}], "number 0 is not plain JSON"),
        ([{}, {}], "4 faults:"),
    ],
)
def test_invalid_messages_are_refused(messages: Any, message: str) -> None:
    with pytest.raises(PromptError) as caught:
        ChatTemplate(CHATML).render(messages)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (GEMMA, "refuses these messages: System role not supported; change their roles"),
        ("{{ messages[0].content + 1 }}", "fails with TypeError: "),
        ("{{ nothing.at.all }}", "fails with UndefinedError: 'nothing' is undefined"),
        ("{% for %}", "does not compile: line 1: Expected an expression"),
        ("{{ 1|wordwrap }}", "does not compile: line 1: No filter named 'wordwrap'"),
        ("x" * 300_000, "has 300000 characters; the limit is 100000"),
        ("(" * 9000 + "{{ messages[0].content }}", None),
        ("{{ " + "(" * 9000 + ")" * 9000 + " }}", "does not compile"),
        ("{% include 'other' %}", "fails with TypeError: no loader"),
        ("{{ ''.__class__.__mro__ }}", "fails with SecurityError"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "fails with SecurityError"),
        ("{{ messages.append(1) }}", "fails with SecurityError"),
    ],
)
def test_template_errors_are_reported(source: str, message: str | None) -> None:
    if message is None:
        assert ChatTemplate(source).render([USER]) == "(" * 9000 + USER["content"]
        return
    with pytest.raises(PromptError) as caught:
        ChatTemplate(source).render([SYSTEM])
    assert message in str(caught.value)


def test_a_long_conversation_stays_within_the_limits() -> None:
    messages = [USER, ASSISTANT] * 800
    prompt = ChatTemplate(QWEN3).render(messages)
    assert prompt.count("<|im_start|>") == 1601


def test_each_thread_has_its_own_meter() -> None:
    template = ChatTemplate(CHATML, limits=TemplateLimits(steps=60))
    prompts: list[str] = []
    threads = [
        threading.Thread(target=lambda: prompts.append(template.render([USER] * 4)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert prompts == [template.render([USER] * 4)] * 8


def test_the_template_of_an_engine_is_read_and_errors_name_the_file(tmp_path: Path) -> None:
    assert ChatTemplate.open(tmp_path, {}) is None
    path = tmp_path / "chat_template.jinja"
    path.write_text(GEMMA, encoding="utf-8")
    template = ChatTemplate.open(tmp_path, SPECIAL_TOKENS)
    assert template is not None
    assert template.render([USER]).startswith("<bos><start_of_turn>user\n<Hi>")
    path.write_text("{% if %}", encoding="utf-8")
    with pytest.raises(EngineError, match=r"chat_template.jinja: .* does not compile"):
        ChatTemplate.open(tmp_path, {})
