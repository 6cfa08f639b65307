"""Complete a checked build: put the engine in its place, with its plan."""

import shutil
from dataclasses import replace

from bita.engine import Engine, Manifest, move_engine, open_engine
from bita.engine_access import writing
from bita.export.build import CheckedBuild, build_engine
from bita.export.dialects.step_graph import NOTHING_SEEN, Seen
from bita.export.tensorrt.compile_engine import compile_engine
from bita.progress import OnProgress, ignore_progress


def build_in_steps(
    build: CheckedBuild, on_progress: OnProgress, seen: Seen = NOTHING_SEEN
) -> Manifest:
    """Run `build_engine`, and report its progress in MiB of weights."""
    stage, written = f"exporting {build.options.precision}", 0

    def add(num_bytes: int) -> None:
        nonlocal written
        written += num_bytes
        on_progress(stage, written >> 20, max(build.num_bytes >> 20, 1))

    return build_engine(build, on_write=add, seen=seen)


def build_uncalibrated(build: CheckedBuild, on_progress: OnProgress = ignore_progress) -> Engine:
    """Write the engine `build.out`, with its plan but without calibration.

    Raises:
        ModelError, EngineError: if the engine cannot be written.
    """
    with writing(build.out) as place:
        folder = place.own()
        try:
            graph = replace(build, out=folder / "engine")
            build_in_steps(graph, on_progress)
            return finish_engine(open_engine(graph.out), build, on_progress)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def finish_engine(
    engine: Engine,
    build: CheckedBuild,
    on_progress: OnProgress = ignore_progress,
) -> Engine:
    """Compile a built engine, if the build has a plan, and move it to `build.out`.

    If anything fails, an older engine at `build.out` stays unchanged.

    Raises:
        EngineError: if the plan cannot be built, or the engine cannot be moved.
    """
    if build.compile_options:
        engine = compile_engine(engine, build.compile_options, on_progress)
    return move_engine(engine, build.out)
