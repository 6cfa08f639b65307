"""An engine in memory: what the sessions on it share."""

from dataclasses import dataclass, field
from threading import RLock

from bita.engine import Engine
from bita.runtime.backends.backend import Backend
from bita.runtime.decoding.memory import MemoryWatch
from bita.runtime.decoding.shared_cache import SharedCache
from bita.runtime.spare_memory import give_back
from bita.runtime.text.grammar import GrammarCompiler
from bita.runtime.text.prompt_encoder import PromptEncoder


@dataclass(frozen=True, eq=False)
class LoadedEngine:
    """An engine's files, the backend that loaded them, and what sessions take turns with."""

    engine: Engine
    encoder: PromptEncoder  # tokenizer, chat template, and how answers end
    grammars: GrammarCompiler
    backend: Backend
    shared_cache: SharedCache
    keep_answers: bool  # whether cached rows of finished answers are worth keeping
    memory: MemoryWatch = field(default_factory=MemoryWatch)
    lock: RLock = field(default_factory=RLock)  # held by whoever runs steps of the backend

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
        shared_cache = SharedCache(backend.cache, kept_text_bytes)
        give_back()
        return cls(engine, encoder, grammars, backend, shared_cache, keep_answers)
