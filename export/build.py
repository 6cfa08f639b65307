"""Build an engine directory from a checkpoint and an adapter (`make engine`)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bita import __version__
from bita.adapter import Adapter, blank_adapter, untuned_adapter
from bita.dialect_spec import (
    DIALECTS,
    FLOAT_PRECISIONS,
    GRAPH_BACKENDS,
    NATIVE,
    ORT,
    dialects_on,
)
from bita.engine import (
    ADAPTER_FILE,
    CHAT_PIECES_FILE,
    GENERATION_FILE,
    OPERATORS,
    OPERATORS_VERSION,
    PAIRS_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    TREE_FILE,
    Manifest,
    check_replaceable,
    new_engine,
)
from bita.errors import EngineError, ModelError, raise_faults
from bita.export.architecture import Architecture, read_architecture
from bita.export.chat_pieces import pieces_file
from bita.export.check_texts import check_texts
from bita.export.checkpoint import Checkpoint, TextAssets
from bita.export.dialects.decoder import (
    check_tensors,
    expected_shapes,
    linears,
)
from bita.export.dialects.graph_options import GraphOptions
from bita.export.dialects.native_decoder import CACHE_TYPES
from bita.export.dialects.step_graph import NOTHING_SEEN, Seen, export_step_graph
from bita.export.tensorrt.build_costs import check_disk, plan_costs
from bita.export.tensorrt.compile_engine import (
    CompileOptions,
    check_costs,
    decode_rows,
)
from bita.identity import identify
from bita.manifest import MODES
from bita.pairs import pair_tables
from bita.runtime.backends.processor import EXACT_INT8, PROCESSOR, multiplies_int8_exactly
from bita.tensors import EMBEDDINGS, HEAD
from bita.tree import Tree
from bita.tree_table import Trees, TreeTable


@dataclass(frozen=True)
class BuildOptions:
    """The choices of a user."""

    precision: str = "int4"  # one of the dialect's precisions
    mode: str = "exact"  # "exact": bit-identical to AR; "tree": all branches are accepted
    capacity: int | None = None  # C, cache slots; None: 2048 or the model's limit, if that is less
    tree: Trees | None = None  # None: `default_tree`
    num_ranks: int = 16  # drafts per mask that the engine can return
    backend: str = "ort-cpu"  # runs the graph without a plan: one of GRAPH_BACKENDS
    # the operators of the graph: "ort" has ONNX Runtime's own, "standard" those that TensorRT also
    # reads, "plain" those of TensorRT before 10.15, "cuda" those of ONNX Runtime's CUDA provider,
    # "native" our own, for CPUs
    dialect: str = "ort"
    # type of the native dialect's caches, or "float32"; other dialects have only one type
    cache_type: str = "float16"


DEFAULT_CAPACITY = 2048
# Default trees of a CPU: length of the guess that a step checks, and the minimum level
# (`bita.runtime.decoding.guess_confidence`) at which it does.
NUM_GUESSES, MIN_GUESS_LEVEL = 2, 3


@dataclass(frozen=True)
class CheckedBuild:
    """A build without faults, with everything that `build_engine` needs to write it."""

    checkpoint: Checkpoint
    options: BuildOptions
    out: Path  # the engine directory
    architecture: Architecture  # read for `capacity`
    adapter: Adapter  # fits the checkpoint
    tree: Trees
    texts: TextAssets
    capacity: int  # C, cache slots
    num_bytes: int  # approximate size of the weights on disk
    compile_options: CompileOptions | None = None  # of the engine's plan; None for no plan
    inputs: str = ""  # digest of everything the engine is built from; "" if it is not needed


def check_build(
    checkpoint: Checkpoint,
    adapter: Adapter | None,
    out: Path,
    options: BuildOptions,
    compile_options: CompileOptions | None = None,
) -> CheckedBuild:
    """Check everything that can be checked before the engine `out` is written.

    Args:
        checkpoint: The model.
        adapter: None for an untuned engine, for which the whole embedding table is read.
        out: The engine directory.
        options: The choices of the user.
        compile_options: Options of the plan; None for an engine without a plan.

    Raises:
        ModelError, AdapterError, EngineError: if the build would fail; the error lists every fault.
    """
    capacity = options.capacity or default_capacity(checkpoint)
    _check_options(options, capacity)
    architecture = read_architecture(checkpoint.config, capacity)
    check_tensors(checkpoint, architecture)
    check_rotary_widths(architecture, DIALECTS[options.dialect].rotary_unit)
    texts = checkpoint.text_assets()
    check_texts(texts, checkpoint.name, architecture.vocab_size)
    adapter = _checked_adapter(adapter, checkpoint)
    tree = options.tree or default_tree(options, compile_options, adapter.num_masks)
    _check_tree(tree, adapter, options.num_ranks, capacity)
    check_replaceable(out)
    num_bytes = weight_bytes(architecture, options.precision, options.dialect)
    check_disk(out, num_bytes)
    if compile_options:
        _check_plan(compile_options, options.dialect, tree, out, num_bytes)
    return CheckedBuild(
        checkpoint=checkpoint,
        options=options,
        out=out,
        architecture=architecture,
        adapter=adapter,
        tree=tree,
        texts=texts,
        capacity=capacity,
        num_bytes=num_bytes,
        compile_options=compile_options,
    )


def check_reference(build: CheckedBuild, out: Path, max_capacity: int) -> CheckedBuild:
    """Return the build of the reference: the same model in float32, decoding plainly.

    It has no adapter, and a capacity of at most `max_capacity`. Only differences from `build` are
    checked: the capacity, the heads, and the disk, which must hold both engines.

    Raises:
        ModelError, EngineError: if the reference cannot be built.
    """
    capacity = default_capacity(build.checkpoint, max_capacity)
    architecture = read_architecture(build.checkpoint.config, capacity)
    options = BuildOptions("fp32", capacity=capacity)
    check_rotary_widths(architecture, DIALECTS[options.dialect].rotary_unit)
    num_bytes = weight_bytes(architecture, "fp32")
    check_disk(out, num_bytes + build.num_bytes)
    return replace(
        build,
        options=options,
        out=out,
        architecture=architecture,
        adapter=blank_adapter(build.adapter.identity),
        tree=Tree.root_only(),
        capacity=capacity,
        num_bytes=num_bytes,
        compile_options=None,
    )


def build_engine(
    build: CheckedBuild,
    on_start: Callable[[int], None] = lambda _: None,
    on_write: Callable[[int], None] = lambda _: None,
    seen: Seen = NOTHING_SEEN,
) -> Manifest:
    """Write the engine `build.out` without a plan; an older engine there is replaced at the end.

    Args:
        build: The checked build.
        on_start: Called once with the expected size of the weights in bytes.
        on_write: Called with the size in bytes of each piece of weights written.
        seen: Statistics of the inputs of linear layers, for which weights are rounded. Without
            moments int4 weights are rounded to the nearest values.

    Raises:
        ModelError, EngineError: if the engine cannot be written.
    """
    options, adapter = build.options, build.adapter
    on_start(build.num_bytes)
    with new_engine(build.out) as draft:
        export_step_graph(
            build.checkpoint,
            build.architecture,
            draft.path,
            GraphOptions(
                build.capacity,
                options.precision,
                options.num_ranks,
                adapter.lora_rank > 0,
                options.dialect,
                options.cache_type,
            ),
            seen,
            on_write,
        )
        adapter.save(draft.path / ADAPTER_FILE)
        if adapter.pairs:
            tables = pair_tables(build.checkpoint, EMBEDDINGS, adapter.pairs)
            save_file({"left": tables.left, "right": tables.right}, draft.path / PAIRS_FILE)
        (draft.path / TREE_FILE).write_text(build.tree.to_json(), encoding="utf-8")
        _write_texts(build.texts, draft.path)
        draft.manifest = _manifest(build)
    return draft.manifest


def check_rotary_widths(architecture: Architecture, unit: int) -> None:
    """Check that GroupQueryAttention can rotate the heads, which it would report only at run time.

    Args:
        architecture: The decoder.
        unit: The attention rotates multiples of this many values of a head.

    Raises:
        ModelError: if a rotary embedding has another width.
    """
    widths = {2 * len(layer.rope.inv_freq) for layer in architecture.layers if layer.rope}
    wrong = sorted(width for width in widths if width % unit)
    if wrong:
        raise ModelError(
            f"rotary embeddings rotate {wrong[0]} values of a head, but ONNX Runtime's attention "
            f"supports only multiples of {unit}; build with --dialect standard"
        )


def weight_bytes(architecture: Architecture, precision: str, dialect: str = "ort") -> int:
    """Return the approximate number of bytes of weights that an export writes."""
    shapes = expected_shapes(architecture)
    sizes = {name: float(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
    if precision in FLOAT_PRECISIONS:
        return int((4 if precision == "fp32" else 2) * sum(sizes.values()))
    spec, embeddings = DIALECTS[dialect], shapes[EMBEDDINGS]
    num_rows = embeddings[0]
    packed = sum(sizes[name] for name in linears(shapes))
    if spec.has_blocks_only:
        table = spec.bytes_per_weight["int8"] * sizes[EMBEDDINGS]
        return int(spec.bytes_per_weight[precision] * (packed + sizes.get(HEAD, 0)) + table)
    packed += sizes[EMBEDDINGS]
    if precision in ("int8", "fp8"):  # a scale for each output
        packed += 4 * (sum(shapes[name][0] for name in linears(shapes)) + num_rows)
    table = num_rows * (embeddings[1] + 4) if spec.has_int8_table else 2 * sizes[EMBEDDINGS]
    return int(spec.bytes_per_weight[precision] * packed + table)


def default_tree(
    options: BuildOptions, compile_options: CompileOptions | None, num_masks: int
) -> Trees:
    """Return the tree of an engine for which none was given or measured.

    On a GPU, whose steps hardly take longer with more rows, it is a chain as deep as the adapter
    has masks. On a CPU the rows of masks cost more than they gain: the chain decodes the default
    model at 0.3 to 0.55 times the speed of plain decoding. There, steps decode plainly until a
    guess from the text, or from the adapter's table, is likely right. On five prompts that is 1.14
    to 1.5 times as fast with the default adapter, and 1.04 to 1.36 times untuned, by steps and rows
    counted with 0.17 plain steps for each further row; no prompt gets slower up to 0.35.
    """
    if compile_options is not None or options.backend != "ort-cpu":
        return Tree.chain(num_masks)
    guesses = Tree.chain(NUM_GUESSES, 0).with_guesses(1)
    return TreeTable((Tree.root_only(), guesses), (0, MIN_GUESS_LEVEL), ((0, 1),))


def default_capacity(checkpoint: Checkpoint, max_capacity: int = DEFAULT_CAPACITY) -> int:
    """Return the default number of cache slots: the model's positions, at most `max_capacity`."""
    limit = checkpoint.config.get("max_position_embeddings")
    return min(max_capacity, limit) if isinstance(limit, int) else max_capacity


