"""Check and measure an engine on a GPU in one run; print a short table and write a JSON file.

    python benchmarks/gpu.py smollm2-135m-instruct \
        --adapter adapters/smollm2-135m-instruct.safetensors \
        --backend ort-cuda --precision fp16 --prompts mt_bench.jsonl --out gpu.json

Builds the engine if `--engine` has none, then measures

- tokens/s of AR and of the tree, with and without CUDA graphs
- T(q) for q = 2 to 128, the host time of a step, and memory
- losslessness with the engine's own and a random adapter (verify)
- `generate` of transformers and a hand-written CUDA-graph loop in torch
- the bandwidth reached, relative to that of a copy

`--trees` adds the best trees for the same adapter from a report of `benchmarks/draft_quality.py`;
they are decoded in mode "tree", with graphs. If a part fails, the report says so and the other
parts continue. On a CPU (`--backend ort-cpu`) everything runs without graphs.
"""

import argparse
import hashlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bita.adapter import Adapter
from bita.calibration.latency import describe_device, measure_latency
from bita.calibration.turns import Timed, decode_in_turns, together
from bita.calibration.verify import Comparison, verify
from bita.cli.shared.plans import default_dialect, read_compile_options
from bita.cli.shared.trees import read_tree
from bita.data.prompts import read_prompts
from bita.engine import WEIGHTS_FILE, open_engine
from bita.errors import AdapterError, BitaError, EngineError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.checkpoint import Checkpoint
from bita.export.sources import open_checkpoint
from bita.export.tensorrt.compile_engine import compile_engine
from bita.runtime.session import Prompt, Session
from bita.tree import Tree

ROWS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
Report = dict[str, Any]


def build(args: argparse.Namespace, checkpoint: Checkpoint) -> Report:
    """Build the engine unless it exists; report its size and the seconds."""
    if (args.engine / "manifest.json").is_file():
        return {"engine": str(args.engine), "built": False}
    began = time.perf_counter()
    adapter = Adapter.load(args.adapter) if args.adapter else None
    tree = read_tree(args.tree, adapter.num_masks if adapter else 3)
    compile_options = read_compile_options(args)
    options = BuildOptions(
        args.precision,
        args.mode,
        args.capacity,
        tree,
        backend="ort-cpu" if compile_options else args.backend,
        dialect=default_dialect(args.backend, args.precision, compile_options),
    )
    build_engine(check_build(checkpoint, adapter, args.engine, options))
    if compile_options:
        compile_engine(open_engine(args.engine), compile_options)
    engine = open_engine(args.engine)
    return {
        "engine": str(args.engine),
        "built": True,
        "seconds": round(time.perf_counter() - began, 1),
        "bytes": {name: entry["bytes"] for name, entry in engine.files.items()},
        "plan": engine.manifest.plan,
    }


def verify_engine(args: argparse.Namespace) -> Report:
    """Compare the engine's trees with AR, with its own and a random adapter."""
    session = Session.open(args.engine, check_hashes=True)
    prompts = read_prompts(args.prompts, args.verified)
    comparisons = verify(session, prompts, args.max_new_tokens)
    return {
        "mode": session.mode,
        "min_exact_rows": session.min_exact_rows,
        "comparisons": {each.name: _describe(each) for each in comparisons},
    }


def _describe(comparison: Comparison) -> Report:
    return {
        "prompts": comparison.num_prompts,
        "identical": comparison.num_identical,
        "forbidden": len(comparison.forbidden),
        "margins": [round(item.margin or 0.0, 4) for item in comparison.divergences],
        "tokens": comparison.num_tokens,
        "tokens_per_step": round(comparison.tokens_per_step, 4),
    }


def speeds(args: argparse.Namespace) -> Report:
    """Time AR and the tree, with and without graphs, interleaved; report a session's memory."""
    prompts = read_prompts(args.prompts, args.timed)
    sessions, faults = sessions_of(args, prompts[0])
    timed = decode_in_turns([*sessions.values()], prompts, args.max_new_tokens)
    named = dict(zip(sessions, timed, strict=True))
    plain = next((runs for name, runs in named.items() if name.startswith("AR, ")), [])
    report = {name: _speed(runs, plain, sessions[name]) for name, runs in named.items()}
    memory = next(iter(sessions.values())).stats.memory
    return {
        "prompts": len(prompts),
        "speeds": report,
        "memory_bytes": {"at_load": vars(memory.at_load), "decoding": vars(memory.decoding)},
        **({"not_decoded": faults} if faults else {}),
    }


