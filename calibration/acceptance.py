"""Measure which drafts are right in an engine's own text, position by position."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bita.adapter import Adapter
from bita.data.generators import EngineGenerator
from bita.engine import Engine
from bita.errors import EngineError
from bita.json_values import Fields, shown
from bita.runtime.backends.backend import Backend, Step
from bita.runtime.backends.layout import PREFILL_ROWS, READ_NODES, tree_layout
from bita.runtime.decoding.drafting import Drafts
from bita.runtime.decoding.guesses import Guesses, make_guesses
from bita.runtime.decoding.prefill import Prefill, run_piece, text_steps
from bita.runtime.session import Prompt, Session
from bita.tree import MAX_LEVEL, Path, Tree

MAX_RANK = 1 << 20  # limit of a draft's rank; far more than any engine gives
GUESSES = 8  # tokens of a guess from the text that are evaluated
WIDE_NODES = 32  # nodes of a step if its rows do not depend on their number
ANSWERS_AT_ONCE = 32  # answers written before the first is read; bounds what a killed run loses
NOT_DRAFTED = 0  # rank of a true token that is not among a mask's drafts


class Guess(NamedTuple):
    """Result of the guess at a root."""

    level: int = 0  # certainty, 0 to MAX_LEVEL
    right: int = 0  # number of its best tokens that are true, before the first wrong one
    rank: int = 0  # of the true token at the first wrong one; 0 if it is not a candidate
    from_masks: int = 0  # 1 if the first token comes from a mask alone, else 0


@dataclass(frozen=True)
class Position:
    """A root, and the drafts and guesses for the tokens after it."""

    # rank of the true token among each mask's drafts, given the true tokens before it; 0 if it is
    # not among them; truncated at the end of the answer
    ranks: Path
    guesses: tuple[Guess, ...]  # with the drafts of 0, 1, ... masks; the last is for more masks too

    def guess(self, num_drafted: int) -> Guess:
        """Return the guess that is made with the drafts of this many masks."""
        return self.guesses[min(num_drafted, len(self.guesses) - 1)]

    def to_list(self) -> list[Any]:
        """Return the position as a JSON list that `of` reads."""
        return [list(self.ranks), *map(list, self.guesses)]

    @classmethod
    def of(cls, data: Any, max_rank: int = MAX_RANK) -> "Position":
        """Read what `to_list` gave. Raises ValueError if it is not valid or exceeds `max_rank`."""
        if not isinstance(data, list) or len(data) < 2:
            raise ValueError(f"{shown(data)} is not [ranks, guess, …]")
        ranks = Fields({"ranks": data[0]})
        position = cls(
            ranks.wholes("ranks", most=max_rank),
            tuple(_read_guess(each, max_rank, ranks.faults) for each in data[1:]),
        )
        if ranks.faults:
            raise ValueError("; ".join(ranks.faults))
        return position


def _read_guess(data: Any, max_rank: int, faults: list[str]) -> Guess:
    """Read a guess as written by `to_list`; add what is wrong with it to `faults`."""
    if not isinstance(data, list) or len(data) != len(Guess._fields):
        faults.append(f"a guess is {shown(data)}, not [{', '.join(Guess._fields)}]")
        return Guess()
    fields = Fields(dict(zip(Guess._fields, data, strict=True)))
    guess = Guess(
        fields.whole("level", most=MAX_LEVEL),
        fields.whole("right", most=GUESSES),
        fields.whole("rank", most=max_rank),
        fields.whole("from_masks", most=1),
    )
    faults += fields.faults
    return guess


@dataclass(frozen=True)
class Acceptance:
    """Measured drafts of an engine on its own answers."""

    texts: tuple[tuple[Position, ...], ...]  # roots of each answer, in order
    prompt_lengths: tuple[int, ...]  # tokens of each prompt
    prompts_sha256: str  # hash of the prompts' token ids and the limit of answers
    num_ranks: int  # drafts of each mask

    @property
    def num_positions(self) -> int:
        return sum(map(len, self.texts))

    @property
    def mean_length(self) -> float:
        """Mean number of text tokens in the cache, over all positions."""
        total = sum(
            len(text) * (length + (len(text) - 1) / 2)
            for text, length in zip(self.texts, self.prompt_lengths, strict=True)
        )
        return total / max(self.num_positions, 1)

    def shares(self, num_masks: int) -> dict[Path, float]:
        """Return, for every path that occurred, how often the true ranks of masks begin with it."""
        counts: Counter[Path] = Counter()
        for position in self.positions():
            for depth in range(1, min(num_masks, len(position.ranks)) + 1):
                path = position.ranks[:depth]
                if NOT_DRAFTED in path:
                    break
                counts[path] += 1
        return {path: count / self.num_positions for path, count in counts.items()}

    def table(self) -> list[dict[str, Any]]:
        """Return, for each mask, the steps that reached it and the share of each rank in them."""
        rows: list[dict[str, Any]] = []
        deepest = max((len(position.ranks) for position in self.positions()), default=0)
        for mask in range(deepest):
            reached = [
                position.ranks[mask]
                for position in self.positions()
                if len(position.ranks) > mask and NOT_DRAFTED not in position.ranks[:mask]
            ]
            ranks = Counter(reached)
            shares = [ranks[r] / max(len(reached), 1) for r in range(1, self.num_ranks + 1)]
            rows.append(
                {"mask": mask, "count": len(reached), "shares": np.round(shares, 5).tolist()}
            )
        return rows

    def positions(self) -> Iterator[Position]:
        for text in self.texts:
            yield from text

    def to_json(self) -> dict[str, Any]:
        texts = [[position.to_list() for position in text] for text in self.texts]
        return {
            "prompts_sha256": self.prompts_sha256,
            "prompt_lengths": self.prompt_lengths,
            "num_ranks": self.num_ranks,
            "masks": self.table(),
            "texts": texts,
        }

    @classmethod
    def from_json(cls, data: Any) -> "Acceptance":
        """Read what `to_json` gave. Raises EngineError that lists every fault."""
        where = "the acceptance is not readable (measure it again with --remeasure)"
        if not isinstance(data, Mapping):
            raise EngineError(f"{where}: it is {shown(data)}, not an object")
        fields = Fields(data)
        num_ranks = fields.whole("num_ranks", least=1, most=MAX_RANK)
        lengths = fields.wholes("prompt_lengths", least=1)
        digest = fields.text("prompts_sha256")
        texts = _read_texts(data.get("texts"), num_ranks, fields.faults)
        if not fields.faults and len(lengths) != len(texts):
            fields.faults.append(f"it has {len(lengths)} prompts, but {len(texts)} texts")
        if not fields.faults and not any(texts):
            fields.faults.append("it has no positions")
        fields.check(EngineError, where)
        return cls(texts, lengths, digest, num_ranks)


def _read_texts(data: Any, num_ranks: int, faults: list[str]) -> tuple[tuple[Position, ...], ...]:
    """Read the positions of each text; add what is wrong with them to `faults`."""
    if not isinstance(data, list) or not all(isinstance(text, list) for text in data):
        faults.append(f"texts is {shown(data)}, not a list of lists")
        return ()
    try:
        return tuple(tuple(Position.of(each, num_ranks) for each in text) for text in data)
    except ValueError as error:
        faults.append(f"texts: {error}")
        return ()


def measure_acceptance(
    engine: Engine,
    prompts: Sequence[Prompt],
    max_new_tokens: int = 128,
    num_threads: int = 0,
    known: Mapping[int, tuple[Position, ...]] | None = None,
    on_text: Callable[[int, tuple[Position, ...]], None] = lambda number, positions: None,
    adapter: Adapter | None = None,
) -> Acceptance:
    """Let the engine answer plainly, then draft after every token of its answers.

    With native operators, several answers are written at a time, and a step reads more nodes.
    Neither changes a position.

    Args:
        engine: Engine to measure.
        prompts: Prompts to answer.
        max_new_tokens: Limit of each answer.
        num_threads: Threads of a step; 0 for one per physical core.
        known: Positions of the prompts that an earlier run has finished, by number.
        on_text: Called with each prompt's number and positions.
        adapter: Adapter to measure. None takes the engine's own.

    Raises:
        EngineError: if no answer has a token to draft after, or the engine cannot be used.
        PromptError: if a prompt cannot be used.
    """
    known = known or {}
    session = Session.open(
        engine.path, tree=Tree.root_only(), num_threads=num_threads, adapter=adapter
    )
    reader = _DraftReader(session.backend, session.adapter)
    ids, texts = [session.encode(prompt) for prompt in prompts], []
    answers = _answers(
        EngineGenerator(session),
        [prompt for number, prompt in enumerate(ids) if number not in known],
        max_new_tokens,
    )
    for number, prompt_ids in enumerate(ids):
        positions = known.get(number)
        if positions is None:
            positions = reader.positions(prompt_ids, next(answers))
        on_text(number, positions)
        texts.append(positions)
    if not any(texts):
        raise EngineError(
            f"no answer of {len(texts)} has a token to draft after, with {READ_NODES} nodes and "
            "their masks in the cache; give other prompts, or rebuild with a larger CAPACITY"
        )
    digest = hashlib.sha256(json.dumps([ids, max_new_tokens]).encode()).hexdigest()
    return Acceptance(tuple(texts), tuple(map(len, ids)), digest, engine.manifest.num_ranks)


def _answers(
    generator: EngineGenerator, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> Iterator[Sequence[int]]:
    """Yield the token ids of the answer to each prompt, generating them as needed."""
    size = min(generator.batch_size, ANSWERS_AT_ONCE)
    for start in range(0, len(prompts), size):
        for answer in generator.complete(prompts[start : start + size], max_new_tokens):
            yield answer.token_ids


class _DraftReader:
    """Reads texts a few tokens at a time, with masks after each token."""

    def __init__(self, backend: Backend, adapter: Adapter) -> None:
        self._backend, self._adapter = backend, adapter
        self._pairs = self._backend.pairs.tables(self._adapter)
        self._num_masks = self._adapter.num_masks
        sizes = (READ_NODES, WIDE_NODES) if backend.exact_trees else (READ_NODES,)
        self._steps = {num_nodes: self._bind(num_nodes) for num_nodes in sizes}
        self._prefill = Prefill(backend.cache, PREFILL_ROWS, text_steps(backend, adapter, 1))

    def positions(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[Position, ...]:
        """Return the position of each token of the answer that is a root, except the last."""
        text = [*prompt, *answer]
        bonuses, table = self._adapter.bonuses, self._adapter.continuations
        drafts = Drafts(self._num_masks, self._backend.num_ranks, self._pairs)
        index = make_guesses(table, bonuses, drafts)
        index.start(prompt)
        found = []
        # a root is drafted by the masks of the token before it
        for place, (ids, logits) in self._drafts(text, len(prompt) - 1, len(text) - 2):
            root, following = place + 1, text[place + 1 :]
            index.extend(text[root : root + 1])
            drafts.read(ids, logits)
            ranks = tuple(
                self._rank(following[mask], following[mask + 1], ids[mask], logits[mask])
                for mask in range(min(self._num_masks, len(following) - 1))
            )
            guesses = []
            for num_drafted in range(self._num_masks + 1):
                drafts.num_masks = num_drafted
                index.extend(())
                guesses.append(_judge(index, following))
            found.append(Position(ranks, tuple(guesses)))
        return tuple(found)

    def _drafts(
        self, text: Sequence[int], first: int, stop: int
    ) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """Yield the places first to stop - 1, each with drafts [M, k] and their logits [M, k]."""
        cache, tokens = self._backend.cache, np.array(text, np.int64)
        cache.start(self._adapter)
        for _ in self._prefill.pieces(tokens[:first]):
            pass
        start = first
        while start < stop and (size := self._fitting_size(stop - start)):
            step = self._steps[size]
            run_piece(step, cache, tokens[start : start + size])
            shape = (size, self._num_masks, self._backend.num_ranks)
            # padding may follow
            masks = slice(size, size * (1 + self._num_masks))
            ids = step.top_ids[masks].reshape(shape)
            logits = step.top_logits[masks].reshape(shape)
            for node in range(min(size, stop - start)):
                yield start + node, (ids[node], logits[node])
            start += size

    def _fitting_size(self, num_nodes: int) -> int:
        """Return the nodes of the next step; 0 if the cache has no room for one."""
        cache = self._backend.cache
        room = cache.capacity - cache.num_slots_used
        fitting = [size for size, step in self._steps.items() if step.num_rows <= room]
        enough = [size for size in fitting if size >= num_nodes]
        return min(enough, default=max(fitting, default=0))

    def _bind(self, num_nodes: int) -> Step:
        layout = tree_layout(Tree.chain(num_nodes - 1, self._num_masks), 1)
        return self._backend.bind(layout, self._adapter)

    def _rank(self, before: int, true: int, ids: np.ndarray, logits: np.ndarray) -> int:
        if self._pairs is not None:
            ids = self._pairs.order(np.array([before]), ids, logits)[0]
        places = np.flatnonzero(ids == true)
        return int(places[0]) + 1 if len(places) else NOT_DRAFTED


def _judge(index: Guesses, text: Sequence[int]) -> Guess:
    """Compare the index's guess with a text, beginning at its second token."""
    found = index.candidates(min(GUESSES, len(text) - 1))
    right = 0
    while right < len(found) and found[right][0] == text[right + 1]:
        right += 1
    rank = NOT_DRAFTED
    if right < len(found) and text[right + 1] in found[right]:
        rank = found[right].index(text[right + 1]) + 1
    return Guess(index.level(), right, rank, int(index.from_masks))
