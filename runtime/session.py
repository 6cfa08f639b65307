"""The runtime's front door: open an engine, give it a prompt, get text."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bita.adapter import Adapter
from bita.engine import ADAPTER_FILE, TREE_FILE, Engine, open_engine
from bita.errors import EngineError, PromptError, raise_faults
from bita.runtime.ort_backend import OrtBackend
from bita.runtime.stats import Stats
from bita.runtime.stopping import StopRule
from bita.runtime.text import TextCodec
from bita.runtime.tree_decoder import TreeDecoder
from bita.tree import Tree

Message = Mapping[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]


class Generation(Iterator[str]):
    """One answer while it is made: iterate over it for pieces of text.

    token_ids: kept so far, the ending EOS included. finish_reason: None while it runs, then "eos",
    "stop", "length" (max_new_tokens) or "capacity" (the cache is full).
    """

    def __init__(self, decoder: TreeDecoder, prompt_ids: Sequence[int], rule: StopRule) -> None:
        self.num_prompt_tokens = len(prompt_ids)
        self.text = ""
        self.finish_reason: str | None = None
        self._decoder = decoder
        self._prompt_ids: Sequence[int] | None = prompt_ids
        self._rule = rule

    @property
    def token_ids(self) -> list[int]:
        return self._rule.token_ids

    def __next__(self) -> str:
        """Run one step and return the text it added (often empty for half a character)."""
        if self.finish_reason is not None:
            raise StopIteration
        if self._prompt_ids is not None:
            tokens, self._prompt_ids = [self._decoder.prefill(self._prompt_ids)], None
        elif self._decoder.is_full:
            return self._finish("capacity")
        else:
            tokens = self._decoder.advance()
        for count, token in enumerate(tokens, 1):
            self._rule.feed(token)
            if self._rule.finish_reason is not None:
                self._decoder.stats.num_tokens -= len(tokens) - count
                return self._finish(self._rule.finish_reason)
        return self._add(self._rule.take_text())

    def run(self) -> "Generation":
        """Run to the end."""
        for _ in self:
            pass
        return self

    def _finish(self, reason: str) -> str:
        self.finish_reason = reason
        return self._add(self._rule.take_text() + self._rule.close())

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece


class Session:
    """A loaded engine that answers one prompt at a time. Not safe to share between threads.

    Open it with `Session.open`. `stats` are those of all generations since.
    """

    def __init__(self, engine: Engine, codec: TextCodec, decoder: TreeDecoder) -> None:
        self.engine = engine
        self.codec = codec
        self._decoder = decoder
        self._current: Generation | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        tree: Tree | None = None,
        adapter: Adapter | None = None,
        mode: str | None = None,
        min_rows: int | None = None,
        num_threads: int = 0,
        check_hashes: bool = False,
    ) -> "Session":
        """Load the engine at `path`; raises EngineError that lists every fault of it.

        tree, adapter, mode: other than the engine's own; Tree.root_only() decodes plainly (AR).
        min_rows: rows of the smallest step. None: 1 for an engine whose own tree is the root (it
        is its own reference), else 2, which makes AR and tree decoding bit-identical.
        num_threads: 0 for one per physical core. check_hashes: hash the weights before loading.
        """
        engine = open_engine(path, check_hashes)
        codec = TextCodec.open(engine)
        own_tree = read_tree(engine)
        adapter = adapter or Adapter.load(engine.file(ADAPTER_FILE))
        _check_adapter(engine, adapter)
        if min_rows is None:
            min_rows = 1 if own_tree.num_nodes == 1 and tree is None else 2
        backend = OrtBackend(engine, num_threads)
        decoder = TreeDecoder(
            backend, adapter, tree or own_tree, mode or engine.manifest.mode, min_rows
        )
        return cls(engine, codec, decoder)

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
        it. A generation that was started before ends here.
        Raises PromptError for a prompt or an option that is not usable.
        """
        prompt_ids = self.encode(prompt)
        stops = [stop] if isinstance(stop, str) else list(stop)
        eos_ids = () if ignore_eos else self.codec.eos_ids
        rule = StopRule(self.codec, eos_ids, max_new_tokens, stops)
        if self._current is not None and self._current.finish_reason is None:
            self._current.finish_reason = "cancelled"
        self._current = Generation(self._decoder, prompt_ids, rule)
        return self._current

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt, as `generate` would use them."""
        if isinstance(prompt, str):
            return self.codec.encode(prompt, add_special_tokens=True)
        if prompt and all(isinstance(item, Mapping) for item in prompt):
            text = self.codec.render(prompt)  # type: ignore[arg-type]
            return self.codec.encode(text, add_special_tokens=False)
        if all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
            return list(prompt)  # type: ignore[arg-type]
        raise PromptError(
            f"a prompt is text, a list of messages or a list of token ids, not {prompt!r:.80}"
        )

    @property
    def tree(self) -> Tree:
        return self._decoder.tree

    @property
    def stats(self) -> Stats:
        return self._decoder.stats

    def reset_stats(self) -> None:
        """Start counting anew."""
        self._decoder.stats = Stats(self._decoder.tree)


def read_tree(engine: Engine) -> Tree:
    """The tree that an engine was built with."""
    return Tree.from_json(engine.file(TREE_FILE).read_text(encoding="utf-8"))


def _check_adapter(engine: Engine, adapter: Adapter) -> None:
    manifest = engine.manifest
    shape = (manifest.num_layers, manifest.num_kv_heads, adapter.prefix_length, manifest.head_dim)
    faults = []
    if adapter.prefix_keys.shape != shape:
        faults.append(f"prefix has shape {adapter.prefix_keys.shape}, expected {shape}")
    if adapter.mask_embeddings.shape[1] != manifest.hidden_size:
        width = adapter.mask_embeddings.shape[1]
        faults.append(f"mask embeddings are {width} wide, the model is {manifest.hidden_size}")
    raise_faults(EngineError, f"adapter of engine {engine.path}", faults)
