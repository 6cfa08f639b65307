"""The facts of an engine that `bita inspect` and `bita engine` report."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bita.calibration.report import Quality
    from bita.engine import Engine
    from bita.manifest import Manifest


@dataclass(frozen=True)
class AdapterFacts:
    """The adapter inside an engine."""

    tuned: bool  # whether its masks have learned anything of the model
    tuned_on: str  # data, "untuned" for none
    masks: int  # M, mask tokens
    prefix_length: int  # P, virtual tokens
    lora_rank: int  # 0 for none
    pair_rank: int  # of the pair scores; 0 for none
    drafts_per_mask: int  # largest rank that a tree can use


@dataclass(frozen=True)
class TreeFacts:
    """The tree that an engine decodes with."""

    description: str
    rows: int  # of the largest step
    states: list[dict[str, str]]  # `state` and `tree` of a tree by state; empty for one tree
    chosen_because: str | None  # None if it was not measured


@dataclass(frozen=True)
class PlanFacts:
    """The compiled plan of an engine for GPUs."""

    library: str  # name and version
    targets: list[str]  # GPU generations
    decode_rows: list[int]  # sizes of a decode step
    prefill_rows: int  # of the largest prefill step


@dataclass(frozen=True)
class QualityFacts:
    """The loss of a precision against float32."""

    perplexity: float
    reference_perplexity: float  # of float32
    kl_nats_per_token: float  # divergence from float32
    same_greedy_share: float  # tokens with the same best token, 0 to 1
    worst_layer: str  # the layer with the largest error
    worst_layer_relative_error: float  # norm of the difference over the norm of the output
    texts: int
    tokens: int  # 0: no text fits the cache, and nothing was measured
    quantizer: str
    prompts: str  # prompt files
    answers: str  # who wrote them, "float32" or "engine"
    summary: str  # the same in one sentence


@dataclass(frozen=True)
class StepFacts:
    """Times of single decode steps on the device where they were measured."""

    rows: list[int]  # of the steps [n]
    cache_tokens: list[int]  # lengths of the text in the cache [m]
    median_ms: list[list[float]]  # [m][n]
    device: dict[str, Any]


@dataclass(frozen=True)
class MemoryFacts:
    """Peaks of a session's memory in bytes."""

    at_load_host_bytes: int
    at_load_gpu_bytes: int
    decoding_host_bytes: int
    decoding_gpu_bytes: int


@dataclass(frozen=True)
class TextFacts:
    """Whether programs in C and C++ can give texts and messages to an engine."""

    text_in_cpp: bool | None  # None if libbita is not in this installation
    text_note: str
    messages_in_python: bool
    messages_in_cpp: bool
    messages_note: str


@dataclass(frozen=True)
class EngineFacts:
    """All that `bita inspect` shows of an engine."""

    path: str
    model: str
    family: str
    license: str | None  # None if the model's files state none
    backend: str
    precision: str
    dialect: str
    plan: PlanFacts | None
    quality: QualityFacts | None  # None if it was not measured
    mode: str
    tree: TreeFacts
    steps: StepFacts | None  # None if they were not measured
    memory: MemoryFacts | None  # None if it was not measured
    adapter: AdapterFacts
    layers: int
    vocabulary_size: int
    text: TextFacts
    cache_slots: int
    cache_bytes: int  # when full
    files: int
    size_bytes: int  # on disk
    requires: dict[str, str]
    created_by: str


def read_engine_facts(path: Path) -> EngineFacts:
    """Read an engine and check every file of it. Raises EngineError."""
    from bita.calibration.report import read_quality
    from bita.dialect_spec import DIALECTS, STANDARD
    from bita.engine import open_engine, read_calibration
    from bita.engine_adapter import read_adapter
    from bita.runtime.backends.pair_scores import read_tables

    engine = open_engine(path, check_hashes=True)
    read_adapter(engine)  # a check: the manifest's numbers, which are shown, agree with it
    if engine.manifest.pair_rank:
        read_tables(engine)
    quality, measured = read_quality(engine), read_calibration(engine)
    manifest = engine.manifest
    spec = DIALECTS.get(manifest.dialect, STANDARD)  # a float16 cache, as in most dialects
    return EngineFacts(
        path=str(path),
        model=manifest.model,
        family=manifest.family,
        license=manifest.license,
        backend=manifest.backend,
        precision=manifest.precision,
        dialect=manifest.dialect,
        plan=_plan(manifest),
        quality=quality_facts(quality) if quality else None,
        mode=manifest.mode,
        tree=tree_facts(engine),
        steps=_steps(measured, str(path)),
        memory=_memory(measured, str(path)),
        adapter=_adapter(manifest),
        layers=manifest.num_layers,
        vocabulary_size=manifest.vocab_size,
        text=text_facts(engine),
        cache_slots=manifest.capacity,
        cache_bytes=int(spec.cache_item_bytes(manifest.precision) * prod(manifest.cache_shape)),
        files=len(engine.files),
        size_bytes=engine.num_bytes,
        requires=manifest.requires,
        created_by=manifest.created_by,
    )


