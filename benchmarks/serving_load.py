"""Compare `bita serve` with llama.cpp's server under load from 1, 4, 8 and 30 clients.

    python benchmarks/serving_load.py engines/smollm2-135m-instruct-int4 --prompts mt_bench.jsonl \\
        --llama-server .cache/peers/llama.cpp/bin/llama-server --gguf MODEL.gguf \\
        --out benchmarks/results/serving_load.json

Both servers have the same model file, the same number of threads, and as many slots as clients.
They get the same greedy requests, one server after the other. Each client sends its next request as
soon as it has its answer. Clients stream and share the machine with the server; they run in one
process that does little more than record the arrival times. Tokens are those that the servers
report; answers that are cut off at the end count by their share of characters.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from bita.calibration.latency import describe_device
from bita.data.prompts import evenly, read_questions

CLIENTS = (1, 4, 8, 30)
START_SECONDS = 60
CONTENT = re.compile(rb'"(?:content|text)":"((?:[^"\\]|\\.)+)"')


@dataclass
class Answer:
    """Timing of the answer to one request."""

    began: float  # clock time at which the request was sent
    first: float | None = None  # seconds from then to the first piece
    gaps: list[float] = field(default_factory=list)  # seconds between pieces
    characters: list[tuple[float, int]] = field(default_factory=list)  # (clock time, number)
    tokens: int = 0  # as reported by the server

    def tokens_until(self, end: float) -> float:
        """Return the tokens that arrived until a clock time, by their share of characters."""
        total = sum(count for _, count in self.characters)
        before = sum(count for at, count in self.characters if at <= end)
        return self.tokens * before / total if total else 0.0


async def ask(url: str, body: dict[str, Any]) -> Answer:
    """Stream one answer."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    given = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(given)}\r\n\r\n"
    )
    answer, last = Answer(time.perf_counter()), None
    writer.write(head.encode() + given)
    usage = b""
    while line := await reader.readline():
        if not line.startswith(b"data:"):
            continue
        now = time.perf_counter()
        if found := CONTENT.search(line):
            if answer.first is None:
                answer.first = now - answer.began
            if last is not None:
                answer.gaps.append(now - last)
            last = now
            answer.characters.append((now, len(found[1])))
        if b'"completion_tokens"' in line:
            usage = line
    writer.close()
    if found := re.search(rb'"completion_tokens":\s*(\d+)', usage):
        answer.tokens = int(found[1])
    return answer


async def load(
    url: str, requests: Sequence[dict[str, Any]], num_clients: int, seconds: float
) -> dict[str, Any]:
    """Run clients that send one request after the other; return the figures of this time."""
    began, answers = time.perf_counter(), list[Answer]()
    end = began + seconds

    async def client(number: int) -> None:
        order = random.Random(number).sample(range(len(requests)), len(requests))
        while True:
            for which in order:
                if time.perf_counter() >= end:
                    return
                answers.append(await ask(url, requests[which]))

    await asyncio.gather(*(client(number) for number in range(num_clients)))
    first = sorted(answer.first for answer in answers if answer.first is not None)
    gaps = sorted(gap for answer in answers for gap in answer.gaps)
    return {
        "answers": len(answers),
        "failed": sum(not answer.tokens for answer in answers),
        "tokens_per_second": round(sum(each.tokens_until(end) for each in answers) / seconds, 1),
        "first_token_ms": _percentiles(first),
        "between_pieces_ms": _percentiles(gaps),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return percentiles of sorted seconds, in milliseconds."""
    if not values:
        return {}
    of = {name: values[int(share * (len(values) - 1))] for name, share in _SHARES.items()}
    return {name: round(1000 * value, 1) for name, value in of.items()}


_SHARES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


@contextmanager
def bita_server(engine: Path, threads: int, slots: int, more: Sequence[str]) -> Iterator[str]:
    """Run `bita serve`; yield its address."""
    options = f"--port 0 --threads {threads} --parallel {slots} --temperature 0".split()
    command = [sys.executable, "-m", "bita", "serve", str(engine), *options, *more]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        url = re.search(r"http://[^/]+", process.stdout.readline())
        if url is None:
            raise SystemExit("bita serve did not start")
        yield url[0]
    finally:
        process.terminate()
        process.wait()


@contextmanager
def llama_server(program: Path, gguf: Path, threads: int, slots: int) -> Iterator[str]:
    """Run llama-server; yield its address."""
    port = 18080 + random.randrange(1000)
    options = f"--port {port} -t {threads} -tb {threads} -np {slots} -c {2048 * slots}".split()
    process = subprocess.Popen(
        [str(program), "-m", str(gguf), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url, ends = f"http://127.0.0.1:{port}", time.perf_counter() + START_SECONDS
    try:
        while True:
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.perf_counter() > ends:
                raise SystemExit("llama-server did not start")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="questions in MT-Bench format")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--bita-options", default="", help="more options of bita serve")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    requests = [
        {
            "messages": each.messages,
            "max_tokens": args.max_new_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for each in evenly(read_questions(args.prompts), 80)
    ]
    runs: list[dict[str, Any]] = []
    for _ in range(args.rounds):
        for clients in args.clients:
            servers = {
                "bita": bita_server(args.engine, args.threads, clients, args.bita_options.split())
            }
            if args.llama_server is not None:
                servers["llama.cpp"] = llama_server(
                    args.llama_server, args.gguf, args.threads, clients
                )
            for name, server in servers.items():
                with server as url:
                    asyncio.run(load(url, requests, 1, min(args.seconds, 3)))  # warm
                    found = asyncio.run(load(url, requests, clients, args.seconds))
                runs.append({"server": name, "clients": clients, **found})
                print(json.dumps(runs[-1]), flush=True)
    report = {
        "device": describe_device(args.threads),
        "max_new_tokens": args.max_new_tokens,
        "seconds": args.seconds,
        "runs": runs,
        "median": _medians(runs),
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any(run["failed"] for run in runs))


def _medians(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the medians over the rounds, by server and number of clients."""
    keys = dict.fromkeys((run["server"], run["clients"]) for run in runs)
    found = []
    for server, clients in keys:
        own = [run for run in runs if (run["server"], run["clients"]) == (server, clients)]
        figures = {
            "tokens_per_second": statistics.median(run["tokens_per_second"] for run in own),
            "first_token_p50_ms": statistics.median(run["first_token_ms"]["p50"] for run in own),
            "first_token_p95_ms": statistics.median(run["first_token_ms"]["p95"] for run in own),
        }
        rounded = {name: round(value, 1) for name, value in figures.items()}
        found.append({"server": server, "clients": clients, **rounded})
    return found


if __name__ == "__main__":
    sys.exit(main())
