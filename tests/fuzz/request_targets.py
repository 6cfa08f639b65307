"""Fuzz targets: requests, options, grammars, prompt files and generated data."""

import io
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from make_tiny_engine import TINY_ENGINE
from mutation import Mutator
from running import Execute, Target
from tokenizers import Tokenizer

from bita.adapter import Adapter
from bita.cli.shared.trees import read_tree
from bita.data.dataset import FORMAT, FORMAT_VERSION, Dataset
from bita.data.json_lines import parse_line
from bita.data.prompts import read_questions
from bita.errors import BitaError
from bita.runtime.options import Options
from bita.runtime.serving.errors import RequestError
from bita.runtime.serving.requests import ChatRequest, CompletionRequest, parse_request
from bita.runtime.text import grammar_child, grammar_trial
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.grammar import Grammar, GrammarCompiler

CHAT: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}],
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "stop": ["a", "b"],
    "logit_bias": {"5": 1.0},
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}},
    "logprobs": True,
    "top_logprobs": 3,
    "tools": [],
    "n": 1,
    "seed": 7,
}
COMPLETION: dict[str, Any] = {
    "prompt": ["a", "b"],
    "max_tokens": 3,
    "logprobs": 2,
    "echo": False,
    "stop_token_ids": [3],
    "presence_penalty": 0.5,
    "min_p": 0.1,
    "top_k": 5,
}
REQUEST_WORDS = (*CHAT, *COMPLETION, "developer", "tool", "regex", "text", "image_url", "type")
OPTIONS: dict[str, Any] = {
    "max_new_tokens": 8,
    "stop": ["x"],
    "stop_token_ids": [1],
    "temperature": 0.5,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.1,
    "logit_bias": {},
    "seed": 1,
    "logprobs": 2,
    "timeout_s": 5.0,
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20, "pattern": "^[a-z]+$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
        "child": {"$ref": "#/$defs/node"},
        "when": {"type": "string", "format": "date-time"},
        "either": {"anyOf": [{"type": "null"}, {"type": "number", "multipleOf": 0.5}]},
    },
    "required": ["name"],
    "additionalProperties": False,
    "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
}
SCHEMA_WORDS = (
    *("type", "properties", "items", "allOf", "oneOf", "not", "const", "$ref", "#", "pattern"),
    *("minLength", "patternProperties", "prefixItems", "uniqueItems", "format", "x-guidance"),
    *("string", "number", "(a+)+b", ".*a.{20}b.*", "a{1,1000}", "(?i)x", "[", "#/$defs/node"),
)
EXPRESSIONS = (
    *("a", "b?", ".*", "[a-z]+", "(", ")", "|", "{2,5}", "{1000}", "\\d", "\\pL", "^", "$", "(?="),
    *("a?", "(a|aa)+", "[^\\n]{0,200}", "é", "\\x00", "[", "]", "*", "+", "\\b", "(?i)", "&", "~"),
)
RULES = (
    *(
        "start: a b\n",
        "a: /x+/\n",
        "b: 'y' | a b\n",
        "%ignore /\\s+/\n",
        "start: start\n",
        "?c: \n",
    ),
    *("A: 'q'{1,500}\n", "b[capture]: a\n", "%json {}\n", "%llguidance {}\n", "'", "start: b*\n"),
    *("b: <|end|>\n", "b: <[1]>\n", "%import common.INT\n", "A: /(a|b)*c{9}/ & /.*c/\n", "~A\n"),
)


def request_targets() -> list[Target]:
    return [
        Target("chat-request", _request(ChatRequest, CHAT), (BitaError, RequestError)),
        Target(
            "completion-request", _request(CompletionRequest, COMPLETION), (BitaError, RequestError)
        ),
        Target("options", _options, (BitaError,)),
        Target("json-schema", _schema, (BitaError,)),
        Target("grammar-text", _grammar_text, (BitaError,)),
        Target("prompt-file", _prompt_file, (BitaError,)),
        Target("data-line", _data_line, (BitaError,)),
        Target("dataset", _dataset, (BitaError,)),
        Target("tree-flag", _tree_flag, (BitaError,)),
        Target("messages", _messages, (BitaError,)),
    ]


def _request(kind: Any, seed: dict[str, Any]) -> Any:
    def prepare(_: Path) -> Execute:
        def execute(rng: random.Random) -> None:
            request = parse_request(kind, Mutator(rng, REQUEST_WORDS).json_bytes(seed))
            request.prompts()
            request.options({}, 16)

        return execute

    return prepare


