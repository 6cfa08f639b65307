"""libbita on an emulated GPU: memory, streams, and steps that run on the host."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from answer_tool import AnswerTool, onnxruntime_library
from cpp_programs import answer_tool, cpp_program, open_fault
from host_cuda import host_cuda_library
from native_engines import FEATURES, lora_adapter, native_engine
from random_drafts import prompt_ids
from speed import slow_but

from bita.engine import Engine
from bita.errors import EngineError
from bita.runtime.backends.cuda import Cuda
from bita.runtime.session import Session
from bita.tree import Tree

CAPACITY = 450  # two buckets


@pytest.fixture(
    scope="module", params=slow_but(["fp32 tree", "fp16 exact", "int4 exact"], "int4 exact")
)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    precision, mode = request.param.split()
    return cuda_engine(tmp_path_factory.mktemp("engine"), precision, mode)


@pytest.fixture(scope="module")
def single_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return cuda_engine(tmp_path_factory.mktemp("engine"), "fp32", "tree")


def cuda_engine(folder: Path, precision: str, mode: str) -> Engine:
    options: dict[str, Any] = {"backend": "ort-cuda", "dialect": "cuda", "mode": mode}
    return native_engine(FEATURES["long"], folder, precision, CAPACITY, **options)


class GpuTool(AnswerTool):
    """Runs gpu_tool, described in gpu_tool.cpp, on an engine."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        program = str(cpp_program("gpu_tool"))
        paths = [str(onnxruntime_library()), host_cuda_library(), str(engine.path)]
        super().__init__([program, *paths, json.dumps(options)])
        self.opened = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply

    def count_left(self) -> int:
        """Free all sessions and the engine, and count the allocations and streams that remain."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        left: int = self._read()["num_live"]
        return left


def expected(engine: Engine, ids: list[int], max_new_tokens: int = 60, **options: Any) -> list[int]:
    """Return Python's answer on the CPU."""
    session = Session.open(engine.path, backend="ort-cpu", num_threads=1)
    return list(session.generate(ids, max_new_tokens, ignore_eos=True, **options).token_ids)


def slab_bytes(engine: Engine) -> int:
    layers, heads, slots, width = engine.manifest.cache_shape
    return layers * heads * slots * width * (2 if engine.manifest.precision == "fp16" else 4)


ANSWER: Mapping[str, Any] = {"max_new_tokens": 60, "ignore_eos": True}
LONG: Mapping[str, Any] = {"max_new_tokens": 350, "ignore_eos": True}
SHORT: Mapping[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}


def test_answers_equal_those_of_the_cpu(engine: Engine) -> None:
    """Greedy and sampled, for prompts in one piece and in two, across buckets."""
    with GpuTool(engine) as tool:
        for seed in range(4):
            ids = prompt_ids(seed, 5 + 90 * seed)
            draws: dict[str, Any] = {"temperature": 0.8, "seed": seed}
            for drawn in ({}, draws):
                found = tool.answer(token_ids=ids, options={**ANSWER, **drawn})
                assert found["token_ids"] == expected(engine, ids, **drawn)
        assert found["peak_device_bytes"] >= slab_bytes(engine)
        assert found["num_graphs"] > 2
        assert tool.count_left() == 0


def test_the_library_takes_the_same_steps_as_python(single_engine: Engine) -> None:
    """libbita on the CPU takes them too, though its smallest step may have more or fewer rows."""
    ids = prompt_ids(3, 90)
    cpu = Session.open(single_engine.path, backend="ort-cpu", num_threads=1)
    wanted = cpu.generate(ids, **ANSWER)
    with (
        GpuTool(single_engine) as tool,
        answer_tool(single_engine.path, {"backend": "ort-cpu"}) as on_cpu,
    ):
        found = tool.answer(token_ids=ids, options=ANSWER)
        plain = on_cpu.answer(token_ids=ids, options=ANSWER)
    assert found["token_ids"] == plain["token_ids"] == wanted.token_ids
    assert found["num_steps"] == plain["stats"]["num_steps"] == cpu.stats.num_steps
    assert plain["stats"]["peak_device_bytes"] == 0


