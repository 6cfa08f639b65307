"""Which drafts are right on an engine's own text, position by position."""

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

MAX_RANK = 1 << 20  # of a draft; far more than any engine gives
GUESSES = 8  # tokens of a guess from the text that are looked at
WIDE_NODES = 32  # read in a step where its rows do not depend on their number
ANSWERS_AT_ONCE = 32  # written before the first of them is read; bounds what a killed run loses
NOT_DRAFTED = 0  # the rank of a true token that is not among a mask's drafts


class Guess(NamedTuple):
    """What the guess at a root was worth.

    level: how sure it was, 0 to MAX_LEVEL. right: how many of its best tokens are true. rank: of
    the true token among the candidates where the best is wrong for the first time; 0 if it is not
    among them. from_masks: 1 if only a mask says the first token, else 0.
    """

    level: int = 0
    right: int = 0
    rank: int = 0
    from_masks: int = 0


@dataclass(frozen=True)
class Position:
    """A root, and what was known when it was drafted.

    ranks: of the true token among the drafts of each mask, behind the true tokens before it; 0
    where it is not among them. The answer's end cuts the tuple. guesses: with the drafts of 0, 1,
    ... masks at hand; with more than are here as with the last.
    """

    ranks: Path
    guesses: tuple[Guess, ...]

    def guess(self, num_drafted: int) -> Guess:
        """What was guessed when the drafts of this many masks were at hand."""
        return self.guesses[min(num_drafted, len(self.guesses) - 1)]

    def to_list(self) -> list[Any]:
        """For JSON; `of` reads it."""
        return [list(self.ranks), *map(list, self.guesses)]

    @classmethod
    def of(cls, data: Any, max_rank: int = MAX_RANK) -> "Position":
        """Raises ValueError if it is not what `to_list` gives. max_rank: of a draft."""
        if not isinstance(data, list) or len(data) < 2:
            raise ValueError(f"{shown(data)} is not [ranks, guess, …]")
        ranks = Fields({"ranks": data[0]})
        position = cls(
            ranks.wholes("ranks", most=max_rank),
            tuple(_guess_of(each, max_rank, ranks.faults) for each in data[1:]),
        )
        if ranks.faults:
            raise ValueError("; ".join(ranks.faults))
        return position


def _guess_of(data: Any, max_rank: int, faults: list[str]) -> Guess:
    """What `to_list` has of a guess; what is wrong is added to `faults`."""
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
    """texts: the roots of each answer, in order. prompt_lengths: tokens of their prompts.

    prompts_sha256: of the prompts' token ids.
    """

    texts: tuple[tuple[Position, ...], ...]
    prompt_lengths: tuple[int, ...]
    prompts_sha256: str
    num_ranks: int

    @property
    def num_positions(self) -> int:
        return sum(map(len, self.texts))

    @property
    def mean_length(self) -> float:
        """Tokens of text in the cache, over all positions."""
        total = sum(
            len(text) * (length + (len(text) - 1) / 2)
            for text, length in zip(self.texts, self.prompt_lengths, strict=True)
        )
        return total / max(self.num_positions, 1)

    def shares(self, num_masks: int) -> dict[Path, float]:
        """How often the true ranks of the first masks are these: for every path that occurred."""
        counts: Counter[Path] = Counter()
        for position in self.positions():
            for depth in range(1, min(num_masks, len(position.ranks)) + 1):
                path = position.ranks[:depth]
                if NOT_DRAFTED in path:
                    break
                counts[path] += 1
        return {path: count / self.num_positions for path, count in counts.items()}

    def table(self) -> list[dict[str, Any]]:
        """Per mask: how many steps reached it, and the share of each rank among them."""
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
        """Raises EngineError if it is not what `to_json` gives."""
        where = "the acceptance is not readable (measure it again, with --anew)"
        if not isinstance(data, Mapping):
            raise EngineError(f"{where}: it is {shown(data)}, not an object")
        fields = Fields(data)
        num_ranks = fields.whole("num_ranks", least=1, most=MAX_RANK)
        lengths = fields.wholes("prompt_lengths", least=1)
        digest = fields.text("prompts_sha256")
        texts = _texts_of(data.get("texts"), num_ranks, fields.faults)
        if not fields.faults and len(lengths) != len(texts):
            fields.faults.append(f"it has {len(lengths)} prompts, but {len(texts)} texts")
        if not fields.faults and not any(texts):
            fields.faults.append("it has no positions")
        fields.check(EngineError, where)
        return cls(texts, lengths, digest, num_ranks)


