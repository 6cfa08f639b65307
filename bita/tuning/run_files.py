"""The files of a training run: its log, its checkpoint, and the current adapter."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bita.adapter import Adapter
from bita.errors import TuningError
from bita.files import replace_file, write_whole
from bita.json_values import parse_json
from bita.tuning.settings import TuneSettings
from bita.tuning.training_texts import TrainingText

CHECKPOINT_FILE, LOG_FILE, ADAPTER_FILE = "checkpoint.pt", "log.jsonl", "adapter.safetensors"


@dataclass(frozen=True)
class RunFiles:
    """Paths of a run's files, and the description stored in them."""

    directory: Path  # used by this run only
    tuned_on: str  # the adapter's description of its tuning texts
    origin: str = ""  # `fingerprint` that a checkpoint must have too; "" accepts any

    @property
    def log(self) -> Path:
        """Log in JSON Lines, with a line for each step and each evaluation."""
        return self.directory / LOG_FILE

    def load_checkpoint(self, settings: TuneSettings) -> dict[str, Any] | None:
        """Return the saved state, or None. Raises TuningError if it belongs to another run."""
        path = self.directory / CHECKPOINT_FILE
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:  # torch raises many types for a broken file
            raise TuningError(
                f"{path} cannot be read ({error}); remove it to start again"
            ) from error
        old, new = ({**s, "context_gb": None} for s in (state["settings"], asdict(settings)))
        if old != new:
            changed = sorted(name for name in new if old.get(name) != new[name])
            raise TuningError(
                f"{path} belongs to a run with other settings ({', '.join(changed)}); give the "
                "same ones to continue, or another directory to start again"
            )
        if state.get("origin", self.origin) != self.origin:
            raise TuningError(
                f"{path} belongs to a run on other conversations, or from another adapter; give "
                "the same ones to continue, or another directory to start again"
            )
        return state

    def save(self, settings: TuneSettings, state: dict[str, Any], adapter: Adapter) -> None:
        """Write checkpoint and adapter, each atomically."""
        state = {"settings": asdict(settings), "origin": self.origin, **state}
        with replace_file(self.directory / CHECKPOINT_FILE) as partial, partial.open("wb") as file:
            torch.save(state, file)  # given a path, torch would store its name in the file
        adapter.save(self.directory / ADAPTER_FILE)

    def cut_log(self, step: int) -> None:
        """Remove the lines from `step` on, which the checkpoint lacks; at 0, remove the file."""
        if step == 0:
            self.log.unlink(missing_ok=True)
        elif self.log.exists():
            lines = self.log.read_text(encoding="utf-8").splitlines()
            write_whole(self.log, "".join(f"{line}\n" for line in _lines_before(step, lines)))


def fingerprint(texts: Sequence[TrainingText], start: Adapter | None) -> str:
    """Return the hex digest of a run's inputs: its texts, and the adapter that it continues."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(np.array([text.num_prompt, *text.token_ids], np.int64).tobytes())
    for piece in start.hash_pieces() if start else ():
        digest.update(piece)
    return digest.hexdigest()


def _lines_before(step: int, lines: Sequence[str]) -> list[str]:
    kept = []
    for line in lines:
        try:
            if parse_json(line)["step"] < step:
                kept.append(line)
        except (ValueError, LookupError, TypeError):  # the half-written line of a killed run
            break
    return kept
