"""Measure the memory of an engine's session in a separate process."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bita.child_process import python_command
from bita.errors import EngineError
from bita.runtime.decoding.memory import Memory
from bita.runtime.session import Session
from bita.tree_table import Trees, trees_from_json

PROMPT, MAX_NEW_TOKENS = list(range(2, 18)), 32  # arbitrary ids; only their number matters


@dataclass(frozen=True)
class SessionMemory:
    """Peak memory of a session in bytes."""

    at_load: Memory  # after the engine is loaded
    decoding: Memory  # after one short answer

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def measure_memory(path: Path, num_threads: int = 0, tree: Trees | None = None) -> SessionMemory:
    """Open an engine in a separate process and let it write one short answer.

    Args:
        path: Directory of the engine.
        num_threads: Threads of a step; 0 for one per physical core.
        tree: Tree or trees to decode with. None takes the engine's own.

    Raises:
        EngineError: if the process fails.
    """
    command = python_command(__name__, str(path), str(num_threads))
    command += [tree.to_json()] if tree else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise EngineError(f"a session of {path} failed in a separate process: {reason}")
    measured = json.loads(done.stdout)
    return SessionMemory(Memory(**measured["at_load"]), Memory(**measured["decoding"]))


def main(path: str, num_threads: str, tree_json: str | None = None) -> None:
    tree = trees_from_json(tree_json) if tree_json else None
    min_rows = 1 if tree and tree.is_ar else None  # as in an engine that contains the tree
    session = Session.open(path, tree=tree, num_threads=int(num_threads), min_rows=min_rows)
    session.generate(PROMPT, MAX_NEW_TOKENS, ignore_eos=True)
    print(json.dumps(asdict(session.stats.memory)))


if __name__ == "__main__":
    main(*sys.argv[1:])
