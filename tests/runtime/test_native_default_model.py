"""The default model's logits have the same bits on every ISA, for any rows and threads."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from native_engines import read_text, require_library, run_with

from bita.adapter import Adapter
from bita.dialect_spec import NATIVE
from bita.engine import Engine, open_engine
from bita.engine_adapter import read_adapter
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.runtime.backends.layout import Layout
from bita.runtime.backends.ort_backend import OrtBackend

pytestmark = pytest.mark.model

TEXT = np.random.default_rng(0).integers(100, 40_000, 75)  # more than a chunk of attention
ROWS = np.random.default_rng(1).integers(100, 40_000, 64)  # tokens that may follow it


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The default model in int4, with the blocks of the model's file."""
    require_library()
    from bita.runtime.native.library import loaded_operators, use_isa

    out: Path = tmp_path_factory.mktemp("engine") / "int4"
    options = BuildOptions("int4", capacity=256, dialect=NATIVE.name)
    build_engine(check_build(open_checkpoint("smollm2-135m-instruct"), None, out, options))
    best = loaded_operators().isa
    yield open_engine(out)
    use_isa(best)


def logits_after(backend: OrtBackend, adapter: Adapter, rows: np.ndarray) -> np.ndarray:
    """Return logits [n, V] of a step with the given rows of ROWS as alternatives after the text."""
    count = len(rows)
    layout = Layout(
        np.zeros(count, np.int64), np.full(count, -1), np.eye(count, dtype=bool), np.arange(count)
    )
    return run_with(backend.bind(layout, adapter, with_logits=True), ROWS[rows])


@pytest.mark.thorough
def test_a_row_has_the_same_bits_on_all_isas_in_any_step(engine: Engine) -> None:
    """All steps are compared with a step of all rows in plain C++ on one thread."""
    from bita.runtime.native.library import loaded_operators, use_isa

    adapter, rng = read_adapter(engine), np.random.default_rng(2)
    isas = loaded_operators().isas
    backends = {num_threads: OrtBackend(engine, num_threads) for num_threads in (1, 2, 4)}
    use_isa(isas[-1])
    read_text(backends[1], adapter, TEXT, 75)
    expected = logits_after(backends[1], adapter, np.arange(len(ROWS)))
    assert expected.std() > 1
    for isa in isas:
        use_isa(isa)
        sizes = (1, 2, 5, 16, 64) if isa != isas[-1] else (1, 7)
        for num_threads, backend in backends.items():
            if isa == isas[-1] and num_threads == 4:
                continue  # takes as long as all the others together
            read_text(backend, adapter, TEXT, 20 * num_threads)
            for size in sizes:
                rows = rng.permutation(len(ROWS))[:size]
                np.testing.assert_array_equal(
                    logits_after(backend, adapter, rows),
                    expected[rows],
                    err_msg=f"{isa}, {num_threads} threads, {size} rows",
                )


def test_weights_are_in_huge_pages_where_available(engine: Engine) -> None:
    """The logits are bit-identical to those with mapped weights."""
    from bita.runtime.native.library import loaded_operators, use_isa

    use_isa(loaded_operators().isas[0])
    modes = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    has_huge_pages = modes.is_file() and "[never]" not in modes.read_text()
    adapter, logits = read_adapter(engine), []
    for map_weights in (False, True):
        before = huge_megabytes()
        backend = OrtBackend(engine, map_weights=map_weights)
        read_text(backend, adapter, TEXT, 75)
        logits.append(logits_after(backend, adapter, np.arange(3)))
        in_memory = has_huge_pages and not map_weights
        assert backend.has_weights_in_memory == in_memory
        if in_memory:
            assert huge_megabytes() - before > 50
        del backend
    np.testing.assert_array_equal(logits[0], logits[1])


def huge_megabytes() -> float:
    """Return the huge pages of this process in MB, or 0 if the system does not report them."""
    try:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("AnonHugePages:"))
