"""Adapters never change the text, even with the largest float32 values in any part."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_engine import CONFIG, write_plain_model
from native_engines import require_library
from random_drafts import prompt_ids

from bita.adapter import Adapter, random_adapter
from bita.calibration.ranges import collect_ranges
from bita.dialect_spec import DIALECTS
from bita.engine import Engine, open_engine
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.checkpoint import Checkpoint
from bita.export.dialects.step_graph import Seen
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.lora import site_sizes, starting_lora
from bita.runtime.options import Options
from bita.runtime.session import Session
from bita.tree import Tree

LARGEST = float(np.finfo(np.float32).max)
SCALES = (1.0, 30.0, 1e3, 6e4, 1e19, 1e37, LARGEST)
FEW_SCALES = (30.0, 1e3, LARGEST)
PARTS = ("mask_embeddings", "prefix", "lora", "")  # prefixes of tensor names
TREES = (Tree.triangle((4, 3, 2), 3), Tree.chain(3))
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 7}
NUM_TOKENS = 10
WIDE = {**CONFIG, "hidden_size": 64, "intermediate_size": 128}  # whole int4 blocks
SOFT_CAPS: Mapping[str, Any] = {
    **WIDE,
    "model_type": "gemma2",
    "num_hidden_layers": 3,
    "sliding_window": 24,
    "query_pre_attn_scalar": 16,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 8.0,
    "hidden_activation": "gelu_pytorch_tanh",
}
MODELS: dict[str, Mapping[str, Any]] = {
    "llama": WIDE,
    "norms of heads": {**WIDE, "model_type": "qwen3"},
    "soft caps": SOFT_CAPS,
}
ENGINES = [
    *(("llama", "ort", precision) for precision in ("fp32", "fp16", "int8", "int4")),
    *(("llama", "standard", precision) for precision in ("fp32", "fp16", "int8", "int4")),
    *(("llama", "plain", precision) for precision in ("fp16", "int8")),
    *(("norms of heads", dialect, "int8") for dialect in ("ort", "plain")),
    *(("soft caps", "ort", "int4"), ("soft caps", "standard", "fp16")),
    *(("llama", "native", "int4"), ("norms of heads", "native", "int8")),
    ("soft caps", "native", "int4"),
]


def scale_part(adapter: Adapter, part: str, scale: float) -> Adapter:
    """Multiply the tensors of a part of an adapter by a factor, clipping at the largest float32."""

    def times(name: str, array: np.ndarray) -> np.ndarray:
        if not name.startswith(part):
            return array
        return (array.astype(np.float64) * scale).clip(-LARGEST, LARGEST).astype(np.float32)

    tensors: dict[str, Any] = {
        name: times(name, array) for name, array in adapter.tensors().items()
    }
    lora, pairs = (
        {name: tensors.pop(name) for name in names} for names in (adapter.lora, adapter.pairs)
    )
    return Adapter(**tensors, identity=adapter.identity, lora=lora, pairs=pairs)


def scale_parts(adapter: Adapter, scales: Sequence[float]) -> Iterator[Adapter]:
    for part in PARTS:
        if any(name.startswith(part) for name in adapter.tensors()):
            yield from (scale_part(adapter, part, scale) for scale in scales)


def decode_texts(session: Session) -> list[list[int]]:
    """Decode a one-piece prompt greedily and a two-piece prompt with sampling."""
    long = prompt_ids(2, session.backend.prefill_rows + 9)
    return [
        session.generate(prompt_ids(1, 9), NUM_TOKENS, ignore_eos=True).token_ids,
        session.generate(long, NUM_TOKENS, ignore_eos=True, **SAMPLED).token_ids,
    ]


def assert_text_equals_plain_decoding(session: Session, mode: str, scales: Sequence[float]) -> None:
    """Compare texts; min_rows 2 makes both bit-identical, along the spine in mode "tree"."""
    ordinary = random_adapter(session.adapter.identity, 3, 2, 1.0, 3, session.adapter.lora)
    plain = session.using(tree=Tree.root_only(), adapter=ordinary, min_rows=2)
    expected = decode_texts(plain)
    for number, adapter in enumerate(scale_parts(ordinary, scales)):
        tree = TREES[number % len(TREES)]
        drafting = session.using(tree=tree, adapter=adapter, mode=mode, min_rows=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            assert decode_texts(drafting) == expected
    assert decode_texts(plain) == expected


@pytest.mark.parametrize("mode", ["exact", "tree"])
def test_no_adapter_changes_the_text_of_the_tiny_engine(tiny_engine: Path, mode: str) -> None:
    assert_text_equals_plain_decoding(Session.open(tiny_engine, num_threads=1), mode, SCALES)


Checkpoints = Callable[[str], tuple[Checkpoint, Seen]]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Checkpoints of MODELS by name, with the ranges that static 8-bit products need."""

    @cache
    def make(name: str) -> tuple[Checkpoint, Seen]:
        folder = tmp_path_factory.mktemp("models")
        checkpoint = open_checkpoint(str(write_plain_model(folder / "model", config=MODELS[name])))
        engine = build_test_engine(checkpoint, "ort", "fp32", folder)
        text = list(range(4, 200))
        return checkpoint, Seen(ranges=collect_ranges(engine, [text], folder / "ranges"))

    return make


