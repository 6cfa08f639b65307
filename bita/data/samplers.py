"""Random continuations, each with its own seed, so that a row does not depend on its batch."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from bita.data.batch_decoding import decode_batch, import_torch
from bita.data.generators import BULK_PROMPTS
from bita.errors import TuningError
from bita.runtime.session import Session

HEAD_TOKENS = 256


class Sampler(Protocol):
    """Continues prompts at random."""

    name: str
    options: Mapping[str, Any]  # plain JSON; equal options and seeds give equal tokens
    batch_size: int  # preferred number of prompts per call

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_new_tokens: int,
        stop_ids: Collection[int],
    ) -> Sequence[Sequence[int]]:
        """Return the new tokens of each prompt, up to and including the first of `stop_ids`."""


class TransformersSampler:
    """Samples from a causal language model of transformers, in batches, on its device.

    `temperature` must be above 0. The least likely tokens, with a total probability of 1 - top_p,
    are left out; 1 keeps all. Raises TuningError for other values, and MissingExtraError without
    torch.
    """

    def __init__(
        self, model: Any, temperature: float = 1.0, top_p: float = 0.95, batch_size: int = 32
    ) -> None:
        _check_range(temperature, top_p)
        self._torch = import_torch()
        weight = model.get_input_embeddings().weight
        self.name = f"transformers {type(model).__name__}"
        self.options: Mapping[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
            "batch_size": batch_size,
        }
        self.batch_size = batch_size
        self._model = model
        self._temperature = temperature
        self._top_p = top_p

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_new_tokens: int,
        stop_ids: Collection[int],
    ) -> Sequence[Sequence[int]]:
        """Sample all prompts in one batch."""
        draws = np.stack([uniform_draws(seed, max_new_tokens) for seed in seeds])

        def pick(logits: Any, rows: list[int], step: int) -> Any:
            drawn = self._torch.from_numpy(draws[rows, step]).to(logits.device)
            return pick_nucleus(logits, drawn, self._temperature, self._top_p)

        return decode_batch(self._model, prompts, pick, max_new_tokens, stop_ids)


class EngineSampler:
    """Samples from an engine, with several texts per step if the engine supports that.

    `temperature` and `top_p` are those of TransformersSampler. Raises TuningError for invalid ones.
    """

    def __init__(self, session: Session, temperature: float = 1.0, top_p: float = 0.95) -> None:
        _check_range(temperature, top_p)
        manifest = session.engine.manifest
        self.name = f"bita engine of {manifest.model}"
        self.options: Mapping[str, Any] = {
            "temperature": temperature,
            "top_p": top_p,
            "precision": manifest.precision,
        }
        self.batch_size = BULK_PROMPTS
        self._session = session
        self._temperature = temperature
        self._top_p = top_p

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_new_tokens: int,
        stop_ids: Collection[int],
    ) -> Sequence[Sequence[int]]:
        """Sample all prompts, with several in each step."""
        answers = [
            self._session.stream(
                list(prompt),
                max_new_tokens,
                ignore_eos=True,
                stop_token_ids=[*stop_ids],
                temperature=self._temperature,
                top_p=self._top_p,
                seed=seed,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        self._session.run_together(answers)
        return [answer.token_ids for answer in answers]


def pick_nucleus(logits: Any, draws: Any, temperature: float, top_p: float) -> Any:
    """Return token ids [rows] sampled from logits [rows, V] by the draws [rows] in [0, 1).

    Tokens are sampled from the nucleus, the smallest set of most likely tokens with probability
    `top_p` or more. It is first searched among the HEAD_TOKENS most likely tokens, since sorting a
    whole vocabulary is slow.
    """
    probabilities = (logits.float() / temperature).softmax(-1)
    num_tokens = probabilities.shape[-1]
    if num_tokens <= HEAD_TOKENS:
        return _pick_sorted(*_sorted(probabilities), draws, top_p)
    head, head_ids = probabilities.topk(HEAD_TOKENS, dim=-1)
    token_ids = _pick_sorted(head, head_ids, draws, top_p)
    flat = head.sum(-1, dtype=draws.dtype) < top_p
    if flat.any():
        token_ids[flat] = _pick_sorted(*_sorted(probabilities[flat]), draws[flat], top_p)
    return token_ids


def _sorted(probabilities: Any) -> tuple[Any, Any]:
    values, token_ids = probabilities.sort(dim=-1, descending=True, stable=True)
    return values, token_ids


def _pick_sorted(ordered: Any, token_ids: Any, draws: Any, top_p: float) -> Any:
    mass = ordered.cumsum(-1, dtype=draws.dtype)
    size = (mass < top_p).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1) + 1
    drawn = draws[:, None] * mass.gather(-1, size - 1)
    rank = (mass <= drawn).sum(-1, keepdim=True).minimum(size - 1)
    return token_ids.gather(-1, rank)[:, 0]


def _check_range(temperature: float, top_p: float) -> None:
    if not temperature > 0 or not 0 < top_p <= 1:
        raise TuningError(
            f"temperature {temperature} and top_p {top_p} cannot be sampled with; give a "
            "temperature above 0 and a top_p in (0, 1]"
        )


def uniform_draws(seed: int, count: int) -> np.ndarray:
    """Return float64 numbers in [0, 1) that depend on the seed only, not on numpy's version."""
    raw = np.random.PCG64(seed).random_raw(count)
    return np.asarray(raw >> np.uint64(11), np.float64) * 2.0**-53


def derive_seed(*numbers: int) -> int:
    """Derive a 64-bit seed from several numbers, each in [0, 2**32)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
