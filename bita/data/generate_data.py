"""Generation of a directory of conversations from prompts, which continues after a kill."""

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
    """Limits of the data. Raises PromptError if responses would have no token."""

    num_prompts: int | None = None  # None: all of a file; may be larger than in an earlier run
    max_new_tokens: int = 256  # length at which a response is cut; at least 1
    max_prompt_tokens: int = 1024  # longer prompts are left out; prompt and response must fit

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise PromptError(
                f"max_new_tokens is {self.max_new_tokens}; a response needs at least one token"
            )


class PromptSource(Protocol):
    """Source of prompts: FilePrompts or SelfPrompts."""

    @property
    def source(self) -> Source: ...

    @property
    def options(self) -> Mapping[str, Any]:
        """Options that determine the prompts, as plain JSON."""

    def prompts(self, directory: Path, num: int | None, on_progress: OnProgress) -> list[Messages]:
        """Return at most `num` prompts, the same in every run; may keep files in `directory`."""


class FilePrompts:
    """Prompts of a file in plain, chat or MT-Bench form, by default the bundled file.

    Messages after the last user's turn of a chat are left out: the model writes that part.
    """

    source: Source = "file"

    def __init__(self, path: Path | None = None, with_chats: bool = True) -> None:
        """Read the prompts; leave out those of several messages unless `with_chats`.

        Raises PromptError that lists every invalid line.
        """
        path = path or BUNDLED_PROMPTS
        prompts = [_up_to_the_user(m) for m in read_prompts(path)]
        self._prompts = [m for m in prompts if with_chats or len(m) == 1]
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        self.options: Mapping[str, Any] = {"prompts": path.name, "prompts_sha256": sha256}

    def prompts(self, directory: Path, num: int | None, on_progress: OnProgress) -> list[Messages]:
        """Return the first `num` prompts of the file; write nothing."""
        return self._prompts[:num]


def generate_data(
    texts: ModelTexts,
    prompts: PromptSource,
    generator: Generator,
    out_dir: Path,
    limits: DataLimits | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Dataset:
    """Write conversations to `out_dir`, or continue those that it holds.

    With a deterministic generator, the directory is identical byte for byte however often the run
    is killed and restarted. `on_progress` is called with the stages "prompts" and "responses",
    first with the number from an earlier run. Raises ModelError if the directory holds other data,
    PromptError if no prompt is usable, and the errors of source and generator.
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
            writer.warn(tuple(generator.warnings))  # written first, so that a kill cannot lose it
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
    """Yield the batches of an uninterrupted run, without those that are complete.

    A batch that was interrupted is yielded whole: in a smaller one, sums could round differently.
    """
    for start in range(0, len(jobs), size):
        batch = jobs[start : start + size]
        if batch[-1][0] >= next_index:
            yield batch


def _write(
    writer: DatasetWriter, jobs: Sequence[Job], completions: Sequence[Completion], source: Source
) -> None:
    """Append the conversations that the writer does not have yet."""
    for (index, ids), (response, finish) in zip(jobs, completions, strict=True):
        if index >= writer.next_index:
            writer.append(index, Conversation(tuple(ids), tuple(response), finish, source))


def _up_to_the_user(messages: Messages) -> Messages:
    roles = [message["role"] for message in messages]
    if "user" not in roles:
        raise PromptError(f"a prompt has no user's turn, only {', '.join(roles)}; add one")
    return messages[: len(roles) - roles[::-1].index("user")]