def _options(_: Path) -> Execute:
    def execute(rng: random.Random) -> None:
        changed = Mutator(rng, tuple(OPTIONS)).mutate(OPTIONS)
        if isinstance(changed, dict):
            Options.of(**{str(key): value for key, value in changed.items()})

    return execute


def _run_forked(request: str, is_wanted: Callable[[], bool]) -> grammar_trial.Trial:
    """Replace `grammar_trial._run`; a fork takes a hundredth of the time of a new process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        sys.stdin, sys.stdout = io.StringIO(request), os.fdopen(writer, "w")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            grammar_child.main()
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        printed = pipe.read()
    _, status = os.waitpid(child, 0)
    return grammar_trial._judge(os.waitstatus_to_exitcode(status), printed, "")


def _compiler() -> GrammarCompiler:
    grammar_trial._run = _run_forked
    return GrammarCompiler(Tokenizer.from_file(str(TINY_ENGINE / "tokenizer.json")), 320, [1])


def _follow(compiler: GrammarCompiler, grammar: Grammar, rng: random.Random) -> None:
    """Compile a grammar and take a few tokens that it allows."""
    matcher = compiler.compile(grammar)
    for _ in range(3):
        allowed = matcher.allowed()
        if matcher.is_complete or not len(allowed):
            return
        matcher.take(int(allowed[rng.randrange(len(allowed))]))


def _schema(_: Path) -> Execute:
    compiler = _compiler()

    def execute(rng: random.Random) -> None:
        _follow(compiler, Grammar.json_schema(Mutator(rng, SCHEMA_WORDS).mutate(SCHEMA)), rng)

    return execute


def _grammar_text(_: Path) -> Execute:
    compiler = _compiler()

    def execute(rng: random.Random) -> None:
        mutator = Mutator(rng)
        if rng.random() < 0.5:
            _follow(compiler, Grammar.regex(mutator.text(EXPRESSIONS)), rng)
        else:
            _follow(compiler, Grammar.lark(mutator.text(RULES)), rng)

    return execute


def _prompt_file(directory: Path) -> Execute:
    path = directory / "prompts.jsonl"
    seeds: list[Any] = [
        {"prompt": "Hi", "category": "a"},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"turns": ["a", "b"], "category": "b"},
    ]

    def execute(rng: random.Random) -> None:
        words = ("prompt", "messages", "role", "content", "turns", "category")
        lines = [Mutator(rng, words).json_bytes(seed) for seed in seeds]
        path.write_bytes(b"\n".join(lines))
        read_questions(path)

    return execute


def _data_line(_: Path) -> Execute:
    seed = {"index": 3, "prompt": [1, 2], "answer": [3, 4], "finish_reason": "eos"}

    def execute(rng: random.Random) -> None:
        parse_line(Mutator(rng).json_bytes(seed), Path("data.jsonl"), 1)

    return execute


def _dataset(directory: Path) -> Execute:
    identity = Adapter.load(TINY_ENGINE / "adapter.safetensors").identity
    info = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": json.loads(identity.to_json()),
        "tokenizer_sha256": "0" * 64,
        "generator": "engine",
        "options": {"temperature": 1.0},
        "warnings": [],
    }
    line = {"index": 0, "prompt": [1], "response": [2], "finish": "eos", "source": "file"}

    def execute(rng: random.Random) -> None:
        mutator = Mutator(rng, (*info, *line, "length"))
        changes_info = rng.random() < 0.5
        data = mutator.json_bytes(info) if changes_info else json.dumps(info).encode()
        (directory / "info.json").write_bytes(data)
        lines = [json.dumps(line).encode() if changes_info else mutator.json_bytes(line)] * 2
        (directory / "shard-00000.jsonl").write_bytes(b"\n".join(lines) + b"\n")
        Dataset.load(directory, identity, "0" * 64)

    return execute


def _tree_flag(directory: Path) -> Execute:
    path = directory / "tree.json"
    path.write_bytes((TINY_ENGINE / "tree.json").read_bytes())
    parts = (
        "1",
        "5,4",
        ",",
        "ngrams:",
        "chain",
        "ar",
        "triangle",
        "9" * 30,
        "-1",
        "²",
        "\x00",
        "/",
    )

    def execute(rng: random.Random) -> None:
        text = Mutator(rng).text(parts, 4)
        read_tree(rng.choice((text, str(path), str(directory), str(path) + text)), 3)

    return execute


def _messages(_: Path) -> Execute:
    template = ChatTemplate(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}"
    )
    seed = [
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "me"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "21", "tool_call_id": "1"},
    ]

    def execute(rng: random.Random) -> None:
        changed = Mutator(rng, ("role", "content", "text", "image_url", "system")).mutate(seed)
        template.render(changed)

    return execute
