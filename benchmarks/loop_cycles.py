"""Find the loops of compiled functions and compute their cycles with llvm-mca's processor models.

A loop is the code between a label and a branch back to it. llvm-mca models the ports, latencies and
width of a processor, and assumes that all loads hit the L1 cache.
"""

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

ITERATIONS = 200  # of a loop, so that its start has little weight
LABEL = re.compile(r"^(\.L\w+):")
FUNCTION = re.compile(r"^(_?\w[\w.$]*):")
INSTRUCTION = re.compile(r"^\t((?:\{vex\}\s+)?[a-z][\w.]*)\b(.*)$")
# jne .L5; b.ne .L5; cbnz x0, .L5; tbnz x0, 3, .L5
BRANCH = re.compile(r"^(?:j\w+|b|b\.\w+|b[a-z]{2}|cbn?z|tbn?z)\s+(?:[^.]*,\s*)?(\.L\w+)$")
X86_BYTES = {"x": 16, "y": 32, "z": 64}  # size of a register by its first letter
STACK = re.compile(r"\[(?:sp|x29)\b|\((?:%rsp|%rbp)[,)]")


@dataclass(frozen=True)
class Target:
    """A processor model of llvm-mca."""

    triple: str  # "aarch64" or "x86_64"
    cpu: str  # value of `-mcpu`, which selects the scheduling model
    features: str = ""  # value of `-mattr`: features of the code that the model may lack
    dispatch: int = 0  # micro-operations per cycle; 0 for the model's own width


@dataclass(frozen=True)
class Loop:
    """An innermost loop of a function."""

    function: str  # demangled name
    instructions: tuple[str, ...]  # in order; the branch back is last

    @property
    def products(self) -> int:
        """Products of two bytes per iteration."""
        return sum(map(byte_products, self.instructions))

    @property
    def fused(self) -> int:
        """Fused multiply-adds of two floats per iteration."""
        return sum(map(float_products, self.instructions))

    @property
    def stack_accesses(self) -> int:
        """Number of instructions that read or write the stack because registers were spilled."""
        return sum(bool(STACK.search(line)) for line in self.instructions)


@dataclass(frozen=True)
class LoopCycles:
    """Cycles of a loop according to llvm-mca."""

    cycles: float  # per iteration, averaged over many
    least: float  # lower bound by ports and width alone, without latencies
    micro_operations: float  # per iteration
    pressure: dict[str, float]  # cycles per iteration in which a port is busy


def functions(assembly: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each function, and the lines between its label and its end."""
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
    """Return the loops that contain no other loop, in order."""
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
    """Return the innermost loops of all functions, with demangled names."""
    found = dict(functions(assembly))
    names = dict(zip(found, demangle(list(found)), strict=True))
    return [loop for name in found for loop in innermost_loops(names[name], found[name])]


def demangle(names: Sequence[str]) -> list[str]:
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def byte_products(instruction: str) -> int:
    """Count the products of bytes of an instruction."""
    name, _, operands = instruction.removeprefix("{vex} ").partition(" ")
    if name in ("vpdpbusd", "vpmaddubsw"):
        return _x86_bytes(operands)
    return {"sdot": 16, "udot": 16, "smmla": 32}.get(name, 8 if name.startswith(BYTE_LONG) else 0)


def float_products(instruction: str) -> int:
    """Count the fused multiply-adds of floats of an instruction."""
    name, _, operands = instruction.partition(" ")
    if re.match(r"vfmadd\d+ps", name):
        return _x86_bytes(operands) // 4
    return 4 if name == "fmla" and ".4s" in operands else 0


BYTE_LONG = ("smull", "smlal")  # multiply eight pairs of bytes to 16 bits


def _x86_bytes(operands: str) -> int:
    return X86_BYTES[re.findall(r"%([xyz])mm", operands)[-1]]


def loop_cycles(instructions: Sequence[str], target: Target, tool: str) -> LoopCycles:
    """Run llvm-mca, whose command is `tool`, on a loop.

    Raises RuntimeError if it cannot read an instruction.
    """
    command = [tool, f"-mtriple={target.triple}", f"-mcpu={target.cpu}"]
    command += [f"-iterations={ITERATIONS}", "-instruction-info=0", "-resource-pressure=1"]
    command += [f"-mattr={target.features}"] if target.features else []
    command += [f"-dispatch={target.dispatch}"] if target.dispatch else []
    code = "".join(f"{instruction}\n" for instruction in instructions)
    done = subprocess.run(command, input=code, capture_output=True, text=True)
    if done.returncode != 0 or "error:" in done.stderr:
        raise RuntimeError(f"{tool} cannot read a loop: {done.stderr.strip()[:500]}")
    return parse_cycles(done.stdout)


def parse_cycles(output: str) -> LoopCycles:
    """Parse the output of llvm-mca for one loop."""
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
    """Sum the cycles of ports with the same name, such as two load units."""
    sums: dict[str, float] = {}
    for name, cycles in zip(names, taken, strict=True):
        sums[name] = round(sums.get(name, 0.0) + cycles, 2)
    return sums
