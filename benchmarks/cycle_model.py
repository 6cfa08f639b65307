"""Model the native operators statically on processors that are not available; check the model here.

    python benchmarks/cycle_model.py ENGINE --out benchmarks/results/cycle_model.json

It compiles the kernels as the build does (g++, aarch64-linux-gnu-g++), computes the cycles of their
loops with llvm-mca, and writes them by processor; --constants writes those of the boards to a
module such as calibration/arm_cycles.py. Then it checks the model on the processor of this machine:
it compares kernels on data in the cache, and T(q) of the engine on each ISA that runs here, with
the predictions of the same model. It also measures the processor's clock and memory bandwidth. The
minimum time over bursts that no other process disturbed counts.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from kernel_tables import MODELS, UNIT_NAMES, compile_units, kernel_cycles
from peer_report import describe_machine, read_bandwidth
from rows import Subject
from undisturbed import MAX_OTHERS, min_seconds

from bita.calibration.kernel_cycles import KernelCycles
from bita.calibration.step_model import Processor, StepShape, step_ms, step_shape
from bita.engine import open_engine
from bita.runtime.backends.backend import Step
from bita.runtime.native.library import loaded_operators
from bita.runtime.session import Session
from bita.tree import Tree

ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 32)
LENGTHS = (127, 1000)  # tokens of text
HEAD_DIM = 64
AT_HAND = {"avx2": "zen 3"}  # model of this machine's processor, by ISA


class Units:
    """Functions of kernel_units.cpp, compiled for the processor of this machine."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._random = np.random.default_rng(0)
        self._values = self._random.standard_normal(1 << 16).astype(np.float32)
        self._out = np.zeros(1 << 18, np.uint8)
        times = 20_000
        self.gigahertz = 8 * times / 1e9 / min_seconds(partial(self._call, "clock", times))[0]

    def _call(self, name: str, *arguments: Any) -> None:
        values = [
            ctypes.c_void_p(value.ctypes.data) if isinstance(value, np.ndarray) else value
            for value in arguments
        ]
        numbers = [ctypes.c_int64(value) if isinstance(value, int) else value for value in values]
        self._library[f"unit_{name}"](*numbers)

    def _cycles(self, name: str, *arguments: Any) -> float:
        return (
            1e9 * self.gigahertz * min_seconds(partial(self._call, name, *arguments), bursts=4)[0]
        )

    def unit(self, name: str) -> float:
        """Measure the cycles of one pass of a unit's loop, on data in the L1 cache."""
        values = self._values.copy()
        if name == "rank":
            values[0] = 1000  # all logits are below this
        unit, times, count = self._library[f"unit_{name}"], 256, 56
        return self._cycles("repeat", unit, values, count, self._out, times) / times / count

    def block(self, bits: int, has_minima: bool, rows: int) -> float:
        """Measure the cycles of a tile's block, including its share of the cycles per tile."""
        tiles, blocks = 4, 32  # fit the L2 cache
        num_values = tiles * blocks * 64 * bits
        halves = np.full(tiles * blocks * 16 * (1 + has_minima), 0.01, np.float16)
        weights = np.zeros(num_values + 2 * halves.size, np.uint8)
        weights[num_values:] = halves.view(np.uint8)
        inputs = np.zeros(rows * blocks * 44, np.uint8)
        out = np.zeros((rows, tiles * 16), np.float32)
        sizes = (tiles, blocks, bits, int(has_minima), inputs, rows, out, 64)
        return self._cycles("linear", weights, *sizes) / 64 / tiles / blocks

    def attend(self, queries: int) -> float:
        """Measure the cycles of attention to 64 slots of a float16 cache."""
        pages = self._random.standard_normal((16, 32 * HEAD_DIM)).astype(np.float16)
        places = np.array([page.ctypes.data for page in pages], np.uint64)
        sizes = (256, HEAD_DIM, queries, 1, self._values, self._out, 64)
        return self._cycles("attend", places, *sizes) / 64 / 4


def check_kernels(units: Units, cycles: KernelCycles) -> dict[str, Any]:
    """Return the measured and the modelled cycles of every kernel."""
    found = {
        name: {"measured": units.unit(name), "modelled": getattr(cycles, name)}
        for name in UNIT_NAMES
    }
    for kind, modelled in cycles.linear.items():
        bits, has_minima = int(kind[3]), "minima" in kind
        for rows, block in enumerate(modelled, 1):
            measured = units.block(bits, has_minima, rows)
            found[f"{kind}, {rows} rows"] = {"measured": measured, "modelled": block}
    for queries in (1, 3, 6):
        loops = cycles.scores[queries - 1] + cycles.values[queries - 1]
        found[f"attention of {queries}"] = {
            "measured": units.attend(queries),
            "modelled": 4 * HEAD_DIM * loops + 4 * queries * cycles.weigh,
        }
    return {key: {k: round(v, 1) for k, v in values.items()} for key, values in found.items()}