@pytest.mark.slow
def test_sessions_that_exceed_the_memory_evict_each_other(single_engine: Engine) -> None:
    """Evicted texts are recomputed: the answers and the number of steps stay the same."""
    num_steps, has_kept = [], []
    for num_slabs in (1, 2, 8):
        texts = {name: prompt_ids(seed, 40 + 30 * seed) for seed, name in enumerate("abcd")}
        cache_bytes = (num_slabs - 1) * slab_bytes(single_engine)
        with GpuTool(single_engine, cache_bytes=cache_bytes) as tool:
            for _ in range(3):
                replies = {
                    name: tool.answer(session=name, token_ids=ids, options=SHORT)
                    for name, ids in texts.items()
                }
                for name, reply in replies.items():
                    assert reply["token_ids"] == expected(single_engine, texts[name], 12)
                    texts[name] += [*reply["token_ids"], 5, 6]
            num_steps.append([reply["num_steps"] for reply in replies.values()])
            has_kept.append(all(reply["num_reused_tokens"] for reply in replies.values()))
            assert tool.count_left() == 0
    assert num_steps == num_steps[:1] * 3
    assert has_kept == [False, False, True]


def test_a_small_gpu_holds_as_many_texts_as_fit(single_engine: Engine) -> None:
    """Memory taken by others meanwhile is an error only if not even one text fits."""
    ids = prompt_ids(1, 60)
    wanted = expected(single_engine, ids, 12)
    with GpuTool(single_engine) as tool:
        held = tool.answer(session="a", token_ids=ids, options=SHORT)["peak_device_bytes"]
        # enough for steps, but not for another slab
        tool.ask(session="a", limit_bytes=held + 200_000)
        for name in "bcab":
            assert tool.answer(session=name, token_ids=ids, options=SHORT)["token_ids"] == wanted
        assert tool.count_left() == 0
    with GpuTool(single_engine, limit_bytes=20_000) as tool:
        assert tool.opened["error"].startswith("the GPU has no 0 MB free: 0 of 0 MB are; end other")
        assert tool.count_left() == 0


@pytest.mark.parametrize("num_slabs", [1, 2, 4])
def test_forks_reuse_the_rows_of_their_text(single_engine: Engine, num_slabs: int) -> None:
    """The fork takes another session's slab; with a single slab, the text that holds it stays."""
    ids = prompt_ids(2, 120)
    cache_bytes = (num_slabs - 1) * slab_bytes(single_engine)
    with GpuTool(single_engine, cache_bytes=cache_bytes) as tool:
        tool.answer(session="another", token_ids=[5, 6, 7], options=SHORT)
        first = tool.answer(session="a", token_ids=ids, options={"max_new_tokens": 4})
        held = [*ids, *first["token_ids"]]
        tool.answer(session="b", fork="a")
        for name, more in (("a", [9]), ("b", [7]), ("b", [10, 11])):
            prompt = [*held, *more]
            found = tool.answer(session=name, token_ids=prompt, options=ANSWER)
            assert found["token_ids"] == expected(single_engine, prompt)
            if num_slabs > 1 or name == "a":
                assert found["num_reused_tokens"] >= len(held) - 1
        assert tool.count_left() == 0


@pytest.mark.slow
def test_sessions_with_another_adapter_and_tree_share_the_memory(
    single_engine: Engine, tmp_path: Path
) -> None:
    """The prefixes differ in length; a text that takes the other's slab restores
    its own prefix.
    """
    adapter = lora_adapter(single_engine.path.parent / "model", prefix_length=3, seed=5)
    adapter.save(tmp_path / "adapter.safetensors")
    (tmp_path / "tree.json").write_text(Tree.triangle((3, 2)).to_json(), encoding="utf-8")
    files = {"adapter": str(tmp_path / "adapter.safetensors"), "tree": str(tmp_path / "tree.json")}
    prompts = [prompt_ids(seed, 50) for seed in range(4, 7)]
    wanted = [expected(single_engine, ids, 350) for ids in prompts]
    num_steps = []
    for num_slabs in (1, 3):
        cache_bytes = (num_slabs - 1) * slab_bytes(single_engine)
        with GpuTool(single_engine, cache_bytes=cache_bytes) as tool:
            for own, others in (({}, files), (files, {})):
                for ids, tokens in zip(prompts, wanted, strict=True):
                    found = tool.answer(session=f"{own}", token_ids=ids, options=LONG, **own)
                    num_steps.append(found["num_steps"])
                    assert found["token_ids"] == tokens
                    tool.answer(session="between", token_ids=[7], options=SHORT, **others)
                tool.answer(session="between", free=True)
            assert tool.count_left() == 0
    assert num_steps[:6] == num_steps[6:]