def sessions_of(
    args: argparse.Namespace, prompt: Prompt
) -> tuple[dict[str, Session], dict[str, str]]:
    """Open the sessions to time; also return the reason for each that does not run here."""
    trees = best_trees(args.trees, args.adapter) if args.trees else {}
    sessions: dict[str, Session] = {}
    faults: dict[str, str] = {}
    for name, cuda_graph in (("graph", True), ("no graph", False)):
        try:
            session = Session.open(args.engine, cuda_graph=cuda_graph)
            session.generate(prompt, 8)
        except (BitaError, RuntimeError) as error:
            faults[name] = str(error)
            continue
        sessions[f"AR, {name}"] = session.using(tree=Tree.root_only(), min_rows=1)
        sessions[f"AR in {session.min_exact_rows} rows, {name}"] = session.using(
            tree=Tree.root_only()
        )
        sessions[f"tree, {name}"] = session
        for label, tree in trees.items() if cuda_graph else ():
            free = session.using(tree=tree, mode="tree", min_rows=1)
            sessions[f"{label}, mode tree, {name}"] = free
    if not sessions:
        raise EngineError(f"no step runs: {faults}")
    return sessions, faults


def best_trees(report: Path, adapter: Path) -> dict[str, Tree]:
    """Read the best tree of each size for this adapter from a report of draft_quality.py."""
    sha256 = hashlib.sha256(adapter.read_bytes()).hexdigest()
    for each in json.loads(report.read_text(encoding="utf-8"))["adapters"]:
        if each.get("sha256") == sha256:
            trees = {
                name: Tree.from_paths(paths, each["num_masks"])
                for name, paths in each["trees"].items()
            }
            return {name: tree for name, tree in trees.items() if name.startswith("best_")}
    raise AdapterError(f"{report} has no trees for {adapter} (sha256 {sha256})")


def _speed(runs: Sequence[Timed], plain: Sequence[Timed], session: Session) -> Report:
    """Summarize the answers of a session.

    "host_share" is the share of a step outside the backend's run, in the last answer;
    "same_text_as_ar" counts the answers with the tokens of the first AR session.
    """
    timed = together(runs)
    return {
        "same_text_as_ar": sum(
            run.token_ids == other.token_ids for run, other in zip(runs, plain, strict=False)
        ),
        "tokens_per_second": round(timed.tokens_per_second, 2),
        "tokens_per_step": round(timed.tokens_per_step, 4),
        "step_ms": round(timed.milliseconds / max(timed.num_steps, 1), 4),
        "host_share": round(session.stats.host_share, 4),
    }


def latencies(args: argparse.Namespace) -> Report:
    """Measure T(q) at several lengths of the text."""
    latency = measure_latency(open_engine(args.engine), args.max_rows, repeats=args.repeats)
    rows = list(latency.rows)
    short = latency.fitted[0]
    report: Report = latency.to_json()
    if 2 in rows and 32 in rows:
        report["t32_over_t2"] = round(short[rows.index(32)] / short[rows.index(2)], 4)
    return report


def ceilings(args: argparse.Namespace, checkpoint: Checkpoint) -> Report:
    """Measure torch on the same device: tokens/s of plain decoding, and a copy's bandwidth."""
    from gpu_baselines import HandLoop, Transformers, copy_bandwidth

    session = Session.open(args.engine)
    prompt = session.encode(read_prompts(args.prompts, 1)[0])
    length = len(prompt) + args.max_new_tokens
    loop = HandLoop(checkpoint, length, args.torch_dtype, args.torch_device)
    decoders: dict[str, HandLoop | Transformers] = {
        "hand loop": loop,
        "transformers": Transformers(checkpoint, args.torch_dtype, args.torch_device),
    }
    report: Report = {
        "copy_bytes_per_second": copy_bandwidth(args.torch_device, args.copied_bytes),
        "weight_bytes": loop.bytes_per_step,
    }
    written = {}
    for name, decoder in decoders.items():
        decoder.decode(prompt, 8)
        runs = [decoder.decode(prompt, args.max_new_tokens) for _ in range(3)]
        step_ms, written[name] = min(run.step_ms for run in runs), runs[0].token_ids
        report[name] = {"step_ms": round(step_ms, 4), "tokens_per_second": round(1000 / step_ms, 2)}
    plain = session.using(tree=Tree.root_only(), min_rows=1)
    plain.generate(prompt, 8, ignore_eos=True)
    plain.reset_stats()
    answer = plain.generate(prompt, args.max_new_tokens, ignore_eos=True)
    speed = plain.stats.tokens_per_second
    step_s = sum(plain.stats.step_ms) / max(plain.stats.num_steps, 1) / 1000
    read = _weights(args.engine) / step_s
    report["AR"] = {
        "tokens_per_second": round(speed, 2),
        "same_text_as_hand_loop": answer.token_ids == written["hand loop"],
        "share_of_hand_loop": round(speed / report["hand loop"]["tokens_per_second"], 4),
        "bytes_per_second": read,
        "share_of_copy": round(read / report["copy_bytes_per_second"], 4),
    }
    return report


def _weights(path: Path) -> int:
    return int(open_engine(path).files[WEIGHTS_FILE]["bytes"])


