"""The TensorRT backend on emulations of CUDA and TensorRT that run the graph on the host."""

import gc
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import host_tensorrt
import numpy as np
import pytest
from host_cuda import host_cuda, host_cuda_library, load_host_cuda
from host_tensorrt import write_plan
from make_tiny_engine import CONFIG, write_plain_model

from bita.adapter import Adapter, random_adapter
from bita.calibration.acceptance import measure_acceptance
from bita.calibration.latency import measure_latency
from bita.calibration.verify import verify
from bita.engine import (
    GRAPH_FILE,
    MANIFEST_FILE,
    PLAN_FILE,
    Engine,
    new_engine,
    open_engine,
    take_over,
)
from bita.errors import EngineError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.export.tensorrt.compile_engine import decode_rows
from bita.export.tensorrt.compile_plan import PlanOptions
from bita.identity import identify
from bita.lora import site_sizes, starting_lora
from bita.plan import PlanInfo
from bita.runtime.backends.cuda import Cuda
from bita.runtime.backends.device_step import DeviceStep
from bita.runtime.backends.layout import PREFILL_ROWS, prefill_layout, tree_layout
from bita.runtime.backends.tensorrt_backend import TensorRtBackend, fit_layout
from bita.runtime.session import Prompt, Session
from bita.tree import Tree
from bita.tree_table import TreeTable

CAPACITY = 480
BRANCHED = Tree.from_paths([(1,), (1, 1), (1, 1, 1), (2,), (1, 2), (2, 1)], num_masks=3)
TABLE = TreeTable((Tree.chain(3, 3), Tree.chain(5, 1).with_guesses(1)), (0, 1), ((0, 1),))
PROMPT = "The quick brown fox jumps over the lazy dog. The quick brown"
LONG = [3 + number % 200 for number in range(300)]  # more than one piece of a prefill


