"""`bita engine`: rebuilds with `--if-needed`, incompatible options, and the default tree."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from make_tiny_engine import write_plain_model

from bita.adapter import random_adapter
from bita.cli.main import main
from bita.engine import open_engine, revise_engine
from bita.export import build
from bita.export.build import BuildOptions, default_tree
from bita.export.sources import open_checkpoint
from bita.export.tensorrt.compile_engine import CompileOptions
from bita.identity import identify
from bita.runtime.loaded_engine import read_tree
from bita.tree import Tree
from bita.tree_table import TreeTable

FEW = ["--limit", "3", "--max-new-tokens", "6", "--repeats", "1", "--max-rows", "3"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_plain_model(tmp_path / "model")
    return tmp_path


def run_engine(*more: str) -> int:
    options = ["--uncalibrated", "--precision", "fp32", "--capacity", "384", "--out", "out"]
    return main(["engine", "model", *options, *more])


def is_kept(capsys: pytest.CaptureFixture[str], *more: str) -> bool:
    """Run `bita engine --if-needed` and return whether it kept the engine."""
    capsys.readouterr()
    assert run_engine("--if-needed", *more) == 0
    out = capsys.readouterr().out
    assert ("out: up to date" in out) != ("built in" in out)
    assert out.splitlines()[-1].startswith(("untuned: ", "adapter: "))
    return "up to date" in out


def touch_the_model() -> None:
    os.utime("model/model.safetensors", ns=(0, 0))


def replace_the_model() -> None:
    write_plain_model(Path("model"), seed=1)


def tune_an_adapter() -> None:
    random_adapter(identify(open_checkpoint("model")), 3).save("adapters/model.safetensors")


def damage_the_engine() -> None:
    path = Path("out/model.onnx.data")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def build_with_another_tree() -> None:
    """Build without `--if-needed`, and with other options than `is_kept` gives."""
    assert run_engine("--tree", "ar") == 0


@pytest.mark.parametrize(
    "change",
    [
        touch_the_model,
        replace_the_model,
        tune_an_adapter,
        damage_the_engine,
        build_with_another_tree,
        lambda: shutil.rmtree("out"),
    ],
)
def test_each_change_leads_to_one_rebuild(
    change: Callable[[], object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not is_kept(capsys)
    assert is_kept(capsys)
    change()
    assert not is_kept(capsys)
    assert is_kept(capsys)


@pytest.mark.parametrize(
    "more",
    [
        *(("--mode", "tree"), ("--tree", "ar"), ("--capacity", "300"), ("--dialect", "standard")),
        ("--dialect", "native", "--precision", "int4"),
    ],
)
def test_other_options_lead_to_a_rebuild(
    more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not is_kept(capsys)
    assert not is_kept(capsys, *more)
    assert is_kept(capsys, *more)
    assert not is_kept(capsys)


@pytest.mark.parametrize("cache", ["float16", "float32"])
def test_native_engines_have_the_requested_cache_type(cache: str) -> None:
    assert run_engine("--dialect", "native", "--precision", "int4", "--cache", cache) == 0
    engine = open_engine("out")
    assert engine.manifest.dialect == "native"
    inputs = {value.name: value for value in ir.load("out/model.onnx").graph.inputs}
    assert inputs["past.0.pages"].dtype == ir.DataType[cache.upper().removesuffix("32")]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--dialect", "native", "--precision", "int4", "--cache", "int8"),
            "cache type 'int8' is not one of float16, float32",
        ),
        (("--cache", "float32"), "--cache is for dialect native, not ort"),
        (("--dialect", "native"), "precision 'fp32' is not one of int8, int4"),
    ],
)
def test_incompatible_options_are_refused(
    more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_engine(*more) != 0
    assert message in capsys.readouterr().err


def test_measurements_on_a_device_do_not_lead_to_a_rebuild(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not is_kept(capsys)
    assert main(["calibrate", "tree", "out", *FEW, "--threads", "1"]) == 0
    assert is_kept(capsys)
    revise_engine(open_engine("out"), {"tree.json": '{"nodes": []}'})
    assert is_kept(capsys)


def test_unrelated_files_next_to_a_model_do_not_lead_to_a_rebuild(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not is_kept(capsys)
    Path("model/notes.txt").write_text("mine")
    assert is_kept(capsys)


def test_changed_calibration_prompts_lead_to_a_rebuild(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = Path("prompts.jsonl")
    prompts.write_text("".join(f'{{"prompt": "Fox {number}"}}\n' for number in range(4)))
    options = ["engine", "model", "--if-needed", "--tree", "ar", "--out", "out"]
    for built in (True, False, True):
        assert main([*options, "--calibration-prompts", str(prompts)]) == 0
        assert ("built in" in capsys.readouterr().out) == built
        if not built:
            prompts.write_text(prompts.read_text() + '{"prompt": "Another fox"}\n')


def test_without_the_flag_the_engine_is_always_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_kept(capsys)
    assert run_engine() == 0
    assert "built in" in capsys.readouterr().out


def test_the_rebuild_of_a_damaged_engine_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_engine() == 0
    damage_the_engine()
    assert run_engine("--if-needed") == 0
    err = capsys.readouterr().err
    assert "bita: building again: engine out: model.onnx.data is damaged" in err


def test_an_unmeasured_tree_on_a_cpu_has_no_mask_rows(capsys: pytest.CaptureFixture[str]) -> None:
    """The tree guesses only where that is likely right; a line says how to find the fastest tree.

    A chain of masks decoded at 0.3 to 0.55 times the speed of plain decoding on a CPU.
    """
    assert run_engine() == 0
    trees = read_tree(open_engine("out"))
    assert isinstance(trees, TreeTable)
    assert [tree.max_masks for tree in trees.trees] == [0, 0]
    assert (trees.number(0, 2), trees.number(0, 3)) == (0, 1)
    assert trees.trees[0].is_ar
    (line,) = capsys.readouterr().err.splitlines()
    assert "the tree of out was not measured (2 trees by state, of 1 to 3 rows)" in line
    assert "`bita calibrate tree out` finds the fastest" in line
    assert run_engine("--tree", "chain") == 0
    assert read_tree(open_engine("out")) == Tree.chain(3)
    assert capsys.readouterr().err == ""


def test_an_unmeasured_tree_on_a_gpu_is_a_chain() -> None:
    assert default_tree(BuildOptions(backend="ort-cuda"), None, 3) == Tree.chain(3)
    plan = CompileOptions("tensorrt-rtx", None, None)
    assert default_tree(BuildOptions(), plan, 3) == Tree.chain(3)


def test_an_engine_with_an_older_default_tree_is_rebuilt(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(build, "default_tree", lambda *args: Tree.chain(3))
        assert not is_kept(capsys)
    assert not is_kept(capsys)
    assert is_kept(capsys)


def test_the_model_or_the_engine_may_be_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Either may be `.`; by default an engine is named after its model's directory."""
    monkeypatch.chdir(folder / "model")
    assert main(["engine", ".", "--uncalibrated", "--precision", "fp32"]) == 0
    assert capsys.readouterr().out.startswith("engines/model-fp32: ")
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    for _ in range(2):
        assert main(["engine", "../model", "--uncalibrated", "--out", "."]) == 0
    open_engine(".", check_hashes=True)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