def quality_facts(quality: "Quality") -> QualityFacts:
    """Return a measured quality with names and units for JSON."""
    return QualityFacts(
        perplexity=quality.perplexity,
        reference_perplexity=quality.reference_perplexity,
        kl_nats_per_token=quality.kl,
        same_greedy_share=quality.same_greedy,
        worst_layer=quality.worst_layer,
        worst_layer_relative_error=quality.worst_layer_error,
        texts=quality.num_texts,
        tokens=quality.num_tokens,
        quantizer=quality.quantizer,
        prompts=quality.prompts,
        answers=quality.answers,
        summary=str(quality),
    )


def _plan(manifest: "Manifest") -> PlanFacts | None:
    from bita.plan import PlanInfo

    if not manifest.plan:
        return None
    info = PlanInfo.from_manifest(manifest.plan)
    return PlanFacts(info.name, [*info.targets], [*info.decode_rows], info.prefill_rows)


def tree_facts(engine: "Engine") -> TreeFacts:
    """Return the tree of an engine. Raises EngineError."""
    from bita.cli.shared.trees import state_facts
    from bita.engine import read_calibration
    from bita.runtime.loaded_engine import read_tree

    tree, report, why = read_tree(engine), read_calibration(engine), None
    if isinstance(report.get("tree"), Mapping):
        why = str(report["tree"].get("why", "not stated"))
    return TreeFacts(str(tree), tree.num_rows, state_facts(tree), why)


def _steps(report: Mapping[str, Any], source: str) -> StepFacts | None:
    from bita.calibration.latency import Latency

    if "latency" not in report:
        return None
    latency = Latency.from_json(report["latency"], source)
    return StepFacts(
        rows=[*latency.rows],
        cache_tokens=[*latency.cache_lengths],
        median_ms=[[*times] for times in latency.median],
        device=dict(latency.device),
    )


def _memory(report: Mapping[str, Any], source: str) -> MemoryFacts | None:
    from bita.errors import EngineError
    from bita.json_values import Fields

    if not isinstance(report.get("memory"), Mapping):
        return None
    fields = Fields(report["memory"], "memory.")
    loaded, decoding = fields.inner("at_load", {}), fields.inner("decoding", {})
    facts = MemoryFacts(
        at_load_host_bytes=loaded.whole("host", 0),
        at_load_gpu_bytes=loaded.whole("gpu", 0),
        decoding_host_bytes=decoding.whole("host", 0),
        decoding_gpu_bytes=decoding.whole("gpu", 0),
    )
    fields.check(EngineError, f"{source}: calibration.json (calibrate again)")
    return facts


def _adapter(manifest: "Manifest") -> AdapterFacts:
    return AdapterFacts(
        tuned=manifest.is_tuned,
        tuned_on=manifest.tuned_on,
        masks=manifest.num_masks,
        prefix_length=manifest.prefix_length,
        lora_rank=manifest.lora_rank,
        pair_rank=manifest.pair_rank,
        drafts_per_mask=manifest.num_ranks,
    )


def text_facts(engine: "Engine") -> TextFacts:
    """Ask the C++ library whether it has what the tokenizer is made of."""
    from bita.native import LibbitaMissingError, text_fault

    is_known: bool | None
    try:
        fault = text_fault(engine.path)
        is_known = not fault
        note = f"none, give token ids: {fault}" if fault else "as in Python"
    except LibbitaMissingError:
        is_known, note = None, "not known, since libbita is not in this installation"
    in_python, in_cpp, messages = _messages(engine)
    return TextFacts(is_known, note, in_python, in_cpp, messages)


def _messages(engine: "Engine") -> tuple[bool, bool, str]:
    """Return whether Python and C++ take messages, and the reason.

    The C++ library has no Jinja, so that it needs the chat template in another form.
    """
    from bita.engine import CHAT_PIECES_FILE, TEMPLATE_FILE
    from bita.errors import EngineError
    from bita.json_values import Fields, read_json_object

    if TEMPLATE_FILE not in engine.files:
        return False, False, "none, since there is no chat template: prompts are text"
    if CHAT_PIECES_FILE not in engine.files:
        return True, False, "in Python only; rebuild the engine for those in C++"
    path = engine.file(CHAT_PIECES_FILE)
    fields = Fields(read_json_object(path, EngineError, "rebuild the engine"))
    source = fields.text("template_sha256")
    reason = fields.text("reason", "")
    covers = fields.text("covers", "") if reason else fields.text("covers")
    fields.check(EngineError, f"{path} (rebuild the engine)")
    if source != engine.files[TEMPLATE_FILE]["sha256"]:
        edited = "in Python only: the template was edited; rebuild the engine for those in C++"
        return True, False, edited
    if reason:
        why = f"in Python only: the C++ library cannot write the prompts, since {reason}"
        return True, False, why
    return True, True, f"in Python; in C++: {covers}"
