"""Build a calibrated engine: quantize against sample texts, report the loss, choose the tree.

A float32 engine of the same model answers prompts, supplies the inputs of its layers, and is the
reference for the finished engine. If no weight needs sample texts to be rounded, nothing is
calibrated; an engine with native operators is then judged by its own answers, which the float32
engine only reads. Finally the engine is timed on this device and gets the fastest tree.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bita import __version__
from bita.calibration.choose_tree import Choice
from bita.calibration.effort import Effort
from bita.calibration.quality import Scored, measure_quality
from bita.calibration.report import ENGINE, FLOAT32, Quality, add_quality, read_quality
from bita.calibration.rounding import ROUNDINGS, Reading, rounding_of
from bita.calibration.sample_texts import (
    SampleTexts,
    answer_prompts,
    answer_to_judge,
    prompt_files,
)
from bita.calibration.stages import Calibrator, NothingFitsError
from bita.data.dataset import Conversation
from bita.data.generate_data import FilePrompts
from bita.data.model_texts import ModelTexts
from bita.dialect_spec import DIALECTS, NATIVE
from bita.engine import CALIBRATION_FILE, TREE_FILE, Engine, open_engine, revise_engine
from bita.engine_access import writing
from bita.engine_place import Place
from bita.errors import EngineError
from bita.export.build import (
    CheckedBuild,
    check_reference,
    weight_bytes,
)
from bita.export.build_inputs import adapter_digest
from bita.export.dialects.step_graph import NOTHING_SEEN, Seen
from bita.export.finished_build import build_in_steps, finish_engine
from bita.export.tensorrt.build_costs import check_memory
from bita.progress import OnCount, OnProgress, ignore_progress
from bita.tree import Tree

MAX_CAPACITY = 1024  # cache slots of the float32 engine; fewer if the model has fewer positions


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of a calibration. Raises EngineError for an unknown quantizer."""

    quantizer: str = "gptq"  # "gptq", which smooths int8 instead; "rtn" rounds to the nearest
    prompts: Path | None = None  # a file to calibrate on and judge by; None for the bundled sets
    max_new_tokens: int = 64  # limit of each answer
    effort: Effort = field(default_factory=Effort)  # limits of choosing the tree

    def __post_init__(self) -> None:
        if self.quantizer not in ROUNDINGS:
            known = ", ".join(ROUNDINGS)
            raise EngineError(f"quantizer {self.quantizer!r} is not one of {known}")


@dataclass(frozen=True)
class Built:
    """A calibrated engine and the results of its calibration."""

    engine: Engine
    quality: Quality  # error of the engine against float32
    choice: Choice | None  # how the tree was chosen; None if nothing was timed


def build_calibrated(
    build: CheckedBuild,
    calibration: CalibrationOptions,
    on_progress: OnProgress = ignore_progress,
) -> Built:
    """Build the engine `build.out`, measure its error, and choose its tree.

    No tree is chosen if the options contain one or the dialect does not run on this device. A build
    that was killed continues where it stopped. Until it is finished, a hidden folder next to
    `build.out` holds its state, which takes 4 bytes for each weight of the model.

    Args:
        build: Checked inputs of the build.
        calibration: Options of the calibration.
        on_progress: Called with (stage, done, total).

    Raises:
        PromptError: if the prompts cannot be used; otherwise the errors of `build_engine`.
    """
    check_memory(
        weight_bytes(build.architecture, "fp32"),
        "calibration runs the model in float32, which",
        "give --uncalibrated, or build elsewhere and copy the engine",
    )
    with writing(build.out) as place:
        return _build_in_stages(_Stages(build, place, calibration, on_progress))


def _build_in_stages(stages: "_Stages") -> Built:
    reference = stages.export_reference()
    texts = stages.answer(reference) if stages.calibrates_weights else None
    engine = stages.export(reference, texts.train if texts else ())
    quality = read_quality(engine)
    if quality is None:
        held_out = texts.held_out if texts else stages.answer_to_judge(reference, engine)
        engine, quality = stages.judge(engine, reference, held_out)
    choice = None
    if stages.wants_tree:
        engine, choice = stages.choose_tree(engine)
    engine = stages.finish(engine)
    return Built(engine, quality, choice)


