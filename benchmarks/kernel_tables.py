"""Compute the native kernels' cycles by processor with llvm-mca, compiled as in the build."""

import json
import re
import shlex
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loop_cycles import Loop, Target, loop_cycles, loops_of

from bita.calibration.kernel_cycles import KernelCycles

ROOT = Path(__file__).resolve().parents[1]
NATIVE = ROOT / "runtime" / "native"
UNITS = ROOT / "benchmarks" / "kernel_units.cpp"
TOOLS = ("llvm-mca-22", "llvm-mca")
MIN_LLVM = 22  # earlier versions do not model the processors, or their pipes
COMPILERS = {"x86_64": "g++", "aarch64": "aarch64-linux-gnu-g++"}
ROWS = re.compile(r"_rows<(\d+), ([48]), (true|false)")
UNIT_NAMES = (
    *("weigh", "mean", "turn", "add", "squares"),
    *("rank", "scale", "quantize", "gate"),
)
PRODUCTS = 512  # per row of a tile's block


@dataclass(frozen=True)
class Model:
    """The kernels of an instruction set on a processor."""

    isa: str  # stem of the kernels' file
    target: Target
    note: str  # which scheduling model is used, and why


ARM = "+dotprod,+fullfp16"
# LLVM 22 uses the model of Cortex-A57, which has other pipes, for cortex-a76, -a78 and -a78ae. For
# Zen 5 it uses that of Zen 4, with half of its 512-bit pipes, so AVX-512 is not modelled.
MODELS = {
    "cortex-a76": Model(
        "neon_dotprod",
        Target("aarch64", "neoverse-n1", ARM, dispatch=4),
        "Neoverse N1, the server's A76, with A76's width of 4 instead of LLVM's 3",
    ),
    "cortex-a78": Model(
        "neon_dotprod",
        Target("aarch64", "neoverse-n2", ARM, dispatch=6),
        "Neoverse N2, which has the same thirteen pipes, with A78's width of 6 instead of 5",
    ),
    "zen 3": Model("avx2", Target("x86_64", "znver3"), "Zen 3"),
}


def mca_tool() -> str:
    """Find the command of llvm-mca. Raises SystemExit if none models the processors."""
    for tool in filter(shutil.which, TOOLS):
        text = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout
        version = re.search(r"LLVM version (\d+)", text)
        if version and int(version[1]) >= MIN_LLVM:
            return tool
    raise SystemExit(
        f"llvm-mca of LLVM {MIN_LLVM} or later is missing; tried {', '.join(TOOLS)} "
        f"(apt-get install llvm-{MIN_LLVM})"
    )


def compile_command(isa: str, triple: str, folder: Path) -> list[str]:
    """Get the build's compile command for an ISA's file from cmake, without input and output.

    cmake runs in `folder`. Raises RuntimeError if the build leaves out the file.
    """
    place = folder / triple
    settings = {
        "CMAKE_CXX_COMPILER": COMPILERS[triple],
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": triple,
        "ONNXRUNTIME_INCLUDE_DIR": str(folder),  # the kernels do not need it
    }
    command = ["cmake", "-S", str(NATIVE), "-B", str(place), "-G", "Ninja"]
    command += [f"-D{key}={value}" for key, value in settings.items()]
    subprocess.run(command, check=True, capture_output=True)
    for entry in json.loads((place / "compile_commands.json").read_text(encoding="utf-8")):
        if Path(entry["file"]) == NATIVE / "kernels" / f"{isa}.cpp":
            words = shlex.split(entry["command"])
            return words[: words.index("-o")]
    raise RuntimeError(f"the build for {triple} does not contain {isa}.cpp")


