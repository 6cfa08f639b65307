"""libbita on a GPU: its memory and streams are a stand-in's, its steps ONNX Runtime's on the host."""

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

from bita.engine import Engine
from bita.errors import EngineError
from bita.runtime.backends.cuda import Cuda
from bita.runtime.session import Session
from bita.tree import Tree

CAPACITY = 450  # two buckets


@pytest.fixture(scope="module", params=["fp32", "fp16", "int4"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return cuda_engine(tmp_path_factory.mktemp("engine"), request.param)


@pytest.fixture(scope="module")
def single_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return cuda_engine(tmp_path_factory.mktemp("engine"), "fp32")


def cuda_engine(folder: Path, precision: str) -> Engine:
    config = FEATURES["long"]
    options = {"backend": "ort-cuda", "dialect": "cuda", "mode": "tree"}
    return native_engine(config, folder, precision, CAPACITY, **options)


class GpuTool(AnswerTool):
    """gpu_tool on an engine, which answers as gpu_tool.cpp describes."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        program = str(cpp_program("gpu_tool"))
        paths = [str(onnxruntime_library()), host_cuda_library(), str(engine.path)]
        super().__init__([program, *paths, json.dumps(options)])
        self.opened = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        reply: dict[str, Any] = json.loads(self._process.stdout.readline())
        return reply

    def num_left(self) -> int:
        """Pieces of memory and streams that are left when all sessions and the engine are freed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        left: int = self._read()["num_live"]
        return left


def expected(engine: Engine, ids: list[int], **options: Any) -> list[int]:
    session = Session.open(engine.path, backend="ort-cpu", num_threads=1)
    return list(session.generate(ids, **options).token_ids)


def slab_bytes(engine: Engine) -> int:
    layers, heads, slots, width = engine.manifest.cache_shape
    return layers * heads * slots * width * (2 if engine.manifest.precision == "fp16" else 4)


ANSWER = {"max_new_tokens": 60, "ignore_eos": True}


def test_answers_are_those_of_the_cpu(engine: Engine) -> None:
    """Greedy and drawn, of prompts in one piece and in two, across buckets."""
    with GpuTool(engine) as tool:
        for seed in range(4):
            ids = prompt_ids(seed, 5 + 90 * seed)
            for options in (ANSWER, {**ANSWER, "temperature": 0.8, "seed": seed}):
                found = tool.answer(token_ids=ids, options=options)
                assert found["token_ids"] == expected(engine, ids, **options)
        assert found["peak_device_bytes"] >= slab_bytes(engine)
        assert found["num_graphs"] > 2
        assert tool.num_left() == 0


def test_python_and_the_library_run_the_same_steps(single_engine: Engine) -> None:
    """On the CPU, whose smallest step may have another number of rows."""
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


@pytest.mark.parametrize("num_slabs", [1, 2, 8])
def test_sessions_take_turns_with_the_memory_there_is(
    single_engine: Engine, num_slabs: int
) -> None:
    """With less than they need each is computed again, and none is another."""
    texts = {name: prompt_ids(seed, 40 + 30 * seed) for seed, name in enumerate("abcd")}
    cache_bytes = (num_slabs - 1) * slab_bytes(single_engine)
    with GpuTool(single_engine, cache_bytes=cache_bytes) as tool:
        for _ in range(3):
            for name, ids in texts.items():
                options = {"max_new_tokens": 12, "ignore_eos": True}
                found = tool.answer(session=name, token_ids=ids, options=options)
                assert found["token_ids"] == expected(single_engine, ids, **options)
                ids += [*found["token_ids"], 5, 6]
        one = {"max_new_tokens": 1}
        reused = [
            tool.answer(session=name, token_ids=ids, options=one)["num_reused_tokens"]
            for name, ids in texts.items()
        ]
        assert all(reused) == (num_slabs == 8)
        assert tool.num_left() == 0


def test_a_small_gpu_holds_as_many_texts_as_it_has_room_for(single_engine: Engine) -> None:
    """What others took meanwhile is no reason to fail, unless there is no room for one text."""
    ids = prompt_ids(1, 60)
    options = {"max_new_tokens": 10, "ignore_eos": True}
    wanted = expected(single_engine, ids, **options)
    with GpuTool(single_engine) as tool:
        held = tool.answer(session="a", token_ids=ids, options=options)["peak_device_bytes"]
        tool.ask(session="a", limit_bytes=held + 200_000)  # for steps, not for another slab
        for name in "bcab":
            assert tool.answer(session=name, token_ids=ids, options=options)["token_ids"] == wanted
        assert tool.num_left() == 0
    with GpuTool(single_engine, limit_bytes=20_000) as tool:
        assert tool.opened["error"].startswith("the GPU has no 0 MB free: 0 of 0 MB are; end other")
        assert tool.num_left() == 0


def test_forks_go_on_from_the_rows_of_their_text(single_engine: Engine) -> None:
    ids = prompt_ids(2, 120)
    options = {"max_new_tokens": 20, "ignore_eos": True}
    for num_slabs in (1, 4):
        with GpuTool(
            single_engine, cache_bytes=(num_slabs - 1) * slab_bytes(single_engine)
        ) as tool:
            tool.answer(session="a", token_ids=ids, options={"max_new_tokens": 4})
            tool.ask(session="b", fork="a")
            for name, more in (("b", [7, 8]), ("a", [9]), ("b", [10, 11])):
                prompt = [*ids, *more]
                found = tool.answer(session=name, token_ids=prompt, options=options)
                assert found["token_ids"] == expected(single_engine, prompt, **options)
                if num_slabs > 1:
                    assert found["num_reused_tokens"] >= 120
            assert tool.num_left() == 0


def test_another_adapter_and_tree(engine: Engine, tmp_path: Path) -> None:
    """Its prefix has another length than the engine's own, whose text stays where it is."""
    adapter = lora_adapter(engine.path.parent / "model", prefix_length=3, seed=5)
    adapter.save(tmp_path / "adapter.safetensors")
    tree = Tree.triangle((3, 2))
    (tmp_path / "tree.json").write_text(tree.to_json(), encoding="utf-8")
    files = {"adapter": str(tmp_path / "adapter.safetensors"), "tree": str(tmp_path / "tree.json")}
    cpu = Session.open(engine.path, backend="ort-cpu", num_threads=1, adapter=adapter, tree=tree)
    ids = prompt_ids(4, 50)
    wanted = cpu.generate(ids, **ANSWER).token_ids
    with GpuTool(engine) as tool:
        for name, more in (("own", {}), ("other", files), ("own", {}), ("other", files)):
            found = tool.answer(session=name, token_ids=ids, options=ANSWER, **more)
            assert found["token_ids"] == wanted
        tool.ask(session="other", free=True)
        assert tool.answer(session="own", token_ids=ids, options=ANSWER)["token_ids"] == wanted
        assert tool.num_left() == 0


def test_graphs_are_captured_again_for_no_text(single_engine: Engine) -> None:
    """A text takes the place of one that went, and with it the graphs of its steps."""
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


def test_answers_that_are_left_and_taken_up_again(single_engine: Engine) -> None:
    rng = random.Random(3)
    texts = {name: prompt_ids(seed, 20 + 40 * seed) for seed, name in enumerate("abc")}
    wanted = {name: expected(single_engine, ids, **ANSWER) for name, ids in texts.items()}
    with GpuTool(single_engine, cache_bytes=slab_bytes(single_engine)) as tool:
        for _ in range(20):
            name = rng.choice("abc")
            found = tool.answer(
                session=name, token_ids=texts[name], options=ANSWER, max_steps=rng.randrange(8)
            )["token_ids"]
            assert found == wanted[name][: len(found)]


def test_the_current_device_of_a_program_stays(single_engine: Engine) -> None:
    """And every call of ours is for the engine's own."""
    ids = prompt_ids(6, 30)
    with GpuTool(single_engine, device=1, num_devices=2) as tool:
        found = tool.answer(token_ids=ids, options=ANSWER)
        assert found["token_ids"] == expected(single_engine, ids, **ANSWER)
        assert found["current_device"] == 0
        assert tool.num_left() == 0


FAULTS: Mapping[str, tuple[dict[str, Any], str]] = {
    "no library": (
        {"library": "/no/such.so"},
        "no CUDA runtime library was found, looked for /no/such.so; install CUDA's runtime",
    ),
    "no device": ({"num_devices": 0}, "no CUDA device: cudaErrorNoDevice (100), no CUDA-capable"),
    "another device": ({"device": 3}, "there is no CUDA device 3; there are 1"),
    "an old runtime": ({"version": 11080}, "is 11.8, needed is 12 or later; install CUDA's"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_missing_is_named_with_the_fix(single_engine: Engine, name: str) -> None:
    options, message = FAULTS[name]
    with GpuTool(single_engine, **options) as tool:
        assert message in tool.opened["error"]
        assert tool.num_left() == 0


def test_a_missing_provider_is_named_with_the_fix(single_engine: Engine) -> None:
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


def test_a_system_without_cuda_is_told(single_engine: Engine) -> None:
    try:
        Cuda.load()
    except EngineError:
        error = open_fault(single_engine.path)
        assert error.startswith("no CUDA ")
        assert error.endswith('or run the engine on the CPU: backend "ort-cpu"')
    else:
        pytest.skip("this system has CUDA")


def test_backends_that_an_engine_cannot_have(single_engine: Engine, tmp_path: Path) -> None:
    native = native_engine(FEATURES["long"], tmp_path / "native", "int4", CAPACITY)
    for engine, backend, message in (
        (native, "ort-cuda", "was built for ort-cpu, not for ort-cuda: make engine MODEL="),
        (single_engine, "cuda", "backend 'cuda' is not one of ort-cpu, ort-cuda"),
        (single_engine, "tensorrt", "backend 'tensorrt' is not one of ort-cpu, ort-cuda"),
    ):
        assert message in open_fault(engine.path, {"backend": backend})
    assert "cuda_graphs is 2, not 0 to 1" in open_fault(native.path, {"cuda_graphs": 2})
