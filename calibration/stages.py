"""Measure an engine in stages, saving each result in calibration.json as soon as it is done."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bita.calibration.acceptance import READ_NODES, Acceptance, Position, measure_acceptance
from bita.calibration.choose_tree import (
    Choice,
    TreeForecast,
    expected_choice,
    forecast_trees,
    measure_choice,
)
from bita.calibration.effort import Effort
from bita.calibration.latency import Latency, describe_device, measure_latency
from bita.calibration.memory import measure_memory
from bita.calibration.picture import PICTURE_FILE, draw
from bita.calibration.step_times import sizes_of
from bita.data.json_lines import JsonLinesFile, parse_line
from bita.data.prompts import TREE_PROMPTS, Messages, read_prompts
from bita.dialect_spec import DIALECTS
from bita.engine import (
    ADAPTER_FILE,
    CALIBRATION_FILE,
    GRAPH_FILE,
    MAX_CALIBRATION_BYTES,
    TREE_FILE,
    WEIGHTS_FILE,
    Engine,
    read_calibration,
    revise_engine,
)
from bita.engine_access import writing
from bita.engine_place import Place
from bita.errors import EngineError
from bita.progress import OnProgress
from bita.runtime.session import Prompt, Session
from bita.runtime.text.prompt_encoder import PromptEncoder

TIMED = 3  # every third prompt is reserved for timing trees; the others measure acceptance


class NothingFitsError(EngineError):
    """The engine's cache has no room for any of the prompts."""


class Calibrator:
    """Measures one engine on this device.

    Args:
        engine: Engine to measure.
        num_threads: Threads of a step; 0 for one per physical core.
        on_progress: Called with (stage, done, total).
        prompts: A prompt file; None for the bundled set.
        effort: Limits of the measurements; None for the defaults.

    Raises:
        PromptError: if the prompt file is not valid.
        NothingFitsError: if no prompt fits the engine's cache.
    """

    def __init__(
        self,
        engine: Engine,
        num_threads: int,
        on_progress: OnProgress,
        prompts: Path | None = None,
        effort: Effort | None = None,
    ) -> None:
        self.engine = engine
        self._num_threads = num_threads
        self._on_progress = on_progress
        self._user_prompts = prompts is not None
        self._effort = effort or Effort()
        self.kept: list[str] = []  # measurements reused from calibration.json
        read = _select_fitting(
            read_prompts(prompts or TREE_PROMPTS, self._effort.num_prompts), engine
        )
        self._timed: Sequence[Prompt] = read[TIMED - 1 :: TIMED] or read
        self._drafted = [p for number, p in enumerate(read) if (number + 1) % TIMED] or read

    def acceptance(self, again: bool = False) -> Acceptance:
        """Measure the engine's drafts on its own answers to two thirds of the prompts.

        A run that was killed continues after its last answer.

        Args:
            again: Measure again instead of reusing an earlier result on the bundled prompts.

        Raises:
            EngineError, PromptError: if the engine or a prompt cannot be used.
        """
        data = read_calibration(self.engine).get("acceptance")
        if data is not None and not self._user_prompts and not again:
            self.kept.append("acceptance")
            return Acceptance.from_json(data)
        chosen, max_new_tokens = self._drafted, self._effort.max_new_tokens
        key = {"prompts": chosen, "max_new_tokens": max_new_tokens, "files": self._files()}
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        with writing(self.engine.path) as place, _Progress(place, digest) as kept:

            def on_text(number: int, positions: tuple[Position, ...]) -> None:
                kept.add(number, positions)
                self._on_progress("acceptance", number + 1, len(chosen))

            acceptance = measure_acceptance(
                self.engine, chosen, max_new_tokens, self._num_threads, kept.known, on_text
            )
            self._keep({"acceptance": acceptance.to_json()})
            kept.remove()
        return acceptance

    def latency(self, again: bool = False) -> Latency:
        """Measure T(q) on this device, or reuse an earlier result from it unless `again`."""
        max_rows = self._effort.max_rows
        data = read_calibration(self.engine).get("latency")
        if data is not None and not again:
            latency = Latency.from_json(data, str(self.engine.file(CALIBRATION_FILE)))
            same_device = latency.device == describe_device(self._num_threads)
            if same_device and {*sizes_of(self.engine, max_rows)} <= {*latency.rows}:
                self.kept.append("latency")
                return latency
        latency = measure_latency(
            self.engine,
            max_rows,
            repeats=self._effort.repeats,
            num_threads=self._num_threads,
            on_progress=lambda done, total: self._on_progress("latency", done, total),
        )
        self._keep({"latency": latency.to_json()})
        return latency

    def memory(self) -> None:
        """Measure the memory of a session in a separate process."""
        memory = measure_memory(self.engine.path, self._num_threads)
        self._keep({"memory": memory.to_json()})

    def forecast(self, acceptance: Acceptance, latency: Latency, mode: str | None = None) -> Choice:
        """Choose a tree for a device with this latency from expectations alone.

        Args:
            acceptance: Measured drafts of the engine.
            latency: T(q) of the device.
            mode: "exact" or "tree". None takes the engine's own.
        """
        return expected_choice(self._forecast(acceptance, latency, mode))

    def tree(self, acceptance: Acceptance, latency: Latency) -> Choice:
        """Choose a tree by timing the most promising ones against AR.

        They are timed on the third of the prompts that acceptance did not see. The tree, and the
        memory of a session that uses it, are saved in the engine.
        """
        choice = self._time_choice(acceptance, latency)
        tree = choice.chosen.tree
        files: dict[str, str | bytes] = {TREE_FILE: tree.to_json()}
        picture = draw(latency, choice)
        if picture is not None:
            files[PICTURE_FILE] = picture
        memory = measure_memory(self.engine.path, self._num_threads, tree)
        self._keep({"memory": memory.to_json(), "tree": choice.to_json()}, files)
        return choice

    def _time_choice(self, acceptance: Acceptance, latency: Latency) -> Choice:
        """Time the trees in a session that is closed on return.

        Another process opens the engine afterwards.
        """
        session = Session.open(self.engine.path, num_threads=self._num_threads)
        return measure_choice(
            session,
            self._forecast(acceptance, latency, min_exact_rows=session.min_exact_rows),
            self._timed,
            self._effort.max_new_tokens,
            on_progress=lambda done, total: self._on_progress("timing trees", done, total),
        )

    def _forecast(
        self,
        acceptance: Acceptance,
        latency: Latency,
        mode: str | None = None,
        min_exact_rows: int | None = None,
    ) -> TreeForecast:
        """Forecast the trees; `min_exact_rows` is None if no session has determined it."""
        manifest = self.engine.manifest
        spec = DIALECTS[manifest.dialect]
        accepts = spec.accepts(mode or manifest.mode)
        rows = min_exact_rows or (1 if spec.exact_trees else 2)
        return forecast_trees(acceptance, latency, manifest.num_masks, accepts, min_exact_rows=rows)

    def _files(self) -> list[str]:
        """Return the hashes of the files that determine the engine's text and drafts."""
        names = (GRAPH_FILE, WEIGHTS_FILE, ADAPTER_FILE)
        return [self.engine.files[name]["sha256"] for name in names if name in self.engine.files]

    def _keep(
        self, topics: dict[str, Any], files: Mapping[str, str | bytes] = MappingProxyType({})
    ) -> None:
        """Add topics to calibration.json, and files to the engine, in one revision."""
        report = {**read_calibration(self.engine), **topics}
        try:
            text = json.dumps(report, separators=(",", ":"), allow_nan=False) + "\n"
        except ValueError as error:
            raise EngineError(
                f"a measurement of {self.engine.path} is not a finite number; measure it again "
                "with --remeasure"
            ) from error
        if len(text) > MAX_CALIBRATION_BYTES:
            raise EngineError(
                f"the measurements of {self.engine.path} take {len(text) >> 20} MB, but "
                f"{CALIBRATION_FILE} is limited to {MAX_CALIBRATION_BYTES >> 20} MB; give a "
                "smaller --limit"
            )
        self.engine = revise_engine(self.engine, {CALIBRATION_FILE: text, **files})


