"""The peers' models, made of the GGUF file that our engine was built from.

    python peer_models.py MODEL.gguf WORK_DIR

Writes WORK_DIR/hf (transformers' dequantized weights, tokenizer, chat template) and WORK_DIR/genai
(onnxruntime-genai's int4 build of it). What is there already is kept. Needs torch, transformers,
gguf and onnxruntime-genai.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

BUILDER_OPTIONS = ["-p", "int4", "-e", "cpu", "--extra_options", "int4_accuracy_level=4"]


def make_once(directory: Path, make: Callable[[Path], None]) -> Path:
    """Make `directory` unless it exists; a killed run leaves nothing under its name."""
    if not directory.is_dir():
        partial = directory.with_name(f"{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        make(partial)
        partial.rename(directory)
    return directory


def dequantize(gguf: Path, directory: Path) -> None:
    """Save a GGUF file as a Hugging Face directory with float weights."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(
        **source, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def build_genai(hf_directory: Path, directory: Path) -> None:
    """Run onnxruntime-genai's model builder; its int4 for CPUs."""
    cache = directory.with_name("genai.cache")
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    paths = ["-i", str(hf_directory), "-o", str(directory), "-c", str(cache)]
    subprocess.run([*builder, *paths, *BUILDER_OPTIONS], check=True)
    shutil.rmtree(cache, ignore_errors=True)


def main() -> None:
    """Make what is missing."""
    os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")
    gguf, work_dir = Path(sys.argv[1]), Path(sys.argv[2])
    hf_directory = make_once(work_dir / "hf", lambda partial: dequantize(gguf, partial))
    make_once(work_dir / "genai", lambda partial: build_genai(hf_directory, partial))


if __name__ == "__main__":
    main()
