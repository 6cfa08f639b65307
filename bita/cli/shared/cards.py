"""Cards of engines: the facts of `bita inspect` as lines for people."""

from collections.abc import Sequence

from bita.cli.shared.engine_facts import AdapterFacts, EngineFacts, MemoryFacts, StepFacts

Rows = list[tuple[str, object]]
NO_LICENSE = "not stated by the model's files"
UNTUNED = "untuned: few drafts are right (`bita tune` makes an adapter)"
SHOWN_ROWS = (1, 2, 4, 8, 16, 32, 64)


def engine_card(facts: EngineFacts) -> Rows:
    """Return name and value of each line of an engine's card."""
    return [
        ("model", f"{facts.model} ({facts.family})"),
        ("license", facts.license or NO_LICENSE),
        ("backend", f"{facts.backend}, {facts.precision}"),
        *_graph(facts),
        ("error", facts.quality.summary if facts.quality else "not measured"),
        *_worst_layer(facts),
        ("mode", facts.mode),
        ("tree", facts.tree.description),
        *((f"- {each['state']}", each["tree"]) for each in facts.tree.states),
        *_measured(facts),
        ("adapter", _adapter(facts.adapter)),
        ("layers", facts.layers),
        ("vocabulary", facts.vocabulary_size),
        ("text in C++", facts.text.text_note),
        ("messages", facts.text.messages_note),
        ("cache", f"{facts.cache_slots} slots, {facts.cache_bytes / 1e6:.0f} MB when full"),
        ("drafts per mask", f"up to {facts.adapter.drafts_per_mask}"),
        ("files", f"{facts.files}, {facts.size_bytes / 1e6:.1f} MB, hashes match"),
        ("needs", ", ".join(map(" ".join, facts.requires.items()))),
        ("made by", facts.created_by),
    ]


def _graph(facts: EngineFacts) -> Rows:
    plan = facts.plan
    if plan is None:
        return [("graph", f"dialect {facts.dialect}")]
    rows, targets = _listed(plan.decode_rows), _listed(plan.targets)
    size = f"steps of {rows} rows, prefill {plan.prefill_rows}"
    return [
        ("graph", f"dialect {facts.dialect}, which ort-cpu runs too"),
        ("plan", f"{plan.library} for {targets}; {size}"),
    ]


def _worst_layer(facts: EngineFacts) -> Rows:
    quality = facts.quality
    if quality is None or not quality.worst_layer_relative_error:
        return []
    error = 100 * quality.worst_layer_relative_error
    rows: Rows = [("worst layer", f"{quality.worst_layer}, {error:.2g} % off")]
    return rows if quality.quantizer == "none" else [*rows, ("quantizer", quality.quantizer)]


def _measured(facts: EngineFacts) -> Rows:
    """Return why the engine has its tree, and the cost of steps, if they were measured."""
    rows: Rows = []
    if facts.tree.chosen_because:
        rows.append(("chosen because", facts.tree.chosen_because))
    if facts.steps:
        rows.append(("steps", _steps(facts.steps)))
    if facts.memory:
        rows.append(("memory", _memory(facts.memory)))
    return rows


def _steps(steps: StepFacts) -> str:
    times = dict(zip(steps.rows, steps.median_ms[0], strict=True))
    some = ", ".join(f"{ms:.3g} ms of {rows}" for rows, ms in times.items() if rows in SHOWN_ROWS)
    device = steps.device.get("processor", steps.device.get("machine", "a device"))
    threads = steps.device.get("threads")
    return f"{some} rows, after {steps.cache_tokens[0]} tokens; {device}, threads: {threads}"


def _memory(memory: MemoryFacts) -> str:
    loaded = _bytes(memory.at_load_host_bytes, memory.at_load_gpu_bytes)
    decoding = _bytes(memory.decoding_host_bytes, memory.decoding_gpu_bytes)
    return f"{loaded} when loaded, {decoding} decoding"


def _bytes(host: int, gpu: int) -> str:
    on_gpu = f" and {gpu / 1e6:.0f} MB of the GPU" if gpu else ""
    return f"{host / 1e6:.0f} MB{on_gpu}"


def _adapter(adapter: AdapterFacts) -> str:
    tuned = f"tuned on: {adapter.tuned_on}" if adapter.tuned else UNTUNED
    more = f", LoRA of rank {adapter.lora_rank}" if adapter.lora_rank else ""
    more += f", pair scores of rank {adapter.pair_rank}" if adapter.pair_rank else ""
    return f"{adapter.masks} masks, prefix of {adapter.prefix_length}{more}, {tuned}"


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
