"""An engine in memory: everything that its sessions share."""

from dataclasses import dataclass, field

from bita.adapter import Adapter
from bita.engine import TREE_FILE, Engine
from bita.runtime.backends.backend import Backend, open_backend, weights_read_ahead
from bita.runtime.backends.paged_cache import PagedCache
from bita.runtime.decoding.memory import MemoryWatch
from bita.runtime.decoding.places import Place, Places
from bita.runtime.decoding.shared_cache import SharedCache
from bita.runtime.decoding.tree_decoder import TreeDecoder
from bita.runtime.spare_memory import give_back
from bita.runtime.text.grammar import GrammarCompiler
from bita.runtime.text.prompt_encoder import PromptEncoder, has_large_tokenizer
from bita.runtime.turns import Turns
from bita.tree_table import Trees, read_trees


@dataclass(frozen=True, eq=False)
class LoadedEngine:
    """An engine's files, the backend that loaded them, and the state that sessions share."""

    engine: Engine
    encoder: PromptEncoder  # tokenizer, chat template, and the tokens that end an answer
    grammars: GrammarCompiler
    backend: Backend
    shared_cache: SharedCache
    places: Places | None  # places of texts decoded together; None if the backend cannot do that
    turns: Turns
    keep_answers: bool  # whether to keep cached rows of finished answers
    memory: MemoryWatch = field(default_factory=MemoryWatch)

    def decoder(self, adapter: Adapter, trees: Trees, mode: str, min_rows: int) -> TreeDecoder:
        """Return a decoder for this engine. Raises TreeError if a tree does not fit."""
        shared = self.shared_cache, self.places
        return TreeDecoder(self.backend, adapter, trees, mode, min_rows, *shared)

    @classmethod
    def of(
        cls,
        engine: Engine,
        backend: str | None,
        num_threads: int,
        cuda_graph: bool,
        kept_text_bytes: int,
        keep_answers: bool,
        map_weights: bool,
    ) -> "LoadedEngine":
        """Load an engine; `Session.open` describes the parameters."""
        with weights_read_ahead(engine, map_weights or has_large_tokenizer(engine)):
            encoder = PromptEncoder.of_engine(engine)
            opened = open_backend(
                engine, backend, num_threads, cuda_graph, kept_text_bytes, map_weights
            )
        vocab_size, eos_ids = engine.manifest.vocab_size, encoder.defaults.chat_eos_ids
        grammars = GrammarCompiler(encoder.codec.tokenizer, vocab_size, eos_ids)
        shared_cache, places = _caches(opened, kept_text_bytes)
        turns = Turns(opened, shared_cache, places)
        give_back()
        return cls(engine, encoder, grammars, opened, shared_cache, places, turns, keep_answers)


def read_tree(engine: Engine) -> Trees:
    """Return an engine's tree, or its table of trees by state. Raises TreeError."""
    return read_trees(engine.file(TREE_FILE), "rebuild the engine")


def _caches(backend: Backend, kept_text_bytes: int) -> tuple[SharedCache, Places | None]:
    """Return the backend's cache, and the places for texts that share steps if it has pages."""
    if not isinstance(backend.cache, PagedCache):
        return SharedCache(backend.cache, kept_text_bytes), None
    main = Place(backend.cache, kept_text_bytes)
    return main, Places(main)
