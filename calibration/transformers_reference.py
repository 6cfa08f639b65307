"""The base model as transformers runs it in float32: the reference outside of bita-edge."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bita.errors import MissingExtraError
from bita.export.checkpoint import Checkpoint


class TransformersReference:
    """Greedy decoding by transformers of the weights of a checkpoint, in float32.

    Raises MissingExtraError without torch and transformers.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        try:
            import torch
            import transformers
        except ImportError as error:
            raise MissingExtraError("the comparison with transformers", "tune") from error
        self._torch = torch
        config = transformers.AutoConfig.for_model(**checkpoint.config)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(_state(checkpoint, model.state_dict()))
        self._model = model.eval()

    def greedy(
        self, token_ids: Sequence[int], max_new_tokens: int, eos_ids: Sequence[int]
    ) -> list[int]:
        """New token ids, an EOS at the end included."""
        ids = self._torch.tensor([list(token_ids)])
        output = self._model.generate(
            ids,
            attention_mask=self._torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(eos_ids),
            pad_token_id=eos_ids[0],
        )
        tokens: list[int] = output[0, len(token_ids) :].tolist()
        return tokens

    def margin(self, token_ids: Sequence[int]) -> float:
        """How far the best logit behind this text is above the second."""
        with self._torch.no_grad():
            logits = self._model(self._torch.tensor([list(token_ids)])).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        return float(best - second)


def _state(checkpoint: Checkpoint, wanted: dict[str, Any]) -> dict[str, Any]:
    """The state dict of the model; layers that transformers fuses are joined, ties doubled."""
    import torch

    return {name: torch.from_numpy(_tensor(checkpoint, name)) for name in wanted}


def _tensor(checkpoint: Checkpoint, name: str) -> np.ndarray:
    parts = [name]
    for fused, halves in FUSED.items():
        if fused in name and name not in checkpoint.names():
            parts = [name.replace(fused, half) for half in halves]
    if name == "lm_head.weight" and name not in checkpoint.names():
        parts = ["model.embed_tokens.weight"]
    return np.concatenate([checkpoint.read(part) for part in parts])


FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