@pytest.fixture(autouse=True)
def host_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use the emulated libraries, and keep compiled kernels in a temporary folder."""
    library = host_cuda_library()
    host_cuda().host_cuda_reset()
    monkeypatch.setitem(sys.modules, "tensorrt", host_tensorrt)
    monkeypatch.setattr("bita.runtime.backends.cuda.library_candidates", lambda: [library])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def write_engine(path: Path, dialect: str, precision: str, tree: Any, lora: bool) -> Engine:
    """Write an engine with a plan that the emulation can run."""
    checkpoint = open_checkpoint(str(write_plain_model(path.with_suffix(".model"), config=CONFIG)))
    identity = identify(checkpoint)
    extra = starting_lora(site_sizes(checkpoint), identity.num_layers, 3, seed=0) if lora else None
    adapter = random_adapter(identity, 3, 5, scale=0.4, lora_like=extra)
    options = BuildOptions(precision, "exact", CAPACITY, tree, dialect=dialect)
    build_engine(check_build(checkpoint, adapter, path, options))
    return compile_for_host(open_engine(path), decode_rows(tree))


def compile_for_host(engine: Engine, rows: tuple[int, ...]) -> Engine:
    """Compile an engine for the emulation, as `compile_engine` does for a GPU."""
    manifest = engine.manifest
    most = PREFILL_ROWS + manifest.num_masks
    outputs = max(32, rows[-1])
    sizes = PlanOptions(
        "tensorrt", CAPACITY, rows, most, outputs, manifest.num_masks, manifest.lora_rank
    )
    info = PlanInfo("tensorrt", "10.3.0", ("sm89",), rows, most, outputs)
    with new_engine(engine.path) as draft:
        take_over(engine, draft, exclude=(PLAN_FILE,))
        write_plan(draft.path / PLAN_FILE, engine.file(GRAPH_FILE), sizes.profiles())
        draft.manifest = replace(manifest, backend="tensorrt", plan=info.to_manifest())
    return open_engine(engine.path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return write_engine(folder / "standard", "standard", "fp32", BRANCHED, False)


@pytest.mark.parametrize("dialect", ["standard", "plain"])
@pytest.mark.parametrize("tree", [BRANCHED, TABLE], ids=["branched", "table"])
def test_the_text_equals_that_of_the_cpu(folder: Path, dialect: str, tree: Any) -> None:
    """Covers branches, LoRA, float16 caches, two sizes of the visible cache, and long prompts."""
    path = folder / f"{dialect}-{type(tree).__name__}"
    write_engine(path, dialect, "fp16", tree, lora=True)
    found = {}
    for name in ("tensorrt", "ort-cpu"):
        session = Session.open(path, mode="tree", backend=name)
        texts = [
            session.generate(prompt, 40, ignore_eos=True).token_ids
            for prompt in (PROMPT, LONG, [7, 8, 9], [5])
        ]
        found[name] = texts, session.stats.num_accepted
    assert found["tensorrt"] == found["ort-cpu"]


@pytest.mark.parametrize("dialect", ["standard", "plain"])
def test_sampled_and_alternating_texts_equal_those_of_the_cpu(folder: Path, dialect: str) -> None:
    """Logits are copied from the GPU; keys and values go to host memory and back."""
    path = folder / f"{dialect}-sampled"
    write_engine(path, dialect, "fp16", TABLE, lora=False)
    prompts: tuple[Prompt, ...] = (PROMPT, LONG, [*LONG[:60], 9])
    found = {}
    for name in ("tensorrt", "ort-cpu"):
        session = Session.open(path, mode="tree", backend=name)
        streams = [
            session.stream(prompt, 30, temperature=0.8, top_p=0.9, seed=5, ignore_eos=True)
            for prompt in prompts
        ]
        while running := [each for each in streams if each.finish_reason is None]:
            for stream in running:
                next(stream)
        found[name] = [stream.token_ids for stream in streams]
        assert session.decoder.shared_cache.store.num_bytes > 0
    assert found["tensorrt"] == found["ort-cpu"]
    for prompt, tokens in zip(prompts, found["ort-cpu"], strict=True):
        session.forget()
        alone = session.using(tree=Tree.root_only()).generate(
            prompt, 30, temperature=0.8, top_p=0.9, seed=5, ignore_eos=True
        )
        assert alone.token_ids == tokens


def test_captured_graphs_change_only_the_launches(engine: Engine) -> None:
    answers, launches = [], []
    for cuda_graph in (True, False):
        before = host_cuda().host_cuda_num_launches()
        session = Session.open(engine.path, cuda_graph=cuda_graph)
        answers.append(session.generate(PROMPT, 60, ignore_eos=True).token_ids)
        launches.append(host_cuda().host_cuda_num_launches() - before)
    assert answers[0] == answers[1]
    # the first step runs kernel by kernel, the second captures and launches
    assert launches == [session.stats.num_steps - 1, 0]


def test_verify_passes_with_any_adapter(engine: Engine) -> None:
    session = Session.open(engine.path)
    for comparison in verify(session, [PROMPT, LONG], 24):
        assert comparison.num_identical == 2


def test_memory_is_counted_and_released(engine: Engine) -> None:
    cuda = host_cuda()
    gc.collect()
    before = cuda.host_cuda_num_live()
    session = Session.open(engine.path)
    session.generate(PROMPT, 10)
    memory = session.stats.memory
    shape = engine.manifest.cache_shape
    assert memory.at_load.gpu >= 4 * np.prod(shape)
    assert memory.decoding.gpu >= memory.at_load.gpu
    assert memory.decoding.host > 10e6
    del session
    assert cuda.host_cuda_num_live() == before


def test_buffers_do_not_move(engine: Engine) -> None:
    """Captured graphs contain addresses."""
    session = Session.open(engine.path)
    session.generate(PROMPT, 5)
    backend: Any = session.backend
    step = session.decoder.steps[0]
    assert isinstance(step, DeviceStep)
    before = [array.address for array in {**step.inputs(256), **step.outputs()}.values()]
    session.generate(LONG, 30)
    assert [a.address for a in {**step.inputs(256), **step.outputs()}.values()] == before
    assert all(address % 256 == 0 for address in before)
    assert backend.cache.layer(0)[0].address == before[[*step.inputs(256)].index("past.0.key")]


def test_logits_are_returned_on_request(engine: Engine) -> None:
    adapter = Adapter.load(engine.file("adapter.safetensors"))
    found = {}
    for name in ("tensorrt", "ort-cpu"):
        backend = Session.open(engine.path, backend=name).backend
        backend.cache.start(adapter)
        step = backend.bind(tree_layout(BRANCHED, 1), adapter, with_logits=True)
        step.token_ids[0, : BRANCHED.num_nodes] = np.arange(5, 5 + BRANCHED.num_nodes)
        step.run()
        assert step.logits is not None
        found[name] = step.logits.copy()
    np.testing.assert_array_equal(found["tensorrt"], found["ort-cpu"])
    assert found["tensorrt"].std() > 1


def test_steps_use_the_next_larger_size_of_the_plan() -> None:
    info = PlanInfo("tensorrt", "10.3", ("sm87",), (2, 8, 32), 259, 32)
    layout, profile = fit_layout(tree_layout(Tree.chain(2, 1), 1), info)
    assert (layout.num_rows, len(layout.output_rows), profile) == (8, 8, 2)
    assert not layout.sees[6:, :6].any(), "padding sees nothing"
    assert not layout.sees[:6, 6:].any(), "and is not seen"
    assert fit_layout(tree_layout(Tree.root_only(), 1), info)[1] == 1
    layout, profile = fit_layout(prefill_layout(200, 3, 1), info)
    assert (layout.num_rows, profile) == (203, 0)
    with pytest.raises(EngineError, match=r"40 rows, 40 of them .* largest has 32: .*--rows 40"):
        fit_layout(tree_layout(Tree.root_only(), 40), info)
    with pytest.raises(EngineError, match="a step of 300 rows"):
        fit_layout(prefill_layout(300, 0, 1), info)


def test_small_prompts_fit_a_plan_of_small_steps(folder: Path) -> None:
    """A token and its masks all have outputs, as in a tree, but no decode step is as large."""
    path = folder / "narrow"
    write_engine(path, "standard", "fp32", Tree.root_only(), False)
    session = Session.open(path, tree=Tree.root_only(), min_rows=1)
    assert len(session.generate([5], 4, ignore_eos=True).token_ids) == 4
    with pytest.raises(EngineError, match=r"40 rows.* bita compile ENGINE --rows 40"):
        session.using(tree=Tree.chain(9, 3))


def test_an_engine_with_a_plan_can_be_calibrated(engine: Engine) -> None:
    """T(q) is measured for the plan's sizes, and drafts are read from padded steps."""
    assert measure_latency(engine, repeats=1).rows == (2, 28)
    prompts = [[5, 6, 7, 8], [9, 10, 11]]
    acceptances = [measure_acceptance(e, prompts, 12, 1) for e in (engine, cpu_variant(engine))]
    assert acceptances[0].texts == acceptances[1].texts


