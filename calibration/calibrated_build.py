"""An engine whose weights are rounded for the texts it will see, and that says what that cost.

The float32 engine of the same model answers prompts, gives the moments of its layers' inputs, and
is what the finished engine is compared with. At last the engine is timed on this device, and takes
the tree that is fastest here.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bita import __version__
from bita.adapter import Adapter
from bita.calibration.choose_tree import Choice
from bita.calibration.effort import Effort
from bita.calibration.moments import collect_moments
from bita.calibration.quality import Scored, measure_quality
from bita.calibration.ranges import collect_ranges, collect_squares
from bita.calibration.report import Quality, read_quality, with_quality
from bita.calibration.stages import Calibrator, NothingFitsError
from bita.data.dataset import Conversation
from bita.data.generate_data import DataLimits, FilePrompts, generate_data
from bita.data.generators import EngineGenerator
from bita.data.model_texts import ModelTexts
from bita.data.prompts import CALIBRATION_PROMPTS, OWN_PROMPTS
from bita.dialect_spec import DIALECTS, FLOAT_PRECISIONS
from bita.engine import (
    CALIBRATION_FILE,
    TREE_FILE,
    Engine,
    move_engine,
    open_engine,
    revise_engine,
)
from bita.errors import EngineError, PromptError
from bita.export.architecture import read_architecture
from bita.export.build import BuildOptions, build_engine, plan_build, weight_bytes
from bita.export.checkpoint import Checkpoint
from bita.export.dialects.step_graph import NOTHING_SEEN, Seen
from bita.export.tensorrt.build_costs import check_memory
from bita.export.tensorrt.compile_engine import CompileOptions, compile_engine
from bita.progress import OnProgress, ignore_progress
from bita.runtime.session import Session
from bita.tree import Tree

QUANTIZERS = ("gptq", "rtn")
HELD_OUT = 4  # of a user's prompts one in so many is judged by, and not calibrated on
CAPACITY = 1024  # cache slots of the float32 engine, if the model has so many positions

Conversations = Sequence[Conversation]


@dataclass(frozen=True)
class CalibrationOptions:
    """quantizer: "gptq", for int8 smoothing in its place; or "rtn" (to the nearest).

    prompts: a prompt file whose answers are calibrated on and judged by; None: sets of our own.
    max_new_tokens: of each answer. effort: what the choice of the tree takes.
    """

    quantizer: str = "gptq"
    prompts: Path | None = None
    max_new_tokens: int = 64
    effort: Effort = field(default_factory=Effort)

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZERS:
            known = ", ".join(QUANTIZERS)
            raise EngineError(f"quantizer {self.quantizer!r} is not one of {known}")


@dataclass(frozen=True)
class Built:
    """quality: its error. choice: how its tree was chosen, None if nothing was timed."""

    engine: Engine
    quality: Quality
    choice: Choice | None


def build_calibrated(
    checkpoint: Checkpoint,
    adapter: Adapter | None,
    out: Path,
    options: BuildOptions,
    calibration: CalibrationOptions,
    on_progress: OnProgress = ignore_progress,
    plan: CompileOptions | None = None,
) -> Built:
    """Build the engine `out`, measure its error, and choose its tree unless `options` has one or
    the dialect is not this device's.

    plan: what its graph is compiled with at last; None for no plan. A build that was killed goes on
    where it was. What it goes on from lies in a hidden folder beside `out` until the end, and takes
    4 bytes for each weight of the model. Raises what `build_engine` does, and PromptError.
    """
    ready = plan_build(checkpoint, adapter, out, options, plan)
    check_memory(
        weight_bytes(ready.architecture, "fp32"),
        "calibration runs the model in float32, which",
        "give --uncalibrated, or build elsewhere and copy the engine",
    )
    work = out.with_name(f".{out.name}.calibration")
    build = _Build(checkpoint, options, calibration, work, on_progress)
    reference = build.reference()
    train, held_out = build.answers(reference)
    engine = build.engine(adapter, lambda: build.seen(reference, train))
    quality = read_quality(engine)
    if quality is None:
        engine, quality = build.judged(engine, reference, held_out)
    choice = None
    if options.tree is None and DIALECTS[options.dialect].runs_where_built:
        engine, choice = build.measured(engine)
    if plan:
        engine = compile_engine(engine, plan, on_progress)
    engine = move_engine(engine, out)
    shutil.rmtree(work)
    return Built(engine, quality, choice)


class _Build:
    """The stages, each of which keeps what an earlier run left in `work`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        options: BuildOptions,
        calibration: CalibrationOptions,
        work: Path,
        on_progress: OnProgress,
    ) -> None:
        self._checkpoint = checkpoint
        self._options = options
        self._calibration = calibration
        self._work = work
        self._on_progress = on_progress
        self._texts = ModelTexts.of(checkpoint)
        self._claim_folder()

    def reference(self) -> Engine:
        """The float32 engine."""
        path = self._work / "float32"
        if not path.exists():
            limit = self._checkpoint.config.get("max_position_embeddings")
            capacity = min(CAPACITY, limit) if isinstance(limit, int) else CAPACITY
            self._export(None, path, BuildOptions("fp32", capacity=capacity))
        return open_engine(path)

    def answers(self, reference: Engine) -> tuple[Conversations, Conversations]:
        """What the model answers to the prompts: to calibrate on, and to judge by."""
        session = Session.open(reference.path, tree=Tree.root_only(), min_rows=1)
        generator = EngineGenerator(session, self._texts.identity)
        new_tokens = self._calibration.max_new_tokens
        limits = DataLimits(None, new_tokens, generator.longest_prompt(new_tokens))
        answered = [
            list(
                generate_data(
                    self._texts,
                    FilePrompts(path),
                    generator,
                    self._work / f"answers-{number}",
                    limits,
                    lambda _, done, total: self._on_progress("answering prompts", done, total),
                )
            )
            for number, path in enumerate(self._prompt_files())
        ]
        if len(answered) == 2:
            return answered[0], answered[1]
        (own,) = answered
        if len(own) < HELD_OUT:
            raise PromptError(
                f"{self._calibration.prompts} has {len(own)} usable prompts; give at least "
                f"{HELD_OUT}"
            )
        return [c for i, c in enumerate(own) if i % HELD_OUT], own[::HELD_OUT]

    def seen(self, reference: Engine, texts: Conversations) -> Seen:
        """What the quantizer wants to know of the inputs of each layer."""
        if self.quantizer in ("none", "rtn"):
            return NOTHING_SEEN
        read = [(*text.prompt_ids, *text.response_ids) for text in texts]

        def on_progress(done: int, total: int) -> None:
            self._on_progress("reading texts", done, total)

        if self.quantizer == "smoothed":
            squares = collect_squares(reference, read, self._work / "squares", on_progress)
            return Seen(squares=squares)
        if self.quantizer == "ranges":
            ranges = collect_ranges(reference, read, self._work / "ranges", on_progress)
            return Seen(ranges=ranges)
        architecture = read_architecture(self._checkpoint.config, reference.manifest.capacity)
        moments = self._work / "moments"
        return Seen(collect_moments(reference, architecture, read, moments, on_progress))

    def engine(self, adapter: Adapter | None, seen: Callable[[], Seen]) -> Engine:
        """The engine that was asked for; what an equal build has measured of it is kept."""
        path, key_path = self._work / "engine", self._work / "engine.json"
        key = self._engine_key(adapter)
        if not (path.exists() and key_path.is_file() and key_path.read_text("utf-8") == key):
            key_path.unlink(missing_ok=True)
            self._export(adapter, path, self._options, seen())
            key_path.write_text(key, encoding="utf-8")
        return open_engine(path)

    def judged(
        self, engine: Engine, reference: Engine, texts: Conversations
    ) -> tuple[Engine, Quality]:
        """The engine with the report of its error."""
        quality = measure_quality(
            reference,
            engine,
            [Scored((*c.prompt_ids, *c.response_ids), len(c.prompt_ids)) for c in texts],
            lambda done, total: self._on_progress("measuring the error", done, total),
        )
        prompts = ", ".join(path.name for path in self._prompt_files())
        quality = replace(quality, quantizer=self.quantizer, prompts=prompts)
        return revise_engine(engine, {CALIBRATION_FILE: with_quality({}, quality)}), quality

    @property
    def quantizer(self) -> str:
        """How weights are rounded: "gptq" or "rtn"; int8 also "smoothed" by the size of inputs, and
        8 bits of explicit Q/DQ by their "ranges", without which there are none; "none" in
        floats.
        """
        precision, asked = self._options.precision, self._calibration.quantizer
        if precision in FLOAT_PRECISIONS:
            return "none"
        if DIALECTS[self._options.dialect].needs_ranges(precision):
            return "ranges"
        return "smoothed" if (asked, precision) == ("gptq", "int8") else asked

    def measured(self, engine: Engine) -> tuple[Engine, Choice | None]:
        """The engine with the tree that is fastest here; AR if no prompt fits its cache."""
        prompts, effort = self._calibration.prompts, self._calibration.effort
        try:
            calibrator = Calibrator(engine, 0, self._on_progress, prompts, effort)
        except NothingFitsError:
            return revise_engine(engine, {TREE_FILE: Tree.root_only().to_json()}), None
        choice = calibrator.tree(calibrator.acceptance(), calibrator.latency())
        return calibrator.engine, choice

    def _prompt_files(self) -> list[Path]:
        """To calibrate on and to judge by; one of the user's is for both."""
        own = self._calibration.prompts
        return [own] if own else [CALIBRATION_PROMPTS, OWN_PROMPTS]

    def _export(
        self,
        adapter: Adapter | None,
        out: Path,
        options: BuildOptions,
        seen: Seen = NOTHING_SEEN,
    ) -> None:
        stage, num_bytes, written = f"exporting {options.precision}", 0, 0

        def start(total: int) -> None:
            nonlocal num_bytes
            num_bytes = total

        def add(count: int) -> None:
            nonlocal written
            written += count
            self._on_progress(stage, written >> 20, max(num_bytes >> 20, 1))

        build_engine(self._checkpoint, adapter, out, options, start, add, seen)

    def _engine_key(self, adapter: Adapter | None) -> str:
        options = {**asdict(self._options), "quantizer": self._calibration.quantizer}
        digest = hashlib.sha256()
        for name, array in sorted(adapter.tensors().items()) if adapter else ():
            digest.update(name.encode() + array.tobytes())
        return json.dumps({"options": options, "adapter": digest.hexdigest()}, sort_keys=True)

    def _claim_folder(self) -> None:
        """Keep what an equal build left there, and nothing else."""
        key = json.dumps(
            {
                "version": __version__,
                "model": asdict(self._texts.identity),
                "tokenizer": self._texts.tokenizer_sha256,
                "prompts": [dict(FilePrompts(path).options) for path in self._prompt_files()],
                "max_new_tokens": self._calibration.max_new_tokens,
            },
            sort_keys=True,
        )
        path = self._work / "build.json"
        if path.is_file() and path.read_text(encoding="utf-8") == key:
            return
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        path.write_text(key, encoding="utf-8")