def test_a_new_text_reuses_captured_graphs(single_engine: Engine) -> None:
    """A text takes the slab of a freed one together with the graphs of its steps."""
    ids = prompt_ids(5, 40)
    with GpuTool(single_engine) as tool:
        counts = []
        for number in range(6):
            counts.append(
                tool.answer(session=str(number), token_ids=ids, options=ANSWER)["num_graphs"]
            )
            tool.ask(session=str(number), free=True)
    assert counts[0] > 1
    assert counts == counts[:1] * 6


def test_abandoned_answers_leave_later_ones_unchanged(single_engine: Engine) -> None:
    rng = random.Random(3)
    texts = {name: prompt_ids(seed, 20 + 40 * seed) for seed, name in enumerate("abc")}
    wanted = {name: expected(single_engine, ids) for name, ids in texts.items()}
    with GpuTool(single_engine, cache_bytes=slab_bytes(single_engine)) as tool:
        for _ in range(20):
            name = rng.choice("abc")
            found = tool.answer(
                session=name, token_ids=texts[name], options=ANSWER, max_steps=rng.randrange(8)
            )["token_ids"]
            assert found == wanted[name][: len(found)]


def test_the_current_device_of_the_program_is_unchanged(single_engine: Engine) -> None:
    """All calls of libbita go to the engine's own device."""
    ids = prompt_ids(6, 30)
    with GpuTool(single_engine, device=1, num_devices=2) as tool:
        found = tool.answer(token_ids=ids, options=ANSWER)
        assert found["token_ids"] == expected(single_engine, ids)
        assert found["current_device"] == 0
        assert tool.count_left() == 0


FAULTS: Mapping[str, tuple[dict[str, Any], str]] = {
    "no library": (
        {"library": "/no/such.so"},
        "no CUDA runtime library was found (searched /no/such.so); install CUDA's runtime",
    ),
    "no device": ({"num_devices": 0}, "no CUDA device: cudaErrorNoDevice (100), no CUDA-capable"),
    "another device": ({"device": 3}, "there is no CUDA device 3; there are 1"),
    "an old runtime": ({"version": 11080}, "is 11.8, but 12 or later is needed; install CUDA's"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_missing_requirement_is_reported_with_the_fix(single_engine: Engine, name: str) -> None:
    options, message = FAULTS[name]
    with GpuTool(single_engine, **options) as tool:
        assert message in tool.opened["error"]
        assert tool.count_left() == 0


def test_a_missing_provider_is_reported_with_the_fix(single_engine: Engine) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with GpuTool(single_engine, provider=True) as tool:
        error = tool.opened["error"]
    assert error.startswith(
        f"engine {single_engine.path} needs ONNX Runtime's CUDA provider, which"
    )
    assert "(CUDA execution provider is not enabled in this build" in error
    assert error.endswith('or run the engine on the CPU: backend "ort-cpu"')


def test_a_system_without_cuda_is_reported(single_engine: Engine) -> None:
    try:
        Cuda.load()
    except EngineError:
        error = open_fault(single_engine.path)
        assert error.startswith("no CUDA ")
        assert error.endswith('or run the engine on the CPU: backend "ort-cpu"')
    else:
        pytest.skip("this system has CUDA")


def test_unsuitable_backends_are_refused(single_engine: Engine, tmp_path: Path) -> None:
    native = native_engine(FEATURES["long"], tmp_path / "native", "int4", CAPACITY)
    for engine, backend, message in (
        (native, "ort-cuda", "was built for ort-cpu, not for ort-cuda: make engine MODEL="),
        (single_engine, "cuda", "backend 'cuda' is not one of ort-cpu, ort-cuda"),
        (single_engine, "tensorrt", "backend 'tensorrt' is not one of ort-cpu, ort-cuda"),
    ):
        assert message in open_fault(engine.path, {"backend": backend})
    assert "cuda_graphs is 2; pass 0 to 1" in open_fault(native.path, {"cuda_graphs": 2})
