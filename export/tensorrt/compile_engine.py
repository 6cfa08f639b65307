"""Compile an engine's graph into a new plan (`bita compile`)."""

from dataclasses import dataclass, replace
from pathlib import Path

from bita.dialect_spec import PLAN_DIALECTS
from bita.engine import (
    GRAPH_FILE,
    PLAN_FILE,
    TREE_FILE,
    WEIGHTS_FILE,
    Engine,
    open_engine,
    revision,
)
from bita.engine_access import writing
from bita.errors import EngineError
from bita.export.tensorrt.build_costs import Costs, check_disk, check_memory, plan_costs
from bita.export.tensorrt.compile_plan import (
    PORTABLE,
    PlanOptions,
    check_targets,
    compile_plan,
    reads,
)
from bita.plan import LIBRARIES, NAMES, RTX
from bita.progress import OnProgress, ignore_progress
from bita.runtime.backends.layout import PREFILL_ROWS, READ_NODES
from bita.runtime.backends.tensorrt_library import load_library
from bita.tree_table import Trees, TreeTable, read_trees

# Rows of a step of plain decoding. Kernels for one row need the weights in another order, so that a
# plan would have them twice: 534 MB instead of 323 MB for the default model in float16
# (TensorRT-RTX 1.7.1).
AR_ROWS = 2


@dataclass(frozen=True)
class CompileOptions:
    """The options of a compilation."""

    backend: str  # "tensorrt" or "tensorrt-rtx"
    # GPU generations such as "sm86"; None: `PORTABLE`, or with TensorRT the GPU of this machine,
    # which is the only one it builds for
    targets: tuple[str, ...] | None = None
    # Q of each size of a decode step; None: the sizes of the engine's trees and of AR
    rows: tuple[int, ...] | None = None
    force: bool = False  # build even if memory or disk seem too small

    @property
    def library(self) -> str:
        return LIBRARIES[self.backend]

    def check(self) -> None:
        """Raise EngineError if the library is missing or does not know a target."""
        if self.backend not in LIBRARIES:
            known = ", ".join(LIBRARIES)
            raise EngineError(f"backend {self.backend!r} has no plans; use one of {known}")
        load_library(self.library)
        check_targets(self.library, self.targets_here())

    def targets_here(self) -> tuple[str, ...]:
        """Return the targets that are built for.

        Raises EngineError if TensorRT has no GPU to build on, or not the requested one.
        """
        if self.library == RTX:
            return self.targets or PORTABLE
        from bita.runtime.backends.cuda import Cuda

        here = Cuda.load().capability
        if self.targets not in (None, (here,)):
            raise EngineError(
                f"TensorRT builds only for the GPU it runs on, which is {here}, not for "
                f"{', '.join(self.targets or ())}; build on such a GPU, or use BACKEND=tensorrt-rtx"
            )
        return (here,)

    def check_dialect(self, dialect: str) -> None:
        """Raise EngineError if the library cannot read graphs of a dialect."""
        if dialect not in PLAN_DIALECTS:
            raise EngineError(
                f"a graph of dialect {dialect} is for ONNX Runtime; build one with --dialect "
                f"{self.default_dialect()}"
            )
        if not reads(self.library, dialect):
            version = load_library(self.library).__version__
            raise EngineError(
                f"TensorRT {version} does not read the operators of dialect {dialect}; build a "
                f"graph with --dialect {self.default_dialect()}"
            )

    def default_dialect(self) -> str:
        """Return the newest dialect that the library reads.

        Raises EngineError if the library is missing.
        """
        return next(dialect for dialect in PLAN_DIALECTS if reads(self.library, dialect))


def compile_engine(
    engine: Engine,
    options: CompileOptions,
    on_progress: OnProgress = ignore_progress,
) -> Engine:
    """Add a plan to an engine, or replace it; the engine is unchanged if anything fails.

    Raises:
        EngineError: if the plan cannot be built.
    """
    options.check()
    plan_options = _plan_options(engine, options)
    weight_bytes = engine.files[WEIGHTS_FILE]["bytes"]
    costs = plan_costs(weight_bytes, options.library, plan_options.decode_rows)
    if not options.force:
        check_costs(costs, options, engine.path)

    def report(phase: str, done: int, total: int) -> None:
        on_progress(f"{phase}, {costs}", done, total)

    with writing(engine.path):
        with revision(engine, exclude=(PLAN_FILE,)) as draft:
            plan = draft.path / PLAN_FILE
            info = compile_plan(engine.file(GRAPH_FILE), plan, plan_options, report)
            draft.manifest = replace(
                engine.manifest, backend=options.backend, plan=info.to_manifest()
            )
        return open_engine(engine.path)


def check_costs(costs: Costs, options: CompileOptions, out: Path, other_bytes: int = 0) -> None:
    """Raise EngineError if memory or disk are too small for a plan.

    Args:
        costs: The costs of the plan.
        options: The options of the compilation.
        out: The engine directory.
        other_bytes: Bytes of other files that are written to `out` before the plan.
    """
    fix = "free some, or build elsewhere; --force builds anyway"
    check_memory(costs.memory, f"building a plan with {NAMES[options.library]}", fix)
    check_disk(out, costs.disk + other_bytes)


def decode_rows(trees: Trees) -> tuple[int, ...]:
    """Return the sizes of a decode step with these trees: AR's and each tree's."""
    sizes = {max(tree.num_rows, AR_ROWS) for tree in TreeTable.of(trees).trees}
    return tuple(sorted({AR_ROWS, *sizes}))


def _plan_options(engine: Engine, options: CompileOptions) -> PlanOptions:
    manifest = engine.manifest
    options.check_dialect(manifest.dialect)
    trees = read_trees(engine.file(TREE_FILE), "rebuild the engine")
    rows = tuple(sorted(set(options.rows or decode_rows(trees))))
    room = manifest.capacity - manifest.prefix_length
    if rows[-1] > room:
        raise EngineError(
            f"a step of {rows[-1]} rows has no room in a cache of {manifest.capacity} slots, "
            f"{manifest.prefix_length} of them for the prefix; give --rows of at most {room}"
        )
    return PlanOptions(
        options.library,
        manifest.capacity,
        rows,
        PREFILL_ROWS + manifest.num_masks,
        max(READ_NODES * (1 + manifest.num_masks), rows[-1]),
        manifest.num_masks,
        manifest.lora_rank,
        options.targets_here(),
    )
