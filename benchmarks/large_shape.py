"""Compare a model of 1.2 billion parameters with llama.cpp: the cost of a step and of a build.

    python benchmarks/large_shape.py --llama-cpp .cache/peers/llama.cpp/bin

Makes random Llamas with the shape of Llama 3.2 1B in Q4_0 and Q4_1 (`large_model.py`) and builds
int4 engines of them in the dialects native and ort. Each round measures a burst of steps of each
size with each engine, then llama-bench with each file. Weights are random, so nothing is calibrated
and nothing is drafted. A run that was stopped continues. One that has finished leaves 4.5 GB of
models and engines in the work directory for the next run; remove it after changing the export. The
bandwidth of reading weights is computed from the median step of one row.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from export_memory import CONFIG
from kept_blocks import count_kept, step_weight_bytes
from large_shape_report import Figures, print_table, summarize
from peer_process import PeerError
from peer_report import describe_machine
from peers import Journal, find_default_gguf, say
from rows import Subject, copy_gigabytes_per_second, time_rows

from bita.calibration.memory import measure_memory
from bita.dialect_spec import NATIVE
from bita.engine import OPERATORS_VERSION, WEIGHTS_FILE, open_engine, sha256
from bita.errors import BitaError
from bita.export.sources import open_checkpoint
from bita.runtime.native.library import loaded_operators, operators_library
from bita.runtime.session import Session
from bita.tree import Tree

HERE = Path(__file__).resolve().parent
FORMATS = ("Q4_0", "Q4_1")
ENGINES = (("native", "Q4_0"), ("native", "Q4_1"), ("ort", "Q4_0"))  # (dialect, file format)
SETTLE_SECONDS = 0.5  # between programs
VOCABULARY = "the default model's tokens, padded with unused ones"


def run_measured(command: Sequence[str]) -> Figures:
    """Run a program and return its output, its seconds, and its peak memory.

    The peak is at least that of this process so far, whose memory the program shares until it is
    loaded. So measure before this process needs much memory.
    """
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise PeerError(f"{' '.join(command)} ended with exit status {process.returncode}")
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "output": output.strip().splitlines(),
    }


def gguf_of(args: argparse.Namespace, name: str) -> Path:
    """Return the path of the model file with a format."""
    return Path(args.work_dir / f"llama-1b-random.{name}.gguf")


def engine_of(args: argparse.Namespace, dialect: str, name: str) -> Path:
    """Return the path of the engine of a file in a dialect."""
    return Path(args.work_dir / f"{dialect}-{name}")


def make_files(args: argparse.Namespace, journal: Journal) -> None:
    """Make the models and engines that are missing."""
    for name in FORMATS:
        path = gguf_of(args, name)
        command = [str(HERE / "large_model.py"), str(path), name, "--tokenizer", str(args.gguf)]
        make_once(path, f"gguf {name}", command, journal)
    for dialect, name in ENGINES:
        path = engine_of(args, dialect, name)
        command = ["-m", "bita", "engine", str(gguf_of(args, name)), "--out", str(path)]
        command += ["--dialect", dialect, "--uncalibrated", "--adapter", "none"]
        make_once(path, f"{dialect} {name}", command, journal)


def make_once(path: Path, key: str, command: Sequence[str], journal: Journal) -> None:
    """Run a Python script that makes a file or an engine, unless it is done."""
    if path.exists() and journal.get("made", key) is not None:
        return
    say(f"making {path}")
    made = journal.add("made", key, run_measured([sys.executable, *command]))
    say(f"{path}: {made['seconds']} s, peak memory {made['peak_mb']} MB")


def check_kept(args: argparse.Namespace, journal: Journal) -> None:
    """Compare all weights of the native engines with those of their files."""
    for dialect, name in ENGINES:
        if dialect == NATIVE.name and journal.get("kept", name) is None:
            engine = open_engine(engine_of(args, dialect, name))
            found = count_kept(engine, open_checkpoint(str(gguf_of(args, name))))
            journal.add("kept", name, found)
            say(f"{engine.path}: {found['kept']} of {found['weights']} weights equal the file's")


def measure_sessions(args: argparse.Namespace, journal: Journal) -> None:
    """Measure the peak memory of processes that open an engine and decode plainly."""
    for dialect, name in ENGINES:
        if journal.get("session_mb", f"{dialect} {name}") is None:
            path = engine_of(args, dialect, name)
            memory = measure_memory(path, args.threads, Tree.root_only())
            peak_mb = round(memory.decoding.host / 2**20)
            journal.add("session_mb", f"{dialect} {name}", peak_mb)
            say(f"{path}: a session takes {peak_mb} MB")


def open_subjects(args: argparse.Namespace) -> list[Subject]:
    """Open a session of each engine."""
    return [
        Subject(
            f"{dialect} {name}",
            Session.open(
                engine_of(args, dialect, name), tree=Tree.root_only(), num_threads=args.threads
            ),
            None,
        )
        for dialect, name in ENGINES
    ]


def time_llama_cpp(args: argparse.Namespace, name: str) -> Figures:
    """Run llama-bench; return the bytes of weights, and the ms per token of each repetition."""
    command = [str(args.llama_cpp / "llama-bench"), "-m", str(gguf_of(args, name))]
    command += ["-t", str(args.threads), "-p", "0", "-n", str(args.tokens), "-o", "json"]
    command += ["-d", str(args.length), "-r", str(args.repetitions)]
    time.sleep(SETTLE_SECONDS)
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    (found,) = json.loads(output)
    times = [round(ns / args.tokens / 1e6, 3) for ns in found["samples_ns"]]
    return {"weight_bytes": found["model_size"], "token_ms": times}


def time_round(args: argparse.Namespace, subjects: Sequence[Subject], number: int) -> Figures:
    """Time all engines, then all of llama.cpp's files; every other round reverses the order."""
    turn = -1 if number % 2 else 1
    sizes = [int(size) for size in args.rows.split(",")]
    steps = time_rows(subjects[::turn], args.length, sizes, args.bursts)
    return {
        "copy_gb_per_s": copy_gigabytes_per_second(args.threads),
        "step_ms": {
            name: {str(size): [round(ms, 3) for ms in times] for size, times in rows.items()}
            for name, rows in steps.items()
        },
        "llama_cpp": {name: time_llama_cpp(args, name) for name in FORMATS[::turn]},
    }