def _check_options(options: BuildOptions, capacity: int) -> None:
    faults = []
    for name, value, known in (
        ("dialect", options.dialect, tuple(DIALECTS)),
        ("precision", options.precision, DIALECTS.get(options.dialect, ORT).precisions),
        ("mode", options.mode, MODES),
        ("backend", options.backend, GRAPH_BACKENDS),
        ("cache type", options.cache_type, CACHE_TYPES),
    ):
        if value not in known:
            faults.append(f"{name} {value!r} is not one of {', '.join(known)}")
    if options.dialect not in (dialects_on(options.backend) or DIALECTS):
        faults.append(f"backend {options.backend} does not run dialect {options.dialect!r}")
    if capacity < 1:
        faults.append(f"capacity {capacity} is not positive")
    if options.num_ranks < 2:
        faults.append(f"num_ranks {options.num_ranks} is less than 2")
    raise_faults(EngineError, "cannot build", faults)


def _checked_adapter(adapter: Adapter | None, checkpoint: Checkpoint) -> Adapter:
    if adapter is None:
        return untuned_adapter(checkpoint)
    adapter.check_fits(identify(checkpoint))
    return adapter


def _check_tree(tree: Trees, adapter: Adapter, num_ranks: int, capacity: int) -> None:
    faults = tree.misfits(adapter.num_masks, num_ranks, capacity - adapter.prefix_length)
    raise_faults(EngineError, "cannot build with this tree", faults)


