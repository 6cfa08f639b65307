"""An engine in memory: what the sessions on it share."""

from dataclasses import dataclass, field

from bita.adapter import Adapter
from bita.engine import TREE_FILE, Engine
from bita.runtime.backends.backend import Backend
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.decoding.memory import MemoryWatch
from bita.runtime.decoding.places import Place, Places
from bita.runtime.decoding.shared_cache import SharedCache
from bita.runtime.decoding.tree_decoder import TreeDecoder
from bita.runtime.spare_memory import give_back
from bita.runtime.text.grammar import GrammarCompiler
from bita.runtime.text.prompt_encoder import PromptEncoder
from bita.runtime.turns import Turns
from bita.tree_table import Trees, read_trees


@dataclass(frozen=True, eq=False)
class LoadedEngine:
    """An engine's files, the backend that loaded them, and what sessions share steps by."""

    engine: Engine
    encoder: PromptEncoder  # tokenizer, chat template, and how answers end
    grammars: GrammarCompiler
    backend: Backend
    shared_cache: SharedCache
    places: Places | None  # of texts that are decoded together; None where they cannot be
    turns: Turns
    keep_answers: bool  # whether cached rows of finished answers are worth keeping
    memory: MemoryWatch = field(default_factory=MemoryWatch)

    def decoder(self, adapter: Adapter, trees: Trees, mode: str, min_rows: int) -> TreeDecoder:
        """One for its texts. Raises TreeError if a tree does not fit."""
        shared = self.shared_cache, self.places
        return TreeDecoder(self.backend, adapter, trees, mode, min_rows, *shared)

    @classmethod
    def of(
        cls,
        engine: Engine,
        encoder: PromptEncoder,
        backend: Backend,
        kept_text_bytes: int,
        keep_answers: bool,
    ) -> "LoadedEngine":
        """kept_text_bytes: of host memory, for rows of texts that had to leave the cache; the
        backend was opened with the same number.
        """
        vocab_size, eos_ids = engine.manifest.vocab_size, encoder.defaults.chat_eos_ids
        grammars = GrammarCompiler(encoder.codec.tokenizer, vocab_size, eos_ids)
        shared_cache, places = _caches(backend, kept_text_bytes)
        turns = Turns(backend, shared_cache, places)
        give_back()
        return cls(engine, encoder, grammars, backend, shared_cache, places, turns, keep_answers)


def read_tree(engine: Engine) -> Trees:
    """The tree, or the trees by state, that an engine decodes with. Raises TreeError."""
    return read_trees(engine.file(TREE_FILE), "rebuild the engine")


def _caches(backend: Backend, kept_text_bytes: int) -> tuple[SharedCache, Places | None]:
    """What the backend's own steps use, and the places of texts that share steps, if they can."""
    if not isinstance(backend.cache, PagedCache):
        return SharedCache(backend.cache, kept_text_bytes), None
    main = Place(backend.cache, kept_text_bytes)
    return main, Places(main)