def compile_units(isa: str, triple: str, folder: Path, library: Path | None = None) -> str:
    """Compile kernel_units.cpp with an ISA's kernels and return the assembly.

    If `library` is given, a shared library is written there too.
    """
    command = compile_command(isa, triple, folder)
    command += [f'-DBITA_ISA_FILE="kernels/{isa}.cpp"', str(UNITS)]
    out = folder / f"{isa}.s"
    subprocess.run([*command, "-S", "-o", str(out)], check=True)
    if library:
        subprocess.run([*command, "-shared", "-o", str(library)], check=True)
    return out.read_text(encoding="utf-8")


def kernel_cycles(name: str, folder: Path, assembly: str | None = None) -> KernelCycles:
    """Compute the cycles of a processor in MODELS with llvm-mca."""
    model, tool = MODELS[name], mca_tool()
    loops = loops_of(assembly or compile_units(model.isa, model.target.triple, folder))

    def cycles(loop: Loop) -> float:
        return loop_cycles(loop.instructions, model.target, tool).cycles

    linear: dict[str, list[float]] = {}
    for (kind, rows), found in sorted(tile_loops(loops).items()):
        passes = tile_passes(kind, rows, found)
        linear.setdefault(kind, []).append(round(passes * sum(map(cycles, found)), 1))
    attention = {
        part: tuple(round(share * cycles(loop), 2) for loop, share in attention_loops(loops, part))
        for part in ("score", "add")
    }
    return KernelCycles(
        processor=name,
        linear={kind: tuple(values) for kind, values in linear.items()},
        scores=attention["score"],
        values=attention["add"],
        **{unit: round(cycles(loop), 1) for unit, loop in unit_loops(loops).items()},
    )


def tile_loops(loops: Sequence[Loop]) -> dict[tuple[str, int], list[Loop]]:
    """Find the loops over blocks of a tile, by the kind of the weight and the rows at a time.

    If several functions have such loops (copies by the compiler), those of one function count.
    """
    found: dict[tuple[str, int], dict[str, list[Loop]]] = defaultdict(lambda: defaultdict(list))
    for loop in loops:
        match = ROWS.search(loop.function)
        if match and loop.products:
            kind = f"int{match[2]}{' with minima' if match[3] == 'true' else ''}"
            found[kind, int(match[1])][loop.function].append(loop)
    return {
        key: max(by_function.values(), key=lambda same: sum(loop.products for loop in same))
        for key, by_function in found.items()
    }


def tile_passes(kind: str, num_rows: int, loops: Sequence[Loop]) -> float:
    """Return how often the loops run for a block, since they may cover a half or quarter of a tile.

    Raises RuntimeError if their number of products does not divide that of a block.
    """
    made = sum(loop.products for loop in loops)
    passes = num_rows * PRODUCTS / made
    if passes != int(passes):
        raise RuntimeError(
            f"{num_rows} rows of {kind}: the loops found make {made} products, which does not "
            f"divide the {num_rows * PRODUCTS} of a block"
        )
    return passes


def attention_loops(loops: Sequence[Loop], part: str) -> list[tuple[Loop, float]]:
    """Find the main loop for 1, 2, ... queries at a time with a float16 cache.

    Args:
        loops: All loops.
        part: "score" or "add".

    Returns:
        Each loop, with the share of its cycles that sixteen products of each query take.
    """
    name = re.compile(rf"\b{part}_\w+<(\d+),.*Half")
    best: dict[int, Loop] = {}
    for loop in loops:
        match = name.search(loop.function)
        if match and loop.fused > (best[int(match[1])].fused if int(match[1]) in best else 0):
            best[int(match[1])] = loop
    return [(loop, 16 * queries / loop.fused) for queries, loop in sorted(best.items())]


def unit_loops(loops: Sequence[Loop]) -> Mapping[str, Loop]:
    """Find the longest loop of each unit of kernel_units.cpp."""
    names = {f"unit_{name}" for name in UNIT_NAMES}
    longest: dict[str, Loop] = {}
    for loop in loops:
        name = loop.function.removeprefix("unit_")
        if loop.function in names and (
            name not in longest or len(loop.instructions) > len(longest[name].instructions)
        ):
            longest[name] = loop
    return longest
