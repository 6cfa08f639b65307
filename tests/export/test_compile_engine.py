"""Tests of `bita compile` and `bita engine --backend`: engines with plans, and early errors."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from host_cuda import host_cuda, host_cuda_library
from make_tiny_engine import CONFIG, write_plain_model

from bita.cli.main import main
from bita.engine import MANIFEST_FILE, PLAN_FILE, open_engine
from bita.errors import EngineError
from bita.export.tensorrt.build_costs import plan_costs
from bita.export.tensorrt.compile_engine import CompileOptions, compile_engine, decode_rows
from bita.export.tensorrt.timing_cache import keep_timings
from bita.plan import PlanInfo
from bita.runtime.session import Session
from bita.tree import Tree
from bita.tree_table import TreeTable

WIDE = {**CONFIG, "hidden_size": 64, "intermediate_size": 128}
RTX = ("--backend", "tensorrt-rtx", "--target", "sm89")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain_model(tmp_path_factory.mktemp("model") / "wide", config=WIDE)


def build(model: Path, out: Path, *more: str) -> int:
    common = ("--precision", "fp16", "--capacity", "300", "--tree", "chain", "--out", str(out))
    return main(["engine", str(model), *common, *more])


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.compile
def test_an_engine_is_built_with_a_plan_and_compiled_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "engine"
    assert build(model, out, *RTX, "--uncalibrated") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]
    engine = open_engine(out, check_hashes=True)
    assert (engine.manifest.backend, engine.manifest.dialect) == ("tensorrt-rtx", "standard")
    info = PlanInfo.from_manifest(engine.manifest.plan)
    assert (info.targets, info.decode_rows, info.prefill_rows) == (("sm89",), (2, 16), 259)
    assert Session.open(out, backend="ort-cpu").generate("The", 5).text
    assert main(["compile", str(out), "--target", "sm86,sm120", "--rows", "4,2"]) == 0
    assert "for sm86, sm120; steps of 2, 4 rows" in inspect_engine(out, capsys)
    again = open_engine(out, check_hashes=True)
    assert again.files.keys() == engine.files.keys()
    assert again.files[PLAN_FILE] != engine.files[PLAN_FILE]
    assert {n: e for n, e in again.files.items() if n != PLAN_FILE} == {
        n: e for n, e in engine.files.items() if n != PLAN_FILE
    }


def inspect_engine(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the output of `bita inspect` as one line."""
    capsys.readouterr()
    assert main(["inspect", str(out)]) == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.slow
@pytest.mark.compile
def test_a_damaged_or_missing_plan_is_compiled_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "engine"
    assert build(model, out, *RTX, "--uncalibrated") == 0
    for spoil in (lambda path: path.write_bytes(b"short"), Path.unlink):
        spoil(out / PLAN_FILE)
        assert main(["inspect", str(out)]) == 2
        assert f"copy it again or bita compile {out}" in last_error(capsys).replace(
            "the whole directory", "it again"
        )
        assert main(["compile", str(out), "--target", "sm89"]) == 0
        open_engine(out, check_hashes=True)


@pytest.mark.compile
def test_a_graph_that_cannot_be_compiled_is_refused_before_it_is_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    assert build(model, tmp_path / "e", *RTX, "--uncalibrated", "--dialect", "ort") == 2
    assert "a graph of dialect ort is for ONNX Runtime" in last_error(capsys)
    assert build(model, tmp_path / "e", *RTX, "--uncalibrated", "--rows", "2,9000") == 2
    message = "a step of 9000 rows has no room in a cache of 300 slots, 0 of them for the prefix"
    assert message in last_error(capsys)
    assert not [*tmp_path.iterdir()]


