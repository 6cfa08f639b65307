"""`Session`: open an engine, give it a prompt, get text."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bita.adapter import Adapter
from bita.engine import open_engine
from bita.engine_access import undisturbed
from bita.engine_adapter import check_adapter, read_adapter
from bita.errors import BitaError, PromptError
from bita.file_marks import check_unchanged, marks_of
from bita.json_values import shown
from bita.manifest import MANIFEST_FILE
from bita.runtime.backends.backend import Backend
from bita.runtime.conversation import Conversation, Overflow
from bita.runtime.decoding.chooser import TokenLogprob
from bita.runtime.decoding.guard import sizes_to_run
from bita.runtime.decoding.prompt_scores import score_prompt
from bita.runtime.decoding.stats import Stats
from bita.runtime.decoding.tree_decoder import Record, TreeDecoder
from bita.runtime.generation import Generation
from bita.runtime.loaded_engine import LoadedEngine, read_tree
from bita.runtime.options import Options, new_seed
from bita.runtime.starting import start_generation
from bita.runtime.text.codec import TextCodec
from bita.runtime.text.grammar import Grammar
from bita.runtime.text.prompt_encoder import Message, Prompt, PromptEncoder
from bita.runtime.turns import EngineLock
from bita.tree_table import Trees


class Session:
    """A loaded engine that answers prompts. Open one with `Session.open`.

    Threads may share a session and, if the backend supports it, its decode steps. A prompt that
    begins like the cached text is computed only from the first token that differs.

    Attributes:
        engine: The files it was loaded from.
        min_exact_rows: Rows of the smallest step whose results are bit-identical in all larger
            steps, for mode "exact": 1 or 2 on a CPU, up to the largest tree's rows on a GPU.
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
        """Load an engine.

        Args:
            path: Engine directory.
            tree: Tree, or `TreeTable` with a tree for each state; `Tree.root_only()` decodes
                plainly (AR). None: the engine's own.
            adapter: Adapter that drafts. None: the engine's own.
            mode: "exact" or "tree". None: the engine's own.
            min_rows: Rows of the smallest step. None: `min_exact_rows`, which makes AR and tree
                decoding bit-identical, or 1 if the engine's own tree is used and is the root.
            num_threads: Threads. 0: one per physical core that the process may use.
            check_hashes: Whether to check the hashes of the weights before loading them.
            backend: Backend that executes the steps. None: the one that the engine was built for.
                Every engine also runs on "ort-cpu".
            cuda_graph: Whether to launch decode steps as captured CUDA graphs.
            kept_text_bytes: Host memory for keys and values of all texts beyond one: conversations
                and unfinished answers. Native operators keep them in pages, which texts with the
                same beginning share; other backends copy them. The rest is recomputed when needed.
            keep_answers: Whether to keep those of finished answers, too.
            map_weights: Whether to leave the weights of native operators in the pages of their
                file, which processes share. False: read them into huge pages; steps are faster.

        Raises:
            EngineError: if the engine is invalid; the message lists every fault.
            TreeError: if the tree is invalid or does not fit.
        """
        marks = marks_of(Path(path))
        engine = open_engine(path, check_hashes)
        own_tree = read_tree(engine)
        if adapter is None:
            adapter = read_adapter(engine)
        check_adapter(engine, adapter)
        loaded = LoadedEngine.of(
            *(engine, backend, num_threads, cuda_graph, kept_text_bytes, keep_answers, map_weights)
        )
        min_exact_rows = loaded.backend.min_exact_rows(adapter, sizes_to_run(tree or own_tree))
        if min_rows is None:
            min_rows = 1 if own_tree.is_ar and tree is None else min_exact_rows
        tree, mode = tree or own_tree, mode or engine.manifest.mode
        decoder = loaded.decoder(adapter, tree, mode, min_rows)
        check_unchanged(engine.path, (MANIFEST_FILE, *engine.files), marks)
        loaded.memory.loaded(loaded.backend.device_bytes)
        return cls(loaded, decoder, min_exact_rows)

    def using(
        self,
        *,
        tree: Trees | None = None,
        adapter: Adapter | None = None,
        mode: str | None = None,
        min_rows: int | None = None,
    ) -> "Session":
        """Return another session on the same loaded weights and cache.

        Args:
            tree: Tree, or table with a tree for each state. None: this session's.
            adapter: Adapter that drafts. None: this session's.
            mode: "exact" or "tree". None: this session's.
            min_rows: Rows of the smallest step. None: `min_exact_rows` of the new session.
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
        """Answer a prompt and return the finished generation; the arguments are `stream`'s."""
        return self.stream(prompt, max_new_tokens, stop, ignore_eos, **options).run()

    def generate_several(
        self, prompt: Prompt, count: int, max_new_tokens: int = 256, **options: Any
    ) -> list[Generation]:
        """Return `count` finished answers to one prompt, which is computed only once.

        The answers share steps where the backend supports it. The first equals `generate`'s with
        the same seed; the others draw different numbers. The remaining arguments are `stream`'s.
        """
        if type(count) is not int or count < 1:
            raise PromptError(f"the number of answers is {shown(count)}; pass a positive integer")
        wanted = Options.of(max_new_tokens=max_new_tokens, **options)
        seed = wanted.seed if wanted.seed is not None else new_seed()
        started = [self.start(prompt, wanted, seed=seed, choice=choice) for choice in range(count)]
        self.run_together(started)
        return started

    def run_together(self, generations: Sequence[Generation]) -> None:
        """Finish several answers, in shared steps where the backend supports it.

        Each answer is the same as if it ran alone. Raises the error of the first one that fails.
        """
        if not self.shares_steps:
            for generation in generations:
                with suppress(BitaError):  # the answer keeps it as its `error`
                    generation.run()
        while running := [each for each in generations if not each.has_ended]:
            self.advance(running)
        for error in (each.error for each in generations):
            if error is not None:
                raise error

    @property
    def shares_steps(self) -> bool:
        """Whether the backend runs several texts in one step; native operators do."""
        return self._loaded.places is not None

    def advance(self, generations: Sequence[Generation]) -> None:
        """Run one step of these answers, or of as many as the backend can run together.

        Earlier answers in the list take precedence. Afterwards `Generation.text` contains the new
        text. An answer that fails ends and has its `error` set; the others are not affected.
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
        """Start an answer; iterate over the result to get its text.

        Args:
            prompt: Text to continue, messages ({"role", "content"}) for the model's chat
                template, or token ids.
            max_new_tokens: Maximum length of the answer.
            stop: Strings that end the answer and are not part of it.
            ignore_eos: Whether to continue after the model's EOS tokens.
            options: Further fields of `Options`, such as temperature=0.7, seed=1, logprobs=0 or
                grammar=Grammar.json_schema(...). Decoding is greedy by default.

        Raises:
            PromptError: if the prompt or an option is invalid.
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
        """Start an answer, as `stream` does, from `Options` and with more control.

        Args:
            prompt: Same as for `stream`.
            options: Options of the answer.
            seed: Replaces the options' seed.
            choice: Number of the answer among several to one prompt; each draws other numbers.
            is_kept: Whether to keep its cached rows after the end. None: as the session was opened.
            on_end: Called with the generation when it has ended.
            eos_ids: Tokens that end the answer unless the options ignore them. None: `end_ids`.
            drafts: False decodes plainly, one token a step.
            continues: Whether to keep leading spaces, because the answer continues a text. None:
                True for a text prompt or with a grammar.

        Raises:
            PromptError: if the prompt or an option is invalid.
        """
        return start_generation(
            *(self._loaded, self._decoder, prompt, options, seed, choice, is_kept, on_end),
            *(eos_ids, drafts, continues),
        )

    def check_grammar(self, grammar: Grammar, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Compile a grammar; raise PromptError if answers cannot follow it.

        This may take seconds. `is_wanted` is polled; PromptError is raised when it returns False.
        """
        self._loaded.grammars.compile(grammar, is_wanted)

    def load_grammars(self) -> None:
        """Do the work (0.1 to 2 s) that the first grammar would otherwise have to wait for."""
        self._loaded.grammars.load()

    def forget(self) -> None:
        """Clear the cache, so that the next prompt is computed from its first token."""
        self._loaded.turns.forget()

    def conversation(
        self, messages: Sequence[Message] = (), overflow: Overflow = "refuse"
    ) -> Conversation:
        """Start a conversation; several may be in progress at the same time.

        Args:
            messages: Messages at its start, such as a system message.
            overflow: What to do when it outgrows the cache; see `Conversation`.

        Raises:
            PromptError: if the model has no chat template.
        """
        return Conversation(self, self._loaded.encoder, messages, overflow)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the token ids of a prompt, exactly as `generate` uses them."""
        return self._loaded.encoder.encode(prompt)

    @property
    def encoder(self) -> PromptEncoder:
        """The prompt encoder: tokenizer, chat template, and the tokens that end an answer."""
        return self._loaded.encoder

    def as_prompt(self, messages: Sequence[Message]) -> Prompt:
        """Return the messages, or for a model without a chat template the text of the last one."""
        return self._loaded.encoder.as_prompt(messages)

    def margin(self, token_ids: Sequence[int]) -> float:
        """Return the difference between the best and the second-best logit after these tokens."""
        with self.lock:
            return self._decoder.margin(token_ids)

    def score(self, prompt: Prompt, num_best: int = 0) -> list[TokenLogprob]:
        """Return the log-probability of each token of a prompt except the first.

        Holds the engine lock until the prompt has been read.

        Args:
            prompt: Same as for `stream`.
            num_best: Number of most probable tokens to list at each position.

        Raises:
            PromptError: if the prompt is invalid.
        """
        token_ids = self.encode(prompt)
        self._decoder.check_prompt(token_ids)
        with self._loaded.turns.alone():
            return score_prompt(self.backend, self.adapter, token_ids, num_best)

    @property
    def lock(self) -> EngineLock:
        """The engine lock, which must be held while the backend runs a step."""
        return self._loaded.turns.lock

    @property
    def has_chat_template(self) -> bool:
        """Whether the model has a chat template, so that prompts may be messages."""
        return self._loaded.encoder.template is not None

    @property
    def max_prompt_tokens(self) -> int:
        """Length of the longest prompt that leaves room for an answer of one token."""
        return self._decoder.max_prompt_tokens

    @property
    def codec(self) -> TextCodec:
        """The codec that converts text to token ids and back."""
        return self._loaded.encoder.codec

    @property
    def sampling(self) -> dict[str, float]:
        """The sampling options recommended by the model's authors; not applied by default."""
        return dict(self._loaded.encoder.defaults.sampling)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return self._loaded.encoder.defaults.eos_ids

    def end_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the tokens that end an answer: `eos_ids`, plus end-of-turn tokens for messages."""
        return self._loaded.encoder.eos_ids(prompt)

    @property
    def tree(self) -> Trees:
        """The tree, or the table with a tree for each state."""
        return self._decoder.trees

    @property
    def mode(self) -> str:
        """The acceptance mode: "tree" accepts all nodes, "exact" only those that keep the text
        bit-identical to plain decoding. On a backend with exact trees both are the same.
        """
        return self._decoder.mode

    @property
    def adapter(self) -> Adapter:
        """The adapter whose mask tokens and prefix produce the drafts."""
        return self._decoder.adapter

    @property
    def backend(self) -> Backend:
        """The backend that executes the steps. Hold `lock` to run steps of your own."""
        return self._loaded.backend

    @property
    def decoder(self) -> TreeDecoder:
        """The decoder, which works on token ids. Hold `lock` to run its steps."""
        return self._decoder

    @property
    def stats(self) -> Stats:
        """Statistics of all generations since the session was opened or last reset."""
        self._loaded.memory.note(self._loaded.backend.device_bytes)
        return self._decoder.stats

    def record(self, record: Record | None) -> None:
        """Call `record(name, began, ended, rows)` after each phase of a step; None turns it off.

        `began` and `ended` are seconds of `perf_counter`, `rows` are the step's.
        """
        self._decoder.record = record

    def reset_stats(self) -> None:
        """Reset the statistics to zero."""
        self._decoder.stats = Stats(memory=self._loaded.memory)
