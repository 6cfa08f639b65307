"""Count the valid calls among answers that must call a tool, streamed and whole.

    python benchmarks/tool_calls.py engines/smollm2-135m-instruct-int4 --prompts mt_bench.jsonl \\
        --out benchmarks/results/tool_calls.json

Starts a server of the engine and sends requests as OpenAI's clients do, with `tool_choice`
"required". Each question is asked once whole and once as a stream, sampled at temperature 0.7 with
its number as the seed. A call is valid if its tool is one of those that were sent and `jsonschema`
(pip install jsonschema) accepts its arguments. If --limit exceeds the questions in the file, they
are repeated with other seeds. Then the same questions are asked with "auto", where the model
decides, and its calls are counted.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema

from bita import __version__
from bita.calibration.latency import describe_device
from bita.data.prompts import read_prompts


def tool(name: str, description: str, properties: Any, required: Sequence[str]) -> Any:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


TOOLS = [
    tool(
        "search",
        "Search the web.",
        {"query": {"type": "string", "maxLength": 80}, "count": {"type": "integer", "maximum": 20}},
        ["query"],
    ),
    tool(
        "get_weather",
        "The weather in a city.",
        {
            "city": {"type": "string", "maxLength": 40},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        ["city", "unit"],
    ),
    tool(
        "write_note",
        "Keep a note for the user.",
        {
            "title": {"type": "string", "maxLength": 40},
            "tags": {
                "type": "array",
                "items": {"type": "string", "maxLength": 12},
                "maxItems": 3,
            },
            "place": {
                "type": "object",
                "properties": {"folder": {"enum": ["work", "home"]}, "pinned": {"type": "boolean"}},
                "required": ["folder", "pinned"],
            },
        },
        ["title", "tags", "place"],
    ),
]
SCHEMAS = {each["function"]["name"]: each["function"]["parameters"] for each in TOOLS}


@contextmanager
def run_server(engine: Path, threads: int) -> Iterator[str]:
    """Run a server of an engine; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bita", "serve", str(engine), "--port", str(port)]
    with subprocess.Popen([*command, "--threads", str(threads)]) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            while not _is_up(address):
                if process.poll() is not None:
                    raise SystemExit("the server did not start")
                time.sleep(0.2)
            yield address
        finally:
            process.terminate()


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.TransportError:
        return False


def ask(address: str, question: Any, seed: int, **fields: Any) -> tuple[list[Any], str, int]:
    """Return the calls of an answer as (name, arguments), its finish reason, and its tokens."""
    body = {
        "messages": question,
        "tools": TOOLS,
        "temperature": 0.7,
        "seed": seed,
        "max_tokens": 1500,
        **fields,
    }
    response = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=600)
    response.raise_for_status()
    if fields.get("stream"):
        return _parse_stream(response.text)
    answer = response.json()
    choice = answer["choices"][0]
    calls = choice["message"].get("tool_calls", [])
    found = [(each["function"]["name"], each["function"]["arguments"]) for each in calls]
    return found, choice["finish_reason"], answer["usage"]["completion_tokens"]


def _parse_stream(text: str) -> tuple[list[Any], str, int]:
    calls: list[list[str]] = []
    finish, num_tokens = "", 0
    for line in text.splitlines():
        data = line.removeprefix("data: ")
        if not data or data == "[DONE]":
            continue
        chunk = json.loads(data)
        if "usage" in chunk:
            num_tokens = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            finish = choice["finish_reason"] or finish
            for delta in choice["delta"].get("tool_calls", []):
                if "id" in delta:
                    calls.append([delta["function"]["name"], ""])
                calls[delta["index"]][1] += delta["function"]["arguments"]
    return [tuple(each) for each in calls], finish, num_tokens


def fault_of(calls: Sequence[Any], finish: str) -> str | None:
    """Return why an answer does not consist of valid calls; None if it does."""
    if not calls or finish != "tool_calls":
        return f"{len(calls)} calls, finish_reason {finish}"
    for name, arguments in calls:
        try:
            jsonschema.validate(json.loads(arguments), SCHEMAS[name])
        except (ValueError, KeyError, jsonschema.ValidationError) as error:
            return f"{name}: {str(error)[:200]}"
    return None


def required(address: str, questions: Sequence[Any]) -> Any:
    faults, names, counts, num_tokens, num_same = [], Counter[str](), Counter[int](), 0, 0
    for number, question in enumerate(questions):
        whole = ask(address, question, number, tool_choice="required")
        options = {"stream": True, "stream_options": {"include_usage": True}}
        streamed = ask(address, question, number, tool_choice="required", **options)
        fault = fault_of(*whole[:2])
        if fault is not None:
            faults.append({"prompt": number, "fault": fault})
        num_same += streamed == whole
        names.update(name for name, _ in whole[0])
        counts[len(whole[0])] += 1
        num_tokens += whole[2]
    return {
        "prompts": len(questions),
        "valid": len(questions) - len(faults),
        "faults": faults,
        "streams_that_are_the_same": num_same,
        "calls_by_tool": dict(sorted(names.items())),
        "answers_by_calls": {str(count): counts[count] for count in sorted(counts)},
        "tokens": num_tokens,
    }


def auto(address: str, questions: Sequence[Any]) -> Any:
    num_calling, faults = 0, []
    for number, question in enumerate(questions):
        calls, finish, _ = ask(address, question, number, max_tokens=100)
        num_calling += bool(calls)
        fault = fault_of(calls, finish) if calls and finish != "length" else None
        if fault is not None:
            faults.append({"prompt": number, "fault": fault})
    return {"prompts": len(questions), "answers_with_calls": num_calling, "faults": faults}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="questions in MT-Bench format")
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    given = read_prompts(args.prompts)
    questions = [given[number % len(given)] for number in range(args.limit)]
    with run_server(args.engine, args.threads) as address:
        report = {
            "engine": args.engine.name,
            "version": __version__,
            "device": describe_device(args.threads),
            "required": required(address, questions),
            "auto": auto(address, questions),
        }
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0 if report["required"]["valid"] == args.limit else 1


if __name__ == "__main__":
    raise SystemExit(main())
