"""An engine whose weights are rounded for the texts it will see, and that says what that cost.

The float32 engine of the same model answers prompts, gives the moments of its layers' inputs, and
is what the finished engine is compared with.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bita import __version__
from bita.adapter import Adapter
from bita.calibration.moments import collect_moments
from bita.calibration.prompts import CALIBRATION_PROMPTS, OWN_PROMPTS
from bita.calibration.quality import Scored, measure_quality
from bita.calibration.report import Quality, with_quality
from bita.engine import CALIBRATION_FILE, Engine, move_engine, open_engine, revise_engine
from bita.errors import EngineError, PromptError
from bita.export.architecture import read_architecture
from bita.export.build import BuildOptions, build_engine, plan_build, weight_bytes
from bita.export.checkpoint import Checkpoint
from bita.export.gptq import Moments
from bita.export.step_graph import Seen
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tuning.dataset import Conversation
from bita.tuning.generate_data import FilePrompts, generate_data
from bita.tuning.generators import EngineGenerator
from bita.tuning.model_texts import ModelTexts

QUANTIZERS = ("gptq", "rtn")
HELD_OUT = 4  # of a user's prompts one in so many is judged by, and not calibrated on
CAPACITY = 1024  # cache slots of the float32 engine, if the model has so many positions

OnProgress = Callable[[str, int, int], None]  # stage, done, total
Conversations = Sequence[Conversation]


@dataclass(frozen=True)
class CalibrationOptions:
    """quantizer: of int4 weights: "gptq", or "rtn" (to the nearest). prompts: a prompt file whose
    answers are calibrated on and judged by; None: two sets of our own. max_new_tokens: of each
    answer.
    """

    quantizer: str = "gptq"
    prompts: Path | None = None
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZERS:
            known = ", ".join(QUANTIZERS)
            raise EngineError(f"quantizer {self.quantizer!r} is not one of {known}")


def build_calibrated(
    checkpoint: Checkpoint,
    adapter: Adapter | None,
    out: Path,
    options: BuildOptions,
    calibration: CalibrationOptions,
    on_progress: OnProgress = lambda stage, done, total: None,
) -> tuple[Engine, Quality]:
    """Build the engine `out` and measure its error; a build that was killed goes on where it was.

    What it goes on from lies in a hidden folder beside `out` until the end, and takes 4 bytes for
    each weight of the model. Raises what `build_engine` does, and PromptError.
    """
    plan = plan_build(checkpoint, adapter, out, options)
    _check_memory(weight_bytes(plan.architecture, "fp32"))
    work = out.with_name(f".{out.name}.calibration")
    build = _Build(checkpoint, options, calibration, work, on_progress)
    reference = build.reference()
    train, held_out = build.answers(reference)
    engine = build.engine(adapter, build.moments(reference, train))
    quality = measure_quality(
        reference,
        engine,
        [Scored((*c.prompt_ids, *c.response_ids), len(c.prompt_ids)) for c in held_out],
        lambda done, total: on_progress("measuring the error", done, total),
    )
    quality = build.described(quality)
    engine = revise_engine(engine, {CALIBRATION_FILE: with_quality({}, quality)})
    engine = move_engine(engine, out)
    shutil.rmtree(work)
    return engine, quality


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
            self._export(None, path, BuildOptions("fp32", capacity=capacity), None)
        return open_engine(path)

    def answers(self, reference: Engine) -> tuple[Conversations, Conversations]:
        """What the model answers to the prompts: to calibrate on, and to judge by."""
        session = Session.open(reference.path, tree=Tree.root_only(), min_rows=1)
        generator = EngineGenerator(session, self._texts.identity)
        answered = [
            list(
                generate_data(
                    self._texts,
                    FilePrompts(path),
                    generator,
                    self._work / f"answers-{number}",
                    None,
                    self._calibration.max_new_tokens,
                    generator.longest_prompt(self._calibration.max_new_tokens),
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

    def moments(self, reference: Engine, texts: Conversations) -> Moments | None:
        """Of the inputs of each layer, where the quantizer wants them."""
        if self._options.precision != "int4" or self._calibration.quantizer != "gptq":
            return None
        return collect_moments(
            reference,
            read_architecture(self._checkpoint.config, reference.manifest.capacity),
            [(*text.prompt_ids, *text.response_ids) for text in texts],
            self._work / "moments",
            lambda done, total: self._on_progress("reading texts", done, total),
        )

    def engine(self, adapter: Adapter | None, moments: Moments | None) -> Engine:
        """The engine that was asked for, without its report."""
        path = self._work / "engine"
        self._export(adapter, path, self._options, moments)
        return open_engine(path)

    def described(self, quality: Quality) -> Quality:
        """With what the weights were rounded for."""
        quantizer = self._calibration.quantizer if self._options.precision == "int4" else "none"
        prompts = ", ".join(path.name for path in self._prompt_files())
        return replace(quality, quantizer=quantizer, prompts=prompts)

    def _prompt_files(self) -> list[Path]:
        """To calibrate on and to judge by; one of the user's is for both."""
        own = self._calibration.prompts
        return [own] if own else [CALIBRATION_PROMPTS, OWN_PROMPTS]

    def _export(
        self, adapter: Adapter | None, out: Path, options: BuildOptions, moments: Moments | None
    ) -> None:
        stage, num_bytes, written = f"exporting {options.precision}", 0, 0

        def start(total: int) -> None:
            nonlocal num_bytes
            num_bytes = total

        def add(count: int) -> None:
            nonlocal written
            written += count
            self._on_progress(stage, written >> 20, max(num_bytes >> 20, 1))

        build_engine(self._checkpoint, adapter, out, options, start, add, Seen(moments))

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


def _check_memory(num_bytes: int) -> None:
    free = _free_memory()
    if free is not None and free < num_bytes:
        raise EngineError(
            f"calibration runs the model in float32, {num_bytes / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free; give --uncalibrated, or build elsewhere and "
            "copy the engine"
        )


def _free_memory() -> int | None:
    """Bytes, where the system tells them."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(kilobytes[0]) if kilobytes else None
