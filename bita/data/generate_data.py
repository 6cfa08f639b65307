"""Prompts to responses to a directory of conversations, continued wherever a run was killed."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from bita.data.dataset import Conversation, Dataset, DatasetInfo, DatasetWriter, Source
from bita.data.generators import Completion, Generator
from bita.data.model_texts import ModelTexts
from bita.data.prompts import BUNDLED_PROMPTS, Messages, read_prompts
from bita.data.self_prompts import OnProgress
from bita.errors import PromptError

Job = tuple[int, list[int]]  # the index of a prompt, and its ids


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

    Of a chat the part behind the last user's turn is left out: the model writes it.
    """

    source: Source = "file"

    def __init__(self, path: Path | None = None) -> None:
        """Raises PromptError that lists every bad line."""
        path = path or BUNDLED_PROMPTS
        self._prompts = [_up_to_the_user(m) for m in read_prompts(path)]
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
    num: int | None = None,
    max_new_tokens: int = 256,
    max_prompt_tokens: int = 1024,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> Dataset:
    """Write conversations to `out_dir`, or go on with those that are there.

    num: how many prompts; None for all of a file; a larger one than before continues.
    max_prompt_tokens: longer prompts are left out; prompt and response must fit the generator.
    on_progress: called with a stage ("prompts", "responses"), done and total, first with what an
    earlier run did. The directory is byte for byte the same however often the run was killed, if
    the generator is deterministic. Raises ModelError if the directory holds other data, PromptError
    if there is no usable prompt, and what source and generator raise.
    """
    if max_new_tokens < 1:
        raise PromptError(f"max_new_tokens is {max_new_tokens}; a response has at least one token")
    options = {
        **prompts.options,
        "generator_options": dict(generator.options),
        "max_new_tokens": max_new_tokens,
        "max_prompt_tokens": max_prompt_tokens,
    }
    info = DatasetInfo(texts.identity, texts.tokenizer_sha256, generator.name, options)
    with DatasetWriter(out_dir, info) as writer:
        found = prompts.prompts(out_dir, num, on_progress)
        jobs = _jobs(texts, found, max_prompt_tokens)
        on_progress("responses", min(writer.num_lines, len(jobs)), len(jobs))
        for batch in _missing_batches(jobs, generator.batch_size, writer.next_index):
            completions = generator.complete([ids for _, ids in batch], max_new_tokens)
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