def cpu_variant(engine: Engine) -> Engine:
    """Return the same engine for the CPU."""
    manifest = replace(engine.manifest, backend="ort-cpu", plan={})
    return Engine(engine.path, manifest, engine.files)


def test_wrong_devices_and_libraries_are_refused(engine: Engine, tmp_path: Path) -> None:
    host_cuda().host_cuda_set_capability(12, 0)
    other = Cuda.load()
    with pytest.raises(EngineError, match=r"built for sm89 .*this GPU is sm120.*bita compile"):
        TensorRtBackend(engine, cuda=other)
    for field, value, message in (
        ("version", "10.9.0", "was built with .*10.9.0; 10.3.0 is installed. Compile it again"),
        ("library", "no_such_trt", "plan.library is 'no_such_trt'; tensorrt and .* are known"),
    ):
        manifest = replace(engine.manifest, plan={**engine.manifest.plan, field: value})
        with pytest.raises(EngineError, match=message):
            TensorRtBackend(Engine(engine.path, manifest, engine.files), cuda=other)


def test_a_damaged_or_unreadable_plan_is_refused(folder: Path) -> None:
    path = folder / "damaged"
    engine = write_engine(path, "standard", "fp32", Tree.chain(1, 1), False)
    plan = engine.file(PLAN_FILE)
    content = plan.read_bytes()
    plan.write_bytes(content.replace(b"damaged", b"somehow"))
    with pytest.raises(EngineError, match=r"model.plan is damaged \(sha256 differs\).* compile"):
        TensorRtBackend(engine, cuda=load_host_cuda())
    plan.write_bytes(b"x" * len(content))
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    from bita.engine_files import sha256

    manifest["files"][PLAN_FILE]["sha256"] = sha256(plan)
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(EngineError, match=r"cannot load .*model.plan: magic tag .*bita compile"):
        Session.open(path)
    plan.unlink()
    with pytest.raises(EngineError, match="plan is missing"):
        Session.open(path)


