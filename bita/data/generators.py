"""Who writes the responses: greedy decoders of the base model behind one small protocol."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from bita.data.batch_decoding import decode_batch, import_torch
from bita.data.dataset import Finish
from bita.errors import ModelError, raise_faults
from bita.identity import ModelIdentity
from bita.runtime.session import Session


class Completion(NamedTuple):
    """token_ids: new tokens, an EOS at the end included. finish: "eos" or "length"."""

    token_ids: list[int]
    finish: Finish


class Generator(Protocol):
    """Continues prompts greedily.

    name: what it is. options: plain JSON; equal options give equal responses. batch_size: how many
    prompts it likes to get at once. warnings: what the data's reader should know, growing.
    """

    name: str
    options: Mapping[str, Any]
    batch_size: int
    warnings: tuple[str, ...]

    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Sequence[Completion]:
        """One completion per prompt, in order."""


BULK_PROMPTS = 128  # at once, since the last ones of them leave steps half empty


class EngineGenerator:
    """Our own engine, by its tree or plainly (open the session with Tree.root_only()).

    An engine of native operators runs several texts in a step; they are the same, and are done 4 to
    5 times as fast. Raises PromptError for a prompt that does not fit the
    engine's capacity.
    """

    def __init__(self, session: Session, identity: ModelIdentity | None = None) -> None:
        """identity: of the model whose answers are wanted; ModelError if the engine has another."""
        manifest = session.engine.manifest
        faults = session.adapter.identity.differences(identity) if identity else []
        raise_faults(
            ModelError,
            f"{session.engine.path} is no engine of this model (engine against it)",
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
        """The session, if it runs several texts in a step."""
        return self._session if self._session.shares_steps else None

    def longest_prompt(self, max_new_tokens: int) -> int:
        """The longest prompt whose whole response fits the engine's cache."""
        capacity = self._session.engine.manifest.capacity
        return capacity - self._session.adapter.prefix_length - max_new_tokens - 2

    def complete(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int
    ) -> Sequence[Completion]:
        """A full cache ends an answer like the limit does ("length")."""
        answers = [self._session.stream(list(ids), max_new_tokens) for ids in prompts]
        self._session.run_together(answers)
        return [
            Completion(answer.token_ids, "eos" if answer.finish_reason == "eos" else "length")
            for answer in answers
        ]


class TransformersGenerator:
    """A causal language model of transformers, in batches, on the device and in the dtype it has.

    Batches differ from single prompts by the rounding of the dtype only. Raises MissingExtraError
    without torch and transformers.
    """

    def __init__(self, model: Any, eos_ids: Sequence[int], batch_size: int = 32) -> None:
        """model: loaded, in eval mode. eos_ids: token ids that end an answer."""
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
        """In batches of at most batch_size prompts."""
        answers: list[list[int]] = []
        for start in range(0, len(prompts), self.batch_size):
            batch = prompts[start : start + self.batch_size]
            answers += decode_batch(self._model, batch, _best, max_new_tokens, self._eos_ids)
        return [cut_at_eos(answer, self._eos_ids) for answer in answers]


def cut_at_eos(token_ids: Sequence[int], eos_ids: Collection[int]) -> Completion:
    """The tokens up to and with the first EOS; without one, the length was the end."""
    for count, token_id in enumerate(token_ids, 1):
        if token_id in eos_ids:
            return Completion(list(token_ids[:count]), "eos")
    return Completion(list(token_ids), "length")


def _best(logits: Any, rows: list[int], step: int) -> Any:
    return logits.argmax(-1)
