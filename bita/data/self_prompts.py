"""Prompts that the model writes itself: its chat template is rendered up to the user's turn.

Without guidance, a model asks what it was asked most often in its training. Therefore most turns
begin with given words, such as "Translate" or "How many", and the model writes the rest.

Candidates are numbered from 0, and each has its own seeds. They are sampled and judged in whole
batches, so a run that continues from the file of kept prompts keeps the same prompts.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bita.data.dataset import Source
from bita.data.generators import Generator
from bita.data.json_lines import JsonLinesFile, parse_line
from bita.data.model_texts import ModelTexts
from bita.data.prompt_filters import FilterOptions, PromptFilter
from bita.data.prompts import Messages
from bita.data.samplers import Sampler, derive_seed, uniform_draws
from bita.data.user_turn import UserTurn
from bita.errors import TuningError
from bita.progress import OnProgress

PROMPTS_FILE = "prompts.jsonl"
_FIRST_TURN, _SECOND_TURN, _TURNS, _OPENING = 0, 1, 2, 3  # purposes of seeds
BUNDLED_OPENINGS = Path(__file__).with_name("openings.txt")
MAX_OPENING = 80  # characters


@dataclass(frozen=True)
class SelfPromptOptions:
    """Settings of self-written prompts."""

    seed: int = 0  # seed of everything that is drawn
    two_turn_share: float = 0.2  # share of prompts with a second user's turn, 0 to 1
    max_turn_tokens: int = 160  # a user's turn that is longer is left out
    max_answer_tokens: int = 256  # no second turn follows an answer that is longer
    max_tries: int = 20  # candidates per wanted prompt before giving up
    openings: tuple[str, ...] = ()  # words that begin first turns; empty: the model's own
    opened_share: float = 0.8  # share of candidates that begin with an opening, 0 to 1
    filter: FilterOptions = field(default_factory=FilterOptions)


class SelfPrompts:
    """A prompt source for `generate_data`.

    The sampler writes the users' turns, the generator the answer between two turns. Models without
    a chat template start at BOS and write one turn.
    """

    source: Source = "self"

    def __init__(
        self,
        texts: ModelTexts,
        sampler: Sampler,
        generator: Generator,
        options: SelfPromptOptions | None = None,
    ) -> None:
        self.written_by = options or SelfPromptOptions()
        self.options: Mapping[str, Any] = {
            "prompts": "self-written",
            "sampler": sampler.name,
            "sampler_options": dict(sampler.options),
            **_stated(self.written_by),
        }
        self.filter = PromptFilter(self.written_by.filter)
        self._texts = texts
        self._sampler = sampler
        self._generator = generator
        self._first_turn = UserTurn.after([], texts)

    def prompts(self, directory: Path, num: int | None, on_progress: OnProgress) -> list[Messages]:
        """Return the first `num` kept prompts, starting with those in the directory's prompt file.

        `on_progress` is called with "prompts". Raises TuningError if too few candidates pass.
        """
        if num is None:
            raise TuningError("the number of self-written prompts is unlimited; give num")
        path = directory / PROMPTS_FILE
        file = JsonLinesFile(path)
        try:
            entries = [_entry(line, path, n) for n, line in enumerate(file.lines, 1)]
            return self._continue(file, entries, num, on_progress)[:num]
        finally:
            file.close()

    def _continue(
        self, file: JsonLinesFile, entries: list[dict[str, Any]], num: int, on_progress: OnProgress
    ) -> list[Messages]:
        kept: list[Messages] = [entry["messages"] for entry in entries]
        size = self._sampler.batch_size
        last = entries[-1]["candidate"] if entries else -1
        start = max(last, 0) // size * size  # repeat the last batch, which may be incomplete
        for entry in entries:
            if entry["candidate"] < start:
                self._remember(entry["messages"])
        on_progress("prompts", min(len(kept), num), num)
        while len(kept) < num:
            self._check_tries(start, len(kept), num)
            for candidate, messages in self._batch(start):
                if candidate > last and len(kept) < num:
                    file.append({"candidate": candidate, "messages": messages})
                    kept.append(messages)
            start += size
            on_progress("prompts", len(kept), num)
        return kept

    def _batch(self, start: int) -> list[tuple[int, Messages]]:
        """Return the kept prompts of a batch of candidates, with their numbers."""
        candidates = range(start, start + self._sampler.batch_size)
        turns = self._sample([*map(self._begin, candidates)], candidates, _FIRST_TURN)
        kept = {candidate: [_user(text)] for candidate, text in self._usable(candidates, turns)}
        continued = {c: messages for c, messages in kept.items() if self._has_two_turns(c)}
        return list({**kept, **self._add_second_turns(continued)}.items())

    def _begin(self, candidate: int) -> UserTurn:
        """Return the first turn of a candidate, with its opening if it has one."""
        openings = self.written_by.openings
        seed = derive_seed(self.written_by.seed, candidate, _OPENING)
        drawn, which = uniform_draws(seed, 2).tolist()
        if not openings or drawn >= self.written_by.opened_share:
            return self._first_turn
        return self._first_turn.opened(openings[int(which * len(openings))], self._texts)

    def _add_second_turns(self, conversations: dict[int, Messages]) -> dict[int, Messages]:
        """Return the conversations to which a second user's turn could be added, with that turn."""
        if not conversations:
            return {}
        prompts = [self._texts.encode(messages) for messages in conversations.values()]
        answers = self._generator.complete(prompts, self.written_by.max_answer_tokens)
        answered = {
            candidate: [*messages, _assistant(self._texts.codec.decode(answer.token_ids))]
            for (candidate, messages), answer in zip(conversations.items(), answers, strict=True)
            if answer.finish == "eos"
        }
        turns = [UserTurn.after(messages, self._texts) for messages in answered.values()]
        texts = self._sample(turns, list(answered), _SECOND_TURN)
        return {
            candidate: [*answered[candidate], _user(text)]
            for candidate, text in self._usable(answered, texts)
        }

    def _sample(
        self, turns: Sequence[UserTurn], candidates: Sequence[int], purpose: int
    ) -> list[str | None]:
        """Sample a user's turn for each candidate; None for turns that do not end."""
        if not turns:
            return []
        seeds = [derive_seed(self.written_by.seed, c, purpose) for c in candidates]
        sampled = self._sampler.sample(
            [turn.before_ids for turn in turns],
            seeds,
            self.written_by.max_turn_tokens,
            turns[0].stop_ids,
        )
        return [t.words(ids, self._texts) for t, ids in zip(turns, sampled, strict=True)]

    def _usable(
        self, candidates: Iterable[int], turns: Sequence[str | None]
    ) -> Iterator[tuple[int, str]]:
        """Yield the turns that end and pass the filter, with their candidates' numbers."""
        for candidate, text in zip(candidates, turns, strict=True):
            if text is None:
                self.filter.rejected["unfinished"] += 1
            elif self.filter.keep(text):
                yield candidate, text

    def _has_two_turns(self, candidate: int) -> bool:
        if self._texts.template is None:
            return False
        drawn = uniform_draws(derive_seed(self.written_by.seed, candidate, _TURNS), 1)
        return bool(drawn[0] < self.written_by.two_turn_share)

    def _remember(self, messages: Messages) -> None:
        for message in messages:
            if message["role"] == "user":
                self.filter.remember(message["content"])

    def _check_tries(self, num_tried: int, num_kept: int, num: int) -> None:
        if num_tried > max(self.written_by.max_tries * num, self._sampler.batch_size):
            reasons = ", ".join(f"{n} {name}" for name, n in self.filter.rejected.most_common())
            raise TuningError(
                f"only {num_kept} of {num_tried} self-written prompts are usable (rejected: "
                f"{reasons}); give prompts in a file, or another temperature"
            )