def _select_fitting(messages: Sequence[Messages], engine: Engine) -> list[Prompt]:
    """Return the prompts that leave enough room in the cache to draft after their answers.

    They are plain text if the model has no chat template.
    """
    encoder, manifest = PromptEncoder.of_engine(engine), engine.manifest
    prompts = [encoder.as_prompt(each) for each in messages]
    rows = READ_NODES * (manifest.num_masks + 1)
    room = manifest.capacity - manifest.prefix_length - rows
    fitting = [prompt for prompt in prompts if len(encoder.encode(prompt)) < room]
    if not fitting:
        raise NothingFitsError(
            f"no prompt of {len(prompts)} fits a cache of {manifest.capacity} slots together with "
            f"{rows} rows of drafts; give shorter prompts, or rebuild with a larger CAPACITY"
        )
    return fitting


class _Progress:
    """Positions of the finished prompts, a JSON line each, in a hidden file next to the engine."""

    def __init__(self, engine: Place, digest: str) -> None:
        self._path = engine.hidden("acceptance.jsonl")
        key = {"of": digest}
        self._file = JsonLinesFile(self._path)
        entries = [parse_line(line, self._path, n) for n, line in enumerate(self._file.lines, 1)]
        known = _read_positions(entries[1:]) if entries[:1] == [key] else None
        if known is None:
            self.remove()
            self._file = JsonLinesFile(self._path)
            self._file.append(key)
        self.known = known or {}

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, number: int, positions: tuple[Position, ...]) -> None:
        if number not in self.known:
            self._file.append({"positions": [position.to_list() for position in positions]})

    def remove(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def _read_positions(entries: Sequence[Any]) -> dict[int, tuple[Position, ...]] | None:
    """Return the positions of each prompt by its number, or None if the file is not valid."""
    try:
        return {
            number: tuple(Position.of(each) for each in entry["positions"])
            for number, entry in enumerate(entries)
        }
    except (KeyError, TypeError, ValueError):
        return None
