"""The runtime's front door: open an engine, give it a prompt, get text."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bita.adapter import Adapter
from bita.engine import ADAPTER_FILE, TREE_FILE, Engine, open_engine
from bita.errors import EngineError, raise_faults
from bita.runtime.backend import Backend, open_backend
from bita.runtime.engine_texts import EngineTexts, Prompt
from bita.runtime.memory import MemoryWatch
from bita.runtime.stats import Stats
from bita.runtime.stopping import StopRule
from bita.runtime.text import IncrementalText
from bita.runtime.tree_decoder import TreeDecoder
from bita.tree_table import Trees, TreeTable, trees_from_json


class Generation(Iterator[str]):
    """One answer while it is made: iterate over it for pieces of text.

    text: so far. finish_reason: None while it runs, then "eos", "stop", "length" (max_new_tokens)
    or "capacity" (the cache is full).
    """

    def __init__(self, decoder: TreeDecoder, prompt_ids: Sequence[int], rule: StopRule) -> None:
        self.prompt_ids = list(prompt_ids)
        self.text = ""
        self.finish_reason: str | None = None
        self._decoder = decoder
        self._rule = rule
        self._text_number: int | None = None

    @property
    def token_ids(self) -> list[int]:
        """The tokens kept so far, an EOS at the end included."""
        return self._rule.token_ids

    def __next__(self) -> str:
        """Run one step and return the text it added ("" while a character is not complete).

        Raises EngineError if another generation was started on the same engine meanwhile.
        """
        if self.finish_reason is not None:
            raise StopIteration
        if self._text_number is None:
            tokens = [self._decoder.prefill(self.prompt_ids)]
            self._text_number = self._decoder.text_number
        elif self._decoder.text_number != self._text_number:
            raise EngineError("this answer ended when another was started on the same engine")
        elif self._decoder.is_full:
            return self._finish("capacity")
        else:
            tokens = self._decoder.advance()
        return self._take(tokens)

    def run(self) -> "Generation":
        """Run to the end."""
        for _ in self:
            pass
        return self

    def _take(self, tokens: Sequence[int]) -> str:
        for count, token in enumerate(tokens, 1):
            self._rule.feed(token)
            if self._rule.finish_reason is not None:
                self._decoder.stats.num_tokens -= len(tokens) - count
                return self._finish(self._rule.finish_reason)
        return self._add(self._rule.take_text())

    def _finish(self, reason: str) -> str:
        self.finish_reason = reason
        return self._add(self._rule.close())

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece


class Session:
    """A loaded engine that answers one prompt at a time. Not to be shared between threads.

    Open it with `Session.open`. least_rows: rows from which on steps give a row the same bits, a
    rule of mode "exact": 1 or 2 on a processor; on a GPU up to the rows of the largest tree.
    """

    def __init__(
        self,
        engine: Engine,
        texts: EngineTexts,
        backend: Backend,
        decoder: TreeDecoder,
        least_rows: int,
    ) -> None:
        self.engine = engine
        self.least_rows = least_rows
        self._texts = texts
        self._backend = backend
        self._decoder = decoder

    @classmethod
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
    ) -> "Session":
        """Load the engine at `path`; raises EngineError that lists every fault of it.

        tree, adapter, mode: other than the engine's own; Tree.root_only() decodes plainly (AR), a
        TreeTable has a tree for each state.
        min_rows: rows of the smallest step. None: `least_rows`, which makes AR and tree decoding
        bit-identical, or 1 for an engine whose own tree is the root (it is its own reference).
        num_threads: 0 for one per physical core. check_hashes: hash the weights before loading.
        backend: what executes the steps, None for what the engine was built for; each runs on
        "ort-cpu" too. cuda_graph: launch decode steps as captured graphs.
        """
        engine = open_engine(path, check_hashes)
        own_tree = read_tree(engine)
        adapter = adapter or Adapter.load(engine.file(ADAPTER_FILE))
        _check_adapter(engine, adapter)
        texts = EngineTexts(engine)
        watch = MemoryWatch()
        loaded = open_backend(engine, backend, num_threads, cuda_graph)
        least_rows = loaded.least_rows(adapter, _sizes(tree or own_tree))
        if min_rows is None:
            min_rows = 1 if own_tree.is_ar and tree is None else least_rows
        tree, mode = tree or own_tree, mode or engine.manifest.mode
        decoder = TreeDecoder(loaded, adapter, tree, mode, min_rows)
        watch.loaded(loaded.device_bytes)
        decoder.stats.memory = watch
        return cls(engine, texts, loaded, decoder, least_rows)

    def using(
        self,
        *,
        tree: Trees | None = None,
        adapter: Adapter | None = None,
        mode: str | None = None,
        min_rows: int | None = None,
    ) -> "Session":
        """Another session on the same loaded weights and cache; what is not given stays.

        min_rows: None for `least_rows`.
        One of the two answers at a time: starting an answer in one ends the other's, and on a GPU
        a tree of another size does.
        """
        mode = mode or self.mode
        adapter = adapter or self._decoder.adapter
        _check_adapter(self.engine, adapter)
        tree, least_rows = tree or self.tree, self.least_rows
        if tree is not self.tree:
            least_rows = max(
                least_rows, self._backend.least_rows(adapter, (least_rows, *_sizes(tree)))
            )
        decoder = TreeDecoder(self._backend, adapter, tree, mode, min_rows or least_rows)
        decoder.stats.memory = self.stats.memory
        return Session(self.engine, self._texts, self._backend, decoder, least_rows)

    def generate(
        self,
        prompt: Prompt,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> Generation:
        """Answer and return the finished generation; arguments as for `stream`."""
        return self.stream(prompt, max_new_tokens, stop, ignore_eos).run()

    def stream(
        self,
        prompt: Prompt,
        max_new_tokens: int = 256,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> Generation:
        """Start an answer, greedily decoded; iterate over the result for its text.

        prompt: text that is continued as it is, messages ({"role", "content"}) that go through the
        model's chat template, or token ids. stop: strings that end the answer and are not part of
        it. Raises PromptError for a prompt or an option that is not usable.
        """
        prompt_ids = self.encode(prompt)
        self._decoder.check_prompt(prompt_ids)
        stops = [stop] if isinstance(stop, str) else stop
        eos_ids = () if ignore_eos else self.eos_ids
        text = IncrementalText(self._texts.codec, continues=isinstance(prompt, str))
        return Generation(self._decoder, prompt_ids, StopRule(text, eos_ids, max_new_tokens, stops))

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, as `generate` would use them."""
        return self._texts.encode(prompt)

    def margin(self, token_ids: Sequence[int]) -> float:
        """How far the best logit behind these tokens is above the second."""
        return self._decoder.margin(token_ids)

    @property
    def has_chat_template(self) -> bool:
        return self._texts.template is not None

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return self._texts.defaults.eos_ids

    @property
    def tree(self) -> Trees:
        """The tree of its steps, or a tree for each state."""
        return self._decoder.trees

    @property
    def mode(self) -> str:
        """Which nodes are accepted: those of the spine ("exact") or all ("tree")."""
        return self._decoder.mode

    @property
    def adapter(self) -> Adapter:
        return self._decoder.adapter

    @property
    def backend(self) -> Backend:
        """What executes the steps; whoever runs its own ends the answer that is being made."""
        return self._backend

    @property
    def stats(self) -> Stats:
        """Figures of all generations since the session was opened or the stats were reset."""
        stats = self._decoder.stats
        stats.memory.note(self._backend.device_bytes)
        return stats

    def reset_stats(self) -> None:
        """Count from zero again."""
        self._decoder.stats = Stats(memory=self.stats.memory)


