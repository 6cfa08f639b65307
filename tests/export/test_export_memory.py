"""An export keeps one piece of a tensor in memory, never a whole embedding table."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from make_tiny_engine import CONFIG
from speed import thorough_but
from tiny_models import write_tokenizer

from bita.export.architecture import read_architecture
from bita.export.dialects.decoder import expected_shapes

VOCAB_SIZE = 1_000_000  # with 64 columns, a table of 256 MB in float32
PROGRAM = """
import resource, sys
from pathlib import Path
from bita.adapter import untuned_adapter
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
import onnx_ir, tokenizers
resting = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
options = BuildOptions(precision=sys.argv[3], capacity=64)
build_engine(check_build(open_checkpoint(sys.argv[1]), None, Path(sys.argv[2]), options))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resting) // 1024)
"""


def write_sparse_model(directory: Path) -> Path:
    """Write a checkpoint of zeros as a sparse file, which takes no disk space."""
    config = {**CONFIG, "hidden_size": 64, "vocab_size": VOCAB_SIZE}
    shapes = expected_shapes(read_architecture(config, 1))
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    directory.mkdir()
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + offset)
    (directory / "config.json").write_text(json.dumps(config))
    write_tokenizer(directory)
    return directory


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kB on Linux")
@pytest.mark.parametrize("precision", thorough_but(["fp32", "fp16", "int8", "int4"], "int4"))
def test_peak_memory_is_far_below_the_largest_tensor(tmp_path: Path, precision: str) -> None:
    model = write_sparse_model(tmp_path / "model")
    command = [sys.executable, "-c", PROGRAM, str(model), str(tmp_path / "engine"), precision]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak_mb = int(result.stdout)
    assert peak_mb < 120  # the table alone has 244 MB


@pytest.mark.slow
def test_the_measurement_detects_memory() -> None:
    """The test above would prove nothing if ru_maxrss did not rise for a large array."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.ones(before * 1024 // 8 + (40 << 20), np.float64).sum()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > before