def build_test_engine(
    checkpoint: Checkpoint, dialect: str, precision: str, folder: Path, seen: Seen | None = None
) -> Engine:
    identity = identify(checkpoint)
    lora = starting_lora(site_sizes(checkpoint), identity.num_layers, rank=3, seed=0)
    adapter = random_adapter(identity, 3, 2, 0.4, lora_like=lora)
    options = BuildOptions(precision, capacity=320, tree=Tree.chain(3), dialect=dialect)
    build = check_build(checkpoint, adapter, folder / "engine", options)
    build_engine(build, seen=seen or Seen())
    return open_engine(folder / "engine")


@pytest.mark.parametrize(("model", "dialect", "precision"), ENGINES)
def test_no_adapter_changes_the_text_of_any_kind_of_engine(
    checkpoints: Checkpoints, model: str, dialect: str, precision: str, tmp_path: Path
) -> None:
    """The adapters have LoRA, which overflows first."""
    if dialect == "native":
        require_library()
    checkpoint, seen = checkpoints(model)
    needs_seen = DIALECTS[dialect].needs_ranges(precision)
    engine = build_test_engine(
        checkpoint, dialect, precision, tmp_path, seen if needs_seen else None
    )
    session = Session.open(engine.path, num_threads=1, min_rows=2)
    assert session.adapter.lora
    assert_text_equals_plain_decoding(session, "exact", FEW_SCALES)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_large_pair_scores_leave_the_text_unchanged(
    checkpoints: Checkpoints, scale: float, tmp_path: Path
) -> None:
    """They only order drafts; tables that float16 cannot hold are not built."""
    checkpoint, _ = checkpoints("llama")
    identity = identify(checkpoint)
    rng = np.random.default_rng(0)
    shapes = {"pair_left": (64, 4), "pair_bias": (4,), "pair_right": (64, 4)}
    pairs: dict[str, Any] = {
        name: scale * rng.uniform(-1, 1, shape) for name, shape in shapes.items()
    }
    adapter = replace(random_adapter(identity, 3, 2, 0.4), pairs=pairs)
    options = BuildOptions("fp32", capacity=220, tree=Tree.triangle((4, 3, 2), 3))
    build_engine(check_build(checkpoint, adapter, tmp_path / "engine", options))
    session = Session.open(tmp_path / "engine", num_threads=1)
    plain = session.using(tree=Tree.root_only(), min_rows=session.min_exact_rows)
    for mode in ("exact", "tree"):
        assert decode_texts(session.using(mode=mode)) == decode_texts(plain)


def test_only_a_text_that_overflows_is_decoded_plainly(tmp_path: Path) -> None:
    """float16 overflows in a mask row, whose values get a weight of zero in every other row."""
    checkpoint = open_checkpoint(str(write_plain_model(tmp_path / "model", config=WIDE)))
    engine = build_test_engine(checkpoint, "standard", "fp16", tmp_path)
    session = Session.open(engine.path, num_threads=1, min_rows=2)
    base = random_adapter(session.adapter.identity, 3, 2, 0.4, 3, session.adapter.lora)
    good = session.using(adapter=base, min_rows=2)
    large = session.using(adapter=scale_part(base, "lora", 100), min_rows=2)
    prompts = [prompt_ids(number) for number in range(6)]
    plain = session.using(tree=Tree.root_only(), adapter=base, min_rows=2)
    expected = [plain.generate(prompt, 30, ignore_eos=True).token_ids for prompt in prompts]
    alone = [good.generate(prompt, 30, ignore_eos=True).token_ids for prompt in prompts]
    num_alone = good.stats.num_accepted.copy()
    assert num_alone.total() > good.stats.num_steps  # some drafts are accepted
    good.reset_stats()
    with pytest.warns(RuntimeWarning, match="decoded without drafts"):
        found = [large.generate(prompt, 30, ignore_eos=True).token_ids for prompt in prompts]
    assert found == alone == expected
    assert large.stats.num_accepted.total() == large.stats.num_steps == 6 * 29
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = [good.generate(prompt, 30, ignore_eos=True).token_ids for prompt in prompts]
        asked = Options.of(max_new_tokens=30, ignore_eos=True)
        plainly = [large.start(prompt, asked, drafts=False).run() for prompt in prompts]
    assert after == [each.token_ids for each in plainly] == expected
    assert {each.num_steps for each in plainly} == {29}
    assert good.stats.num_accepted == num_alone  # the prefix was restored
