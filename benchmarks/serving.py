"""Put `bita serve` under load: 2,000 answers for 16 clients, some of which disconnect early.

    python benchmarks/serving.py engines/smollm2-135m-instruct-int4 --prompts mt_bench.jsonl \\
        --out benchmarks/results/serving.json

Clients use the openai library. Half of the requests stream, and one in five of these is closed
after a few pieces. Every text that arrives is compared with the one that the engine writes alone.
Memory is that of the server according to /proc.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai

from bita.calibration.latency import describe_device
from bita.data.prompts import evenly, read_questions
from bita.runtime.session import Session

POLL_S = 0.002
CLIENTS = 16


class Served:
    """A running server."""

    def __init__(self, url: str, process_id: int) -> None:
        self.url = url
        self._status = Path(f"/proc/{process_id}/status")
        self._http = httpx.Client()

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=600)

    def metric(self, name: str) -> float:
        lines = self._http.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def resident_mb(self) -> float:
        text = self._status.read_text(encoding="ascii")
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


@contextmanager
def run_server(engine: Path, threads: int, queue: int) -> Iterator[Served]:
    options = f"--port 0 --threads {threads} --queue {queue} --temperature 0".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "bita", "serve", str(engine), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "BITA_API_KEY": ""},
        text=True,
    )
    try:
        assert process.stdout is not None
        url = re.search(r"http://[^/]+", process.stdout.readline())
        if url is None:
            raise SystemExit("the server did not start")
        yield Served(url[0], process.pid)
    finally:
        process.terminate()
        process.wait()


def load(
    server: Served, jobs: Sequence[dict[str, Any]], expected: Sequence[str], count: int
) -> dict[str, Any]:
    """Send `count` requests from CLIENTS clients and compare the texts."""
    right: list[bool] = []
    memory, seconds, first = list[float](), list[float](), list[float]()
    lock, num_left = threading.Lock(), 0

    def ask(number: int) -> None:
        nonlocal num_left
        began = time.perf_counter()
        client, which = server.client(), number % len(jobs)
        leaves_after = 7 if number % 10 == 1 else None
        if number % 2:
            text, arrived = "", None
            stream = client.chat.completions.create(stream=True, **jobs[which])
            for pieces, chunk in enumerate(stream):
                text += chunk.choices[0].delta.content or ""
                arrived = arrived or time.perf_counter()
                if pieces == leaves_after:
                    stream.close()
                    break
        else:
            text = client.chat.completions.create(**jobs[which]).choices[0].message.content or ""
            arrived = None
        with lock:
            whole = expected[which]
            right.append(whole.startswith(text) if leaves_after else text == whole)
            num_left += leaves_after is not None
            seconds.append(time.perf_counter() - began)
            if arrived is not None:
                first.append(arrived - began)
            if len(right) % (count // 8) == 0:
                memory.append(round(server.resident_mb(), 1))

    began = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(count)))
    return {
        "requests": len(right),
        "right": sum(right),
        "closed_by_clients": num_left,
        "clients": CLIENTS,
        "seconds": round(time.perf_counter() - began, 2),
        "request_seconds_median": round(statistics.median(seconds), 3),
        "first_token_seconds_median": round(statistics.median(first), 3),
        "resident_mb_after_each_eighth": memory,
        "tokens_per_step": round(server.metric("bita_tokens_per_step"), 4),
        "rows_per_step": round(
            server.metric("bita_step_rows_total") / server.metric("bita_step_seconds_count"), 2
        ),
        "prompt_tokens": server.metric("bita_prompt_tokens_total"),
        "prompt_tokens_reused": server.metric("bita_prompt_tokens_reused_total"),
    }


def measure_disconnects(server: Served, job: dict[str, Any]) -> dict[str, Any]:
    """Close streams after the tenth piece; measure how long each still occupies its slot."""
    waits = []
    for _ in range(10):
        stream = server.client().chat.completions.create(
            **{**job, "max_tokens": 1500, "stream": True, "extra_body": {"ignore_eos": True}}
        )
        for _, _chunk in zip(range(10), stream, strict=False):
            pass
        began = time.perf_counter()
        stream.close()
        while server.metric("bita_requests_running"):
            time.sleep(POLL_S)
        waits.append(1000 * (time.perf_counter() - began))
    steps = server.metric("bita_step_seconds_sum") / server.metric("bita_step_seconds_count")
    return {
        "free_after_ms_median": round(statistics.median(waits), 2),
        "free_after_ms_most": round(max(waits), 2),
        "mean_step_ms": round(1000 * steps, 2),
        "cancelled": server.metric('bita_answers_total{finish_reason="cancelled"}'),
    }


def measure_two_streams(server: Served, job: dict[str, Any]) -> dict[str, Any]:
    """Stream to two clients at once; measure in ms when each gets its first and last piece."""
    times: dict[str, list[float]] = {"first": [], "second": []}
    began = time.perf_counter()

    def stream(name: str) -> None:
        for _ in server.client().chat.completions.create(**{**job, "stream": True}):
            times[name].append(1000 * (time.perf_counter() - began))

    threads = [threading.Thread(target=stream, args=(name,)) for name in times]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join()
    return {
        name: {"pieces": len(t), "first_ms": round(t[0], 1), "last_ms": round(t[-1], 1)}
        for name, t in times.items()
    }


def measure_threads(
    session: Session, prompts: Sequence[Any], expected: Sequence[str], max_new_tokens: int
) -> dict[str, Any]:
    """Answer with eight threads on one session; count the texts that are the same as alone."""
    right: list[bool] = []

    def ask(number: int) -> None:
        which = number % len(prompts)
        options: dict[str, Any] = {"temperature": 0.7 * (which % 2), "seed": which}
        text = session.generate(prompts[which], max_new_tokens, **options).text
        right.append(text == expected[which])

    session.reset_stats()
    began = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(400)))
    seconds, stats = time.perf_counter() - began, session.stats
    return {
        "answers": len(right),
        "right": sum(right),
        "tokens_per_second": round(stats.num_tokens / seconds, 1),
        "texts_per_step": round(stats.num_steps / len(stats.step_ms), 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="questions in MT-Bench format")
    parser.add_argument("--max-new-tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    prompts = [each.messages for each in evenly(read_questions(args.prompts), 40)]
    session = Session.open(args.engine, num_threads=args.threads)
    expected = []
    for seed, prompt in enumerate(prompts):
        options: dict[str, Any] = {"temperature": 0.7 * (seed % 2), "seed": seed}
        expected.append(session.generate(prompt, args.max_new_tokens, **options).text)
        session.forget()
    threads = measure_threads(session, prompts, expected, args.max_new_tokens)
    del session
    jobs = [
        {
            "model": args.engine.absolute().name,
            "messages": prompt,
            "max_tokens": args.max_new_tokens,
            "temperature": 0.7 * (seed % 2),
            "seed": seed,
        }
        for seed, prompt in enumerate(prompts)
    ]
    with run_server(args.engine, args.threads, queue=16) as server:
        report = {
            "threads_on_a_session": threads,
            "waits_its_turn": measure_two_streams(server, {**jobs[0], "max_tokens": 100}),
            "load": load(server, jobs, expected, args.requests),
            "goes_away": measure_disconnects(server, jobs[0]),
        }
    text = json.dumps({"device": describe_device(args.threads), **report}, indent=1)
    args.out.write_text(text + "\n", encoding="utf-8")
    for name, figures in report.items():
        print(name, figures)
    return int(report["load"]["right"] < args.requests or threads["right"] < threads["answers"])


if __name__ == "__main__":
    sys.exit(main())