def read_openings(path: Path) -> tuple[str, ...]:
    """Read the openings of a file, one per line. Raises TuningError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TuningError(f"{path} cannot be read as openings of prompts: {error}") from error
    openings = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not openings:
        raise TuningError(f"{path} has no openings of prompts; write one on each line")
    if longest := next((each for each in openings if len(each) > MAX_OPENING), None):
        raise TuningError(
            f"{path}: an opening has {len(longest)} characters, more than {MAX_OPENING}: "
            f"{longest[:MAX_OPENING]!r}..."
        )
    return openings


def _stated(options: SelfPromptOptions) -> dict[str, Any]:
    """Return the options that prompts depend on, without unused openings, as in older data."""
    stated = asdict(options)
    if not options.openings:
        del stated["openings"], stated["opened_share"]
    return stated


def _entry(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """Parse a kept prompt. Raises ModelError or TuningError that names the line."""
    entry = parse_line(line, path, number)
    messages, candidate = entry.get("messages"), entry.get("candidate")
    are_messages = isinstance(messages, list) and all(_is_message(each) for each in messages)
    if not are_messages or type(candidate) is not int or not 0 <= candidate < 2**63:
        raise TuningError(f"{path}:{number} is not a kept prompt; delete the file")
    return entry


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(name), str) for name in ("role", "content")
    )


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
