"""The peers' models, made of the GGUF file that our engine was built from.

    python peer_models.py MODEL.gguf WORK_DIR LLAMA_QUANTIZE NAME...

Writes into WORK_DIR, as far as they are named: hf (transformers' dequantized weights, tokenizer,
chat template), genai (onnxruntime-genai's int4 build of it), openvino (optimum-intel's), and
MODEL.Q4_0.gguf (llama-quantize's). What is there already is kept. Needs torch, transformers, gguf,
onnxruntime-genai, onnx-ir, optimum-intel, nncf, openvino-genai.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BUILDER_OPTIONS = ["-p", "int4", "-e", "cpu", "--extra_options", "int4_accuracy_level=4"]
OPENVINO_OPTIONS = [
    *("--task", "text-generation-with-past", "--weight-format", "int4"),
    *("--group-size", "64", "--sym", "--ratio", "1.0"),
]


def make_once(path: Path, make: Callable[[Path], None]) -> Path:
    """Make a file or directory unless it exists; a killed run leaves nothing under its name."""
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
        print(f"making {path}", flush=True)
        make(partial)
        partial.rename(path)
    return path


def dequantize(gguf: Path, directory: Path) -> None:
    """Save a GGUF file as a Hugging Face directory with float weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def build_genai(hf_directory: Path, directory: Path) -> None:
    """Run onnxruntime-genai's model builder; its int4 for CPUs."""
    cache = directory.with_name("genai.cache")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    paths = ["-i", str(hf_directory), "-o", str(directory), "-c", str(cache)]
    subprocess.run([*builder, *paths, *BUILDER_OPTIONS], check=True)
    shutil.rmtree(cache, ignore_errors=True)


def build_openvino(hf_directory: Path, directory: Path) -> None:
    """Run optimum-intel's export with nncf's int4 weights."""
    program = Path(sys.executable).parent / "optimum-cli"
    paths = ["-m", str(hf_directory), str(directory)]
    subprocess.run([str(program), "export", "openvino", *OPENVINO_OPTIONS, *paths], check=True)


def requantize(program: str, gguf: Path, out: Path) -> None:
    """llama.cpp's Q4_0 of the same weights."""
    command = [program, "--allow-requantize", str(gguf), str(out), "Q4_0"]
    subprocess.run(command, check=True)


def main() -> None:
    """Make what is missing."""
    os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")
    gguf, work_dir, llama_quantize = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    wanted, hf_directory = sys.argv[4:], work_dir / "hf"
    if any(not name.endswith(".gguf") for name in wanted):  # all others are made of it
        make_once(hf_directory, lambda partial: dequantize(gguf, partial))
    if "genai" in wanted:
        make_once(work_dir / "genai", lambda partial: build_genai(hf_directory, partial))
    if "openvino" in wanted:
        make_once(work_dir / "openvino", lambda partial: build_openvino(hf_directory, partial))
    q4_0 = work_dir / f"{gguf.stem.rsplit('.', 1)[0]}.Q4_0.gguf"
    if q4_0.name in wanted:
        make_once(q4_0, lambda partial: requantize(llama_quantize, gguf, partial))


if __name__ == "__main__":
    main()
