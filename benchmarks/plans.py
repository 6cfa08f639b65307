"""Measure seconds, memory and size of building plans without a GPU.

    python benchmarks/plans.py smollm2-135m-instruct --out benchmarks/results/plans.json

Plans are built for several precisions and GPU generations, each in a separate process. Its peak
memory is reported next to the estimate by which a build is refused.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bita.calibration.latency import describe_device
from bita.engine import PLAN_FILE, WEIGHTS_FILE, Engine, open_engine
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.export.tensorrt.build_costs import plan_costs
from bita.export.tensorrt.compile_engine import CompileOptions, compile_engine
from bita.export.tensorrt.compile_plan import PORTABLE
from bita.plan import PlanInfo
from bita.runtime.decoding.memory import peak_host_bytes
from bita.tree import Tree

TREE = Tree.from_paths(
    [(1,), (1, 1), (1, 1, 1), (2,), (1, 2), (2, 1), (3,)], num_masks=3
)  # 32 rows


def compile_one(path: str, targets: str, rows: str) -> None:
    """Compile one plan and print a line of JSON; runs in a separate process."""
    began = time.perf_counter()
    sizes = tuple(map(int, rows.split(","))) if rows else None
    options = CompileOptions("tensorrt-rtx", tuple(targets.split(",")), sizes, force=True)
    engine = compile_engine(open_engine(path), options)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": round(seconds, 1), **figures(engine)}))


def figures(engine: Engine) -> dict[str, Any]:
    info = PlanInfo.from_manifest(engine.manifest.plan)
    weights = engine.files[WEIGHTS_FILE]["bytes"]
    costs = plan_costs(weights, info.library, info.decode_rows)
    return {
        "library": info.name,
        "targets": list(info.targets),
        "decode_rows": list(info.decode_rows),
        "weight_bytes": weights,
        "plan_bytes": engine.files[PLAN_FILE]["bytes"],
        "estimated_plan_bytes": round(costs.disk),
        "peak_bytes": peak_host_bytes(),
        "estimated_peak_bytes": round(costs.memory),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--precisions", default="fp16,int4")
    parser.add_argument("--dialects", default="standard,plain")
    parser.add_argument("--rows", default="", help="step sizes; default: those of AR and the tree")
    parser.add_argument("--targets", nargs="*", default=[*PORTABLE, ",".join(PORTABLE)])
    parser.add_argument("--capacity", type=int, default=2048)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    checkpoint = open_checkpoint(args.model)
    plans = []
    for precision in args.precisions.split(","):
        for dialect in args.dialects.split(","):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "engine"
                options = BuildOptions(
                    precision, capacity=args.capacity, tree=TREE, dialect=dialect
                )
                build_engine(check_build(checkpoint, None, path, options))
                for targets in args.targets:
                    command = [sys.executable, __file__, "--one", str(path), targets, args.rows]
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                    plan = {"precision": precision, "dialect": dialect, "targets": targets}
                    if done.returncode:
                        plan["failed"] = done.stderr.strip().splitlines()[-1]
                    else:
                        plan |= json.loads(done.stdout)
                    plans.append(plan)
                    print(plan, flush=True)
    report = {"model": args.model, "capacity": args.capacity, "tree_rows": TREE.num_rows}
    report |= {"device": describe_device(0), "plans": plans}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return int(any("failed" in plan for plan in plans))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        compile_one(*sys.argv[2:])
    else:
        sys.exit(main())