@pytest.mark.compile
@pytest.mark.thorough
def test_a_calibrated_build_continues_after_an_interruption_and_ends_with_a_plan(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    out, prompts = tmp_path / "engine", tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "word {n} and"}}\n' for n in range(8)))
    more = (*RTX, "--calibration-prompts", str(prompts), "--precision", "int8")
    with monkeypatch.context() as patch:
        patch.setattr("bita.export.finished_build.compile_engine", interrupt)
        assert build(model, out, *more) == 130
    assert not out.exists()
    kept = tmp_path / ".engine.calibration" / "engine" / MANIFEST_FILE
    written = kept.with_name("model.onnx").stat().st_mtime_ns
    assert build(model, out, *more) == 0
    assert (out / "model.onnx").stat().st_mtime_ns == written, "it was exported again"
    assert open_engine(out).manifest.plan
    assert not kept.exists()


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.compile
def test_failed_compilations_leave_the_engine_unchanged(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    out = tmp_path / "engine"
    assert build(model, out, "--uncalibrated") == 0
    before = (out / MANIFEST_FILE).read_bytes()
    assert main(["compile", str(out)]) == 2
    assert "backend ort-cpu have no plan; give --backend tensorrt" in last_error(capsys)
    assert main(["compile", str(out), *RTX]) == 2
    message = "a graph of dialect ort is for ONNX Runtime; build one with --dialect standard"
    assert message in last_error(capsys)
    assert main(["compile", str(out), "--backend", "tensorrt-rtx", "--target", "sm1"]) == 2
    assert "target 'sm1' is not one of sm75, sm80" in last_error(capsys)
    assert main(["compile", str(out), *RTX, "--rows", "8,0"]) == 2
    assert "--rows '8,0' is not a list of sizes; give one such as 2,16,32" in last_error(capsys)
    assert (out / MANIFEST_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


@pytest.mark.compile
def test_builds_that_will_not_fit_are_refused_before_anything_is_written(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("bita.export.tensorrt.build_costs.free_memory", lambda: 500_000_000)
    out = tmp_path / "engine"
    assert build(model, out, *RTX, "--uncalibrated") == 2
    message = last_error(capsys)
    assert (
        "building a plan with TensorRT-RTX takes 1.2 GB of memory, but only 0.5 GB are" in message
    )
    assert "--force builds anyway" in message
    assert not [*tmp_path.iterdir()]
    assert build(model, out, *RTX, "--uncalibrated", "--force") == 0
    with pytest.raises(EngineError, match=r"takes 1\.2 GB"):
        compile_engine(open_engine(out), CompileOptions("tensorrt-rtx", ("sm89",)))


def test_options_of_plans_are_refused_for_other_backends(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(model, tmp_path / "e", "--target", "sm89") == 2
    assert "--target is for --backend tensorrt or tensorrt-rtx, not ort-cpu" in last_error(capsys)
    assert build(model, tmp_path / "e", "--backend", "cuda") == 2
    assert "backend 'cuda' is not one of ort-cpu, ort-cuda, tensorrt," in last_error(capsys)
    assert build(model, tmp_path / "e", "--backend", "ort-cuda", "--dialect", "ort") == 2
    assert "backend ort-cuda does not run dialect 'ort'" in last_error(capsys)
    assert not (tmp_path / "e").exists()


def test_tensorrt_builds_for_the_present_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    library = host_cuda_library()
    host_cuda().host_cuda_reset()
    monkeypatch.setattr("bita.runtime.backends.cuda.library_candidates", lambda: [library])
    assert CompileOptions("tensorrt").targets_here() == ("sm89",)
    assert CompileOptions("tensorrt", ("sm89",)).targets_here() == ("sm89",)
    with pytest.raises(EngineError, match=r"the GPU it runs on, which is sm89, not for sm87"):
        CompileOptions("tensorrt", ("sm87",)).targets_here()


def test_the_sizes_of_steps_follow_from_the_trees() -> None:
    assert decode_rows(Tree.chain(3, 3)) == (2, 16)
    assert decode_rows(Tree.root_only()) == (2,)
    trees = Tree.chain(3, 3), Tree.root_only(), Tree.chain(2, 1).with_guesses(1)
    assert decode_rows(TreeTable(trees, (0, 1), ((0, 1), (2, 2)))) == (2, 6, 16)


def test_estimates_include_a_second_layout_of_the_weights() -> None:
    one, two = (plan_costs(10**9, "tensorrt_rtx", rows) for rows in ((2, 32), (1, 32)))
    assert two.disk - one.disk == pytest.approx(0.9e9)
    assert two.memory - one.memory == pytest.approx(2.5e9)


class Config:
    """A stand-in for TensorRT's builder config, which accepts only its own timings."""

    def __init__(self) -> None:
        self.data = b""

    def create_timing_cache(self, data: bytes) -> bytes | None:
        return data if data in (b"", b"timings") else None

    def set_timing_cache(self, data: bytes, ignore_mismatch: bool) -> bool:
        self.data = data
        return True

    def get_timing_cache(self) -> Any:
        return self

    def serialize(self) -> bytes:
        return b"timings"


def test_timings_are_kept_between_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trt: Any = type("trt", (), {"__version__": "10.3.0"})
    seen = []
    for targets in (("sm87",), ("sm87",), ("sm89",)):
        config = Config()
        with keep_timings(trt, config, "tensorrt", targets):
            seen.append(config.data)
    assert seen == [b"", b"timings", b""]
    (file,) = tmp_path.glob("bita-edge/*sm87*")
    file.write_bytes(b"damaged")
    config = Config()
    with keep_timings(trt, config, "tensorrt", ("sm87",)):
        assert config.data == b""
    assert file.read_bytes() == b"timings"
    shutil.rmtree(tmp_path / "bita-edge")
    with keep_timings(trt, Config(), "tensorrt_rtx", ("sm89",)):
        pass
    assert not [*tmp_path.iterdir()], "TensorRT-RTX measures no timings"
