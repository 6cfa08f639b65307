"""Engines of `peer_worker.py` that use the decoding loop of transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peer_engine import PeerEngine, Settings, stopwatch


class Transformers(PeerEngine):
    """transformers in float32; the setting "lookup" is the number of tokens to draft by lookup."""

    packages: tuple[str, ...] = ("transformers", "torch")
    precision = "fp32"

    def __init__(self, model: str, num_threads: int, settings: Settings) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(num_threads)
        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._lookup = settings.get("lookup")

    def generate(
        self, token_ids: list[int], num_new_tokens: int, eos_ids: list[int]
    ) -> tuple[list[int], list[float]]:
        torch = self._torch
        ids = torch.tensor([token_ids])
        new_ids: list[int] = []
        times: list[float] = []
        drafting = {"prompt_lookup_num_tokens": self._lookup} if self._lookup else {}
        elapsed_ms = stopwatch()
        streamer = _TorchStreamer(len(token_ids), new_ids, times, elapsed_ms)
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_new_tokens,
                do_sample=False,
                eos_token_id=eos_ids,
                pad_token_id=eos_ids[0],
                streamer=streamer,
                **drafting,
            )
        return new_ids, times


class OptimumOnnx(Transformers):
    """The decoding loop of transformers on optimum-onnx's CPU session, in float32 or int8."""

    packages = ("optimum-onnx", "optimum", "transformers", "onnxruntime")

    def __init__(self, model: str, num_threads: int, settings: Settings) -> None:
        import onnxruntime
        import torch
        from optimum.onnxruntime import ORTModelForCausalLM

        torch.set_num_threads(num_threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        self._torch = torch
        (file,) = Path(model).glob("*.onnx")
        self.precision = "int8, dynamic" if "quantized" in file.name else "fp32"
        self._model = ORTModelForCausalLM.from_pretrained(
            model, file_name=file.name, session_options=options
        )
        self._lookup = settings.get("lookup")


class _TorchStreamer:
    """Records tokens and times as they arrive, skipping the prompt."""

    def __init__(
        self,
        num_prompt_tokens: int,
        new_ids: list[int],
        times: list[float],
        elapsed_ms: Callable[[], float],
    ) -> None:
        self._to_skip = num_prompt_tokens
        self._new_ids, self._times, self._elapsed_ms = new_ids, times, elapsed_ms

    def put(self, value: Any) -> None:
        found = value.flatten().tolist()
        if self._to_skip:
            self._to_skip = 0
            return
        self._new_ids.extend(found)
        self._times.extend([self._elapsed_ms()] * len(found))

    def end(self) -> None:
        pass
