"""One engine in a process of its own, driven by JSON lines. Started by peers.py.

    python peer_worker.py ENGINE MODEL NUM_THREADS

The engines need libraries that do not go together in one process (two ONNX Runtimes), so each gets
its own process and, if wished, its own environment. After loading, one line says what runs:
{"versions", "precision", "weight_bytes"}. Each request {"token_ids", "num_new_tokens"} is answered
by one line {"token_ids", "token_ms"}: the new tokens, and when each was known since the request
came, prefill included. A line {"error"} is the last one. The process ends when its input ends.

Decoding is greedy and goes on past EOS. Every engine is driven through the thinnest interface it
has, so that no binding is measured instead of it.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

CONTEXT_LENGTH = 4096


class PeerEngine(Protocol):
    """versions, precision and weight_bytes describe it for the report."""

    versions: dict[str, str]
    precision: str
    weight_bytes: int

    def generate(self, token_ids: list[int], num_new_tokens: int) -> tuple[list[int], list[float]]:
        """New tokens, and the time in ms at which each was known."""


class BitaEngine:
    """Ours: plain decoding, one row per step."""

    def __init__(self, model: str, num_threads: int) -> None:
        from bita.runtime.session import Session
        from bita.tree import Tree

        self._session = Session.open(
            model, tree=Tree.root_only(), min_rows=1, num_threads=num_threads
        )
        manifest = json.loads((Path(model) / "manifest.json").read_text(encoding="utf-8"))
        self.versions = {name: version(name) for name in ("bita-edge", "onnxruntime")}
        self.precision = f"{manifest['precision']}, fp32 cache"
        self.weight_bytes = _size(Path(model), "model.onnx*")

    def generate(self, token_ids: list[int], num_new_tokens: int) -> tuple[list[int], list[float]]:
        self._session.forget()
        elapsed_ms = _stopwatch()
        generation = self._session.stream(token_ids, num_new_tokens, ignore_eos=True)
        times = [elapsed_ms() for _ in generation]
        return list(generation.token_ids), times


class LlamaCpp:
    """llama.cpp by its C functions; the sampling loop of llama-cpp-python costs a few percent."""

    def __init__(self, model: str, num_threads: int) -> None:
        import llama_cpp

        self._c = llama_cpp.llama_cpp
        self._model = llama_cpp.Llama(
            model,
            n_ctx=CONTEXT_LENGTH,
            n_threads=num_threads,
            n_threads_batch=num_threads,
            verbose=False,
        )
        self._context = self._model._ctx.ctx
        self._sampler = self._c.llama_sampler_init_greedy()
        self.versions = {"llama-cpp-python": version("llama-cpp-python")}
        self.precision = f"{Path(model).stem.rsplit('.', 1)[-1]}, fp16 cache"
        self.weight_bytes = Path(model).stat().st_size

    def generate(self, token_ids: list[int], num_new_tokens: int) -> tuple[list[int], list[float]]:
        new_ids: list[int] = []
        times: list[float] = []
        elapsed_ms = _stopwatch()
        self._c.llama_memory_clear(self._c.llama_get_memory(self._context), True)
        step: Sequence[int] = token_ids
        for _ in range(num_new_tokens):
            tokens = (self._c.llama_token * len(step))(*step)  # the batch only points at them
            batch = self._c.llama_batch_get_one(tokens, len(step))
            status = self._c.llama_decode(self._context, batch)
            if status != 0:
                raise RuntimeError(f"llama_decode returned {status} for {len(step)} tokens")
            new_ids.append(self._c.llama_sampler_sample(self._sampler, self._context, -1))
            times.append(elapsed_ms())
            step = new_ids[-1:]
        return new_ids, times


class OnnxRuntimeGenai:
    """onnxruntime-genai on a directory of its own model builder."""

    def __init__(self, model: str, num_threads: int) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        settings = json.loads((Path(model) / "genai_config.json").read_text(encoding="utf-8"))
        config = onnxruntime_genai.Config(model)
        options = {"session_options": {"intra_op_num_threads": num_threads}}
        never = settings["model"]["vocab_size"] - 1  # an EOS that does not come up; -1 is refused
        config.overlay(json.dumps({"model": {"eos_token_id": never, "decoder": options}}))
        self._model = onnxruntime_genai.Model(config)
        self.versions = {name: version(name) for name in ("onnxruntime-genai", "onnxruntime")}
        self.precision = "int4 of its builder (RTN, block 32, accuracy level 4), fp32 cache"
        self.weight_bytes = _size(Path(model), "model.onnx*")

    def generate(self, token_ids: list[int], num_new_tokens: int) -> tuple[list[int], list[float]]:
        times: list[float] = []
        elapsed_ms = _stopwatch()
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(token_ids) + num_new_tokens, do_sample=False)
        generator = self._genai.Generator(self._model, parameters)
        generator.append_tokens(token_ids)
        while not generator.is_done() and len(times) < num_new_tokens:
            generator.generate_next_token()
            times.append(elapsed_ms())
        return [int(token_id) for token_id in generator.get_sequence(0)[len(token_ids) :]], times


ENGINES: dict[str, Callable[[str, int], PeerEngine]] = {
    "bita": BitaEngine,
    "llama.cpp": LlamaCpp,
    "onnxruntime-genai": OnnxRuntimeGenai,
}


def _stopwatch() -> Callable[[], float]:
    start = time.perf_counter()
    return lambda: (time.perf_counter() - start) * 1000


def _size(directory: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in directory.glob(pattern))


def serve(
    name: str, model: str, num_threads: int, answer: Callable[[dict[str, Any]], None]
) -> None:
    """Load the engine, then answer requests until the input ends."""
    engine = ENGINES[name](model, num_threads)
    answer(
        {
            "versions": engine.versions,
            "precision": engine.precision,
            "weight_bytes": engine.weight_bytes,
        }
    )
    for line in sys.stdin:
        request = json.loads(line)
        token_ids, token_ms = engine.generate(request["token_ids"], request["num_new_tokens"])
        answer({"token_ids": token_ids, "token_ms": token_ms})


def main() -> int:
    """Serve; the protocol keeps the real standard output, libraries print to standard error."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(reply: dict[str, Any]) -> None:
        protocol.write(json.dumps(reply) + "\n")
        protocol.flush()

    name, model, num_threads = sys.argv[1:]
    try:
        serve(name, model, int(num_threads), answer)
    except Exception as error:  # whatever it is, the driver has to hear of it
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # both runtimes can hang or crash while Python tears them down
