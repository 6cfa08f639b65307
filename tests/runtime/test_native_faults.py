"""Invalid graphs and inputs are refused with a reason and never crash."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engine_edits import copy_engine, edit_files
from native_engines import FEATURES, native_engine, read_text, require_library
from onnx import TensorProto, helper, numpy_helper
from random_drafts import prompt_ids
from speed import slow_but

from bita.adapter import Adapter
from bita.engine import GRAPH_FILE, Engine, open_engine
from bita.engine_adapter import read_adapter
from bita.errors import EngineError
from bita.runtime.backends.layout import tree_layout
from bita.runtime.backends.ort_backend import BoundStep, OrtBackend
from bita.runtime.session import Session
from bita.tree import Tree

LARGE = 2**62
INTEGERS = (0, -1, 1, 3, 2**31 - 1, 2**31, LARGE, -LARGE)
FLOATS = (0.0, -1.0, 1e38, float("nan"), float("inf"))
OPERATORS = ("Embed", "Sights", "AttentionSublayer", "MlpSublayer", "AddNorm", "Head")
TREE = Tree.triangle((2, 1), num_masks=2)
Model = onnx.ModelProto


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    require_library()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine with LoRA, head norms and a window."""
    config = {**FEATURES["gemma3_text"], "num_hidden_layers": 2, "layer_types": None}
    return native_engine(config, tmp_path_factory.mktemp("built")).path


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    return copy_engine(built, tmp_path / "engine")


def graph_of(path: Path) -> Model:
    return onnx.load(path / GRAPH_FILE, load_external_data=False)


def refusal(path: Path, model: Model) -> str | None:
    """Return why an engine with this graph is refused, or None if a step runs."""
    edit_files(path, {GRAPH_FILE: model.SerializeToString()})
    try:
        bind_step(open_engine(path)).run()
    except EngineError as error:
        return str(error)
    return None


def bind_step(engine: Engine, adapter: Adapter | None = None) -> BoundStep:
    """Bind a tree step after a text of 20 tokens; all of its nodes hold token 7."""
    backend, adapter = OrtBackend(engine, 1), adapter or read_adapter(engine)
    read_text(backend, adapter, np.array(prompt_ids(1)), 16)
    step = backend.bind(tree_layout(TREE, 1), adapter, with_logits=True)
    step.token_ids[0, : TREE.num_nodes] = 7
    return step


def test_the_unmodified_engine_runs(engine: Path) -> None:
    assert refusal(engine, graph_of(engine)) is None


def last_of(model: Model, operator: str) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == operator][-1]


@pytest.mark.parametrize("operator", OPERATORS)
def test_missing_or_invalid_attributes_are_handled(engine: Path, operator: str) -> None:
    """Each is refused or only changes the result, without an invalid memory access."""
    original = graph_of(engine)
    for number, attribute in enumerate(last_of(original, operator).attribute):
        for value in hostile_values(attribute):
            model = Model()
            model.CopyFrom(original)
            node = last_of(model, operator)
            del node.attribute[number]
            if value is not None:
                node.attribute.append(helper.make_attribute(attribute.name, value))
            why = refusal(engine, model)
            assert why is None or "rebuild the engine" in why
            is_needed = value is None and attribute.name != "delta_scale"
            decides = attribute.name in ("group", "in_features", "hidden_size", "activation")
            if is_needed or decides or attribute.name.endswith("bits"):
                assert why is not None, (operator, attribute.name, value)


def hostile_values(attribute: onnx.AttributeProto) -> Iterator[Any]:
    """Yield None for a missing attribute, then values of its own and of other types."""
    yield None
    own = helper.get_attribute_value(attribute)
    if isinstance(own, int):
        yield from (value for value in INTEGERS if value != own)
        yield 2.0
    elif isinstance(own, float):
        yield from FLOATS
        yield 2
    else:
        yield from ("", "relu", "silu\0", 1)


@pytest.mark.parametrize("operator", OPERATORS)
def test_missing_inputs_are_refused_unless_optional(engine: Path, operator: str) -> None:
    """Without an optional input, the operator computes something else."""
    original = graph_of(engine)
    optional = ("minima", "_norm", "post_", "rope", "bias", "lora", "first_mask_row")
    for number, name in enumerate(last_of(original, operator).input):
        model = Model()
        model.CopyFrom(original)
        last_of(model, operator).input[number] = ""
        why = refusal(engine, model)
        may_be_absent = any(part in name for part in optional)
        if name and not may_be_absent:
            assert why is not None, (operator, name)


@pytest.mark.parametrize("operator", slow_but(OPERATORS, "MlpSublayer"))
def test_swapped_inputs_never_crash(engine: Path, operator: str) -> None:
    """Each input is replaced by every other: of another type, shape or meaning."""
    original = graph_of(engine)
    names = [name for name in last_of(original, operator).input if name]
    for number, name in enumerate(last_of(original, operator).input):
        for other in {*names} - {name}:
            model = Model()
            model.CopyFrom(original)
            last_of(model, operator).input[number] = other
            why = refusal(engine, model)
            assert why is None or "rebuild the engine" in why


def weights_of(model: Model, end: str) -> onnx.TensorProto:
    return next(each for each in model.graph.initializer if each.name.endswith(end))


def set_shape(dims: list[int]) -> Callable[[onnx.TensorProto], None]:
    def edit(tensor: onnx.TensorProto) -> None:
        del tensor.dims[:]
        tensor.dims.extend(dims)

    return edit