def read_tree(engine: Engine) -> Trees:
    """The tree, or the trees by state, that an engine decodes with. Raises TreeError."""
    return trees_from_json(engine.file(TREE_FILE).read_text(encoding="utf-8"))


def _sizes(trees: Trees) -> tuple[int, ...]:
    """Rows of AR and of each tree."""
    return (1, *{tree.num_rows for tree in TreeTable.of(trees).trees})


def _check_adapter(engine: Engine, adapter: Adapter) -> None:
    manifest = engine.manifest
    shape = (manifest.num_layers, manifest.num_kv_heads, adapter.prefix_length, manifest.head_dim)
    faults = []
    if adapter.prefix_keys.shape != shape:
        faults.append(f"prefix has shape {adapter.prefix_keys.shape}, expected {shape}")
    if adapter.mask_embeddings.shape[1] != manifest.hidden_size:
        width = adapter.mask_embeddings.shape[1]
        faults.append(f"mask embeddings are {width} wide, the model is {manifest.hidden_size}")
    if adapter.lora_rank and not manifest.lora_rank:
        faults.append(
            f"it has LoRA of rank {adapter.lora_rank}, the engine was built for an adapter "
            "without: build one with ADAPTER=…"
        )
    raise_faults(EngineError, f"adapter of engine {engine.path}", faults)
