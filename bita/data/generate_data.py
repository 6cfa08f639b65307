"""Prompts to responses to a directory of conversations, continued wherever a run was killed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bita.data.dataset import Conversation, Dataset, DatasetInfo, DatasetWriter, Source
from bita.data.generators import Completion, Generator
from bita.data.model_texts import ModelTexts
from bita.data.prompts import BUNDLED_PROMPTS, Messages, read_prompts
from bita.errors import PromptError
from bita.progress import OnProgress, ignore_progress

Job = tuple[int, list[int]]  # the index of a prompt, and its ids


@dataclass(frozen=True)
class DataLimits:
    """How much data is generated. Raises PromptError for a response without a token."""

    num_prompts: int | None = None  # None: all of a file; more than an earlier run's continue it
    max_new_tokens: int = 256  # of a response, which is cut there; at least 1
    max_prompt_tokens: int = 1024  # longer prompts are left out; the generator must hold both

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise PromptError(
                f"max_new_tokens is {self.max_new_tokens}; a response has at least one token"
            )


class PromptSource(Protocol):
    """Where prompts come from: FilePrompts or SelfPrompts. options: plain JSON, decides them."""

    @property
    def source(self) -> Source: ...

    @property
    def options(self) -> Mapping[str, Any]: ...

    def prompts(self, directory: Path, num: int | None, on_progress: OnProgress) -> list[Messages]:
        """At most `num` prompts, the same ones in every run. May keep files in `directory`."""


class FilePrompts:
    """Prompts of a file in plain, chat or MT-Bench form (None: our own set).

    The part of a chat after the user's last turn is left out: the model writes it.
    """

    source: Source = "file"

    def __init__(self, path: Path | None = None, with_chats: bool = True) -> None:
        """with_chats: take prompts of several messages too, else they are left out.

        Raises PromptError that lists every bad line.
        """
        path = path or BUNDLED_PROMPTS
        prompts = [_up_to_the_user(m) for m in read_prompts(path)]
        self._prompts = [m for m in prompts if with_chats or len(m) == 1]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.options: Mapping[str, Any] = {"prompts": path.name, "prompts_sha256": sha256}

    def prompts(self, directory: Path, num: int | None, on_progress: OnProgress) -> list[Messages]:
        """The first `num` of the file; nothing is written."""
        return self._prompts[:num]


def generate_data(
    texts: ModelTexts,
    prompts: PromptSource,
    generator: Generator,
    out_dir: Path,
    limits: DataLimits | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Dataset:
    """Write conversations to `out_dir`, or continue those that are there.

    on_progress: called with the stages "prompts" and "responses", first with what an earlier run
    did. The directory is byte for byte the same however often the run was killed, if the generator
    is deterministic. Raises ModelError if the directory holds other data, PromptError if there is
    no usable prompt, and what source and generator raise.
    """
    limits = limits or DataLimits()
    options = {
        **prompts.options,
        "generator_options": dict(generator.options),
        "max_new_tokens": limits.max_new_tokens,
        "max_prompt_tokens": limits.max_prompt_tokens,
    }
    info = DatasetInfo(texts.identity, texts.tokenizer_sha256, generator.name, options)
    with DatasetWriter(out_dir, info) as writer:
        found = prompts.prompts(out_dir, limits.num_prompts, on_progress)
        jobs = _jobs(texts, found, limits.max_prompt_tokens)
        on_progress("responses", min(writer.num_lines, len(jobs)), len(jobs))
        for batch in _missing_batches(jobs, generator.batch_size, writer.next_index):
            completions = generator.complete([ids for _, ids in batch], limits.max_new_tokens)
            writer.warn(tuple(generator.warnings))  # first: a kill must not lose it
            _write(writer, batch, completions, prompts.source)
            on_progress("responses", writer.num_lines, len(jobs))
    return Dataset(out_dir, writer.info)


def _jobs(texts: ModelTexts, prompts: Sequence[Messages], max_prompt_tokens: int) -> list[Job]:
    encoded = list(enumerate(texts.encode(messages) for messages in prompts))
    jobs = [(index, ids) for index, ids in encoded if 0 < len(ids) <= max_prompt_tokens]
    if not jobs:
        raise PromptError(
            f"none of {len(encoded)} prompts has 1 to {max_prompt_tokens} tokens; give others, or "
            "a larger max_prompt_tokens"
        )
    return jobs


def _missing_batches(jobs: Sequence[Job], size: int, next_index: int) -> Iterator[Sequence[Job]]:
    """The batches that an unbroken run would make, without those that are done.

    One that was cut short comes whole: in a smaller batch, sums could round in another order.
    """
    for start in range(0, len(jobs), size):
        batch = jobs[start : start + size]
        if batch[-1][0] >= next_index:
            yield batch


def _write(
    writer: DatasetWriter, jobs: Sequence[Job], completions: Sequence[Completion], source: Source
) -> None:
    """Append what the writer does not have yet."""
    for (index, ids), (response, finish) in zip(jobs, completions, strict=True):
        if index >= writer.next_index:
            writer.append(index, Conversation(tuple(ids), tuple(response), finish, source))


def _up_to_the_user(messages: Messages) -> Messages:
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise PromptError(f"a prompt has no user's turn, only {', '.join(roles)}; add one")
    return messages[: len(roles) - roles[::-1].index("user")]