class _Stages:
    """Stages of a build; each reuses the results of an earlier run in the build's folder."""

    def __init__(
        self,
        build: CheckedBuild,
        place: Place,
        calibration: CalibrationOptions,
        on_progress: OnProgress,
    ) -> None:
        self._build = build
        self._calibration = calibration
        self._on_progress = on_progress
        self._rounding = rounding_of(build.options, calibration.quantizer, build.checkpoint)
        self._texts = ModelTexts.of(build.checkpoint)
        self._folder = place.hidden("calibration")
        self._own_answers = self._folder / "own"
        _claim_folder(self._folder, self._folder_key())

    @property
    def calibrates_weights(self) -> bool:
        """Whether rounding the weights needs texts."""
        return self._rounding.collect is not None

    @property
    def wants_tree(self) -> bool:
        """Whether to choose a tree: the options have none, and the dialect runs on this device."""
        options = self._build.options
        return options.tree is None and DIALECTS[options.dialect].runs_where_built

    def export_reference(self) -> Engine:
        """Export the float32 engine, or open the one that is there."""
        path = self._folder / "float32"
        if not path.exists():
            build_in_steps(check_reference(self._build, path, MAX_CAPACITY), self._on_progress)
        return open_engine(path)

    def answer(self, reference: Engine) -> SampleTexts:
        """Answer the prompts with the float32 engine."""
        return answer_prompts(
            reference,
            self._texts,
            self._calibration.prompts,
            self._folder,
            self._calibration.max_new_tokens,
            self._progress_of("answering prompts"),
        )

    def answer_to_judge(self, reference: Engine, engine: Engine) -> Sequence[Conversation]:
        """Answer the prompts that judge an engine whose weights are not calibrated."""
        is_own = self._answers_itself(reference)
        return answer_to_judge(
            engine if is_own else reference,
            self._texts,
            self._calibration.prompts,
            self._own_answers if is_own else self._folder,
            self._calibration.max_new_tokens,
            self._progress_of("answering prompts"),
        )

    def _answers_itself(self, reference: Engine) -> bool:
        """Whether the engine is judged by its own answers instead of those of float32.

        With native operators it writes all of them in seconds, while float32 takes minutes. Its
        cache must hold texts at least as long as those of the float32 engine.
        """
        options = self._build.options
        has_room = self._build.capacity >= reference.manifest.capacity
        return options.dialect == NATIVE.name and has_room and not self.calibrates_weights

    def export(self, reference: Engine, texts: Sequence[Conversation]) -> Engine:
        """Export the requested engine, or reuse that of an equal build with its measurements.

        Its weights are rounded for `texts`.
        """
        path, key_path = self._folder / "engine", self._folder / "engine.json"
        key = self._engine_key()
        if not (path.exists() and key_path.is_file() and key_path.read_text("utf-8") == key):
            key_path.unlink(missing_ok=True)
            shutil.rmtree(self._own_answers, ignore_errors=True)
            seen = self._see(reference, texts)
            build_in_steps(replace(self._build, out=path), self._on_progress, seen)
            key_path.write_text(key, encoding="utf-8")
        return open_engine(path)

    def _see(self, reference: Engine, texts: Sequence[Conversation]) -> Seen:
        """Collect statistics of the layer inputs of the float32 engine in these texts."""
        if self._rounding.collect is None:
            return NOTHING_SEEN
        reading = Reading(
            reference,
            self._build.architecture,
            [_ids_of(text) for text in texts],
            self._folder,
            self._progress_of("reading texts"),
        )
        return self._rounding.collect(reading)

    def judge(
        self, engine: Engine, reference: Engine, texts: Sequence[Conversation]
    ) -> tuple[Engine, Quality]:
        """Measure the engine's error on `texts` and save the report in the engine."""
        scored = [Scored(_ids_of(text), len(text.prompt_ids)) for text in texts]
        progress = self._progress_of("measuring the error")
        quality = measure_quality(reference, engine, scored, progress)
        files = prompt_files(self._calibration.prompts)[0 if self.calibrates_weights else -1 :]
        quality = replace(
            quality,
            quantizer=self._rounding.name,
            prompts=", ".join(path.name for path in files),
            answers=ENGINE if self._answers_itself(reference) else FLOAT32,
        )
        return revise_engine(engine, {CALIBRATION_FILE: add_quality({}, quality)}), quality

    def choose_tree(self, engine: Engine) -> tuple[Engine, Choice | None]:
        """Give the engine the tree that is fastest here; AR if no prompt fits its cache."""
        prompts, effort = self._calibration.prompts, self._calibration.effort
        try:
            calibrator = Calibrator(engine, 0, self._on_progress, prompts, effort)
        except NothingFitsError:
            return revise_engine(engine, {TREE_FILE: Tree.root_only().to_json()}), None
        choice = calibrator.tree(calibrator.acceptance(), calibrator.latency())
        return calibrator.engine, choice

    def finish(self, engine: Engine) -> Engine:
        """Compile the engine, move it to its final path, and remove the build's folder."""
        engine = finish_engine(engine, self._build, self._on_progress)
        shutil.rmtree(self._folder)
        return engine

    def _progress_of(self, stage: str) -> OnCount:
        """Return a function (done, total) that reports the progress of a stage."""
        return lambda done, total: self._on_progress(stage, done, total)

    def _folder_key(self) -> str:
        """Return a key of everything that determines the float32 engine and its answers."""
        files = prompt_files(self._calibration.prompts)
        key = {
            "version": __version__,
            "model": asdict(self._texts.identity),
            "tokenizer": self._texts.tokenizer_sha256,
            "prompts": [dict(FilePrompts(path).options) for path in files],
            "max_new_tokens": self._calibration.max_new_tokens,
        }
        return json.dumps(key, sort_keys=True)

    def _engine_key(self) -> str:
        options = {**asdict(self._build.options), "quantizer": self._calibration.quantizer}
        adapter = adapter_digest(self._build.adapter)
        key = {"options": options, "adapter": adapter, "inputs": self._build.inputs}
        return json.dumps(key, sort_keys=True)


def _claim_folder(folder: Path, key: str) -> None:
    """Empty the folder unless an equal build left its results there."""
    path = folder / "build.json"
    if path.is_file() and path.read_text(encoding="utf-8") == key:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path.write_text(key, encoding="utf-8")


def _ids_of(text: Conversation) -> tuple[int, ...]:
    return (*text.prompt_ids, *text.response_ids)
