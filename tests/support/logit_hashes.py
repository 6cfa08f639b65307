"""Hashes of logits and token ids, which must be the same on every processor and ISA.

    PYTHONPATH=tests/support python tests/support/logit_hashes.py --make-families FOLDER
    PYTHONPATH=tests/support python tests/support/logit_hashes.py --out FILE ENGINE...
    PYTHONPATH=tests/support python tests/support/logit_hashes.py --transcript ENGINE --out FILE

The first command builds engines of a tiny random model of each family, in int4 and int8, without
torch. The second one writes {engine: {"weights": hash, "isas": {isa: {step: hash}}}} as JSON, and
the third one the token ids of a few answers.
"""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from native_engines import FEATURES, native_engine, read_text, run_with

from bita.adapter import Adapter
from bita.data.prompts import read_prompts
from bita.engine import Engine, open_engine
from bita.engine_adapter import read_adapter
from bita.runtime.backends.layout import Layout, tree_layout
from bita.runtime.backends.ort_backend import OrtBackend
from bita.runtime.native.library import loaded_operators, use_isa
from bita.runtime.session import Session
from bita.tree import Tree

SIZES = (1, 2, 5, 16, 64)  # rows of a step
TEXT_LENGTH = 75  # cached tokens: more than a chunk of attention
FIRST_ID = 4  # the first id that is not a special token

Hashes = dict[str, str]  # step: hash


def hashes_by_isa(engine: Engine, isas: Sequence[str], num_threads: int = 2) -> dict[str, Hashes]:
    """Return the hashes of this engine for each ISA, and restore the ISA in use."""
    in_use = loaded_operators().isa
    try:
        found = {}
        for isa in isas:
            use_isa(isa)
            found[isa] = logit_hashes(engine, num_threads)
        return found
    finally:
        use_isa(in_use)


def logit_hashes(engine: Engine, num_threads: int = 2) -> Hashes:
    """Hash the logits of steps of 1 to 64 rows after one text, and of a tree with masks."""
    backend, adapter = OrtBackend(engine, num_threads), read_adapter(engine)
    top = min(engine.manifest.vocab_size, 40_000)
    text = np.random.default_rng(0).integers(FIRST_ID, top, TEXT_LENGTH)
    tokens = np.random.default_rng(1).integers(FIRST_ID, top, max(SIZES))
    read_text(backend, adapter, text, 16)
    steps = {f"{size} rows": _alternatives(size) for size in SIZES}
    steps["tree (5,4,3)"] = tree_layout(Tree.triangle(), 1)
    return {
        name: _hash(_logits(backend, adapter, layout, tokens)) for name, layout in steps.items()
    }


def weights_hash(engine: Engine) -> str:
    """Return a hash of all weight files."""
    whole = hashlib.sha256()
    for path in sorted(engine.path.glob("*.data")) or sorted(engine.path.glob("*.onnx")):
        whole.update(path.read_bytes())
    return whole.hexdigest()[:16]


def make_families(folder: Path) -> list[Path]:
    """Build an engine for each family, and for sizes that are not multiples of blocks and tiles."""
    made = []
    for features, config in FEATURES.items():
        for precision in ("int4", "int8"):
            name = f"{features}-{precision}".replace(" ", "-")
            made.append(native_engine(config, folder / name, precision).path)
    return made


def transcript(
    path: Path, prompts: Path | None = None, count: int = 2, num_tokens: int = 16
) -> list[dict[str, object]]:
    """Return the token ids of the answers to the first prompts; drafts must not change them."""
    answers: dict[str, list[list[int]]] = {}
    for name, tree in (("AR", Tree.root_only()), ("chain", Tree.chain(2, 1))):
        session = Session.open(path, tree=tree)
        items = [session.as_prompt(item) for item in read_prompts(prompts, count)]
        answers[name] = [session.generate(item, num_tokens).token_ids for item in items]
    if answers["AR"] != answers["chain"]:
        raise ValueError(f"drafts changed the text: {answers}")
    ids = [session.encode(item) for item in items]
    return [
        {"prompt_ids": prompt, "token_ids": answer}
        for prompt, answer in zip(ids, answers["AR"], strict=True)
    ]


def _alternatives(count: int) -> Layout:
    sees = np.eye(count, dtype=bool)
    return Layout(np.zeros(count, np.int64), np.full(count, -1), sees, np.arange(count))


def _logits(
    backend: OrtBackend, adapter: Adapter, layout: Layout, tokens: np.ndarray
) -> np.ndarray:
    step = backend.bind(layout, adapter, with_logits=True)
    return run_with(step, tokens[: layout.first_mask_row])


def _hash(logits: np.ndarray) -> str:
    if not np.isfinite(logits).all() or logits.std() == 0:
        raise ValueError("these logits are not finite or all equal")
    return hashlib.sha256(np.ascontiguousarray(logits, np.float32).tobytes()).hexdigest()[:16]


def _of_engine(path: Path, threads: int, with_plain: bool) -> Mapping[str, object]:
    engine, all_isas = open_engine(path), loaded_operators().isas
    isas = hashes_by_isa(engine, all_isas if with_plain else all_isas[:-1], threads)
    return {"weights": weights_hash(engine), "isas": isas}


def _hashes_of(engines: Sequence[Path], threads: int, with_plain: bool) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in engines:
        name = path.parent.name if path.name == "engine" else path.name
        found[name] = _of_engine(path, threads, with_plain)
        print(name, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--make-families", type=Path, metavar="FOLDER")
    parser.add_argument("--transcript", type=Path, metavar="ENGINE")
    parser.add_argument(
        "--prompts", type=Path, help="prompts of the transcript; default: the bundled ones"
    )
    parser.add_argument("--limit", type=int, default=2, help="number of answers in the transcript")
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain ISA")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if options.make_families:
        for path in make_families(options.make_families):
            print(path)
    if options.out:
        found = (
            transcript(options.transcript, options.prompts, options.limit)
            if options.transcript
            else _hashes_of(options.engines, options.threads, not options.no_plain)
        )
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
