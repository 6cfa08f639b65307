"""Tests that need a GPU; everything else of its backends is tested on emulations."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from cpp_programs import answer_tool
from make_tiny_engine import CONFIG, write_plain_model

from bita.adapter import random_adapter
from bita.calibration.verify import verify
from bita.engine import open_engine
from bita.errors import EngineError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.export.tensorrt.compile_engine import CompileOptions, compile_engine
from bita.identity import identify
from bita.plan import LIBRARIES
from bita.runtime.backends.cuda import Cuda
from bita.runtime.backends.layout import tree_layout
from bita.runtime.session import Session
from bita.tree import Tree

pytestmark = pytest.mark.gpu
TREE = Tree.from_paths([(1,), (1, 1), (1, 1, 1), (2,), (1, 2), (2, 1)], num_masks=3)
WIDE = {**CONFIG, "hidden_size": 64, "intermediate_size": 128}
PROMPT = [3 + number % 200 for number in range(280)]
BACKENDS = ("ort-cuda", "tensorrt-rtx", "tensorrt")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    try:
        cuda = Cuda.load()
    except EngineError as error:
        pytest.skip(str(error))
    if name == "ort-cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    if name in LIBRARIES and not find_spec(LIBRARIES[name]):
        pytest.skip(f"needs {LIBRARIES[name]}")
    if name == "tensorrt-rtx" and cuda.capability not in ("sm86", "sm89", "sm120"):
        pytest.skip(f"TensorRT-RTX does not support {cuda.capability}")
    return name


def build(backend: str, precision: str, out: Path) -> Path:
    checkpoint = open_checkpoint(str(write_plain_model(out.with_suffix(".model"), config=WIDE)))
    adapter = random_adapter(identify(checkpoint), 3, 5, scale=0.4)
    compile_options = CompileOptions(backend, rows=(2, 8, 32)) if backend in LIBRARIES else None
    options = BuildOptions(
        precision,
        capacity=450,
        tree=TREE,
        backend="ort-cpu" if compile_options else backend,
        dialect=compile_options.default_dialect() if compile_options else "cuda",
    )
    build_engine(check_build(checkpoint, adapter, out, options))
    if compile_options:
        compile_engine(open_engine(out), compile_options)
    return out


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_trees_give_the_same_text_as_plain_decoding(
    backend: str, precision: str, tmp_path: Path
) -> None:
    session = Session.open(build(backend, precision, tmp_path / "engine"))
    for comparison in verify(session, [PROMPT, [5]], 60):
        assert not comparison.forbidden


def test_logits_equal_those_of_the_cpu(backend: str, tmp_path: Path) -> None:
    path = build(backend, "fp32", tmp_path / "engine")
    found = []
    for name in (backend, "ort-cpu"):
        session = Session.open(path, backend=name)
        session.generate(PROMPT, 1)
        step = session.backend.bind(tree_layout(TREE, 2), session.adapter, with_logits=True)
        step.token_ids[0, : TREE.num_nodes] = np.arange(5, 5 + TREE.num_nodes)
        step.run()
        assert step.logits is not None
        found.append(step.logits[: TREE.num_rows].copy())
    np.testing.assert_allclose(found[0], found[1], atol=2e-3, rtol=0)


def test_captured_graphs_give_the_same_text(backend: str, tmp_path: Path) -> None:
    path = build(backend, "fp16", tmp_path / "engine")
    texts = [
        Session.open(path, cuda_graph=cuda_graph).generate(PROMPT, 100, ignore_eos=True).token_ids
        for cuda_graph in (True, False)
    ]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_libbita_gives_the_same_text_as_python(
    backend: str, precision: str, tmp_path: Path
) -> None:
    """Greedy and sampled, with and without captured graphs, in alternating sessions."""
    if backend != "ort-cuda":
        pytest.skip("libbita does not run TensorRT plans")
    path = build(backend, precision, tmp_path / "engine")
    session = Session.open(path)
    for cuda_graphs in (0, 1):
        with answer_tool(path, {"cuda_graphs": cuda_graphs, "token_ids_only": True}) as tool:
            for temperature in (0.0, 0.8):
                options: dict[str, Any] = {"temperature": temperature, "seed": 3}
                for name, ids in (("a", PROMPT), ("b", [5]), ("a", PROMPT)):
                    given = {**options, "max_new_tokens": 60, "ignore_eos": True}
                    found = tool.answer(session=name, token_ids=ids, options=given)
                    wanted = session.generate(ids, 60, ignore_eos=True, **options)
                    assert found["token_ids"] == wanted.token_ids
            assert found["stats"]["peak_device_bytes"] > 0
