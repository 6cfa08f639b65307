"""An engine of the base that generates the data of a run on a CPU, with several texts per step."""

from pathlib import Path

from bita.dialect_spec import NATIVE
from bita.engine import open_engine
from bita.engine_adapter import read_adapter
from bita.errors import EngineError
from bita.export.block_source import block_type
from bita.export.build import BuildOptions, check_build
from bita.export.checkpoint import Checkpoint
from bita.export.finished_build import build_uncalibrated
from bita.identity import identify
from bita.progress import OnProgress
from bita.tree import Tree

DATA_ENGINE = "engine"  # directory inside the run's directory, and the generator's name


def build_data_engine(checkpoint: Checkpoint, directory: Path, on_progress: OnProgress) -> Path:
    """Return the engine in a run's directory; build it if there is none of this model.

    Its weights are the checkpoint's 4-bit blocks, bit for bit, if it has these. Otherwise they have
    8 bits, which need no calibration. Raises ModelError or EngineError.
    """
    out = directory / DATA_ENGINE
    identity = identify(checkpoint)
    try:
        if not read_adapter(open_engine(out)).identity.differences(identity):
            return out
    except EngineError:  # missing or incomplete
        pass
    stored = block_type(checkpoint, "model.layers.0.self_attn.q_proj.weight")
    precision = "int4" if stored is not None and stored.bits == 4 else "int8"
    options = BuildOptions(precision=precision, tree=Tree.root_only(), dialect=NATIVE.name)
    build_uncalibrated(check_build(checkpoint, None, out, options), on_progress)
    return out
