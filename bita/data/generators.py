"""Generators of responses: greedy decoders of the base model with one small protocol."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from bita.data.batch_decoding import decode_batch, import_torch
from bita.data.dataset import Finish
from bita.errors import ModelError, raise_faults
from bita.identity import ModelIdentity
from bita.runtime.session import Session


class Completion(NamedTuple):
    """A response."""

    token_ids: list[int]  # new tokens, including a final EOS
    finish: Finish  # "eos" or "length"


class Generator(Protocol):
    """Continues prompts greedily."""

    name: str
    options: Mapping[str, Any]  # plain JSON; equal options give equal responses
    batch_size: int  # preferred number of prompts per call
    warnings: tuple[str, ...]  # notes for readers of the data; may grow with every call

    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Sequence[Completion]:
        """Return one completion per prompt, in order."""


BULK_PROMPTS = 128  # per batch; many, since the last answers of a batch leave steps half empty


class EngineGenerator:
    """Generates with a session of an engine; open it with Tree.root_only() to decode plainly.

    An engine of native operators runs several texts per step. The texts are the same, and take a
    quarter to a fifth of the time. Raises PromptError for a prompt that exceeds the engine's
    capacity.
    """

    def __init__(self, session: Session, identity: ModelIdentity | None = None) -> None:
        """Check that the engine's model is that of `identity`, if given. Raises ModelError."""
        manifest = session.engine.manifest
        faults = session.adapter.identity.differences(identity) if identity else []
        raise_faults(
            ModelError,
            f"{session.engine.path} is not an engine of this model (engine against model)",
            faults,
        )
        self.name = f"bita engine of {manifest.model}"
        self.options: Mapping[str, Any] = {
            "precision": manifest.precision,
            "mode": session.mode,
            "rows": session.tree.num_rows,
        }
        self.batch_size = BULK_PROMPTS if session.shares_steps else 1
        self.warnings: tuple[str, ...] = ()
        self._session = session

    @property
    def bulk_session(self) -> Session | None:
        """The session, if it runs several texts per step."""
        return self._session if self._session.shares_steps else None

    def longest_prompt(self, max_new_tokens: int) -> int:
        """Return the longest prompt, in tokens, whose full response fits the engine's cache."""
        capacity = self._session.engine.manifest.capacity
        return capacity - self._session.adapter.prefix_length - max_new_tokens - 2

    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Sequence[Completion]:
        """Return one completion per prompt; a full cache ends it like the limit ("length")."""
        answers = [self._session.stream(list(ids), max_new_tokens) for ids in prompts]
        self._session.run_together(answers)
        return [
            Completion(answer.token_ids, "eos" if answer.finish_reason == "eos" else "length")
            for answer in answers
        ]


class TransformersGenerator:
    """Generates in batches with a causal language model of transformers, on its device and dtype.

    Batches differ from single prompts only by the rounding of the dtype. Raises MissingExtraError
    without torch and transformers.
    """

    def __init__(self, model: Any, eos_ids: Sequence[int], batch_size: int = 32) -> None:
        """Use a loaded `model` in eval mode; `eos_ids` are the token ids that end an answer."""
        import_torch()
        weight = model.get_input_embeddings().weight
        self.name = f"transformers {type(model).__name__}"
        self.options: Mapping[str, Any] = {
            "dtype": str(weight.dtype).removeprefix("torch."),
            "device": weight.device.type,
            "batch_size": batch_size,
            **({"weights": "4 bit"} if getattr(model, "is_loaded_in_4bit", False) else {}),
        }
        self.batch_size = batch_size
        self.warnings: tuple[str, ...] = ()
        self._model = model
        self._eos_ids = tuple(eos_ids)

    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Sequence[Completion]:
        """Return one completion per prompt, computed in batches of at most `batch_size`."""
        answers: list[list[int]] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            answers += decode_batch(self._model, batch, _best, max_new_tokens, self._eos_ids)
        return [cut_at_eos(answer, self._eos_ids) for answer in answers]


def cut_at_eos(token_ids: Sequence[int], eos_ids: Collection[int]) -> Completion:
    """Return the tokens up to and including the first EOS; without one, `finish` is "length"."""
    for count, token_id in enumerate(token_ids, 1):
        if token_id in eos_ids:
            return Completion(list(token_ids[:count]), "eos")
    return Completion(list(token_ids), "length")


def _best(logits: Any, rows: list[int], step: int) -> Any:
    return logits.argmax(-1)
