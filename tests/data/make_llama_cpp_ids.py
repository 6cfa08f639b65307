"""Write smollm2_llama_cpp_ids.json: the ids that llama.cpp gives to varied lines of text.

Needs `pip install llama-cpp-python`; run from the repository's root:
    python tests/data/make_llama_cpp_ids.py
"""

import json
import sys
from pathlib import Path

from llama_cpp import Llama, __version__

from bita.export.sources import open_checkpoint

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

from text_lines import FIXED, text_lines  # noqa: E402 (it lies in tests/support)


def main() -> None:
    model = "smollm2-135m-instruct"
    llama = Llama(str(open_checkpoint(model).path), vocab_only=True, verbose=False)
    lines = text_lines(len(FIXED) + 40)
    ids = {line: llama.tokenize(line.encode(), add_bos=True, special=True) for line in lines}
    rows = ",\n".join(f"  {json.dumps(line)}: {json.dumps(ids[line])}" for line in lines)
    header = f' "model": "{model}",\n "made_with": "llama-cpp-python {__version__}",\n'
    text = f'{{\n{header} "ids": {{\n{rows}\n }}\n}}\n'
    (HERE / "smollm2_llama_cpp_ids.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
