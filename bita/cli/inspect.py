"""`bita inspect`: a readable card of an engine, an adapter or a model."""

import argparse
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bita.cli.shared.flags import add_command
from bita.json_values import printable

Rows = Iterable[tuple[str, object]]
UNTUNED = "untuned: few drafts are right (`bita tune` makes an adapter)"
SHOWN_ROWS = (1, 2, 4, 8, 16, 32, 64)


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "inspect",
        "show what an engine, an adapter or a model is",
        "bita inspect engines/smollm2-135m-instruct-int4",
    )
    parser.add_argument("subject", help="engine directory, adapter file, or a model")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.engine import MANIFEST_FILE

    path = Path(args.subject)
    if (path / MANIFEST_FILE).is_file():
        title, rows = "engine", _engine_rows(path)
    elif path.is_file() and path.suffix == ".safetensors":
        title, rows = "adapter", _adapter_rows(path)
    else:
        title, rows = "model", _model_rows(args.subject)
    # values come from files: they are no markup of rich's, and may not steer the terminal
    head = Text(printable(f"{title} {args.subject}"))
    table = Table(title=head, show_header=False, title_justify="left")
    for name, value in rows:
        table.add_row(name, Text(printable(str(value))))
    Console().print(table)
    return 0


def _engine_rows(path: Path) -> Rows:
    from bita.calibration.report import read_quality
    from bita.cli.shared.trees import states_of
    from bita.dialect_spec import DIALECTS, STANDARD
    from bita.engine import open_engine, read_calibration
    from bita.engine_adapter import read_adapter
    from bita.runtime.backends.pair_scores import read_tables
    from bita.runtime.loaded_engine import read_tree

    engine = open_engine(path, check_hashes=True)
    tree = read_tree(engine)
    read_adapter(engine)  # shown by the manifest's numbers, which are checked so
    if engine.manifest.pair_rank:
        read_tables(engine)
    quality, measured = read_quality(engine), read_calibration(engine)
    manifest = engine.manifest
    spec = DIALECTS.get(manifest.dialect, STANDARD)  # its cache is float16, as in most dialects
    cache_bytes = spec.cache_item_bytes(manifest.precision) * prod(manifest.cache_shape)
    prefix = manifest.prefix_length
    tuned = f"tuned on: {manifest.tuned_on}" if manifest.is_tuned else UNTUNED
    more = f", LoRA of rank {manifest.lora_rank}" if manifest.lora_rank else ""
    more += f", pair scores of rank {manifest.pair_rank}" if manifest.pair_rank else ""
    return [
        ("model", f"{manifest.model} ({manifest.family})"),
        ("license", manifest.license or "not stated by the model's files"),
        ("backend", f"{manifest.backend}, {manifest.precision}"),
        *_plan_rows(manifest),
        ("error", quality or "not measured"),
        *_worst_layer(quality),
        ("mode", manifest.mode),
        ("tree", tree),
        *((f"- {where}", each) for where, each in states_of(tree)),
        *_measured_rows(measured, str(path)),
        ("adapter", f"{manifest.num_masks} masks, prefix of {prefix}{more}, {tuned}"),
        ("layers", manifest.num_layers),
        ("vocabulary", manifest.vocab_size),
        ("text in C++", _text(path)),
        ("messages", _messages(engine)),
        ("cache", f"{manifest.capacity} slots, {cache_bytes / 1e6:.0f} MB when full"),
        ("drafts per mask", f"up to {manifest.num_ranks}"),
        ("files", f"{len(engine.files)}, {engine.num_bytes / 1e6:.1f} MB, hashes match"),
        ("needs", ", ".join(map(" ".join, manifest.requires.items()))),
        ("made by", manifest.created_by),
    ]


def _text(path: Path) -> str:
    """Whether the C++ library has what the tokenizer is made of."""
    from bita.native import LibbitaMissingError, text_fault

    try:
        fault = text_fault(path)
    except LibbitaMissingError:
        return "not known, since libbita is not in this installation"
    return f"none, give token ids: {fault}" if fault else "as in Python"


def _messages(engine: Any) -> str:
    """Where the engine takes messages: the C++ library has no Jinja for its chat template."""
    from bita.engine import CHAT_PIECES_FILE, TEMPLATE_FILE
    from bita.errors import EngineError
    from bita.json_values import Fields, read_json_object

    if TEMPLATE_FILE not in engine.files:
        return "none, since there is no chat template: prompts are text"
    if CHAT_PIECES_FILE not in engine.files:
        return "in Python only; rebuild the engine for those in C++"
    path = engine.file(CHAT_PIECES_FILE)
    fields = Fields(read_json_object(path, EngineError, "rebuild the engine"))
    source = fields.text("template_sha256")
    reason = fields.text("reason", "")
    covers = fields.text("covers", "") if reason else fields.text("covers")
    fields.check(EngineError, f"{path} (rebuild the engine)")
    if source != engine.files[TEMPLATE_FILE]["sha256"]:
        return "in Python only: the template was edited; rebuild the engine for those in C++"
    if reason:
        return f"in Python only: the C++ library cannot write the prompts, since {reason}"
    return f"in Python; in C++: {covers}"


