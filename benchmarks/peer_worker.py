"""Run one engine in a separate process, driven by JSON lines. peers.py starts it.

    python peer_worker.py ENGINE MODEL NUM_THREADS SETTINGS

The engines need libraries that cannot be loaded into one process (two ONNX Runtimes), so each gets
its own process and optionally its own environment. SETTINGS is a JSON object, {} for plain
decoding.

- After loading, the line {"open_ms"} reports the time that took.
- A request {"token_ids", "num_new_tokens", "eos_ids"} is answered by {"token_ids", "token_ms"}: the
  new tokens before EOS, and the time from the request to each of them, including prefill.
- {"about": true} is answered by {"versions", "precision", "memory"}.
- A line {"error"} is the last one. The process ends when its input ends.

Decoding is greedy. Every engine is driven through its thinnest interface, so that no binding is
measured instead, and computes every prompt without a cached prefix.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peer_engine import PeerEngine, Settings, stopwatch
from peer_torch import OptimumOnnx, Transformers

CONTEXT_LENGTH = 2048


class BitaEngine(PeerEngine):
    """bita-edge with its own trees; the setting {"tree": "ar"} decodes plainly in one row."""

    packages = ("bita-edge", "onnxruntime")

    def __init__(self, model: str, num_threads: int, settings: Settings) -> None:
        from bita.runtime.session import Session
        from bita.tree import Tree

        given: dict[str, Any] = {"num_threads": num_threads}
        if settings.get("tree") == "ar":
            given |= {"tree": Tree.root_only(), "min_rows": 1}
        self._session = Session.open(model, **given)
        manifest = self._session.engine.manifest
        cache = "fp16" if self._session.backend.cache.dtype == "float16" else "fp32"
        self.precision = f"{manifest.precision}, {cache} cache"

    def generate(
        self, token_ids: list[int], num_new_tokens: int, eos_ids: list[int]
    ) -> tuple[list[int], list[float]]:
        self._session.forget()
        elapsed_ms = stopwatch()
        generation = self._session.stream(token_ids, num_new_tokens, stop_token_ids=eos_ids)
        times: list[float] = []
        for _ in generation:
            times += [elapsed_ms()] * (len(generation.token_ids) - len(times))
        return list(generation.token_ids), times


class LlamaCpp(PeerEngine):
    """llama.cpp's own server. Settings: "server", its program; "arguments" for drafting."""

    def __init__(self, model: str, num_threads: int, settings: Settings) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        place = ["--host", "127.0.0.1", "--port", str(port), "--no-warmup", "-np", "1"]
        threads = ["-t", str(num_threads), "-tb", str(num_threads), "-c", str(CONTEXT_LENGTH)]
        command = [settings["server"], "-m", model, *place, *threads]
        command += ["--cache-ram", "0", "--no-webui", *settings.get("arguments", [])]
        self._process = subprocess.Popen(command, stdout=sys.stderr, stderr=sys.stderr)
        self._port = port
        self._server = settings["server"]
        self.precision = f"{Path(model).stem.rsplit('.', 1)[-1]}, fp16 cache"
        try:
            self._wait(seconds=60)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def versions(self) -> dict[str, str]:
        command = [self._server, "--version"]
        about = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = (about.stdout + about.stderr).splitlines()
        return {"llama.cpp": next((line for line in lines if "version" in line), "unknown")}

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _connect(self) -> http.client.HTTPConnection:
        """Connect again for each request, since the server closes a connection after a stream."""
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)

    def _wait(self, seconds: float) -> None:
        """Wait until the model is loaded. Raises RuntimeError if it is not."""
        elapsed_ms = stopwatch()
        while elapsed_ms() < 1000 * seconds and self._process.poll() is None:
            try:
                connection = self._connect()
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.005)
        raise RuntimeError("llama-server did not start")

    def generate(
        self, token_ids: list[int], num_new_tokens: int, eos_ids: list[int]
    ) -> tuple[list[int], list[float]]:
        request = {
            **{"prompt": token_ids, "n_predict": num_new_tokens, "cache_prompt": False},
            **{"temperature": 0, "samplers": ["temperature"], "return_tokens": True},
        }
        body = json.dumps(request)
        elapsed_ms = stopwatch()
        connection = self._connect()
        connection.request("POST", "/completion", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = json.loads(response.read())
        if response.status != 200:
            raise RuntimeError(f"llama-server answered {response.status}: {answer}")
        # Use the server's own clock, since a client that reads a stream would take a core from it.
        new_ids, decoding_ms = answer["tokens"], answer["timings"]["predicted_ms"]
        first_ms, steps = elapsed_ms() - decoding_ms, max(len(new_ids) - 1, 1)
        return new_ids, [first_ms + decoding_ms * n / steps for n in range(len(new_ids))]


class OnnxRuntimeGenai(PeerEngine):
    """onnxruntime-genai on a directory of its own model builder. Setting: "speculative"."""

    packages = ("onnxruntime-genai", "onnxruntime")
    precision = "int4 of its builder (RTN, block 32, accuracy level 4), fp32 cache"

    def __init__(self, model: str, num_threads: int, settings: Settings) -> None:
        import onnxruntime_genai

        self._genai = onnxruntime_genai
        config = onnxruntime_genai.Config(model)
        overlay: dict[str, Any] = {
            "model": {"decoder": {"session_options": {"intra_op_num_threads": num_threads}}}
        }
        if "speculative" in settings:
            overlay["speculative"] = settings["speculative"]
        config.overlay(json.dumps(overlay))
        self._model = onnxruntime_genai.Model(config)

    def generate(
        self, token_ids: list[int], num_new_tokens: int, eos_ids: list[int]
    ) -> tuple[list[int], list[float]]:
        times: list[float] = []
        elapsed_ms = stopwatch()
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(token_ids) + num_new_tokens, do_sample=False)
        generator = self._genai.Generator(self._model, parameters)
        generator.append_tokens(token_ids)
        while not generator.is_done() and len(times) < num_new_tokens:
            generator.generate_next_token()
            times.append(elapsed_ms())
        return [int(token_id) for token_id in generator.get_sequence(0)[len(token_ids) :]], times