def _check_plan(
    compile_options: CompileOptions, dialect: str, tree: Trees, out: Path, num_bytes: int
) -> None:
    """Raise EngineError if the library cannot read the graph, or the plan costs too much."""
    compile_options.check_dialect(dialect)
    if not compile_options.force:
        rows = compile_options.rows or decode_rows(tree)
        costs = plan_costs(num_bytes, compile_options.library, rows)
        check_costs(costs, compile_options, out, num_bytes)


def _write_texts(texts: TextAssets, directory: Path) -> None:
    (directory / TOKENIZER_FILE).write_text(texts.tokenizer_json, encoding="utf-8")
    if texts.chat_template is not None:
        (directory / TEMPLATE_FILE).write_text(texts.chat_template, encoding="utf-8")
        pieces = pieces_file(texts.chat_template, texts.defaults.special_tokens)
        (directory / CHAT_PIECES_FILE).write_text(pieces, encoding="utf-8")
    texts.defaults.save(directory / GENERATION_FILE)


def _manifest(build: CheckedBuild) -> Manifest:
    options, architecture, adapter = build.options, build.architecture, build.adapter
    return Manifest(
        model=build.checkpoint.name,
        family=architecture.family,
        license=build.checkpoint.license,
        backend=options.backend,
        dialect=options.dialect,
        precision=options.precision,
        mode=options.mode,
        num_layers=architecture.num_layers,
        num_kv_heads=architecture.num_kv_heads,
        head_dim=architecture.head_dim,
        hidden_size=architecture.hidden_size,
        vocab_size=architecture.vocab_size,
        capacity=build.capacity,
        num_ranks=options.num_ranks,
        num_masks=adapter.num_masks,
        prefix_length=adapter.prefix_length,
        lora_rank=adapter.lora_rank,
        pair_rank=adapter.pair_rank,
        tuned_on=adapter.tuned_on,
        requires=_requirements(options),
        created_by=f"bita-edge {__version__}",
        inputs=build.inputs,
    )


def _requirements(options: BuildOptions) -> dict[str, str]:
    spec = DIALECTS[options.dialect]
    requires = {"onnxruntime": spec.min_onnxruntime}
    if spec.needs_smoothing(options.precision) and multiplies_int8_exactly():
        requires[PROCESSOR] = EXACT_INT8
    if spec.name == NATIVE.name:
        requires[OPERATORS] = OPERATORS_VERSION
    return requires
