"""A directory of conversations as token ids: info.json and shards of JSON lines.

    info.json            the model and tokenizer of the ids, and how they were generated
    shard-00000.jsonl    SHARD_LINES conversations, one per line, each with the index of its prompt
    shard-00001.jsonl    …

Lines are appended in the order of their indices, so the last line shows how far a run has come. A
killed run leaves at most one partial line, which the next writer removes.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from bita.data.json_lines import JsonLinesFile, parse_line, whole_lines
from bita.errors import ModelError, raise_faults
from bita.files import write_whole
from bita.identity import ModelIdentity
from bita.json_values import read_json_object, shown
from bita.writer_lock import sole_writer

FORMAT, FORMAT_VERSION = "bita-data", 1
INFO_FILE, LOCK_FILE, SHARD_LINES = "info.json", ".lock", 256
MAX_IDS = 2**31  # upper bound of any model's token ids
Finish = Literal["eos", "length"]
Source = Literal["file", "self"]
_ANOTHER_DIRECTORY = "give the same model and options, or another directory"


@dataclass(frozen=True)
class Conversation:
    """A prompt and the model's own greedy answer to it."""

    prompt_ids: tuple[int, ...]  # the rendered chat, up to the start of the answer
    response_ids: tuple[int, ...]  # never empty; ends with the EOS token if `finish` is "eos"
    finish: Finish
    source: Source  # origin of the prompt


