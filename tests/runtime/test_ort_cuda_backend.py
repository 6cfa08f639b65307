"""The CUDA provider's backend, run on the CPU provider with emulated memory and streams."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from host_cuda import load_host_cuda
from make_tiny_engine import CONFIG, write_plain_model

from bita.adapter import Adapter, random_adapter
from bita.engine import ADAPTER_FILE, Engine, open_engine
from bita.errors import EngineError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.dialects.step_graph import Seen
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.runtime.backends.ort_cuda_backend import NOT_CAPTURED, OrtCudaBackend, provider_options
from bita.runtime.decoding.tree_decoder import TreeDecoder
from bita.runtime.session import Session
from bita.tree import Tree

TREE = Tree.from_paths([(1,), (1, 1), (2,), (1, 2), (2, 1)], num_masks=3)
LAYERS = {
    **dict.fromkeys(("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj"), 64),
    "mlp.down_proj": 128,
}
WIDE = {**CONFIG, "hidden_size": 64, "intermediate_size": 128}


class OnHost(OrtCudaBackend):
    provider, device_type = "CPUExecutionProvider", "cpu"


def write_engine(path: Path, precision: str, tree: Tree = TREE) -> Engine:
    checkpoint = open_checkpoint(str(write_plain_model(path.with_suffix(".model"), config=WIDE)))
    adapter = random_adapter(identify(checkpoint), 3, 5, scale=0.4)
    options = BuildOptions(precision, "tree", 450, tree, backend="ort-cuda", dialect="cuda")
    ranges = {
        f"model.layers.{index}.{layer}": np.full(width, 4, np.float32)
        for index in range(2)
        for layer, width in LAYERS.items()
    }
    seen = Seen(ranges={**ranges, "lm_head": np.full(64, 4, np.float32)})
    build_engine(check_build(checkpoint, adapter, path, options), seen=seen)
    return open_engine(path)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4", "int8", "fp8"])
def test_the_text_equals_that_of_the_cpu(tmp_path: Path, precision: str) -> None:
    engine = write_engine(tmp_path / "engine", precision)
    prompt = [3 + number % 200 for number in range(280)]
    cpu = Session.open(engine.path, backend="ort-cpu")
    expected = cpu.generate(prompt, 60, ignore_eos=True).token_ids
    adapter = Adapter.load(engine.file(ADAPTER_FILE))
    for cuda_graph in (True, False):
        backend = OnHost(engine, cuda_graph, load_host_cuda())
        decoder = TreeDecoder(backend, adapter, TREE, "tree", 2)
        text, found = decoder.begin(prompt), list[int]()
        while len(found) < 60:
            found += decoder.step(text)
        assert found[:60] == expected
        assert backend.device_bytes >= 2 * 4 * 2 * 16 * 450


def test_the_prefix_fills_the_slots_of_every_head(tmp_path: Path) -> None:
    """A prefix with as many slots as heads would hide a mix-up of the two axes."""
    engine = write_engine(tmp_path / "engine", "fp16")
    adapter = Adapter.load(engine.file(ADAPTER_FILE))
    _, heads, length, _ = adapter.prefix_keys.shape
    assert heads != length
    cache = OnHost(engine, False, load_host_cuda()).cache
    cache.start(adapter)
    cache.length = 3
    found = cache.read(-length, 3)
    sides = adapter.prefix_keys, adapter.prefix_values
    for side, expected in enumerate(sides):
        np.testing.assert_array_equal(found[side::2, :, :length], expected.astype(np.float16))
    assert not found[:, :, length:].any()


def test_each_captured_graph_has_its_own_number(tmp_path: Path) -> None:
    backend = OnHost(write_engine(tmp_path / "engine", "fp32"), True, load_host_cuda())
    numbers = [
        backend.run_options(captures).get_run_config_entry("gpu_graph_id")
        for captures in (True, False, True)
    ]
    assert numbers == ["0", NOT_CAPTURED, "1"]


def test_provider_options_disable_tf32_and_name_the_stream() -> None:
    assert provider_options(1, 77, False) == {
        "device_id": "1",
        "user_compute_stream": "77",
        "use_tf32": "0",
    }
    assert provider_options(0, 77, True)["enable_cuda_graph"] == "1"


def test_a_missing_provider_is_reported_with_the_fix(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    engine = write_engine(tmp_path / "engine", "fp32")
    with pytest.raises(EngineError, match=r"CUDA provider, which .* pip install onnxruntime-gpu"):
        Session.open(engine.path)
