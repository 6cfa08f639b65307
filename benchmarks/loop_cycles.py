"""Cycles of a compiled function's loops, as llvm-mca models a processor.

A loop is what lies between a label and a branch back to it. llvm-mca knows the ports, latencies and
width of a processor, and assumes that all loads hit the first cache.
"""

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

ITERATIONS = 200  # of a loop, so that its start counts little
LABEL = re.compile(r"^(\.L\w+):")
FUNCTION = re.compile(r"^(_?\w[\w.$]*):")
INSTRUCTION = re.compile(r"^\t((?:\{vex\}\s+)?[a-z][\w.]*)\b(.*)$")
# jne .L5; b.ne .L5; cbnz x0, .L5; tbnz x0, 3, .L5
BRANCH = re.compile(r"^(?:j\w+|b|b\.\w+|b[a-z]{2}|cbn?z|tbn?z)\s+(?:[^.]*,\s*)?(\.L\w+)$")
X86_BYTES = {"x": 16, "y": 32, "z": 64}  # of a register, by its first letter
STACK = re.compile(r"\[(?:sp|x29)\b|\((?:%rsp|%rbp)[,)]")


@dataclass(frozen=True)
class Target:
    """A processor that llvm-mca is asked about."""

    triple: str  # "aarch64" or "x86_64"
    cpu: str  # of `-mcpu`: the scheduling model
    features: str = ""  # of `-mattr`: what the code uses and that model's processor may lack
    dispatch: int = 0  # micro-operations a cycle; 0: the model's own width


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its instructions in their order, the branch back last."""

    function: str  # demangled
    instructions: tuple[str, ...]

    @property
    def products(self) -> int:
        """Products of two bytes that an iteration makes."""
        return sum(map(byte_products, self.instructions))

    @property
    def fused(self) -> int:
        """Fused multiply-adds of two floats that an iteration makes."""
        return sum(map(float_products, self.instructions))

    @property
    def stack_accesses(self) -> int:
        """Instructions that read or write the stack: registers that were spilled."""
        return sum(bool(STACK.search(line)) for line in self.instructions)


@dataclass(frozen=True)
class LoopCycles:
    """What llvm-mca says of a loop."""

    cycles: float  # of an iteration, among many
    least: float  # by the ports and the width alone, without any latency
    micro_operations: float  # of an iteration
    pressure: dict[str, float]  # cycles of an iteration in which a port is taken


def functions(assembly: str) -> Iterator[tuple[str, list[str]]]:
    """Names, and the lines between the label and the end of each."""
    name, lines = "", list[str]()
    for line in assembly.splitlines():
        if match := FUNCTION.match(line):
            name, lines = match.group(1), []
        elif line.startswith("\t.cfi_endproc") and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def innermost_loops(function: str, lines: Sequence[str]) -> list[Loop]:
    """Loops that have no other one inside, in their order."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    spans: list[tuple[int, int]] = []
    for line in lines:
        if label := LABEL.match(line):
            labels[label.group(1)] = len(instructions)
        elif found := INSTRUCTION.match(line):
            text = " ".join(f"{found.group(1)} {found.group(2).split('//')[0]}".split())
            instructions.append(text)
            branch = BRANCH.match(text)
            if branch and branch.group(1) in labels:
                spans.append((labels[branch.group(1)], len(instructions)))
    return [
        Loop(function, tuple(instructions[start:stop]))
        for start, stop in sorted(set(spans))
        if not any(
            start <= other and end <= stop and (start, stop) != (other, end) for other, end in spans
        )
    ]


def loops_of(assembly: str) -> list[Loop]:
    """Innermost loops of all functions; names are demangled."""
    found = dict(functions(assembly))
    names = dict(zip(found, demangled(list(found)), strict=True))
    return [loop for name in found for loop in innermost_loops(names[name], found[name])]


def demangled(names: Sequence[str]) -> list[str]:
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def byte_products(instruction: str) -> int:
    """Products of bytes that an instruction makes."""
    name, _, operands = instruction.removeprefix("{vex} ").partition(" ")
    if name in ("vpdpbusd", "vpmaddubsw"):
        return _x86_bytes(operands)
    return {"sdot": 16, "udot": 16, "smmla": 32}.get(name, 8 if name.startswith(BYTE_LONG) else 0)


def float_products(instruction: str) -> int:
    """Fused multiply-adds of floats that an instruction makes."""
    name, _, operands = instruction.partition(" ")
    if re.match(r"vfmadd\d+ps", name):
        return _x86_bytes(operands) // 4
    return 4 if name == "fmla" and ".4s" in operands else 0


BYTE_LONG = ("smull", "smlal")  # eight bytes by eight, to 16 bits


def _x86_bytes(operands: str) -> int:
    return X86_BYTES[re.findall(r"%([xyz])mm", operands)[-1]]


def loop_cycles(instructions: Sequence[str], target: Target, tool: str) -> LoopCycles:
    """Ask llvm-mca. tool: its command. Raises RuntimeError if it cannot read an instruction."""
    command = [tool, f"-mtriple={target.triple}", f"-mcpu={target.cpu}"]
    command += [f"-iterations={ITERATIONS}", "-instruction-info=0", "-resource-pressure=1"]
    command += [f"-mattr={target.features}"] if target.features else []
    command += [f"-dispatch={target.dispatch}"] if target.dispatch else []
    code = "".join(f"{instruction}\n" for instruction in instructions)
    done = subprocess.run(command, input=code, capture_output=True, text=True)
    if done.returncode != 0 or "error:" in done.stderr:
        raise RuntimeError(f"{tool} cannot read a loop: {done.stderr.strip()[:500]}")
    return parsed_cycles(done.stdout)


def parsed_cycles(output: str) -> LoopCycles:
    """What llvm-mca prints of one loop."""
    numbers = {
        key: float(value)
        for key, value in re.findall(r"^([A-Z][\w ]+):\s+([\d.]+)$", output, re.MULTILINE)
    }
    iterations = numbers["Iterations"]
    return LoopCycles(
        cycles=numbers["Total Cycles"] / iterations,
        least=numbers["Block RThroughput"],
        micro_operations=numbers["Total uOps"] / iterations,
        pressure=_pressure(output),
    )


def _pressure(output: str) -> dict[str, float]:
    ports = re.findall(r"^\[([\d.]+)\]\s+- (\S+)$", output, re.MULTILINE)
    for header, values in pairwise(output.splitlines()):
        if header.startswith("[0") and not values.startswith("["):
            taken = [0.0 if value == "-" else float(value) for value in values.split()]
            return _by_name([name for _, name in ports], taken)
    return {}


def _by_name(names: Sequence[str], taken: Sequence[float]) -> dict[str, float]:
    """Ports of a name (two load units, say) are added up."""
    sums: dict[str, float] = {}
    for name, cycles in zip(names, taken, strict=True):
        sums[name] = round(sums.get(name, 0.0) + cycles, 2)
    return sums
