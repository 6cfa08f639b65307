"""A manifest that does not match its graph is reported before a buffer is allocated."""

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_edits import copy_engine, edit_files, edit_manifest

from bita.adapter import random_adapter
from bita.engine import Engine, open_engine
from bita.errors import AdapterError, EngineError
from bita.identity import ModelIdentity
from bita.runtime.backends.graph_fit import GraphValue, check_graph
from bita.runtime.backends.ort_backend import OrtBackend, _allocate
from bita.runtime.session import Session


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    return copy_engine(tiny_engine, tmp_path / "engine")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_layers", 3, "4 past caches, of 2 layers; num_layers is 3"),
        ("num_layers", 10**9, "of 2 layers; num_layers is 1000000000"),
        ("num_layers", 1, "of 2 layers; num_layers is 1"),
        ("num_kv_heads", 4, r"past.0.key is float32 \[1, 2, 384, 16\], not .* \[1, 4, 384, 16\]"),
        ("head_dim", 8, r"past.0.key is .* \[1, 2, 384, 8\]"),
        ("capacity", 383, r"present.1.value is .* \[1, 2, 383, 16\]"),
        ("capacity", 10**9, r"\[1, 2, 1000000000, 16\]"),
        ("hidden_size", 64, r"mask_embeddings is float32 \[\?, 32\], not float32 \[M, 64\]"),
        ("vocab_size", 321, r"logits is float32 \[\?, 320\], not float32 \[R, 321\]"),
        ("vocab_size", 10**9, r"\[R, 1000000000\]"),
        ("num_ranks", 15, r"top_ids is int64 \[\?, 16\], not int64 \[R, 15\]"),
        ("lora_rank", 4, "the graph has no inputs of LoRA; lora_rank is 4"),
    ],
)
def test_each_number_is_compared_with_the_graph(
    engine: Path, name: str, value: int, message: str
) -> None:
    edit_manifest(engine, **{name: value})
    opened = open_engine(engine)
    tracemalloc.start()
    with pytest.raises(EngineError, match=rf"(?s)model.onnx is not what the manifest.*{message}"):
        OrtBackend(opened)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    with pytest.raises((EngineError, AdapterError)):
        Session.open(engine)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("num_masks", value) for value in (1, 4, 10**9)),
        *(("prefix_length", value) for value in (0, 1, 3)),
        ("lora_rank", 8),
    ],
)
def test_the_adapter_must_match_the_manifest(engine: Path, name: str, value: int) -> None:
    edit_manifest(engine, **{name: value})
    with pytest.raises(AdapterError, match=rf"{name} is \d, the manifest says {value}"):
        Session.open(engine)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: -1} for name in ("num_layers", "capacity", "prefix_length", "pair_rank")),
        *({name: 0} for name in ("num_layers", "num_kv_heads", "head_dim", "vocab_size")),
        *({"capacity": value} for value in (2**40, 0.5, True, None, "384", [384], 1e400)),
        *({"prefix_length": 384}, {"num_masks": 2**31}, {"num_masks": 10**400}),
        *({"mode": "fast"}, {"mode": ["tree"]}, {"backend": "gpu"}, {"backend": None}),
        *({"dialect": "?"}, {"dialect": "cuda"}, {"dialect": None}, {"precision": "fp8"}),
        *({"backend": "ort-cuda"}, {"backend": "tensorrt"}, {"family": 3}, {"license": 3}),
        *({"plan": []}, {"plan": {"library": "os"}}, {"plan": {"rows": 2}}, {"requires": []}),
        *({"requires": {"onnxruntime": None}}, {"tuned_on": "x" * 10**5}),
        *({name: ...} for name in ("license", "model", "num_masks", "requires", "files", "mode")),
    ],
)
def test_invalid_values_are_refused(engine: Path, changes: dict[str, Any]) -> None:
    (name,) = changes
    edit_manifest(engine, **changes)
    with pytest.raises(EngineError, match=f"manifest.json.*{name}|{name}.*manifest.json"):
        open_engine(engine)


def drop_output(model: onnx.ModelProto) -> None:
    del model.graph.output[0]


def add_input(model: onnx.ModelProto) -> None:
    model.graph.input.add().CopyFrom(model.graph.input[0])
    model.graph.input[-1].name = "more"


def change_type(model: onnx.ModelProto) -> None:
    value = next(value for value in model.graph.input if value.name == "token_ids")
    value.type.tensor_type.elem_type = onnx.TensorProto.INT32


