"""Translation of grammars of calls to llguidance's variant of Lark's notation."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bita.runtime.text.call_form import ID_PATTERN

Part = Mapping[str, Any]  # {"text": …}, {"token": id} or {"id": true}


def calls_lark(text: str) -> str:
    """Return a grammar of kind "calls" in llguidance's variant of Lark's notation."""
    spec = json.loads(text)
    middle, closing = _sequence(spec["middle"]), _sequence(spec["closing"])
    calls = [
        f"{json.dumps(name)} {middle} arguments_{place}"
        for place, (name, _) in enumerate(spec["tools"])
    ]
    schemas = [
        f"arguments_{place}: %json {json.dumps(schema)}"
        for place, (_, schema) in enumerate(spec["tools"])
    ]
    answer = _answer_rule(spec, closing)
    if spec["otherwise"] is not None:
        answer = f"({answer} | otherwise)"
    lines = [*_first_lines(spec["first"], answer), f"call: {' | '.join(calls)}", *schemas]
    if spec["otherwise"] is not None:
        lines.append(f"otherwise: %json {json.dumps(spec['otherwise'])}")
    return "\n".join(lines)


def _answer_rule(spec: Mapping[str, Any], closing: str) -> str:
    """Return the rule for the calls of an answer.

    If each call has its own end, the model may stop after it, or after a white space that could
    begin another call.
    """
    opening, most = _sequence(spec["opening"]), spec["max_calls"] - 1
    if spec["between"] is not None:
        more = f"({_sequence(spec['between'])} call {closing}){{0,{most}}}"
        return f"{opening} call {closing} {more} /[ \\n]/?"
    more = ""
    if spec["join"] is not None:
        more = f"({_sequence(spec['join'])} call){{0,{most}}}"
    return f"{opening} call {more} {closing}"


def _first_lines(first: Sequence[Mapping[str, Any]], answer: str) -> list[str]:
    """Return the rules for the whole answer and for the thinking before it."""
    if not first:
        return [f"start: {answer}"]
    (thinking,) = first
    opening, closing = thinking["opening"], thinking["closing"]
    mark = "?" if thinking["is_optional"] else ""
    if len(closing) == 1 and "token" in closing[0]:
        body = f"THOUGHT {_sequence(closing)}"
        lines = ["THOUGHT: /(?s:.*)/"]
    else:
        literal = "".join(each["text"] for each in closing if "text" in each)
        body, lines = "thought", [f"thought[suffix={json.dumps(literal)}]: /(?s:.*)/"]
    whole = f"({_sequence(opening)} {body} SPACES){mark}"
    return [f"start: {whole} {answer}", *lines, r"SPACES: /[ \n]{0,4}/"]


def _sequence(parts: Sequence[Part]) -> str:
    return " ".join(map(_symbol, parts)) or '""'


def _symbol(part: Part) -> str:
    if "id" in part:
        return f"/{ID_PATTERN}/"
    if "token" in part:
        return f"<[{part['token']}]>"
    return json.dumps(part["text"], ensure_ascii=False)
