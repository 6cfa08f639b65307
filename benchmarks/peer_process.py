"""The rows of a comparison of engines, each in a separate process (`peer_worker.py`)."""

import contextlib
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peer_report import Run

from bita.errors import BitaError

WORKER = Path(__file__).resolve().with_name("peer_worker.py")


class PeerError(BitaError):
    """A peer cannot be built, started or compared."""


@dataclass(frozen=True)
class Contestant:
    """A row of the table."""

    name: str
    engine: str  # key of `peer_worker.ENGINES`
    python: str  # interpreter that runs the worker
    model: Path  # file or directory of the model
    plain: str  # name of the row whose text it must equal
    settings: Mapping[str, Any] = field(default_factory=dict)  # {} for plain decoding

    @property
    def num_bytes(self) -> int:
        """Size of the model on disk."""
        files = [self.model] if self.model.is_file() else self.model.rglob("*")
        return sum(file.stat().st_size for file in files if file.is_file())


class Worker:
    """A contestant in a separate process, idle between requests."""

    def __init__(self, contestant: Contestant, num_threads: int, log: Path) -> None:
        """Start the process and wait until the model is loaded."""
        self.name = contestant.name
        self._log = log
        command = [contestant.python, str(WORKER), contestant.engine]
        command += [str(contestant.model), str(num_threads), json.dumps(contestant.settings)]
        self.began = time.perf_counter()
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )
        self.open_ms: float = self._read()["open_ms"]

    def generate(
        self, token_ids: Sequence[int], num_new_tokens: int, eos_ids: Sequence[int]
    ) -> Run:
        """Decode an answer. Raises PeerError if the process fails."""
        request = {"token_ids": [*token_ids], "num_new_tokens": num_new_tokens}
        reply = self._ask({**request, "eos_ids": [*eos_ids]})
        ids, times = reply["token_ids"], reply["token_ms"]
        if len(ids) != len(times) or len(ids) > num_new_tokens:
            raise PeerError(f"{self.name} gave {len(ids)} tokens and {len(times)} times")
        return Run(ids, times)

    def about(self) -> dict[str, Any]:
        """Return versions, precision, and MB of memory as reported by /proc."""
        return self._ask({"about": True})

    def close(self) -> None:
        """Close the input of the process so that it ends; kill it if it does not."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then `_read` reports why it ended
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in reply:
            tail = " | ".join(self._log.read_text(errors="replace").splitlines()[-3:])
            raise PeerError(f"{self.name}: {reply['error']} (see {self._log}: {tail})")
        return reply
