"""Trace a checkpoint through the code, from `bita engine` to the engine, at run time.

python tests/support/checkpoint_way.py [ROOT] builds a tiny engine with the code of ROOT, once
without and once with calibration. For each build it prints how many functions and files of the
package have the checkpoint, how many are entered while it is open, and which functions call each
check.
"""

import importlib
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

CHECKS = (
    "read_architecture",
    "check_tensors",
    "untuned_adapter",
    "check_fits",
    "check_disk",
    "check_replaceable",
)
BUILDS = {"uncalibrated": ("--uncalibrated",), "calibrated": ("--tree", "chain")}
PROMPTS = "".join(f'{{"prompt": "Fox number {number}"}}\n' for number in range(4))
Function = tuple[str, str]  # module, name


@dataclass
class Trace:
    """Functions entered between the opening of a checkpoint and the end of the command."""

    entered: set[Function] = field(default_factory=set)
    holding: set[Function] = field(default_factory=set)  # those with the checkpoint as an argument
    moves: set[tuple[str, str]] = field(
        default_factory=set
    )  # modules that the checkpoint passes between
    checks: dict[str, Counter[str]] = field(default_factory=dict)  # check: calls by caller

    def __str__(self) -> str:
        holding, entered = {module for module, _ in self.holding}, {m for m, _ in self.entered}
        lines = [
            f"  hold the checkpoint: {len(self.holding)} functions in {len(holding)} files, "
            f"{len(self.moves)} moves from file to file",
            f"  entered while it is open: {len(self.entered)} functions in {len(entered)} files",
        ]
        for check in CHECKS:
            calls = self.checks.get(check, Counter())
            by_caller = ", ".join(f"{caller} {count}" for caller, count in sorted(calls.items()))
            lines.append(f"  {check}: {calls.total()}{by_caller and f' ({by_caller})'}")
        return "\n".join(lines)


class _Recorder:
    """A profile function for `sys.setprofile`."""

    def __init__(self) -> None:
        self.way = Trace()
        self._checkpoint: Any = None

    def __call__(self, frame: FrameType, event: str, returned: Any) -> None:
        if event == "return" and frame.f_code.co_name == "open_checkpoint":
            self._checkpoint = returned
        if event == "call" and self._checkpoint is not None and _is_function(frame):
            self._record(frame)

    def _record(self, frame: FrameType) -> None:
        function, caller = _function(frame), _caller(frame)
        self.way.entered.add(function)
        if function[1] in CHECKS:
            self.way.checks.setdefault(function[1], Counter())[caller[1]] += 1
        if any(map(self._is_held_by, list(frame.f_locals.values()))):
            self.way.holding.add(function)
            if caller[0] and caller[0] != function[0]:
                self.way.moves.add((caller[0], function[0]))

    def _is_held_by(self, value: object) -> bool:
        """Whether `value` is the checkpoint or has it as an attribute."""
        held = (value, *getattr(value, "__dict__", {}).values())
        return any(each is self._checkpoint for each in held)


def _is_function(frame: FrameType) -> bool:
    """Whether a frame is a function of the package; comprehensions and modules do not count."""
    is_named = not frame.f_code.co_name.startswith("<")
    return is_named and str(frame.f_globals.get("__name__")).startswith("bita.")


def _function(frame: FrameType) -> Function:
    return str(frame.f_globals["__name__"]), frame.f_code.co_name


def _caller(frame: FrameType) -> Function:
    """Return the nearest calling function of the package."""
    above = frame.f_back
    while above and not _is_function(above):
        above = above.f_back
    return _function(above) if above else ("", "")


def trace_build(folder: Path, options: Sequence[str]) -> Trace:
    """Run `bita engine` on a tiny model in `folder`, with the code on sys.path."""
    make_tiny_engine = importlib.import_module("make_tiny_engine")
    model = make_tiny_engine.write_plain_model(folder / "model")
    prompts = folder / "prompts.jsonl"
    prompts.write_text(PROMPTS, encoding="utf-8")
    try:
        main = importlib.import_module("bita.cli.main").main
    except ModuleNotFoundError:  # in older versions, `bita.cli` was a module
        main = importlib.import_module("bita.cli").main
    command = ["engine", str(model), "--out", str(folder / "engine"), *options]
    recorder = _Recorder()
    sys.setprofile(recorder)
    try:
        status = main([*command, "--calibration-prompts", str(prompts)])
    finally:
        sys.setprofile(None)
    assert status == 0, command
    return recorder.way


def main(root: Path) -> None:
    for place in ("tests/support", "tests", "."):
        if (root / place).is_dir():
            sys.path.insert(0, str(root / place))
    for name, options in BUILDS.items():
        with tempfile.TemporaryDirectory() as folder:
            way = trace_build(Path(folder), options)
        print(f"{name} build:\n{way}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]).resolve())