def measure(args: argparse.Namespace, journal: Journal) -> list[Figures]:
    """Measure all rounds that are not in the journal."""
    known = [journal.get("round", str(number)) for number in range(args.rounds)]
    if None not in known:
        return known
    subjects = open_subjects(args)
    for number, found in enumerate(known):
        if found is None:
            say(f"round {number + 1} of {args.rounds}")
            known[number] = journal.add("round", str(number), time_round(args, subjects, number))
    return known


def settings_of(args: argparse.Namespace) -> Figures:
    """Return the settings that all rounds must have in common."""
    names = ("threads", "rows", "length", "tokens", "repetitions", "bursts")
    engines = {
        f"{dialect} {name}": open_engine(engine_of(args, dialect, name)).files[WEIGHTS_FILE]
        for dialect, name in ENGINES
    }
    library = sha256(operators_library())
    return {**{name: getattr(args, name) for name in names}, "library": library, **engines}


def compare(args: argparse.Namespace) -> int:
    """Make the missing files, measure, and report."""
    versions = {"shape": CONFIG, "operators": OPERATORS_VERSION}
    built = Journal(args.work_dir / "built.jsonl", versions)
    make_files(args, built)
    check_kept(args, built)
    measure_sessions(args, built)
    if args.make_only:
        return 0
    path = args.work_dir / "rounds.jsonl"
    rounds = measure(args, Journal(path, settings_of(args)))
    step_bytes = {
        f"{dialect} {name}": step_weight_bytes(open_engine(engine_of(args, dialect, name)))
        for dialect, name in ENGINES
    }
    report = {
        **describe_machine(args.threads),
        **{name: getattr(args, name) for name in ("threads", "rounds", "repetitions", "tokens")},
        **{"isa": loaded_operators().isa, "shape": CONFIG, "vocabulary": VOCABULARY},
        "built": built.stage("made"),
        "kept": built.stage("kept"),
        "session_mb": built.stage("session_mb"),
        **summarize(rounds, step_bytes, args.length),
    }
    print_table(report, args.length)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    path.unlink()
    print(f"written to {args.out}")
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--llama-cpp", type=Path, required=True, help="folder of llama-bench")
    parser.add_argument(
        "--gguf", type=Path, default=find_default_gguf(), help="GGUF file with the tokenizer to use"
    )
    parser.add_argument("--work-dir", type=Path, default=Path(".cache/large_shape"))
    parser.add_argument("--make-only", action="store_true", help="make the files, measure nothing")
    parser.add_argument("--rows", default="1,2,4,8", help="sizes of steps")
    parser.add_argument("--length", type=int, default=128, help="tokens of text before the steps")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--bursts", type=int, default=1, help="bursts of 12 steps in each round")
    parser.add_argument("--tokens", type=int, default=32, help="tokens llama-bench generates")
    parser.add_argument(
        "--repetitions", type=int, default=2, help="repetitions of llama-bench in each round"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "large_shape.json")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    try:
        return compare(args)
    except BitaError as error:
        print(f"large_shape: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
