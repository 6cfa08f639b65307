"""`make engine`: from a checkpoint and an adapter to an engine directory."""

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
from bita.tree_table import Trees


@dataclass(frozen=True)
class BuildOptions:
    """What a user may choose."""

    precision: str = "int4"  # one of the dialect's
    mode: str = "exact"  # "exact": bit-identical to AR; "tree": all branches are accepted
    capacity: int | None = None  # C, cache slots; None: 2048 or the model's limit, if that is less
    tree: Trees | None = None  # None: a chain as deep as the adapter has masks
    num_ranks: int = 16  # drafts per mask that the engine can give
    backend: str = "ort-cpu"  # which runs the graph as it is: one of GRAPH_BACKENDS
    # of the graph's operators: "ort" for ONNX Runtime's own, "standard" for those that TensorRT
    # reads too, "plain" for those of TensorRT before 10.15, "cuda" for ONNX Runtime's CUDA
    # provider, "native" for our own, on CPUs
    dialect: str = "ort"
    cache_type: str = (
        "float16"  # of the native dialect's caches, or "float32"; others have one type
    )


DEFAULT_CAPACITY = 2048


@dataclass(frozen=True)
class CheckedBuild:
    """A build in which no fault was found, with all that `build_engine` needs to write it."""

    checkpoint: Checkpoint
    options: BuildOptions
    out: Path  # the engine directory
    architecture: Architecture  # as it is for `capacity`
    adapter: Adapter  # it fits the checkpoint
    tree: Trees
    texts: TextAssets
    capacity: int  # C, cache slots
    num_bytes: int  # about what the weights take on disk
    compile_options: CompileOptions | None = None  # of the plan that it gets; None for no plan
    inputs: str = ""  # digest of what it is built from; "" if nobody will ask


def check_build(
    checkpoint: Checkpoint,
    adapter: Adapter | None,
    out: Path,
    options: BuildOptions,
    compile_options: CompileOptions | None = None,
) -> CheckedBuild:
    """Check everything that can be checked before the engine `out` is written.

    adapter: None for an untuned one, for which the whole embedding table is read.
    Raises ModelError, AdapterError or EngineError that lists every fault found.
    """
    capacity = options.capacity or default_capacity(checkpoint)
    _check_options(options, capacity)
    architecture = read_architecture(checkpoint.config, capacity)
    check_tensors(checkpoint, architecture)
    check_rotary_widths(architecture, DIALECTS[options.dialect].rotary_unit)
    texts = checkpoint.text_assets()
    check_texts(texts, checkpoint.name, architecture.vocab_size)
    adapter = _fitting(adapter, checkpoint)
    tree = options.tree or Tree.chain(adapter.num_masks)
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
    """The float32 engine of the same model, which decodes plainly, without the build's adapter.

    Only what differs is checked: the capacity, which is at most `max_capacity`, the heads, and
    the disk, which has to hold both engines.
    Raises ModelError or EngineError.
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
    """Write the engine `build.out`, without a plan; an older one there is replaced at the end.

    seen: what its linear layers read, for which weights are rounded; without moments int4 is
    rounded to the nearest. on_start, on_write: bytes of weights expected and written.
    Raises ModelError or EngineError.
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
    """Raise ModelError if GroupQueryAttention cannot turn the heads; it says so when it runs.

    unit: the attention turns multiples of that many numbers of a head.
    """
    widths = {2 * len(layer.rope.inv_freq) for layer in architecture.layers if layer.rope}
    wrong = sorted(width for width in widths if width % unit)
    if wrong:
        raise ModelError(
            f"rotary embeddings turn {wrong[0]} numbers of a head; ONNX Runtime's attention takes "
            f"multiples of {unit}: build with --dialect standard"
        )


def weight_bytes(architecture: Architecture, precision: str, dialect: str = "ort") -> int:
    """About how many bytes of weights an export writes."""
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


def default_capacity(checkpoint: Checkpoint, max_capacity: int = DEFAULT_CAPACITY) -> int:
    """Cache slots where none are asked for: the model's positions, but at most `max_capacity`."""
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


def _fitting(adapter: Adapter | None, checkpoint: Checkpoint) -> Adapter:
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
    """Raise EngineError if the library does not read the graph, or the plan costs too much."""
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
