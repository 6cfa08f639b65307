"""Golden transcript of the tiny engine, which every runtime must produce on every machine.

`PYTHONPATH=tests/support python tests/runtime/test_golden.py` rewrites it after an intended change
of the tiny engine.
"""

import json
from pathlib import Path

import pytest
from make_tiny_engine import TINY_ENGINE, write_plain_model
from paths import DATA

from bita.runtime.session import Session
from bita.tree import Tree

GOLDEN = DATA / "golden.json"
PROMPTS = ("Hello tree", "A mask token asks", "The quick brown fox", "0123456789")
NUM_TOKENS = 40


def make_transcript() -> list[dict[str, object]]:
    """Decode each prompt plainly, up to the first near-tie."""
    session = Session.open(TINY_ENGINE, tree=Tree.root_only(), num_threads=1)
    entries: list[dict[str, object]] = []
    for prompt in PROMPTS:
        ids = session.encode(prompt)
        tokens = session.generate(ids, NUM_TOKENS, ignore_eos=True).token_ids
        margins = [session.margin([*ids, *tokens[:count]]) for count in range(len(tokens))]
        sure = next((i for i, margin in enumerate(margins) if margin < 1e-3), len(tokens))
        entries.append({"prompt": prompt, "prompt_ids": ids, "token_ids": tokens[:sure]})
    return entries


GOLDEN_ENTRIES = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else []


@pytest.mark.parametrize("entry", GOLDEN_ENTRIES, ids=lambda entry: entry["prompt"])
@pytest.mark.parametrize("tree", [Tree.root_only(), Tree.chain(3), Tree.triangle()], ids=str)
def test_the_runtime_reproduces_the_transcript(entry: dict, tree: Tree, tiny_engine: Path) -> None:
    session = Session.open(tiny_engine, tree=tree, num_threads=1)
    assert session.encode(entry["prompt"]) == entry["prompt_ids"]
    answer = session.generate(entry["prompt"], len(entry["token_ids"]), ignore_eos=True)
    assert answer.token_ids == entry["token_ids"]


def test_transformers_reproduces_the_transcript(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from bita.torch.reference import greedy, load_reference_model

    model = load_reference_model(write_plain_model(tmp_path))
    for entry in GOLDEN_ENTRIES:
        tokens = greedy(model, entry["prompt_ids"], len(entry["token_ids"]))
        assert list(tokens) == entry["token_ids"]


def test_the_transcript_is_not_trivial() -> None:
    tokens = [token for entry in GOLDEN_ENTRIES for token in entry["token_ids"]]
    assert len(tokens) > 100
    assert len(set(tokens)) > 30


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(make_transcript(), indent=1) + "\n")
