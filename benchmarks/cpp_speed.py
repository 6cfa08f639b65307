"""Compare speed, memory and start of libbita with the Python runtime and llama.cpp's C API.

    python benchmarks/cpp_speed.py ENGINE --prompts mt_bench.jsonl --gguf MODEL.gguf \
        --llama-cpp SOURCES BUILD --out benchmarks/results/cpp_speed.json

Each side runs in a process that stays open, except for Python, which runs in this one. All sides
answer each prompt one after the other. Prompts are computed without a cached prefix, and decoding
is greedy. --llama-cpp takes the sources of llama.cpp and a build of them with the shared library.
The start is the time of a fresh process until the first token of a short prompt.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from answer_tool import BUILD, ROOT, onnxruntime_library
from peer_report import describe_machine

from bita.cli.shared.progress import progress_bars
from bita.data.prompts import evenly, read_questions
from bita.runtime.session import Session

HERE = Path(__file__).parent
INCLUDE = ROOT / "runtime" / "native" / "include"
COMPILER = ("g++", "-std=c++17", "-O2", "-Wall", "-Wextra")
NUM_STARTS = 5
SHORT = 8  # tokens of the prompt to measure a start with
PAUSE_S = 0.3  # before each answer, since threads of the last side spin for a while


class Side:
    """A running program; `open_ms` is the time it took to load."""

    def __init__(self, command: Sequence[str], paths: str) -> None:
        environment = {**os.environ, "LD_LIBRARY_PATH": paths}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.open_ms: float = self._line()["open_ms"]

    def ask(self, prompt: Sequence[int], num_new: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(map(str, [num_new, *prompt])) + "\n")
        self._process.stdin.flush()
        return self._line()

    def end(self) -> float:
        """End the program and return its peak memory in MB."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        memory: float = self._line()["peak_memory_mb"]
        self._process.wait(60)
        return memory

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


class PythonSide:
    """The Python runtime, in this process."""

    def __init__(self, engine: Path, threads: int) -> None:
        self._session = Session.open(engine, num_threads=threads, keep_answers=False)

    def ask(self, prompt: Sequence[int], num_new: int) -> dict[str, Any]:
        self._session.forget()
        self._session.reset_stats()
        began = time.perf_counter()
        answer = self._session.stream(list(prompt), num_new, ignore_eos=True)
        first_ms = 0.0
        for _ in answer:
            if not first_ms and answer.token_ids:
                first_ms = 1000 * (time.perf_counter() - began)
        whole_ms = 1000 * (time.perf_counter() - began)
        backend_ms = sum(self._session.stats.backend_ms)
        return {
            **{"first_ms": first_ms, "whole_ms": whole_ms, "token_ids": answer.token_ids},
            "host_share": 1 - backend_ms / (whole_ms - first_ms),
        }


def commands(args: argparse.Namespace, folder: Path) -> dict[str, tuple[list[str], str]]:
    """Compile the programs; return their commands and library directories by name."""
    bita, llama = folder / "speed_bita", folder / "speed_llama"
    own = [f"-I{INCLUDE}", f"-L{BUILD}", "-lbita"]
    subprocess.run(
        [*COMPILER, str(HERE / "cpp" / "speed_bita.cpp"), "-o", str(bita), *own], check=True
    )
    command = [str(bita), str(onnxruntime_library()), str(args.engine), str(args.threads)]
    found = {
        "libbita": ([*command, "0"], str(BUILD)),
        "libbita, plainly": ([*command, "2"], str(BUILD)),
    }
    if args.llama_cpp:
        sources, build = args.llama_cpp
        places = [f"-I{sources / part / 'include'}" for part in (".", "ggml")]
        libraries = [f"-L{build / 'bin'}", "-lllama", "-lggml", "-lggml-base", "-lggml-cpu"]
        source = str(HERE / "cpp" / "speed_llama.cpp")
        subprocess.run([*COMPILER, source, "-o", str(llama), *places, *libraries], check=True)
        for gguf in args.gguf:
            name = f"llama.cpp, {gguf.name}"
            found[name] = [str(llama), str(gguf), str(args.threads)], str(build / "bin")
    return found


def start_ms(command: Sequence[str], paths: str, prompt: Sequence[int]) -> float:
    """Measure the ms from the start of the process to the first token."""
    began = time.perf_counter()
    side = Side(command, paths)
    side.ask(prompt, 1)
    found = 1000 * (time.perf_counter() - began)
    side.end()
    return found


@contextmanager
def prompts_of(args: argparse.Namespace) -> Iterator[tuple[PythonSide, list[list[int]]]]:
    python = PythonSide(args.engine, args.threads)
    questions = evenly(read_questions(args.prompts), args.limit)
    yield python, [python._session.encode(question.messages) for question in questions]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    folder = BUILD.parent / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    programs = commands(args, folder)
    with ExitStack() as stack, progress_bars() as show:
        python, prompts = stack.enter_context(prompts_of(args))
        starts = {
            name: [start_ms(*program, prompts[0][:SHORT]) for _ in range(NUM_STARTS)]
            for name, program in programs.items()
        }
        sides: dict[str, Any] = {name: Side(*program) for name, program in programs.items()}
        sides["Python"] = python
        replies: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for done, prompt in enumerate([prompts[0], *prompts]):  # the first warms up
            for name, side in sides.items():
                time.sleep(PAUSE_S)
                reply = side.ask(prompt, args.max_new_tokens)
                if done:
                    replies[name].append(reply)
            show("prompts", done, len(prompts))
        memory = {name: side.end() for name, side in sides.items() if isinstance(side, Side)}
    texts = [reply["token_ids"] for reply in replies["Python"]]
    return {
        **describe_machine(args.threads),
        **{"engine": args.engine.name, "prompts": args.prompts.name, "num_prompts": len(prompts)},
        "prompt_tokens": sum(map(len, prompts)),
        "max_new_tokens": args.max_new_tokens,
        "sides": {
            name: {
                **figures(replies[name]),
                **({"start_to_first_token_ms": _summarize(starts[name])} if name in starts else {}),
                **({"peak_memory_mb": memory[name]} if name in memory else {}),
                "same_text_as_python": [reply["token_ids"] for reply in replies[name]] == texts,
            }
            for name in sides
        },
    }


def figures(replies: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize the speed of decoding and of whole answers, and the time of the first token."""
    tokens = sum(len(reply["token_ids"]) - 1 for reply in replies)
    decode_ms = sum(reply["whole_ms"] - reply["first_ms"] for reply in replies)
    return {
        "tokens_per_second": round(1000 * tokens / decode_ms, 1),
        "with_prompts": round(1000 * tokens / sum(reply["whole_ms"] for reply in replies), 1),
        "first_token_ms": round(statistics.median(reply["first_ms"] for reply in replies), 2),
        "host_share": round(statistics.median(reply["host_share"] for reply in replies), 4),
    }


def _summarize(values: Sequence[float]) -> dict[str, float]:
    return {
        **{"median": round(statistics.median(values), 1), "least": round(min(values), 1)},
        "most": round(max(values), 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="prompts, spread evenly over the file")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", type=Path, nargs="*", default=[], help="models for llama.cpp")
    parser.add_argument("--llama-cpp", type=Path, nargs=2, metavar=("SOURCES", "BUILD"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = measure(args)
    print(json.dumps(results["sides"], indent=2))
    if args.out:
        args.out.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