def change_type(tensor: onnx.TensorProto) -> None:
    """Change to another type with the same number of bytes."""
    same_size: dict[int, Any] = {
        TensorProto.UINT8: TensorProto.INT8,
        TensorProto.INT8: TensorProto.UINT8,
        TensorProto.FLOAT16: TensorProto.BFLOAT16,
        TensorProto.FLOAT: TensorProto.INT32,
    }
    tensor.data_type = same_size[tensor.data_type]


def drop_last(tensor: onnx.TensorProto) -> None:
    """Drop the last entry of the first axis, with its bytes."""
    length = next(entry for entry in tensor.external_data if entry.key == "length")
    size = int(length.value) // tensor.dims[0]
    tensor.dims[0] -= 1
    length.value = str(size * tensor.dims[0])


def reverse_axes(tensor: onnx.TensorProto) -> None:
    dims = list(tensor.dims)[::-1]
    del tensor.dims[:]
    tensor.dims.extend(dims)


def flatten(tensor: onnx.TensorProto) -> None:
    set_shape([int(np.prod(tensor.dims))])(tensor)


@pytest.mark.parametrize("edit", [change_type, drop_last, reverse_axes, flatten])
@pytest.mark.parametrize(
    "end",
    [
        *("embed_tokens.weight.values", "embed_tokens.weight.scales"),
        *("qkv_proj.values", "o_proj.scales", "gate_up_proj.minima", "down_proj.values"),
        *("input_layernorm.weight", "post_feedforward_layernorm.weight", "q_norm.weight"),
        *("rope.0.cos", "rope.0.sin"),
    ],
)
def test_weights_of_another_shape_or_type_are_refused(
    engine: Path, end: str, edit: Callable[[onnx.TensorProto], None]
) -> None:
    model = graph_of(engine)
    tensor = weights_of(model, end)
    before = (list(tensor.dims), tensor.data_type)
    edit(tensor)
    if (list(tensor.dims), tensor.data_type) == before:
        pytest.skip("reversing or flattening a vector changes nothing")
    assert refusal(engine, model) is not None


def test_weights_that_are_inputs_are_refused(engine: Path) -> None:
    """Their memory could move and change, so operators accept only constants."""
    model = graph_of(engine)
    tensor = weights_of(model, "o_proj.scales")
    model.graph.initializer.remove(tensor)
    value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
    model.graph.input.append(value)
    why = refusal(engine, model)
    assert why is not None
    assert "is not known" in why or "rebuild" in why


def test_weights_that_are_not_finite_raise_an_error(engine: Path) -> None:
    model = graph_of(engine)
    tensor = weights_of(model, "o_proj.scales")
    shape = list(tensor.dims)
    index = list(model.graph.initializer).index(tensor)
    broken = numpy_helper.from_array(np.full(shape, np.nan, np.float16), tensor.name)
    model.graph.initializer[index].CopyFrom(broken)
    edit_files(engine, {GRAPH_FILE: model.SerializeToString()})
    with pytest.raises(EngineError, match="logits are not numbers"):
        Session.open(engine).generate(prompt_ids(1), 3)


@pytest.fixture(scope="module")
def step(built: Path) -> BoundStep:
    return bind_step(open_engine(built))


def arrays_of(step: BoundStep) -> dict[str, np.ndarray]:
    """Return the memory of a step's inputs, except for LoRA."""
    from reference_session import array_of

    values = {**step._inputs, **step._backend._placement}
    return {name: array_of(value) for name, value in values.items() if "lora" not in name}


@pytest.mark.parametrize("value", [-1, -LARGE, LARGE, 2**31, 1 << 20])
@pytest.mark.parametrize(
    "name",
    [
        *("token_ids", "positions", "row_slots", "row_texts", "text_lengths", "text_pages"),
        *("prefix_pages", "prefix_length", "output_rows"),
    ],
)
def test_inputs_out_of_range_are_refused(step: BoundStep, name: str, value: int) -> None:
    """The values name pages, slots, positions, rows, ids or texts that do not exist."""
    step.run()
    expected = step.top_logits.copy()
    array = arrays_of(step)[name]
    kept = array.copy()
    array.flat[0] = value
    try:
        with pytest.raises(EngineError, match=r"cannot run a step of engine .*bita\."):
            step._backend.run(step._binding)
    finally:
        array[...] = kept
    step.run()
    np.testing.assert_array_equal(step.top_logits, expected)


@pytest.mark.parametrize("value", [-1, -LARGE])
def test_a_negative_first_mask_row_is_refused(step: BoundStep, value: int) -> None:
    step.run()  # fills in the placement of the rows
    array = arrays_of(step)["first_mask_row"]
    kept = array.copy()
    array[0] = value
    try:
        with pytest.raises(EngineError, match="first_mask_row"):
            step._backend.run(step._binding)
    finally:
        array[...] = kept


@pytest.mark.parametrize("fault", ["overwrites", "sees nothing", "sees a later row", "disorder"])
def test_contradictory_rows_are_refused(step: BoundStep, fault: str) -> None:
    """A row must not overwrite the text or see keys without an order."""
    step.run()
    arrays = arrays_of(step)
    kept = {name: array.copy() for name, array in arrays.items()}
    if fault == "overwrites":
        arrays["row_slots"][1] = 0
    elif fault == "sees nothing":
        arrays["text_lengths"][0] = 0
        arrays["sees"][1] = False
    elif fault == "sees a later row":
        arrays["sees"][0, 1] = True
    else:
        arrays["row_slots"][:2] = arrays["row_slots"][1::-1].copy()
    try:
        if fault == "sees a later row":  # that row is written, so only the result changes
            step._backend.run(step._binding)
        else:
            with pytest.raises(EngineError, match="row"):
                step._backend.run(step._binding)
    finally:
        for name, array in arrays.items():
            array[...] = kept[name]