def check_steps(engine_path: Path, processor: Processor, isa: str) -> dict[str, Any]:
    """Measure T(q) on an ISA by the text's length, and return it next to the model's."""
    shape = step_shape(open_engine(engine_path))
    session = Session.open(engine_path, tree=Tree.root_only(), num_threads=processor.cores)
    subject = Subject(isa, session, isa)
    text = np.random.default_rng(0).integers(100, 1000, LENGTHS[-1] + ROWS[-1]).tolist()
    found: dict[str, Any] = {}
    for length in LENGTHS:
        subject.read(text[:length])
        subject.take_isa()
        found[str(length)] = {
            str(rows): check_step(subject.bind(rows, text), shape, processor, length)
            for rows in ROWS
        }
    return found


def check_step(step: Step, shape: StepShape, processor: Processor, length: int) -> dict[str, float]:
    rows = step.token_ids.size
    seconds, others = min_seconds(step.run, processor.cores)
    return {
        "measured_ms": round(1000 * seconds, 3),
        "modelled_ms": round(step_ms(shape, processor, rows, length), 3),
        "busy_by_others": round(others, 2),  # number of processors
    }


def errors_of(steps: dict[str, Any], max_by_others: float) -> dict[str, float]:
    """Return the relative errors of the model's T(q).

    Steps during which others kept more than `max_by_others` processors busy do not count.
    """
    off = [
        step["modelled_ms"] / step["measured_ms"] - 1
        for rows in steps.values()
        for step in rows.values()
        if step["busy_by_others"] <= max_by_others
    ]
    if not off:
        return {"steps": 0}
    return {
        "steps": len(off),
        "mean": round(statistics.mean(off), 3),
        "least": round(min(off), 3),
        "most": round(max(off), 3),
    }


def check(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Check the model for every ISA that runs here and has one."""
    report: dict[str, Any] = {"machine": describe_machine(2)}
    for isa in loaded_operators().isas:
        if isa not in AT_HAND:
            continue
        name = AT_HAND[isa]
        library = folder / f"{isa}.so"
        assembly = compile_units(MODELS[name].isa, "x86_64", folder, library)
        cycles = kernel_cycles(name, folder, assembly)
        units = Units(library)
        found: dict[str, Any] = {"model": name, "gigahertz": round(units.gigahertz, 2)}
        found["kernels"] = check_kernels(units, cycles)
        for threads in map(int, args.threads.split(",")):
            gigabytes = max(read_bandwidth(threads) for _ in range(5))
            processor = Processor(cycles, threads, units.gigahertz, gigabytes)
            steps = check_steps(args.engine, processor, isa)
            off = errors_of(steps, (os.cpu_count() or 1) - threads + 1.5 * MAX_OTHERS)
            found[f"{threads} threads"] = {
                "read_gb_per_s": round(gigabytes, 1),
                "after": steps,
                "off": off,
            }
            print(f"{isa}, {threads} threads: {off}", flush=True)
        report[isa] = found
    return report


def constants(report: dict[str, Any]) -> str:
    """Return the source of the module calibration/arm_cycles.py."""
    lines = [
        '"""Cycles of the native kernels on board processors, computed by '
        'benchmarks/cycle_model.py."""',
        "",
        "from bita.calibration.kernel_cycles import KernelCycles",
    ]
    for name, values in report["processors"].items():
        if MODELS[name].target.triple == "aarch64":
            fields = {key: value for key, value in values.items() if key != "model"}
            lines += ["", f"{name.upper().replace('-', '_')} = {KernelCycles.from_json(fields)!r}"]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", type=Path)
    parser.add_argument("--threads", default="1", help="threads of the checked steps, such as 1,2")
    parser.add_argument("--no-check", action="store_true", help="keep the check in --out as it is")
    parser.add_argument("--constants", type=Path, help="write a module with the boards' cycles")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    report: dict[str, Any] = {"processors": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in MODELS.items():
            cycles = kernel_cycles(name, Path(folder))
            report["processors"][name] = {**asdict(cycles), "model": asdict(model)}
            print(cycles, flush=True)
        if not args.no_check:
            report["check"] = check(args, Path(folder))
        elif args.out and args.out.exists():
            report["check"] = json.loads(args.out.read_text(encoding="utf-8")).get("check")
    if args.constants:
        args.constants.write_text(constants(report), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "ruff", "format", str(args.constants)], check=True)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