@dataclass(frozen=True)
class DatasetInfo:
    """Model, tokenizer and origin of the data."""

    identity: ModelIdentity
    tokenizer_sha256: str  # hash of the vocabulary (`ModelTexts`)
    generator: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of generator and prompts; plain JSON
    warnings: tuple[str, ...] = ()  # the generator's warnings, which are not compared

    def differences(self, other: "DatasetInfo") -> list[str]:
        """Return every reason why a run described by `other` cannot continue this data."""
        faults = self.misfits(other.identity, other.tokenizer_sha256)
        if self.generator != other.generator:
            faults.append(f"generator {self.generator!r} against {other.generator!r}")
        ours, theirs = _plain(self.options), _plain(other.options)
        return faults + [
            f"option {name} {shown(ours.get(name))} against {shown(theirs.get(name))}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]

    def misfits(self, identity: ModelIdentity, tokenizer_sha256: str) -> list[str]:
        """Return every reason why a model cannot be tuned on this data, the data's value first."""
        faults = self.identity.differences(identity)
        if self.tokenizer_sha256 != tokenizer_sha256:
            ours, theirs = self.tokenizer_sha256[:12], tokenizer_sha256[:12]
            faults.append(f"tokenizer {ours}… against {theirs}…: the ids mean other text")
        return faults

    def save(self, directory: Path) -> None:
        """Write info.json atomically."""
        data = {
            **{"format": FORMAT, "format_version": FORMAT_VERSION},
            "model": json.loads(self.identity.to_json()),
            "tokenizer_sha256": self.tokenizer_sha256,
            "generator": self.generator,
            "options": self.options,
            "warnings": list(self.warnings),
        }
        write_whole(directory / INFO_FILE, json.dumps(data, indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "DatasetInfo":
        """Read info.json. Raises ModelError that lists every fault of it."""
        path = directory / INFO_FILE
        if not path.exists():
            raise ModelError(f"{path} is missing; generate the data first")
        data = read_json_object(path, ModelError, "generate the data again")
        raise_faults(ModelError, f"{path} (generate the data again)", _info_faults(data))
        identity = ModelIdentity.from_json(json.dumps(data["model"]))
        tokenizer, generator = data["tokenizer_sha256"], data["generator"]
        return cls(identity, tokenizer, generator, data["options"], tuple(data["warnings"]))


class DatasetWriter:
    """Starts or continues a directory of conversations; use it in a `with` block.

    `next_index` is the first prompt index without a line, `num_lines` the number of conversations
    in the directory. The constructor waits for another writer of the directory, and raises
    ModelError with every difference if the directory holds other data.
    """

    def __init__(self, directory: Path, info: DatasetInfo) -> None:
        self.directory = directory
        self.next_index = 0
        self.num_lines = 0
        self._shard: JsonLinesFile | None = None
        with ExitStack() as stack:
            directory.mkdir(parents=True, exist_ok=True)
            stack.enter_context(sole_writer(directory / LOCK_FILE, str(directory)))
            stack.callback(self._close_shard)
            self.info = _start(directory, info)
            self._find_end()
            self._ending = stack.pop_all()

    def _find_end(self) -> None:
        """Continue the last shard that has a line."""
        directory = self.directory
        for path in reversed(_shards(directory)):
            self._shard = JsonLinesFile(path)
            if self._shard.lines:
                self._continue(path, self._shard)
                break
            self._shard.close()

    def append(self, index: int, conversation: Conversation) -> None:
        """Write one line and flush it; indices must increase."""
        if index < self.next_index:
            raise ValueError(f"index {index} follows {self.next_index - 1}; indices must increase")
        if self._shard is None or self.num_lines % SHARD_LINES == 0:
            self._close_shard()
            number = self.num_lines // SHARD_LINES
            self._shard = JsonLinesFile(self.directory / f"shard-{number:05}.jsonl")
        self._shard.append(
            {
                "index": index,
                "prompt": list(conversation.prompt_ids),
                "response": list(conversation.response_ids),
                "finish": conversation.finish,
                "source": conversation.source,
            }
        )
        self.next_index, self.num_lines = index + 1, self.num_lines + 1

    def warn(self, warnings: tuple[str, ...]) -> None:
        """Add new warnings to info.json."""
        if new := tuple(text for text in warnings if text not in self.info.warnings):
            self.info = replace(self.info, warnings=(*self.info.warnings, *new))
            self.info.save(self.directory)

    def close(self) -> None:
        """End writing; may be called more than once."""
        self._ending.close()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _continue(self, path: Path, shard: JsonLinesFile) -> None:
        last = parse_line(shard.lines[-1], path, len(shard.lines))
        if type(last.get("index")) is not int or not 0 <= last["index"] < 2**63:
            raise ModelError(f"{path}:{len(shard.lines)} has no index; delete the line")
        self.next_index = last["index"] + 1
        self.num_lines = int(path.stem[-5:]) * SHARD_LINES + len(shard.lines)


class Dataset:
    """The conversations of a directory, read lazily; a partial last line does not count."""

    def __init__(self, directory: Path, info: DatasetInfo) -> None:
        self.directory = directory
        self.info = info

    @classmethod
    def load(cls, directory: Path, identity: ModelIdentity, tokenizer_sha256: str) -> "Dataset":
        """Open a directory after checking its format, version, model and tokenizer.

        No conversation is read yet. Raises ModelError that lists every fault.
        """
        info = DatasetInfo.load(directory)
        faults = info.misfits(identity, tokenizer_sha256)
        subject = f"data {directory} are of another model (data against model)"
        raise_faults(ModelError, subject, faults)
        return cls(directory, info)

    def __len__(self) -> int:
        """Return the number of conversations; this counts line ends in all shards."""
        return sum(path.read_bytes().count(b"\n") for path in _shards(self.directory))

    def __iter__(self) -> Iterator[Conversation]:
        """Yield the conversations in the order of prompts. Raises ModelError for a broken line."""
        for path in _shards(self.directory):
            for number, line in enumerate(whole_lines(path), 1):
                yield _conversation(parse_line(line, path, number), f"{path}:{number}")


def _start(directory: Path, info: DatasetInfo) -> DatasetInfo:
    """Return the info of a directory, including its warnings; write it if the directory is new."""
    if not (directory / INFO_FILE).exists():
        if any(not path.name.startswith(".") for path in directory.iterdir()):
            raise ModelError(f"{directory} holds other files; give an empty or new directory")
        info.save(directory)
        return info
    found = DatasetInfo.load(directory)
    faults = found.differences(info)
    raise_faults(ModelError, f"{directory} holds other data ({_ANOTHER_DIRECTORY})", faults)
    return found


def _shards(directory: Path) -> list[Path]:
    return sorted(directory.glob("shard-[0-9][0-9][0-9][0-9][0-9].jsonl"))


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(options))
    return copied


def _conversation(data: Mapping[str, Any], place: str) -> Conversation:
    faults = [
        f"{name} is not a list of token ids"
        for name in ("prompt", "response")
        if not isinstance(data.get(name), list)
        or not data[name]
        or not all(type(token_id) is int and 0 <= token_id < MAX_IDS for token_id in data[name])
    ]
    for name, values in (("finish", get_args(Finish)), ("source", get_args(Source))):
        if data.get(name) not in values:
            faults.append(f"{name} is {shown(data.get(name))}, not one of {', '.join(values)}")
    raise_faults(ModelError, f"{place} (delete the line, or generate the data again)", faults)
    finish, source = data["finish"], data["source"]
    return Conversation(tuple(data["prompt"]), tuple(data["response"]), finish, source)


def _info_faults(data: Mapping[str, Any]) -> list[str]:
    if data.get("format") != FORMAT:
        return [f"is not of the format {FORMAT!r}"]
    if data.get("format_version") != FORMAT_VERSION:
        return [f"has format_version {shown(data.get('format_version'))}; this is {FORMAT_VERSION}"]
    types = {"model": dict, "tokenizer_sha256": str, "generator": str, "options": dict}
    faults = [
        f"{name} is {shown(data.get(name))}, not a {kind.__name__}"
        for name, kind in {**types, "warnings": list}.items()
        if not isinstance(data.get(name), kind)
    ]
    if not faults and not all(isinstance(warning, str) for warning in data["warnings"]):
        faults.append(f"warnings is {shown(data['warnings'])}, not a list of texts")
    return faults