def run_parts(parts: dict[str, Callable[[], Report]], out: Path, report: Report) -> Report:
    """Run the parts one after the other; write the report after each, so that nothing is lost."""
    for name, part in parts.items():
        began = time.perf_counter()
        try:
            report[name] = part()
        except (BitaError, RuntimeError, OSError, ImportError, ValueError) as error:
            report[name] = {"failed": str(error), "where": traceback.format_exc().splitlines()[-3:]}
        report[name]["part_seconds"] = round(time.perf_counter() - began, 1)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def table(report: Report) -> str:
    """Return the main results of the report as lines of text."""
    lines = [f"{name}: FAILED: {part['failed']}" for name, part in failed(report).items()]
    for name, why in report.get("speed", {}).get("not_decoded", {}).items():
        lines.append(f"{name}: NOT DECODED: {why}")
    for name, each in report.get("verify", {}).get("comparisons", {}).items():
        lines.append(f"verify, {name}: {each['identical']} of {each['prompts']} identical")
    for name, speed in report.get("speed", {}).get("speeds", {}).items():
        lines.append(
            f"{name}: {speed['tokens_per_second']} tokens/s, {speed['tokens_per_step']} per step "
            f"of {speed['step_ms']} ms, {100 * speed['host_share']:.1f} % on the host, "
            f"{speed['same_text_as_ar']} of {report['speed']['prompts']} texts equal AR's"
        )
    for when, memory in report.get("speed", {}).get("memory_bytes", {}).items():
        lines.append(
            f"memory, {when}: {memory['host'] / 1e6:.0f} MB, GPU {memory['gpu'] / 1e6:.0f} MB"
        )
    latency = report.get("latency", {})
    if "rows" in latency:
        curve = zip(latency["rows"], latency["fitted"][0], strict=True)
        lines.append("T(q), ms: " + ", ".join(f"{q}: {ms:.3g}" for q, ms in curve))
    if "t32_over_t2" in latency:
        lines.append(f"T(32) / T(2): {latency['t32_over_t2']}")
    ceiling = report.get("ceiling", {})
    lines += [f"{n}: {ceiling[n]}" for n in ("hand loop", "transformers", "AR") if n in ceiling]
    return "\n".join(lines)


def failed(report: Report) -> dict[str, Report]:
    return {
        name: part for name, part in report.items() if isinstance(part, dict) and "failed" in part
    }


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    p.add_argument("model")
    p.add_argument("--adapter", type=Path)
    p.add_argument("--engine", type=Path, help="default: engines/gpu-BACKEND-PRECISION")
    p.add_argument("--backend", default="ort-cuda")
    p.add_argument("--precision", default="fp16")
    p.add_argument("--mode", default="exact")
    p.add_argument("--tree", default="chain", help="the engine's tree, as in `bita engine --tree`")
    p.add_argument("--trees", type=Path, help="report of draft_quality.py with more trees")
    p.add_argument("--capacity", type=int, default=2048)
    p.add_argument("--target", help="target of a plan")
    p.add_argument("--rows", default=",".join(map(str, ROWS)), help="step sizes of a plan")
    p.add_argument("--force", action="store_true")
    p.add_argument("--prompts", type=Path, help="JSONL file; default: the bundled prompts")
    p.add_argument("--verified", type=int, default=80, help="verified prompts")
    p.add_argument("--timed", type=int, default=16, help="timed prompts")
    p.add_argument("--max-new-tokens", type=int, default=128)
    p.add_argument("--max-rows", type=int, default=ROWS[-1])
    p.add_argument("--repeats", type=int, default=15)
    p.add_argument("--torch-device", default="cuda")
    p.add_argument("--torch-dtype", default="float16")
    p.add_argument("--copied-bytes", type=int, default=1 << 30)
    p.add_argument("--skip", nargs="*", default=[], help="parts to leave out")
    p.add_argument("--out", type=Path, required=True)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.engine = args.engine or Path("engines") / f"gpu-{args.backend}-{args.precision}"
    if args.backend not in ("tensorrt", "tensorrt-rtx"):
        args.rows = args.target = None
    checkpoint = open_checkpoint(args.model)
    parts: dict[str, Callable[[], Report]] = {
        "build": lambda: build(args, checkpoint),
        "speed": lambda: speeds(args),
        "latency": lambda: latencies(args),
        "verify": lambda: verify_engine(args),
        "ceiling": lambda: ceilings(args, checkpoint),
    }
    chosen = {name: part for name, part in parts.items() if name not in args.skip}
    options = {name: str(value) for name, value in vars(args).items()}
    start: Report = {"device": describe_device(0), "options": options}
    report = run_parts(chosen, args.out, start)
    print(table(report))
    print(f"written to {args.out}")
    return int(bool(failed(report)))


if __name__ == "__main__":
    sys.exit(main())