class OpenVinoGenai(PeerEngine):
    """OpenVINO GenAI on int4 weights of optimum-intel. Setting: "lookup", [tokens, n-gram]."""

    packages = ("openvino-genai", "openvino")
    precision = "int4 of nncf (groups of 64, symmetric; output layer int8)"

    def __init__(self, model: str, num_threads: int, settings: Settings) -> None:
        import openvino
        import openvino_genai

        self._genai, self._tensor = openvino_genai, openvino.Tensor
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": num_threads,
            "scheduler_config": scheduler,  # enables paged attention, which is faster here
        }
        if "lookup" in settings:
            options["prompt_lookup"] = True
        self._lookup = settings.get("lookup")
        self._pipeline = openvino_genai.LLMPipeline(model, "CPU", **options)

    def generate(
        self, token_ids: list[int], num_new_tokens: int, eos_ids: list[int]
    ) -> tuple[list[int], list[float]]:
        import numpy as np

        config = self._genai.GenerationConfig()
        config.max_new_tokens = num_new_tokens
        config.do_sample = False
        config.apply_chat_template = False
        config.set_eos_token_id(eos_ids[0])
        config.stop_token_ids = set(eos_ids)
        if self._lookup:
            config.num_assistant_tokens, config.max_ngram_size = self._lookup
        new_ids: list[int] = []
        times: list[float] = []
        ids = np.array([token_ids], np.int64)
        inputs = self._genai.TokenizedInputs(self._tensor(ids), self._tensor(np.ones_like(ids)))
        elapsed_ms = stopwatch()
        collector = _ov_streamer(self._genai, new_ids, times, elapsed_ms)
        result = self._pipeline.generate(inputs, config, collector)
        found = list(result.tokens[0])
        if found[: len(new_ids)] != new_ids or len(found) > len(new_ids) + 1:
            raise RuntimeError(f"the streamer saw {len(new_ids)} tokens of {len(found)}")
        return new_ids, times


def _ov_streamer(
    genai: Any, new_ids: list[int], times: list[float], elapsed_ms: Callable[[], float]
) -> Any:
    class Collector(genai.StreamerBase):
        def write(self, tokens: Any) -> Any:
            found = [tokens] if isinstance(tokens, int) else list(tokens)
            new_ids.extend(found)
            times.extend([elapsed_ms()] * len(found))
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    return Collector()


ENGINES: dict[str, Callable[[str, int, Settings], PeerEngine]] = {
    "bita-edge": BitaEngine,
    "llama.cpp": LlamaCpp,
    "onnxruntime-genai": OnnxRuntimeGenai,
    "OpenVINO GenAI": OpenVinoGenai,
    "transformers": Transformers,
    "optimum-onnx": OptimumOnnx,
}


def memory(pid: int) -> dict[str, float]:
    """Return MB of resident memory: the peak, and the current anonymous and file-backed parts."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    kilobytes = {
        name: int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in lines)
        if name in ("VmHWM", "RssAnon", "RssFile")
    }
    keys = {"peak_mb": "VmHWM", "anonymous_mb": "RssAnon", "file_mb": "RssFile"}
    return {key: round(kilobytes[name] * 1024 / 1e6, 1) for key, name in keys.items()}


def serve(
    name: str,
    model: str,
    num_threads: int,
    settings: Settings,
    answer: Callable[[dict[str, Any]], None],
) -> None:
    """Load the engine, then answer requests until the input ends."""
    elapsed_ms = stopwatch()
    engine = ENGINES[name](model, num_threads, settings)
    try:
        answer({"open_ms": elapsed_ms()})
        for line in sys.stdin:
            answer(reply_to(engine, json.loads(line)))
    finally:
        engine.close()


def reply_to(engine: PeerEngine, request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the reply to a request."""
    if request.get("about"):
        figures = {"versions": engine.versions(), "precision": engine.precision}
        return {**figures, "memory": memory(engine.pid)}
    limit, eos_ids = request["num_new_tokens"], request["eos_ids"]
    token_ids, times = engine.generate(request["token_ids"], limit, eos_ids)
    token_ids = token_ids[:limit]  # drafts may exceed the limit
    end = next((i for i, token in enumerate(token_ids) if token in eos_ids), len(token_ids))
    return {"token_ids": token_ids[:end], "token_ms": times[:end]}


def main() -> int:
    """Serve requests; libraries print to standard error, and only replies to standard output."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(reply: dict[str, Any]) -> None:
        protocol.write(json.dumps(reply) + "\n")
        protocol.flush()

    name, model, num_threads, settings = sys.argv[1:]
    try:
        serve(name, model, int(num_threads), json.loads(settings), answer)
    except Exception as error:  # report any error to the driver
        answer({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # both runtimes can hang or crash during Python's shutdown