def set_min_slots(text: str) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        model.metadata_props[0].value = text

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        *(drop_output, add_input, change_type),
        *map(set_min_slots, ("", "0", "-1", "two", "9" * 5000, "385", "1e3", "٣")),
    ],
)
def test_graphs_that_no_export_writes_are_refused(
    engine: Path, edit: Callable[[onnx.ModelProto], object]
) -> None:
    model = onnx.load(engine / "model.onnx", load_external_data=False)
    edit(model)
    edit_files(engine, {"model.onnx": model.SerializeToString()})
    with pytest.raises(EngineError, match=r"model\.onnx.*rebuild"):
        Session.open(engine)


@pytest.mark.parametrize("heads", [10**4, 10**9])
def test_a_cache_too_large_for_any_machine_is_an_engine_error(
    tiny_engine: Path, heads: int
) -> None:
    """It has 2.6 exabytes, or more bytes than addresses; graphs may leave the sizes free."""
    opened = open_engine(tiny_engine)
    manifest = replace(opened.manifest, capacity=10**9, num_kv_heads=heads, num_layers=1000)
    with pytest.raises(EngineError, match=r"a cache of \d+ GB, for 1000000000 slots, cannot be"):
        _allocate(Engine(opened.path, manifest, opened.files), np.float32)


def test_a_failed_step_is_an_engine_error(engine: Path) -> None:
    """The graph is broken inside: its table of embeddings is too small."""
    model = onnx.load(engine / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.op_type == "Min")
    node.op_type = "Max"
    edit_files(engine, {"model.onnx": model.SerializeToString()})
    with pytest.raises(EngineError, match=r"cannot run a step of engine .*; rebuild the engine"):
        Session.open(engine).generate("a", 3)


def test_all_caches_must_have_one_type(tiny_engine: Path) -> None:
    backend = OrtBackend(open_engine(tiny_engine), 1)
    session = backend._session
    inputs, outputs = (
        {
            value.name: GraphValue(
                {"tensor(float)": "float32", "tensor(bool)": "bool"}.get(value.type, "int64"),
                tuple(size if isinstance(size, int) else None for size in value.shape),
            )
            for value in values
        }
        for values in (session.get_inputs(), session.get_outputs())
    )
    manifest = open_engine(tiny_engine).manifest
    check_graph(Path("g"), manifest, inputs, outputs)
    inputs["past.1.key"] = GraphValue("float16", inputs["past.1.key"].shape)
    with pytest.raises(EngineError, match="caches are of several types: float16, float32"):
        check_graph(Path("g"), manifest, inputs, outputs)
    del inputs["past.1.key"]
    with pytest.raises(EngineError, match="has 3 past caches, of 2 layers; num_layers is 2"):
        check_graph(Path("g"), manifest, inputs, outputs)
    inputs["lora.0.qkv.down"] = GraphValue("float32", (31, None))
    inputs["lora.7.o.up"] = GraphValue("float32", (None, 32))
    inputs["lora.0.q.down"] = GraphValue("float32", (32, None))
    with pytest.raises(EngineError) as caught:
        check_graph(Path("g"), manifest, inputs, outputs)
    for part in (
        "the graph has inputs of LoRA; lora_rank is 0",
        "lora.0.qkv.down is float32 [31, ?], not float32 [32, r]",
        "input lora.7.o.up is for a nonexistent layer",
        "input 'lora.0.q.down' is not known",
    ):
        assert part in str(caught.value)


def test_a_prefix_that_fills_the_cache_is_refused(tiny_engine: Path) -> None:
    sizes = {"num_layers": 2, "hidden_size": 32, "num_kv_heads": 2, "head_dim": 16}
    identity = ModelIdentity("llama", vocab_size=320, fingerprint={}, **sizes)
    adapter = random_adapter(identity, num_masks=3, prefix_length=384)
    with pytest.raises(EngineError, match="prefix of 384 does not fit a cache of 384 slots"):
        Session.open(tiny_engine, adapter=adapter)


def test_eos_ids_outside_the_vocabulary_are_refused(engine: Path) -> None:
    text = (
        (engine / "generation.json").read_text().replace('"eos_ids": [\n    ', '"eos_ids": [320,')
    )
    edit_files(engine, {"generation.json": text.encode()})
    with pytest.raises(EngineError, match=r"generation.json.*eos id 320 is not in \[0, 320\)"):
        Session.open(engine)
