"""Tests of engines quantized against sample text, and of their error against float32."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
from checkpoint_way import BUILDS, trace_build
from make_tiny_engine import write_plain_model
from native_engines import require_library
from speed import thorough_but

from bita import directory_swap
from bita.adapter import random_adapter
from bita.calibration.calibrated_build import CalibrationOptions, build_calibrated
from bita.calibration.effort import Effort
from bita.calibration.report import read_quality
from bita.cli.main import main
from bita.engine import open_engine, read_calibration
from bita.engine_place import Place
from bita.errors import BitaError, EngineError, PromptError
from bita.export.build import BuildOptions, build_engine, check_build, check_reference
from bita.export.checkpoint import Checkpoint
from bita.export.sources import open_checkpoint
from bita.identity import identify
from bita.runtime.session import Session, read_tree
from bita.tree import Tree

WORDS = ("one", "two", "three", "four", "five")
FEW_TOKENS = 6
WITH_TREE = BuildOptions(tree=Tree.chain(3))  # nothing is timed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(write_plain_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    lines = [
        json.dumps({"prompt": f"The {word} fox"})
        for word in ["one", "two", "three", "four", "five"]
    ]
    path.write_text("\n".join(lines))
    return path


def test_gptq_has_a_lower_error_than_rtn_and_reports_it(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {}
    for quantizer in ("rtn", "gptq"):
        out = tmp_path / quantizer
        options = CalibrationOptions(quantizer, max_new_tokens=24)
        built = build_calibrated(check_build(checkpoint, None, out, WITH_TREE), options)
        engine, quality = built.engine, built.quality
        assert read_quality(engine) == quality
        assert quality.quantizer == quantizer
        results[quantizer] = quality.kl
        assert main(["inspect", str(out)]) == 0
        assert f"{quality.kl:.3g} nats" in " ".join(capsys.readouterr().out.split())
    assert results["gptq"] < 0.9 * results["rtn"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gptq", "rtn"]


def test_uncalibrated_engines_write_the_answers_they_are_judged_by(
    checkpoint: Checkpoint, prompts: Path, tmp_path: Path
) -> None:
    """This needs native operators and a full-size cache; otherwise float32 writes the answers."""
    require_library()
    reported: dict[str, int] = {}
    for capacity, author in ((None, "engine"), (300, "float32")):
        options = BuildOptions(tree=Tree.chain(3), dialect="native", capacity=capacity)
        build = check_build(checkpoint, None, tmp_path / author, options)
        calibration = CalibrationOptions("rtn", max_new_tokens=FEW_TOKENS)
        built = build_calibrated(
            build, calibration, lambda name, _, num: reported.update({name: num})
        )
        quality = built.quality
        assert (quality.answers, quality.prompts) == (author, "prompts.jsonl")
        assert quality.kl > 0
        assert reported.pop("answering prompts") == quality.num_texts == 20
        assert "reading texts" not in reported
    mine = CalibrationOptions("rtn", prompts, max_new_tokens=FEW_TOKENS)
    assert (
        build_calibrated(build, mine).quality.num_texts == 5
    )  # rtn sets none aside for calibration


def test_answers_of_another_engine_are_not_reused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    require_library()

    def stop(name: str, done: int, total: int) -> None:
        if name == "measuring the error":
            raise StoppedError

    calibration = CalibrationOptions("rtn", max_new_tokens=FEW_TOKENS)
    for precision in ("int4", "int4", "int8"):
        options = BuildOptions(precision, tree=Tree.chain(3), dialect="native")
        build = check_build(checkpoint, None, tmp_path / "engine", options)
        with pytest.raises(StoppedError):
            build_calibrated(build, calibration, stop)
    assert build_calibrated(build, calibration).quality.answers == "engine"


def test_smoothed_int8_is_reported(checkpoint: Checkpoint, tmp_path: Path) -> None:
    options = BuildOptions("int8", tree=Tree.chain(3))
    calibration = CalibrationOptions(max_new_tokens=FEW_TOKENS)
    built = build_calibrated(check_build(checkpoint, None, tmp_path / "e", options), calibration)
    assert built.quality.quantizer == "smoothed"
    assert 0 < built.quality.kl < 0.03
    names = ir.load(built.engine.file("model.onnx")).graph.initializers
    assert sum(name.endswith(".smoothing") for name in names) == 4 * 2 + 1


def test_a_model_without_a_chat_template_is_calibrated_on_single_messages(tmp_path: Path) -> None:
    model = write_plain_model(tmp_path / "model")
    settings = model / "tokenizer_config.json"
    settings.write_text(
        json.dumps({**json.loads(settings.read_text()), "chat_template": None}), encoding="utf-8"
    )
    build = check_build(open_checkpoint(str(model)), None, tmp_path / "engine", WITH_TREE)
    reported: dict[str, int] = {}
    options = CalibrationOptions(max_new_tokens=2)
    built = build_calibrated(build, options, lambda name, _, total: reported.update({name: total}))
    assert built.quality.kl > 0
    assert reported["answering prompts"] == 18  # two of the 20 have several messages
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": role, "content": "a fox"} for role in ("user", "assistant", "user")]
    chats.write_text(json.dumps({"messages": turns}), encoding="utf-8")
    with pytest.raises(PromptError, match="no chat template, but a prompt has 3 messages"):
        build_calibrated(build, CalibrationOptions(prompts=chats, max_new_tokens=2))


class StoppedError(Exception):
    """Stands for a killed build."""


@pytest.mark.parametrize("stage", ["answering prompts", "reading texts", "measuring the error"])
def test_a_killed_build_continues(
    stage: str, checkpoint: Checkpoint, prompts: Path, tmp_path: Path
) -> None:
    options = CalibrationOptions(prompts=prompts, max_new_tokens=FEW_TOKENS)
    whole = build_calibrated(
        check_build(checkpoint, None, tmp_path / "whole", WITH_TREE), options
    ).engine

    def stop(name: str, done: int, total: int) -> None:
        if name == stage and done:
            raise StoppedError

    out, reported = tmp_path / "killed", []
    with pytest.raises(StoppedError):
        build_calibrated(check_build(checkpoint, None, out, WITH_TREE), options, stop)
    assert not out.exists()
    again = build_calibrated(
        check_build(checkpoint, None, out, WITH_TREE),
        options,
        lambda name, done, total: reported.append((name, done, total)),
    ).engine
    assert "exporting fp32" not in {name for name, _, _ in reported}
    first_answered = next(done for name, done, _ in reported if name == "answering prompts")
    assert first_answered >= 1
    for name in whole.files:
        assert whole.file(name).read_bytes() == again.file(name).read_bytes(), name


def test_a_build_killed_during_the_final_exchange_starts_over(
    checkpoint: Checkpoint, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old engine, left where the new one was built, must not be mistaken for the new one."""
    calibration = CalibrationOptions(prompts=prompts, max_new_tokens=FEW_TOKENS)
    out, wider = tmp_path / "engine", BuildOptions(tree=Tree.chain(3), capacity=100)
    build_calibrated(check_build(checkpoint, None, out, WITH_TREE), calibration)
    swap = directory_swap.put

    def put(finished: Path, place: Place) -> None:
        if place.target == out:
            assert directory_swap._exchange(finished, out)
            patch.setattr(shutil, "rmtree", lambda *args, **options: None)
            raise StoppedError
        swap(finished, place)

    with monkeypatch.context() as patch:
        patch.setattr("bita.engine.put", put)
        with pytest.raises(StoppedError):
            build_calibrated(check_build(checkpoint, None, out, wider), calibration)
    built = build_calibrated(check_build(checkpoint, None, out, wider), calibration)
    assert built.engine.manifest.capacity == 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine", "mine.jsonl"]


