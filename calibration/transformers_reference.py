"""The base model run by transformers in float32, as a reference outside of bita-edge."""

from collections.abc import Sequence

from bita.export.checkpoint import Checkpoint
from bita.torch.base_model import load_base_model


class TransformersReference:
    """Greedy decoding of a checkpoint's weights by transformers, in float32.

    Raises MissingExtraError without torch and transformers.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._model = load_base_model(checkpoint)

    def greedy(
        self, token_ids: Sequence[int], max_new_tokens: int, eos_ids: Sequence[int]
    ) -> list[int]:
        """Return the new token ids, including a final EOS."""
        import torch

        ids = torch.tensor([list(token_ids)])
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(eos_ids),
            pad_token_id=eos_ids[0],
        )
        tokens: list[int] = output[0, len(token_ids) :].tolist()
        return tokens

    def margin(self, token_ids: Sequence[int]) -> float:
        """Return the gap between the two best logits after this text."""
        import torch

        with torch.no_grad():
            logits = self._model(torch.tensor([list(token_ids)])).logits[0, -1]
        best, second = logits.topk(2).values.tolist()
        return float(best - second)
