"""Make optimum-onnx's models from the float weights that peer_models.py wrote.

    python peer_optimum.py WORK_DIR

Reads WORK_DIR/hf and writes

- optimum: float32 ONNX export with cached keys and values
- optimum-int8: dynamic quantization of optimum for this processor

Existing ones are kept. It needs a separate environment, since optimum-onnx 0.1 requires
transformers before 5.
"""

import os
import sys
from pathlib import Path

from peer_models import make_once


def export(hf_directory: Path, directory: Path) -> None:
    """Export as `optimum-cli export onnx` does for text generation."""
    from optimum.exporters.onnx import main_export

    main_export(str(hf_directory), output=directory, task="text-generation-with-past")


def quantize(source: Path, directory: Path) -> None:
    """Quantize weights and activations to 8 bits, with ranges computed at run time."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    make = (
        AutoQuantizationConfig.avx512_vnni
        if "avx512_vnni" in flags
        else AutoQuantizationConfig.avx2
    )
    quantizer = ORTQuantizer.from_pretrained(source, file_name="model.onnx")
    quantizer.quantize(
        save_dir=directory, quantization_config=make(is_static=False, per_channel=False)
    )


def main() -> None:
    """Make the models that are missing."""
    os.environ.update(ORT_DISABLE_TELEMETRY="1", HF_HUB_OFFLINE="1")
    work_dir = Path(sys.argv[1])
    plain = make_once(work_dir / "optimum", lambda partial: export(work_dir / "hf", partial))
    make_once(work_dir / "optimum-int8", lambda partial: quantize(plain, partial))


if __name__ == "__main__":
    main()