@pytest.mark.parametrize(
    "killed_in", thorough_but([None, "acceptance", "latency", "timing trees"], "latency")
)
def test_a_build_ends_with_the_timed_tree(
    killed_in: str | None, checkpoint: Checkpoint, prompts: Path, tmp_path: Path
) -> None:
    reported: list[str] = []

    def stop(name: str, done: int, total: int) -> None:
        reported.append(name)
        if name == killed_in and done:
            raise StoppedError

    effort = Effort(num_prompts=5, max_new_tokens=8, repeats=1, max_rows=8)
    options = CalibrationOptions(prompts=prompts, max_new_tokens=FEW_TOKENS, effort=effort)
    out = tmp_path / "engine"
    if killed_in:
        with pytest.raises(StoppedError):
            build_calibrated(check_build(checkpoint, None, out, BuildOptions()), options, stop)
        reported, killed_in = [], None
    built = build_calibrated(check_build(checkpoint, None, out, BuildOptions()), options, stop)
    assert ("exporting int4" in reported) == (reported[0] == "exporting fp32")  # once
    report = read_calibration(open_engine(out, check_hashes=True))
    assert report.keys() == {"quality", "acceptance", "latency", "tree", "memory"}
    assert built.choice is not None
    assert read_tree(built.engine) == built.choice.chosen.tree
    assert Session.open(out).generate("The one fox", 8).token_ids
    assert {path.name for path in tmp_path.iterdir()} == {"engine", "mine.jsonl"}


