"""The runtime's front door: open an engine, give it a prompt, get text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from bita.adapter import Adapter
from bita.engine import open_engine
from bita.engine_access import undisturbed
from bita.engine_adapter import check_adapter, read_adapter
from bita.errors import PromptError
from bita.file_marks import check_unchanged, marks_of
from bita.json_values import shown
from bita.manifest import MANIFEST_FILE
from bita.runtime.backends.backend import Backend, open_backend, weights_read_ahead
from bita.runtime.choosing import check_token_ids, chooser_for
from bita.runtime.conversation import Conversation, Overflow
from bita.runtime.decoding.chooser import TokenLogprob
from bita.runtime.decoding.guard import sizes_to_run
from bita.runtime.decoding.prompt_scores import score_prompt
from bita.runtime.decoding.stats import Stats
from bita.runtime.decoding.tree_decoder import Record, TreeDecoder
from bita.runtime.generation import Generation
from bita.runtime.loaded_engine import LoadedEngine, read_tree
from bita.runtime.options import Options, new_seed
from bita.runtime.text.codec import IncrementalText, TextCodec
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.prompt_encoder import (
    Message,
    Prompt,
    PromptEncoder,
    has_large_tokenizer,
)
from bita.runtime.text.stopping import StopRule
from bita.runtime.turns import EngineLock
from bita.tree_table import Trees


class Session:
    """A loaded engine. Threads may share it, and share its steps where the backend can do that.

    Open it with `Session.open`. A prompt that begins like the text in the cache, as the next turn
    of a conversation does, is computed from where the two differ.

    engine: the files it was loaded from.
    min_exact_rows: rows of the smallest step whose results are bit-identical in all larger ones, a
    rule of mode "exact": 1 or 2 on a processor (1 with native operators); on a GPU up to the rows
    of the largest tree.
    """

    def __init__(self, loaded: LoadedEngine, decoder: TreeDecoder, min_exact_rows: int) -> None:
        self.engine = loaded.engine
        self.min_exact_rows = min_exact_rows
        self._loaded = loaded
        self._decoder = decoder
        self.reset_stats()

    @classmethod
    @undisturbed
    def open(
        cls,
        path: str | Path,
        *,
        tree: Trees | None = None,
        adapter: Adapter | None = None,
        mode: str | None = None,
        min_rows: int | None = None,
        num_threads: int = 0,
        check_hashes: bool = False,
        backend: str | None = None,
        cuda_graph: bool = True,
        kept_text_bytes: int = 256 << 20,
        keep_answers: bool = False,
        map_weights: bool = False,
    ) -> "Session":
        """Load the engine at `path`; raises EngineError that lists every fault of it.

        tree: instead of the engine's own; Tree.root_only() decodes plainly (AR), a TreeTable has a
        tree for each state.
        adapter: instead of the engine's own.
        mode: instead of the engine's own, "exact" or "tree".
        min_rows: rows of the smallest step. None: `min_exact_rows`, which makes AR and tree
        decoding bit-identical, or 1 for an engine whose own tree is the root (it is its own
        reference).
        num_threads: 0 for one per physical core it may use.
        check_hashes: hash the weights before loading.
        backend: what executes the steps. None: what the engine was built for; every engine runs on
        "ort-cpu" too.
        cuda_graph: launch decode steps as captured graphs.
        kept_text_bytes: host memory for keys and values of all texts beyond one: conversations and
        unfinished answers. Native operators leave them in their pages, which texts that begin alike
        share; else they are copied. What does not fit is computed again when it is needed.
        keep_answers: keep those of finished answers too.
        map_weights: leave the weights of native operators in the pages of their file, which
        processes share, rather than read them into huge pages, with which steps are faster.
        """
        marks = marks_of(Path(path))
        engine = open_engine(path, check_hashes)
        own_tree = read_tree(engine)
        if adapter is None:
            adapter = read_adapter(engine)
        check_adapter(engine, adapter)
        with weights_read_ahead(engine, map_weights or has_large_tokenizer(engine)):
            encoder = PromptEncoder.of_engine(engine)
            opened = open_backend(
                engine, backend, num_threads, cuda_graph, kept_text_bytes, map_weights
            )
        loaded = LoadedEngine.of(engine, encoder, opened, kept_text_bytes, keep_answers)
        min_exact_rows = opened.min_exact_rows(adapter, sizes_to_run(tree or own_tree))
        if min_rows is None:
            min_rows = 1 if own_tree.is_ar and tree is None else min_exact_rows
        tree, mode = tree or own_tree, mode or engine.manifest.mode
        decoder = loaded.decoder(adapter, tree, mode, min_rows)
        check_unchanged(engine.path, (MANIFEST_FILE, *engine.files), marks)
        loaded.memory.loaded(opened.device_bytes)
        return cls(loaded, decoder, min_exact_rows)

    def using(
        self,
        *,
        tree: Trees | None = None,
        adapter: Adapter | None = None,
        mode: str | None = None,
        min_rows: int | None = None,
    ) -> "Session":
        """Another session on the same loaded weights and cache; what is not given stays.

        min_rows: None for `min_exact_rows`.
        """
        mode = mode or self.mode
        adapter = adapter or self._decoder.adapter
        check_adapter(self.engine, adapter)
        tree, min_exact_rows, loaded = tree or self.tree, self.min_exact_rows, self._loaded
        with loaded.turns.lock:
            if tree is not self.tree:
                sizes = (min_exact_rows, *sizes_to_run(tree))
                min_exact_rows = max(min_exact_rows, loaded.backend.min_exact_rows(adapter, sizes))
            rows = min_rows or min_exact_rows
            decoder = loaded.decoder(adapter, tree, mode, rows)
        return Session(loaded, decoder, min_exact_rows)

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        **options: Any,
    ) -> Generation:
        """Answer and return the finished generation; arguments as for `stream`."""
        return self.stream(prompt, max_new_tokens, stop, ignore_eos, **options).run()

    def generate_several(
        self, prompt: Prompt, count: int, max_new_tokens: int = 256, **options: Any
    ) -> list[Generation]:
        """`count` answers to one prompt, which is computed once; together where that is possible.

        The first is what `generate` gives with the same seed; the others draw other numbers.
        """
        if type(count) is not int or count < 1:
            raise PromptError(f"the number of answers is {shown(count)}; pass an integer from 1 on")
        wanted = Options.of(max_new_tokens=max_new_tokens, **options)
        seed = wanted.seed if wanted.seed is not None else new_seed()
        started = [self.start(prompt, wanted, seed=seed, choice=choice) for choice in range(count)]
        self.run_together(started)
        return started

    def run_together(self, generations: Sequence[Generation]) -> None:
        """Run answers to their ends, several in one step where the backend can do that. Each is
        what it is alone. Raises what the first of them raises that fails.
        """
        if not self.shares_steps:
            for generation in generations:
                generation.run()
        while running := [each for each in generations if not each.has_ended]:
            self.advance(running)
        for error in (each.error for each in generations):
            if error is not None:
                raise error

    @property
    def shares_steps(self) -> bool:
        """Whether the backend runs several texts in one step, as native operators do."""
        return self._loaded.places is not None

    def advance(self, generations: Sequence[Generation]) -> None:
        """Run one step of all these answers, or of as many as the backend can run together: the
        first in the list have precedence. `text` has then what it added.

        An answer that fails ends, with its `error`; the others are not concerned.
        """
        self._loaded.turns.advance(generations)

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        **options: Any,
    ) -> Generation:
        """Start an answer, greedily decoded if nothing else is asked for; iterate over the result
        for its text.

        prompt: text that is continued as it is, messages ({"role", "content"}) that go through the
        model's chat template, or token ids. stop: strings that end the answer and are not part of
        it. options: fields of `Options`, such as temperature=0.7, seed=1, logprobs=0 or
        grammar=Grammar.json_schema(...). Raises PromptError for a prompt or an option that is not
        usable.
        """
        wanted = Options.of(
            max_new_tokens=max_new_tokens, stop=stop, ignore_eos=ignore_eos, **options
        )
        return self.start(prompt, wanted)

    def start(
        self,
        prompt: Prompt,
        options: Options,
        *,
        seed: int | None = None,
        choice: int = 0,
        is_kept: bool | None = None,
        on_end: Callable[[Generation], None] = lambda generation: None,
        eos_ids: Sequence[int] | None = None,
        drafts: bool = True,
        continues: bool | None = None,
    ) -> Generation:
        """Start an answer; what `stream` does, for those who have `Options`.

        seed: instead of the options'. choice: number of the answer among several to a prompt, which
        draws other numbers. is_kept: whether the cached rows are wanted when it has ended; None: as
        the session was opened. on_end: called then. eos_ids: tokens that end the answer, unless the
        options ignore them; None for `end_ids`. drafts: False decodes plainly, a token a step.
        continues: whether spaces at the answer's start are kept, because it continues a text; None:
        for a prompt that is text, or a grammar.
        """
        began = monotonic()
        prompt_ids = self.encode(prompt)
        self._decoder.check_prompt(prompt_ids)
        check_token_ids(options, self.engine.manifest.vocab_size)
        if eos_ids is None:
            eos_ids = self.end_ids(prompt)
        if options.ignore_eos:
            eos_ids = ()
        if seed is None:
            seed = options.seed if options.seed is not None else new_seed()
        chooser = chooser_for(self._loaded, options, prompt_ids, eos_ids, seed, choice)
        if continues is None:  # a grammar has matched each space
            continues = isinstance(prompt, str) or options.grammar is not None
        text = IncrementalText(self.codec, continues, options.shown_token_ids)
        rule = StopRule(
            text, eos_ids, options.max_new_tokens, options.stops, options.stop_token_ids
        )
        sequence = self._decoder.begin(prompt_ids, chooser)
        sequence.is_plain = not drafts
        return Generation(
            self._loaded.turns,
            self._decoder,
            sequence,
            rule,
            seed,
            None if options.timeout_s is None else options.timeout_s - (monotonic() - began),
            self._loaded.keep_answers if is_kept is None else is_kept,
            on_end,
        )

    def check_grammar(self, grammar: Grammar, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Raise PromptError for a grammar that answers cannot follow.

        is_wanted: asked now and then, as it may take seconds; PromptError if it says no.
        """
        self._loaded.grammars.compile(grammar, is_wanted)

    def load_grammars(self) -> None:
        """Do what the first grammar would have to wait for (0.1 to 2 s)."""
        self._loaded.grammars.load()

    def forget(self) -> None:
        """Forget all texts, so that the next prompt is computed whole."""
        self._loaded.turns.forget()

    def conversation(
        self, messages: Sequence[Message] = (), overflow: Overflow = "refuse"
    ) -> Conversation:
        """A conversation that starts with these messages, such as a system message.

        overflow: what happens when it outgrows the cache, see `Conversation`. Several may go on by
        turns. Raises PromptError if the model has no chat template.
        """
        return Conversation(self, self._loaded.encoder, messages, overflow)

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, as `generate` would use them."""
        return self._loaded.encoder.encode(prompt)

    @property
    def encoder(self) -> PromptEncoder:
        """Prompts to token ids: tokenizer, chat template, and how answers end."""
        return self._loaded.encoder

    def as_prompt(self, messages: Sequence[Message]) -> Prompt:
        """The messages themselves, or the text of the last one for a model without chat."""
        return self._loaded.encoder.as_prompt(messages)

    def margin(self, token_ids: Sequence[int]) -> float:
        """How far the best logit after these tokens is above the second."""
        with self.lock:
            return self._decoder.margin(token_ids)

    def score(self, prompt: Prompt, num_best: int = 0) -> list[TokenLogprob]:
        """How probable the model finds each token of a prompt but the first, and the `num_best`
        most probable ones at its place.

        Holds the engine until the prompt is read. Raises PromptError for a prompt that is not
        usable.
        """
        token_ids = self.encode(prompt)
        self._decoder.check_prompt(token_ids)
        with self._loaded.turns.alone():
            return score_prompt(self.backend, self.adapter, token_ids, num_best)

    @property
    def lock(self) -> EngineLock:
        """Held while a step runs; whoever runs steps of the backend holds it."""
        return self._loaded.turns.lock

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts may be messages."""
        return self._loaded.encoder.template is not None

    @property
    def max_prompt_tokens(self) -> int:
        """The longest prompt that leaves room for an answer of one token."""
        return self._decoder.max_prompt_tokens

    @property
    def codec(self) -> TextCodec:
        """Token ids to text and back."""
        return self._loaded.encoder.codec

    @property
    def sampling(self) -> dict[str, float]:
        """The authors' way to sample, as fields of Options; answers do not use it unasked."""
        return dict(self._loaded.encoder.defaults.sampling)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens with which the model ends a text."""
        return self._loaded.encoder.defaults.eos_ids

    def end_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """The tokens that end an answer: `eos_ids`, and after messages those that end a turn."""
        return self._loaded.encoder.eos_ids(prompt)

    @property
    def tree(self) -> Trees:
        """The tree of its steps, or a tree for each state."""
        return self._decoder.trees

    @property
    def mode(self) -> str:
        """Which nodes are accepted: those that keep the text plain decoding's to the bit ("exact"),
        or all ("tree"). They are the same where the backend has exact trees.
        """
        return self._decoder.mode

    @property
    def adapter(self) -> Adapter:
        """Whose masks and prefix make the drafts."""
        return self._decoder.adapter

    @property
    def backend(self) -> Backend:
        """What executes the steps; who runs its own steps holds `lock`."""
        return self._loaded.backend

    @property
    def decoder(self) -> TreeDecoder:
        """Its decode rounds, on token ids; who runs them holds `lock`."""
        return self._decoder

    @property
    def stats(self) -> Stats:
        """Figures of all generations since the session was opened or the stats were reset."""
        self._loaded.memory.note(self._loaded.backend.device_bytes)
        return self._decoder.stats

    def record(self, record: Record | None) -> None:
        """Call `record(name, began, ended, rows)` after each part of a step; None turns it off.

        began, ended: seconds of `perf_counter`.
        """
        self._decoder.record = record

    def reset_stats(self) -> None:
        """Count from zero again."""
        self._decoder.stats = Stats(memory=self._loaded.memory)
