"""The tables of pair scores of an engine's own adapter, which are read once."""

import numpy as np
import numpy.typing as npt

from bita.adapter import Adapter
from bita.adapter_faults import MAX_VALUE
from bita.engine import PAIRS_FILE, Engine
from bita.engine_adapter import read_adapter
from bita.errors import EngineError, raise_faults
from bita.pairs import PairTables
from bita.tensor_file import FLOAT_TYPES, read_tensor_file

SIDES = ("left", "right")


class EnginePairs:
    """The tables for adapters with the same pair scores as the engine's own.

    Raises EngineError or AdapterError if a file of the engine is invalid.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tables: PairTables | None = None
        if engine.manifest.pair_rank:
            self._own = read_adapter(engine).pairs
            self._tables = read_tables(engine)

    def tables(self, adapter: Adapter) -> PairTables | None:
        """Return the tables, or None for an adapter without pair scores.

        Raises EngineError if the adapter has different pair scores.
        """
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


def read_tables(engine: Engine) -> PairTables:
    """Read the tables of an engine with pair scores. Raises EngineError if they are invalid."""
    path, manifest = engine.file(PAIRS_FILE), engine.manifest
    tensors = read_tensor_file(path, EngineError, "rebuild the engine").tensors
    shape = (manifest.vocab_size, manifest.pair_rank)
    faults = [f"there is no table {side}" for side in SIDES if side not in tensors]
    for side, tensor in tensors.items():
        if side not in SIDES:
            faults.append(f"{side!r} is not a table of pair scores")
        elif tensor.shape != shape or tensor.dtype not in FLOAT_TYPES:
            faults.append(
                f"{side} is {tensor.dtype} {list(tensor.shape)}, not {list(shape)} of "
                f"{', '.join(FLOAT_TYPES)}"
            )
        elif not _is_within(tensor.array()):
            faults.append(f"{side} has values that are not finite, or beyond {MAX_VALUE:g}")
    raise_faults(EngineError, f"{path} is broken; rebuild the engine", faults)
    return PairTables(*(tensors[side].array() for side in SIDES))


def _is_within(table: npt.NDArray[np.floating]) -> bool:
    """Return whether all values are within MAX_VALUE, so that sums of products fit float32.

    Magnitudes are compared as integers with the same bits, where NaN is the largest: for float16
    this is ten times as fast in numpy.
    """
    bits = table.view(f"u{table.itemsize}")
    magnitudes = bits & np.array(-1, f"i{table.itemsize}").view(bits.dtype) // 2
    limit = np.array(MAX_VALUE, table.dtype).view(bits.dtype)
    return not table.size or bool(magnitudes.max() <= limit)
