"""Grammars of calls in Lark's notation, as llguidance has it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bita.runtime.text.call_form import ID_PATTERN

Part = Mapping[str, Any]  # {"text": …}, {"token": id} or {"id": true}


def calls_lark(text: str) -> str:
    """The grammar of kind "calls" in Lark's notation, as llguidance has it."""
    order = json.loads(text)
    middle, closing = _sequence(order["middle"]), _sequence(order["closing"])
    calls = [
        f"{json.dumps(name)} {middle} arguments_{place}"
        for place, (name, _) in enumerate(order["tools"])
    ]
    schemas = [
        f"arguments_{place}: %json {json.dumps(schema)}"
        for place, (_, schema) in enumerate(order["tools"])
    ]
    answer = _answer(order, closing)
    if order["otherwise"] is not None:
        answer = f"({answer} | otherwise)"
    lines = [*_first_lines(order["first"], answer), f"call: {' | '.join(calls)}", *schemas]
    if order["otherwise"] is not None:
        lines.append(f"otherwise: %json {json.dumps(order['otherwise'])}")
    return "\n".join(lines)


def _answer(order: Mapping[str, Any], closing: str) -> str:
    """The calls of an answer. Where each has its own end the model may stop after it, or after a
    space, in which another could begin.
    """
    opening, most = _sequence(order["opening"]), order["max_calls"] - 1
    if order["between"] is not None:
        more = f"({_sequence(order['between'])} call {closing}){{0,{most}}}"
        return f"{opening} call {closing} {more} /[ \\n]/?"
    more = ""
    if order["join"] is not None:
        more = f"({_sequence(order['join'])} call){{0,{most}}}"
    return f"{opening} call {more} {closing}"


def _first_lines(first: Sequence[Mapping[str, Any]], answer: str) -> list[str]:
    """The rule of the whole answer, and of the thinking before it."""
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