def _plan_rows(manifest: Any) -> list[tuple[str, object]]:
    from bita.plan import PlanInfo

    if not manifest.plan:
        return [("graph", f"dialect {manifest.dialect}")]
    info = PlanInfo.from_manifest(manifest.plan)
    rows = ", ".join(map(str, info.decode_rows))
    targets = ", ".join(info.targets)
    return [
        ("graph", f"dialect {manifest.dialect}, which ort-cpu runs too"),
        ("plan", f"{info.name} for {targets}; steps of {rows} rows, prefill {info.prefill_rows}"),
    ]


def _measured_rows(report: Mapping[str, Any], source: str) -> list[tuple[str, object]]:
    """Why the engine has its tree, and what steps take, where that was measured."""
    from bita.calibration.latency import Latency

    rows: list[tuple[str, object]] = []
    if isinstance(report.get("tree"), Mapping):
        rows.append(("chosen because", report["tree"].get("why", "not stated")))
    if "latency" in report:
        latency = Latency.from_json(report["latency"], source)
        times = dict(zip(latency.rows, latency.median[0], strict=True))
        some = ", ".join(f"{ms:.3g} ms of {q}" for q, ms in times.items() if q in SHOWN_ROWS)
        device = latency.device.get("processor", latency.device.get("machine", "a device"))
        threads, length = latency.device.get("threads"), latency.cache_lengths[0]
        rows.append(("steps", f"{some} rows, after {length} tokens; {device}, threads: {threads}"))
    if isinstance(report.get("memory"), Mapping):
        rows.append(("memory", _memory(report["memory"], source)))
    return rows


def _memory(measured: Mapping[str, Any], source: str) -> str:
    from bita.errors import EngineError
    from bita.json_values import Fields

    parts, fields = [], Fields(measured, "memory.")
    for name, when in (("at_load", "when loaded"), ("decoding", "decoding")):
        memory = fields.inner(name, {})
        host, used = memory.whole("host", 0), memory.whole("gpu", 0)
        gpu = f" and {used / 1e6:.0f} MB of the GPU" if used else ""
        parts.append(f"{host / 1e6:.0f} MB{gpu} {when}")
    fields.check(EngineError, f"{source}: calibration.json (calibrate again)")
    return ", ".join(parts)


def _worst_layer(quality: Any) -> list[tuple[str, object]]:
    if quality is None or not quality.worst_layer_error:
        return []
    error = 100 * quality.worst_layer_error
    rows: list[tuple[str, object]] = [("worst layer", f"{quality.worst_layer}, {error:.2g} % off")]
    if quality.quantizer != "none":
        rows.append(("quantizer", quality.quantizer))
    return rows


def _adapter_rows(path: Path) -> Rows:
    from bita.adapter import Adapter
    from bita.bonuses import DEFAULT_BONUSES

    adapter = Adapter.load(path)
    model, table = adapter.identity, adapter.continuations
    return [
        ("mask tokens", adapter.num_masks),
        ("prefix length", adapter.prefix_length),
        ("LoRA rank", adapter.lora_rank or "none"),
        ("pair scores", f"rank {adapter.pair_rank}" if adapter.pair_rank else "none"),
        ("continuations", f"{table.num_entries} runs of tokens" if table else "none"),
        ("bonuses", "the default ones" if adapter.bonuses == DEFAULT_BONUSES else "its own"),
        ("tuned on", adapter.tuned_on),
        ("for", f"{model.architecture}, {model.num_layers} layers, hidden {model.hidden_size}"),
        ("size", f"{path.stat().st_size / 1e3:.1f} kB"),
    ]


def _model_rows(name: str) -> Rows:
    import math

    from bita.export.architecture import read_architecture
    from bita.export.dialects.decoder import check_tensors, expected_shapes
    from bita.export.sources import open_checkpoint

    checkpoint = open_checkpoint(name)
    architecture = read_architecture(checkpoint.config, 1)
    check_tensors(checkpoint, architecture)
    weights = sum(math.prod(shape) for shape in expected_shapes(architecture).values())
    heads, kv_heads = architecture.num_heads, architecture.num_kv_heads
    windows = {layer.window for layer in architecture.layers} - {None}
    return [
        ("family", architecture.family),
        ("license", checkpoint.license or "not stated by the model's files"),
        ("weights", f"{weights / 1e6:.1f} M"),
        ("layers", f"{architecture.num_layers}, hidden {architecture.hidden_size}"),
        ("attention", f"{heads} heads, {kv_heads} key-value heads of {architecture.head_dim}"),
        ("sliding window", ", ".join(map(str, windows)) or "none"),
        ("vocabulary", architecture.vocab_size),
        ("positions", architecture.max_positions),
        ("can be exported", "yes"),
    ]
