"""`bita inspect`: a readable card of an engine, an adapter or a model."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bita.cli.shared.cards import NO_LICENSE, Rows, engine_card
from bita.cli.shared.engine_facts import read_engine_facts
from bita.cli.shared.flags import add_command
from bita.cli.shared.output import add_json, as_json, json_report, print_table


@dataclass(frozen=True)
class AdapterFileFacts:
    """All that is shown of an adapter file."""

    path: str
    masks: int  # M, mask tokens
    prefix_length: int  # P, virtual tokens
    lora_rank: int  # 0 for none
    pair_rank: int  # of the pair scores; 0 for none
    continuations: int  # runs of tokens in its table; 0 for none
    own_bonuses: bool  # whether its bonuses of guesses differ from the default ones
    tuned_on: str  # data, "untuned" for none
    architecture: str  # of the model that it is for
    layers: int
    hidden_size: int
    size_bytes: int  # on disk


@dataclass(frozen=True)
class ModelFacts:
    """All that is shown of a model that can be exported."""

    name: str
    family: str
    license: str | None  # None if the model's files state none
    weights: int  # how many numbers
    layers: int
    hidden_size: int
    attention_heads: int
    key_value_heads: int
    head_size: int
    sliding_windows: list[int]  # in tokens; empty for none
    vocabulary_size: int
    positions: int  # length of the longest text
    can_be_exported: bool  # True, since another model is an error


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "inspect",
        "show the facts of an engine, an adapter or a model",
        "bita inspect engines/smollm2-135m-instruct-int4",
        stdout="the card, one line per fact where it is not a terminal",
    )
    parser.add_argument("subject", help="engine directory, adapter file, or a model")
    add_json(parser, "the facts")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from bita.engine import MANIFEST_FILE

    path = Path(args.subject)
    with json_report(args.json) as report:
        if (path / MANIFEST_FILE).is_file():
            engine = read_engine_facts(path)
            kind, facts, rows = "engine", as_json(engine), engine_card(engine)
        elif path.is_file() and path.suffix == ".safetensors":
            adapter = read_adapter_facts(path)
            kind, facts, rows = "adapter", as_json(adapter), _adapter_card(adapter)
        else:
            model = read_model_facts(args.subject)
            kind, facts, rows = "model", as_json(model), _model_card(model)
        report |= {"kind": kind, **facts}
        if not args.json:
            print_table((), rows, title=f"{kind} {args.subject}")
    return 0


def read_adapter_facts(path: Path) -> AdapterFileFacts:
    """Read an adapter file. Raises AdapterError."""
    from bita.adapter import Adapter
    from bita.bonuses import DEFAULT_BONUSES

    adapter = Adapter.load(path)
    model, table = adapter.identity, adapter.continuations
    return AdapterFileFacts(
        path=str(path),
        masks=adapter.num_masks,
        prefix_length=adapter.prefix_length,
        lora_rank=adapter.lora_rank,
        pair_rank=adapter.pair_rank,
        continuations=table.num_entries if table else 0,
        own_bonuses=adapter.bonuses != DEFAULT_BONUSES,
        tuned_on=adapter.tuned_on,
        architecture=model.architecture,
        layers=model.num_layers,
        hidden_size=model.hidden_size,
        size_bytes=path.stat().st_size,
    )


def read_model_facts(name: str) -> ModelFacts:
    """Read a model's configuration and check that it can be exported. Raises ModelError."""
    import math

    from bita.export.architecture import read_architecture
    from bita.export.dialects.decoder import check_tensors, expected_shapes
    from bita.export.sources import open_checkpoint

    checkpoint = open_checkpoint(name)
    architecture = read_architecture(checkpoint.config, 1)
    check_tensors(checkpoint, architecture)
    windows = {layer.window for layer in architecture.layers if layer.window is not None}
    return ModelFacts(
        name=name,
        family=architecture.family,
        license=checkpoint.license,
        weights=sum(math.prod(shape) for shape in expected_shapes(architecture).values()),
        layers=architecture.num_layers,
        hidden_size=architecture.hidden_size,
        attention_heads=architecture.num_heads,
        key_value_heads=architecture.num_kv_heads,
        head_size=architecture.head_dim,
        sliding_windows=sorted(windows),
        vocabulary_size=architecture.vocab_size,
        positions=architecture.max_positions,
        can_be_exported=True,
    )


def _adapter_card(facts: AdapterFileFacts) -> Rows:
    return [
        ("mask tokens", facts.masks),
        ("prefix length", facts.prefix_length),
        ("LoRA rank", facts.lora_rank or "none"),
        ("pair scores", f"rank {facts.pair_rank}" if facts.pair_rank else "none"),
        (
            "continuations",
            f"{facts.continuations} runs of tokens" if facts.continuations else "none",
        ),
        ("bonuses", "its own" if facts.own_bonuses else "the default ones"),
        ("tuned on", facts.tuned_on),
        ("for", f"{facts.architecture}, {facts.layers} layers, hidden {facts.hidden_size}"),
        ("size", f"{facts.size_bytes / 1e3:.1f} kB"),
    ]


def _model_card(facts: ModelFacts) -> Rows:
    heads = f"{facts.attention_heads} heads, {facts.key_value_heads} key-value heads"
    return [
        ("family", facts.family),
        ("license", facts.license or NO_LICENSE),
        ("weights", f"{facts.weights / 1e6:.1f} M"),
        ("layers", f"{facts.layers}, hidden {facts.hidden_size}"),
        ("attention", f"{heads} of {facts.head_size}"),
        ("sliding window", ", ".join(map(str, facts.sliding_windows)) or "none"),
        ("vocabulary", facts.vocabulary_size),
        ("positions", facts.positions),
        ("can be exported", "yes"),
    ]
