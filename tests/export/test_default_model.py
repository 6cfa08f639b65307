"""The default model end to end: builds, answers, and the same text on every code path."""

from pathlib import Path

import pytest
from native_engines import require_library
from paths import ROOT
from speed import thorough_but

from bita.adapter import Adapter, random_adapter
from bita.calibration.calibrated_build import CalibrationOptions, build_calibrated
from bita.calibration.verify import garbage, verify
from bita.data.prompts import CALIBRATION_PROMPTS, read_prompts
from bita.dialect_spec import NATIVE
from bita.engine import open_engine
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.sources import open_checkpoint
from bita.export.tensorrt.build_costs import plan_costs
from bita.export.tensorrt.compile_engine import CompileOptions, compile_engine
from bita.plan import PlanInfo
from bita.runtime.session import Session
from bita.tree import Tree

MODEL = "smollm2-135m-instruct"
ADAPTERS = ROOT / "adapters"
pytestmark = pytest.mark.model


@pytest.fixture(scope="module", params=["fp32", "int4"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Session:
    out = tmp_path_factory.mktemp("engine") / request.param
    build_engine(
        check_build(open_checkpoint(MODEL), None, out, BuildOptions(request.param, capacity=512))
    )
    return Session.open(out)


@pytest.mark.parametrize("widths", thorough_but([(1, 1, 1), (5, 4, 3)], (1, 1, 1)))
def test_exact_mode_is_lossless(session: Session, widths: tuple[int, ...]) -> None:
    tree = Tree.triangle(widths)
    for comparison in verify(session.using(tree=tree, mode="exact"), read_prompts(limit=1), 24):
        assert comparison.divergences == []


def test_a_prefix_does_not_change_the_text(session: Session) -> None:
    adapter = random_adapter(session.adapter.identity, 3, prefix_length=7, scale=2.0)
    prompt = read_prompts(limit=1)[0]
    plain = session.using(tree=Tree.root_only(), adapter=adapter).generate(prompt, 24)
    drafted = session.using(adapter=adapter).generate(prompt, 24)
    assert drafted.token_ids == plain.token_ids


@pytest.mark.parametrize("session", ["fp32"], indirect=True)
def test_fp32_text_equals_transformers(session: Session) -> None:
    pytest.importorskip("torch")
    from bita.calibration.transformers_reference import TransformersReference

    reference = TransformersReference(open_checkpoint(MODEL))
    for prompt in read_prompts(limit=2):
        ids = session.encode(prompt)
        expected = reference.greedy(ids, 24, session.eos_ids)
        assert session.generate(ids, 24).token_ids == expected


def test_the_answer_has_the_capital_of_france(session: Session, tmp_path: Path) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert "Paris" in session.generate(question, 30).text


@pytest.mark.parametrize(("name", "minimum"), [(MODEL, 1.25), (f"{MODEL}-lora", 1.4)])
@pytest.mark.parametrize("precision", thorough_but(["fp32", "int8", "int4"], "int8", "int4"))
def test_the_shipped_adapters_draft_well(
    name: str, minimum: float, precision: str, tmp_path: Path
) -> None:
    """They give more tokens per step than an untuned chain (1.23 on MT-Bench) and the same text."""
    adapter = Adapter.load(ADAPTERS / f"{name}.safetensors")
    dialect = "ort"
    if precision != "fp32":
        require_library()
        dialect = NATIVE.name
    options = BuildOptions(precision, capacity=512, tree=Tree.chain(3), dialect=dialect)
    build_engine(check_build(open_checkpoint(MODEL), adapter, tmp_path / "e", options))
    session = Session.open(tmp_path / "e")
    plain = session.using(tree=Tree.root_only())
    wrong = session.using(adapter=garbage(adapter))
    prompts = read_prompts(limit=3)
    expected = [plain.generate(prompt, 24).token_ids for prompt in prompts]
    for drafting, count in ((session, 3), (wrong, 1)):
        for prompt, token_ids in zip(prompts[:count], expected, strict=False):
            drafting.forget()
            assert drafting.generate(prompt, 24).token_ids == token_ids
    assert session.stats.tokens_per_step > minimum > wrong.stats.tokens_per_step


@pytest.mark.thorough
def test_calibrated_int4_is_near_float32(tmp_path: Path) -> None:
    """Rounding to nearest has a KL of 0.36 and the same greedy token at 69 % of positions."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(CALIBRATION_PROMPTS.read_text().splitlines(True)[:24]))
    options = CalibrationOptions(prompts=prompts, max_new_tokens=16)
    built = build_calibrated(
        check_build(
            open_checkpoint(MODEL),
            None,
            tmp_path / "engine",
            BuildOptions("int4", tree=Tree.root_only()),
        ),
        options,
    )
    engine, quality = built.engine, built.quality
    assert 0.02 < quality.kl < 0.26
    assert quality.same_greedy > 0.72
    assert quality.perplexity > quality.reference_perplexity
    assert "Paris" in Session.open(engine.path).generate("The capital of France is", 8).text


@pytest.mark.thorough
@pytest.mark.compile
def test_a_plan_for_three_gpu_generations_is_built_without_one(tmp_path: Path) -> None:
    """The plan has 30 layers, a tree of 32 rows and 2048 slots; its size is within the estimate."""
    pytest.importorskip("tensorrt_rtx")
    tree = Tree.from_paths([(1,), (1, 1), (1, 1, 1), (2,), (1, 2), (2, 1), (3,)], num_masks=3)
    options = BuildOptions("int4", capacity=2048, tree=tree, dialect="standard")
    build_engine(check_build(open_checkpoint(MODEL), None, tmp_path / "engine", options))
    engine = compile_engine(open_engine(tmp_path / "engine"), CompileOptions("tensorrt-rtx"))
    info = PlanInfo.from_manifest(engine.manifest.plan)
    assert (info.targets, info.decode_rows) == (("sm86", "sm89", "sm120"), (2, 32))
    weights, plan = (engine.files[name]["bytes"] for name in ("model.onnx.data", "model.plan"))
    most = plan_costs(weights, "tensorrt_rtx", info.decode_rows).disk
    assert weights < plan < most < 1.5 * plan
