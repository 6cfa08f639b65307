"""Make the peers' models from the GGUF file that our engine was built from.

    python peer_models.py MODEL.gguf WORK_DIR LLAMA_QUANTIZE NAME...

Writes those that are named into WORK_DIR:

- hf: weights dequantized by transformers, with tokenizer and chat template
- genai: int4 build of hf by onnxruntime-genai
- openvino: int4 export of hf by optimum-intel
- MODEL.Q4_0.gguf: requantized by llama-quantize

Existing ones are kept. Needs torch, transformers, gguf, onnxruntime-genai, onnx-ir, optimum-intel,
nncf and openvino-genai.
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
    """Make a file or directory atomically unless it exists."""
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
    """Run onnxruntime-genai's model builder for int4 on CPUs."""
    cache = directory.with_name("genai.cache")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    paths = ["-i", str(hf_directory), "-o", str(directory), "-c", str(cache)]
    subprocess.run([*builder, *paths, *BUILDER_OPTIONS], check=True)
    shutil.rmtree(cache, ignore_errors=True)


def build_openvino(hf_directory: Path, directory: Path) -> None:
    """Run optimum-intel's export with int4 weights by nncf."""
    program = Path(sys.executable).parent / "optimum-cli"
    paths = ["-m", str(hf_directory), str(directory)]
    subprocess.run([str(program), "export", "openvino", *OPENVINO_OPTIONS, *paths], check=True)


def requantize(program: str, gguf: Path, out: Path) -> None:
    """Quantize the same weights to llama.cpp's Q4_0."""
    command = [program, "--allow-requantize", str(gguf), str(out), "Q4_0"]
    subprocess.run(command, check=True)


def main() -> None:
    """Make the models that are missing."""
    os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")
    gguf, work_dir, llama_quantize = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    wanted, hf_directory = sys.argv[4:], work_dir / "hf"
    if any(not name.endswith(".gguf") for name in wanted):  # all others are made from hf
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