def test_missing_memory_is_reported_in_megabytes(engine: Engine) -> None:
    cuda = load_host_cuda()
    host_cuda().host_cuda_set_limit(200_000)
    with pytest.raises(EngineError, match=r"the GPU has no \d+ MB free: 0 of 0 MB"):
        TensorRtBackend(engine, cuda=cuda)


def test_an_adapter_with_another_number_of_masks_is_refused(engine: Engine) -> None:
    own = Adapter.load(engine.file("adapter.safetensors"))
    other = random_adapter(own.identity, 2, 5, scale=0.4)
    with pytest.raises(EngineError, match="has 2 masks, the plan was built for 3"):
        Session.open(engine.path, adapter=other, tree=Tree.chain(2, 2))


def test_an_adapter_of_larger_rank_is_refused_and_of_smaller_rank_is_padded(folder: Path) -> None:
    path = folder / "ranks"
    engine = write_engine(path, "standard", "fp32", Tree.chain(3, 3), True)
    own = Adapter.load(engine.file("adapter.safetensors"))
    sizes = {
        site: (own.lora[f"lora_{site}_down"].shape[1], own.lora[f"lora_{site}_up"].shape[2])
        for site in ("qkv", "o", "gate_up", "down")
    }
    answers: list[object] = []
    for rank in (2, 4):
        lora = starting_lora(sizes, own.identity.num_layers, rank, seed=1)
        other = random_adapter(own.identity, 3, 5, scale=0.4, lora_like=lora)
        if rank == 2:
            for name in ("tensorrt", "ort-cpu"):
                session = Session.open(path, adapter=other, backend=name)
                answers.append(session.generate(PROMPT, 30, ignore_eos=True).token_ids)
                answers.append(session.stats.num_accepted)
            continue
        with pytest.raises(EngineError, match=r"LoRA has shape .* engine was built for .*ADAPTER"):
            Session.open(path, adapter=other)
    assert answers[:2] == answers[2:]


def test_unsuitable_backends_are_refused_with_the_fix(engine: Engine, tiny_engine: Path) -> None:
    with pytest.raises(EngineError, match=r"built for ort-cpu, not for tensorrt: make engine"):
        Session.open(tiny_engine, backend="tensorrt")
    with pytest.raises(EngineError, match=r"not for tensorrt-rtx: bita compile .* --backend"):
        Session.open(engine.path, backend="tensorrt-rtx")
    with pytest.raises(EngineError, match="backend 'gpu' is not one of ort-cpu, ort-cuda"):
        Session.open(tiny_engine, backend="gpu")


def test_the_plan_of_a_manifest_is_checked() -> None:
    info = PlanInfo("tensorrt", "10.3", ("sm87",), (2, 8), 259, 32)
    assert PlanInfo.from_manifest(info.to_manifest()) == info
    for field, value in (("decode_rows", "8,2"), ("decode_rows", "two"), ("prefill_rows", "")):
        with pytest.raises(EngineError, match=rf"compile ENGINE.*: plan\.{field} is "):
            PlanInfo.from_manifest({**info.to_manifest(), field: value})
    with pytest.raises(EngineError, match=re.escape("bita compile ENGINE")):
        PlanInfo.from_manifest({"library": "tensorrt"})
