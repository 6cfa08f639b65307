"""Graphs that refer to weights elsewhere are refused before anything loads them."""

import struct
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from engine_edits import copy_engine, edit_files
from onnx import TensorProto, helper

from bita.engine import open_engine
from bita.errors import EngineError
from bita.graph_weights import weight_locations
from bita.runtime.session import Session

OUTSIDE = ["/etc/passwd", "../e/model.onnx.data", "..", "tokenizer.json", "*/_ORT_MEM_ADDR_/*", ""]


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    return copy_engine(tiny_engine, tmp_path / "engine")


def edit_graph(engine: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(engine / "model.onnx", load_external_data=False)
    edit(model)
    edit_files(engine, {"model.onnx": model.SerializeToString()})


def external(location: str, name: str = "extra") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def constant(location: str) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["extra"], value=external(location))


def in_a_branch(model: onnx.ModelProto, location: str) -> None:
    branch = helper.make_graph([constant(location)], "branch", [], [])
    inner = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    outer = helper.make_graph([inner], "outer", [], [])
    model.graph.node.append(helper.make_node("Loop", ["x"], ["y"], body=outer))


def in_a_function(model: onnx.ModelProto, location: str) -> None:
    model.functions.append(helper.make_function("d", "F", [], [], [constant(location)], []))


def in_a_sparse_tensor(model: onnx.ModelProto, location: str) -> None:
    sparse = onnx.SparseTensorProto(values=external(location), dims=[4])
    model.graph.sparse_initializer.append(sparse)


def in_training(model: onnx.ModelProto, location: str) -> None:
    model.training_info.add().initialization.initializer.append(external(location))


def in_a_list_of_tensors(model: onnx.ModelProto, location: str) -> None:
    node = helper.make_node("Constant", [], ["y"], domain="d", list=[external(location)])
    model.graph.node.append(node)


PLACES: dict[str, Callable[[onnx.ModelProto, str], object]] = {
    "initializer": lambda model, location: model.graph.initializer.append(external(location)),
    "constant": lambda model, location: model.graph.node.append(constant(location)),
    "branch": in_a_branch,
    "function": in_a_function,
    "sparse": in_a_sparse_tensor,
    "training": in_training,
    "list": in_a_list_of_tensors,
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("location", ["../secret.bin", "other.bin"])
def test_a_location_is_found_wherever_a_tensor_may_be(
    engine: Path, place: str, location: str
) -> None:
    edit_graph(engine, lambda model: PLACES[place](model, location))
    assert weight_locations(engine / "model.onnx") == {b"model.onnx.data", location.encode()}
    with pytest.raises(EngineError, match=rf"model.onnx takes weights from .*{location}.*rebuild"):
        open_engine(engine)


@pytest.mark.parametrize("location", OUTSIDE)
def test_weights_of_other_files_are_refused(engine: Path, location: str) -> None:
    """ONNX Runtime 1.23 opens all of these, and treats one as an address in its memory."""

    def move(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = location if entry.key == "location" else entry.value

    edit_graph(engine, move)
    with pytest.raises(EngineError, match=r"model.onnx takes weights from .*, which is not model"):
        Session.open(engine)


def field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def model_with(entry: bytes) -> bytes:
    """Return a model whose only tensor has this entry of external data."""
    return field(7, field(5, field(13, entry)))


HERE = field(2, b"model.onnx.data")
KEY = field(1, b"location")


@pytest.mark.parametrize(
    "entry",
    [
        KEY + field(2, b"x"),
        field(2, b"x") + KEY,
        KEY + HERE + field(2, b"x"),  # the last value counts
        field(2, b"x") + HERE + KEY,
        field(1, b"offset") + KEY + field(2, b"x"),
        KEY + field(9, b"?" + HERE) + field(2, b"x"),  # an unknown field that looks like one
        KEY + struct.pack("<BQ", 10 << 3 | 1, 7) + field(2, b"x"),
    ],
)
def test_a_location_is_found_in_entries_in_any_order(entry: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model_with(entry))
    assert b"x" in weight_locations(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a",
        b"\x3a\x05abc",
        b"\x3b\x3c",  # a group, which readers skip in different ways
        b"\xba\x80\x00" + field(5, b"location"),  # a tag with a zero too many
        b"\x3a\x83\x80\x80\x80\x80\x00abc",
        b"\x08" + b"\xff" * 10,
        model_with(KEY + HERE)[:-1],
    ],
)
def test_malformed_protobuf_is_refused(data: bytes, engine: Path) -> None:
    edit_files(engine, {"model.onnx": data})
    with pytest.raises(EngineError, match=r"model.onnx is not a readable graph \(.*\); rebuild"):
        open_engine(engine)


def test_deep_nesting_is_refused(engine: Path) -> None:
    graph = field(1, b"location")
    for _ in range(120):
        node = _long(5, _long(6, graph))
        graph = _long(1, node)
    edit_files(engine, {"model.onnx": _long(7, graph)})
    with pytest.raises(EngineError, match="nested too deeply"):
        open_engine(engine)


def _long(number: int, content: bytes) -> bytes:
    """Return a field whose length takes one or two bytes."""
    size = len(content)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + content


def test_a_graph_with_embedded_weights_has_no_locations(tmp_path: Path) -> None:
    tensor = helper.make_tensor("w", TensorProto.STRING, [1], [b"location"])  # type: ignore[list-item]
    graph = helper.make_graph([], "g", [], [], [tensor])
    (tmp_path / "m.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    assert weight_locations(tmp_path / "m.onnx") == set()
