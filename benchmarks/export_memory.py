"""Measure the peak memory of exporting a random float32 checkpoint with Llama 3.2 1B's shape.

    python benchmarks/export_memory.py --work DIR --out benchmarks/results/export_memory.json

The goal is to stay below the largest tensor plus 600 MB, so that a 7B model exports on an 8 GB
device.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bita.export.architecture import read_architecture
from bita.export.dialects.decoder import expected_shapes

CONFIG = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
GOAL_BEYOND_LARGEST_MB = 600


def write_checkpoint(directory: Path) -> None:
    """Write config.json and a model.safetensors of about 5 GB, tensor by tensor."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    shapes = expected_shapes(read_architecture(CONFIG, 1))
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        offsets = [offset, offset + size]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": offsets}
        offset += size
    encoded = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for shape in shapes.values():
            for _ in range(shape[0] // 2048 or 1):
                rows = min(shape[0], 2048)
                rng.standard_normal((rows, *shape[1:]), np.float32).tofile(file)
            rng.standard_normal(
                (shape[0] % 2048 * (shape[0] > 2048), *shape[1:]), np.float32
            ).tofile(file)
    write_tokenizer(directory)


def write_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))


def export(model: Path, precision: str, out: Path) -> None:
    """Export and print the peak memory as JSON; runs in a separate process."""
    from bita.adapter import untuned_adapter
    from bita.export.build import BuildOptions, build_engine, check_build
    from bita.export.sources import open_checkpoint

    resting_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    checkpoint = open_checkpoint(str(model))
    build_engine(
        check_build(checkpoint, untuned_adapter(checkpoint), out, BuildOptions(precision=precision))
    )
    seconds = time.perf_counter() - began
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size_mb = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    figures = {"peak_mb": peak_mb, "resting_mb": resting_mb, "seconds": seconds, "size_mb": size_mb}
    print(json.dumps({"precision": precision} | {k: round(v, 1) for k, v in figures.items()}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for 10 GB of files")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--export", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    model = args.work / "llama-1b-random"
    if args.export:
        export(model, args.export[0], Path(args.export[1]))
        return 0
    if not (model / "tokenizer.json").exists():
        write_checkpoint(model)
    largest_mb = max(4 * np.prod(s) for s in expected_shapes(read_architecture(CONFIG, 1)).values())
    largest_mb = round(float(largest_mb) / 2**20, 1)
    results = []
    for precision in ("fp32", "int4"):
        out = args.work / f"engine-{precision}"
        command = [
            sys.executable,
            __file__,
            "--work",
            str(args.work),
            "--export",
            precision,
            str(out),
        ]
        line = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results.append(json.loads(line))
        shutil.rmtree(out)
        print(line.strip(), f"goal: below {largest_mb + GOAL_BEYOND_LARGEST_MB:.0f} MB")
    if args.out:
        report = {"shape": CONFIG, "largest_tensor_mb": largest_mb, "exports": results}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
