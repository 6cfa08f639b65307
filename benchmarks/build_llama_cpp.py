"""Build llama.cpp from the sources in llama-cpp-python for the processor of this machine.

    python build_llama_cpp.py MODEL.gguf OUT

Writes llama-server, llama-quantize and llama-bench to OUT/bin. Needs pip, cmake, ninja and a C++
compiler. The build uses all instruction sets that the processor reports. If it does not run
(virtual machines may report AMX without having it), it is built again without AMX.
"""

import platform
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

SOURCES = "llama-cpp-python==0.3.36"
OPTIONS = [
    *("-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_BUILD_TESTS=OFF"),
    *("-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF"),
    *("-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_APP=OFF"),
]
PROGRAMS = ("llama-server", "llama-quantize", "llama-bench")
FLAGS = {  # flags of /proc/cpuinfo, and their names in the build
    **{"avx": "AVX", "avx2": "AVX2", "fma": "FMA", "f16c": "F16C", "bmi2": "BMI2"},
    **{"avx_vnni": "AVX_VNNI", "avx512f": "AVX512", "avx512vbmi": "AVX512_VBMI"},
    **{"avx512_vnni": "AVX512_VNNI", "avx512_bf16": "AVX512_BF16"},
}


def fetch(folder: Path) -> Path:
    """Download the sources of llama.cpp."""
    command = ["pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
    run([sys.executable, "-m", *command, "-d", str(folder), SOURCES])
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz") / "vendor" / "llama.cpp"


def without_amx() -> list[str]:
    """Return build options for all instruction sets of the processor except AMX."""
    words = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return ["-DGGML_NATIVE=OFF", *(f"-DGGML_{FLAGS[f]}=ON" for f in FLAGS if f in words)]


def build(sources: Path, out: Path, options: Sequence[str]) -> None:
    """Build incrementally with these options."""
    run(["cmake", "-S", str(sources), "-B", str(out), *OPTIONS, *options])
    run(["ninja", "-C", str(out), *PROGRAMS])


def works(out: Path, model: Path) -> bool:
    """Return whether the build decodes."""
    command = [str(out / "bin" / "llama-bench"), "-m", str(model), "-p", "64", "-n", "2", "-r", "1"]
    return subprocess.run(command, check=False).returncode == 0


def run(command: Sequence[str]) -> None:
    subprocess.run(command, check=True)


def main(model: Path, out: Path) -> None:
    """Fetch, build, and try."""
    out.mkdir(parents=True, exist_ok=True)
    sources = next(out.glob("llama_cpp_python-*/vendor/llama.cpp"), None) or fetch(out)
    build(sources, out, ["-DGGML_NATIVE=ON"])
    if not works(out, model) and platform.machine() == "x86_64":
        print("building again without AMX")
        build(sources, out, without_amx())
    if not works(out, model):
        sys.exit(f"the llama.cpp built in {out} does not decode {model}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
