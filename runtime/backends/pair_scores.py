"""The pair scores of an engine's own adapter, read once."""

import numpy as np
from safetensors.numpy import load_file

from bita.adapter import Adapter
from bita.engine import ADAPTER_FILE, PAIRS_FILE, Engine
from bita.errors import EngineError
from bita.pairs import PairTables


class EnginePairs:
    """Tables for adapters with the pair scores that the engine was built with."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tables: PairTables | None = None
        if engine.manifest.pair_rank:
            self._own = Adapter.load(engine.file(ADAPTER_FILE)).pairs
            self._tables = PairTables(**load_file(engine.file(PAIRS_FILE)))

    def tables(self, adapter: Adapter) -> PairTables | None:
        """None for an adapter without pair scores. Raises EngineError for others than ours."""
        if not adapter.pairs:
            return None
        if self._tables is None or any(
            not np.array_equal(self._own[name], array) for name, array in adapter.pairs.items()
        ):
            raise EngineError(
                f"the adapter has other pair scores than engine {self._engine.path}: build an "
                "engine with it (ADAPTER=…)"
            )
        return self._tables