def _texts_of(data: Any, num_ranks: int, faults: list[str]) -> tuple[tuple[Position, ...], ...]:
    """The positions of each text; what is wrong is added to `faults`."""
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
    """Let the engine answer plainly, then draft behind every token of its answers.

    known: positions of prompts that an earlier run did. on_text: called with each prompt's number
    and positions. adapter: instead of the engine's own. With native operators several answers are
    written at a time, and more nodes are read in a step; neither changes a position. Raises
    EngineError or PromptError.
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
            f"no answer of {len(texts)} has a token to draft behind, with {READ_NODES} nodes and "
            "their masks in the cache; give other prompts, or rebuild with a larger CAPACITY"
        )
    digest = hashlib.sha256(json.dumps([ids, max_new_tokens]).encode()).hexdigest()
    return Acceptance(tuple(texts), tuple(map(len, ids)), digest, engine.manifest.num_ranks)


def _answers(
    generator: EngineGenerator, prompts: Sequence[Sequence[int]], max_new_tokens: int
) -> Iterator[Sequence[int]]:
    """Token ids of the answer to each prompt, written when they are needed."""
    size = min(generator.batch_size, ANSWERS_AT_ONCE)
    for start in range(0, len(prompts), size):
        for answer in generator.complete(prompts[start : start + size], max_new_tokens):
            yield answer.token_ids


class _DraftReader:
    """Reads texts, a few tokens at a time, with the masks behind each of them."""

    def __init__(self, backend: Backend, adapter: Adapter) -> None:
        self._backend, self._adapter = backend, adapter
        self._pairs = self._backend.pairs.tables(self._adapter)
        self._num_masks = self._adapter.num_masks
        sizes = (READ_NODES, WIDE_NODES) if backend.exact_trees else (READ_NODES,)
        self._steps = {num_nodes: self._bind(num_nodes) for num_nodes in sizes}
        self._prefill = Prefill(backend.cache, PREFILL_ROWS, text_steps(backend, adapter, 1))

    def positions(self, prompt: Sequence[int], answer: Sequence[int]) -> tuple[Position, ...]:
        """One for each token of the answer that is a root, but the last."""
        text = [*prompt, *answer]
        bonuses, table = self._adapter.bonuses, self._adapter.continuations
        drafts = Drafts(self._num_masks, self._backend.num_ranks, self._pairs)
        index = make_guesses(table, bonuses, drafts)
        index.start(prompt)
        found = []
        # the root is drafted by the masks of the token in front of it
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
        """For tokens first..stop - 1 their places, and drafts [M, k] and logits [M, k] behind."""
        cache, tokens = self._backend.cache, np.array(text, np.int64)
        cache.start(self._adapter)
        for _ in self._prefill.pieces(tokens[:first]):
            pass
        start = first
        while start < stop and (size := self._fitting_size(stop - start)):
            step = self._steps[size]
            run_piece(step, cache, tokens[start : start + size])
            shape = (size, self._num_masks, self._backend.num_ranks)
            # there may be padding behind them
            masks = slice(size, size * (1 + self._num_masks))
            ids = step.top_ids[masks].reshape(shape)
            logits = step.top_logits[masks].reshape(shape)
            for node in range(min(size, stop - start)):
                yield start + node, (ids[node], logits[node])
            start += size

    def _fitting_size(self, num_nodes: int) -> int:
        """Nodes of the next step, of those that are left; 0 if the cache has no room for one."""
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
    """What the index guesses for a text from its second token on."""
    found = index.candidates(min(GUESSES, len(text) - 1))
    right = 0
    while right < len(found) and found[right][0] == text[right + 1]:
        right += 1
    rank = NOT_DRAFTED
    if right < len(found) and text[right + 1] in found[right]:
        rank = found[right].index(text[right + 1]) + 1
    return Guess(index.level(), right, rank, int(index.from_masks))