def test_a_cache_too_small_for_measurements_gives_plain_decoding(
    checkpoint: Checkpoint, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = CalibrationOptions(prompts=prompts, max_new_tokens=FEW_TOKENS)
    narrow = BuildOptions(capacity=24)
    built = build_calibrated(check_build(checkpoint, None, tmp_path / "e", narrow), options)
    assert built.choice is None
    assert read_tree(built.engine) == Tree.root_only()
    assert read_calibration(built.engine).keys() == {"quality"}
    assert main(["calibrate", "acceptance", str(tmp_path / "e")]) == 2
    assert "no prompt of 60 fits a cache of 24 slots" in capsys.readouterr().err


def test_an_unfinished_engine_for_another_adapter_is_not_reused(
    checkpoint: Checkpoint, prompts: Path, tmp_path: Path
) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == "measuring the error":
            raise StoppedError

    out, reported = tmp_path / "engine", []
    options = CalibrationOptions(prompts=prompts, max_new_tokens=FEW_TOKENS)
    adapter = random_adapter(identify(checkpoint), 3, 2)
    for other in (None, adapter):
        with pytest.raises(StoppedError):
            build_calibrated(check_build(checkpoint, other, out, WITH_TREE), options, stop)
    engine = build_calibrated(
        check_build(checkpoint, adapter, out, WITH_TREE),
        options,
        lambda name, done, total: reported.append(name),
    ).engine
    assert "exporting int4" not in reported
    assert engine.manifest.prefix_length == 2


@pytest.mark.parametrize(("precision", "most"), [("int8", 0.1), ("fp8", 0.6)])
def test_activations_of_the_standard_dialect_have_ranges(
    precision: str, most: float, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    options = BuildOptions(precision, dialect="standard")
    calibration = CalibrationOptions(max_new_tokens=FEW_TOKENS)
    built = build_calibrated(check_build(checkpoint, None, tmp_path / "e", options), calibration)
    assert built.quality.quantizer == "ranges"
    assert built.choice is None
    assert 0 < built.quality.kl < most
    with pytest.raises(BitaError, match=r"needs the input range of .*; calibrate"):
        build_engine(check_build(checkpoint, None, tmp_path / "plain", options))


def test_other_prompts_restart_the_build(
    checkpoint: Checkpoint, prompts: Path, tmp_path: Path
) -> None:
    def stop(name: str, done: int, total: int) -> None:
        if name == "reading texts":
            raise StoppedError

    out, reported = tmp_path / "engine", []
    options = CalibrationOptions(prompts=prompts, max_new_tokens=FEW_TOKENS)
    with pytest.raises(StoppedError):
        build_calibrated(check_build(checkpoint, None, out, WITH_TREE), options, stop)
    prompts.write_text(prompts.read_text() + '\n{"prompt": "The sixth fox"}')
    build_calibrated(
        check_build(checkpoint, None, out, WITH_TREE),
        options,
        lambda name, done, total: reported.append(name),
    )
    assert "exporting fp32" in reported


@pytest.mark.parametrize(
    ("changes", "build", "message", "kind"),
    [
        ({"quantizer": "awq"}, {}, "quantizer 'awq' is not one of gptq, rtn", EngineError),
        ({"prompts": Path("none.jsonl")}, {}, "cannot read prompts from none.jsonl", PromptError),
        ({}, {"precision": "int3"}, "precision 'int3' is not one of", EngineError),
        ({}, {"capacity": 600}, "capacity 600 exceeds the model's 512", BitaError),
    ],
)
def test_faults_are_reported_before_the_work(
    changes: dict[str, Any],
    build: dict[str, Any],
    message: str,
    kind: type[BitaError],
    checkpoint: Checkpoint,
    tmp_path: Path,
) -> None:
    def never(name: str, done: int, total: int) -> None:
        raise AssertionError(name)

    with pytest.raises(kind, match=message):
        build_calibrated(
            check_build(checkpoint, None, tmp_path / "engine", BuildOptions(**build)),
            CalibrationOptions(**changes),
            never,
        )
    assert list(tmp_path.iterdir()) == []


def test_too_few_prompts_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b"}')
    with pytest.raises(PromptError, match=r"p\.jsonl has 2 usable prompts; give at least 4"):
        build_calibrated(
            check_build(checkpoint, None, tmp_path / "e", BuildOptions()),
            CalibrationOptions(prompts=path),
        )


def test_too_little_memory_is_reported(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bita.export.tensorrt.build_costs.free_memory", lambda: 1000)
    with pytest.raises(EngineError, match="are free; give --uncalibrated"):
        build_calibrated(
            check_build(checkpoint, None, tmp_path / "e", BuildOptions()), CalibrationOptions()
        )


@pytest.mark.parametrize("kind", BUILDS)
def test_each_check_runs_once_for_each_engine(kind: str, tmp_path: Path) -> None:
    """A calibrated build has two engines; checks that apply to both run once."""
    checks = trace_build(tmp_path, BUILDS[kind]).checks
    second = {"check_reference": 1} if kind == "calibrated" else {}
    assert checks["read_architecture"] == {"check_build": 1, **second}
    assert checks["check_disk"] == {"check_build": 1, **second}
    assert checks["check_tensors"].total() == checks["untuned_adapter"].total() == 1
    assert checks["check_replaceable"]["check_build"] == 1


def test_a_float32_engine_needs_space_in_addition_to_the_engine(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = check_build(checkpoint, None, tmp_path / "e", WITH_TREE)
    reference = check_reference(build, tmp_path / "float32", 1024)
    usage = SimpleNamespace(free=build.num_bytes + reference.num_bytes)
    monkeypatch.setattr("bita.export.tensorrt.build_costs.shutil.disk_usage", lambda _: usage)
    check_reference(build, tmp_path / "float32", 1024)
    usage.free -= 1
    with pytest.raises(EngineError, match=r"GB free, but the engine needs .* GB"):
        check_reference(build, tmp_path / "float32", 1024)


def test_a_float32_engine_does_not_use_the_adapter(checkpoint: Checkpoint, tmp_path: Path) -> None:
    adapter = random_adapter(identify(checkpoint), 5, 2)
    build = check_build(checkpoint, adapter, tmp_path / "e", BuildOptions(capacity=300))
    reference = check_reference(build, tmp_path / "float32", 1024)
    assert (reference.adapter.num_masks, reference.adapter.prefix_length) == (3, 0)
    assert reference.capacity == reference.options.capacity == 512  # all positions of the model
    assert reference.tree == Tree.root_only()
