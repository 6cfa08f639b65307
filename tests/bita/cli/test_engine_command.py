"""`bita engine --if-needed`: an engine is kept where it was built from the same, and only there."""

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


def command(*more: str) -> int:
    options = ["--uncalibrated", "--precision", "fp32", "--capacity", "384", "--out", "out"]
    return main(["engine", "model", *options, *more])


def is_kept(capsys: pytest.CaptureFixture[str], *more: str) -> bool:
    capsys.readouterr()
    assert command("--if-needed", *more) == 0
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


def damage() -> None:
    path = Path("out/model.onnx.data")
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def build_by_hand() -> None:
    """What it was built from before is no longer what is there."""
    assert command("--tree", "ar") == 0


@pytest.mark.parametrize(
    "change",
    [
        touch_the_model,
        replace_the_model,
        tune_an_adapter,
        damage,
        build_by_hand,
        lambda: shutil.rmtree("out"),
    ],
)
def test_what_changed_is_built_again(
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
def test_other_options_build_again(
    more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not is_kept(capsys)
    assert not is_kept(capsys, *more)
    assert is_kept(capsys, *more)
    assert not is_kept(capsys)


@pytest.mark.parametrize("cache", ["float16", "float32"])
def test_native_engines_have_the_cache_that_is_asked_for(cache: str) -> None:
    assert command("--dialect", "native", "--precision", "int4", "--cache", cache) == 0
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
def test_options_that_do_not_fit_are_refused(
    more: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*more) != 0
    assert message in capsys.readouterr().err


def test_what_a_device_measured_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_kept(capsys)
    assert main(["calibrate", "tree", "out", *FEW, "--threads", "1"]) == 0
    assert is_kept(capsys)
    revise_engine(open_engine("out"), {"tree.json": '{"nodes": []}'})
    assert is_kept(capsys)


def test_other_files_beside_a_model_do_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_kept(capsys)
    Path("model/notes.txt").write_text("mine")
    assert is_kept(capsys)


def test_prompts_of_a_calibration_count(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = Path("prompts.jsonl")
    prompts.write_text("".join(f'{{"prompt": "Fox {number}"}}\n' for number in range(4)))
    options = ["engine", "model", "--if-needed", "--tree", "ar", "--out", "out"]
    for built in (True, False, True):
        assert main([*options, "--calibration-prompts", str(prompts)]) == 0
        assert ("built in" in capsys.readouterr().out) == built
        if not built:
            prompts.write_text(prompts.read_text() + '{"prompt": "Another fox"}\n')


def test_without_the_flag_it_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_kept(capsys)
    assert command() == 0
    assert "built in" in capsys.readouterr().out


def test_a_damaged_engine_says_why_it_is_built_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert command() == 0
    damage()
    assert command("--if-needed") == 0
    err = capsys.readouterr().err
    assert "bita: building again: engine out: model.onnx.data is damaged" in err


def test_an_unmeasured_tree_is_safe_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """It has no mask rows and guesses only where they are likely right; a line says how to fix it.

    With plain decoding as the reference, a chain of masks was 0.3 to 0.55 times as fast on a CPU.
    """
    assert command() == 0
    trees = read_tree(open_engine("out"))
    assert isinstance(trees, TreeTable)
    assert [tree.max_masks for tree in trees.trees] == [0, 0]
    assert (trees.number(0, 2), trees.number(0, 3)) == (0, 1)
    assert trees.trees[0].is_ar
    (line,) = capsys.readouterr().err.splitlines()
    assert "the tree of out was not measured (2 trees by state, of 1 to 3 rows)" in line
    assert "`bita calibrate tree out` finds the fastest" in line
    assert command("--tree", "chain") == 0
    assert read_tree(open_engine("out")) == Tree.chain(3)
    assert capsys.readouterr().err == ""


def test_an_unmeasured_tree_on_a_gpu_is_a_chain() -> None:
    assert default_tree(BuildOptions(backend="ort-cuda"), None, 3) == Tree.chain(3)
    plan = CompileOptions("tensorrt-rtx", None, None)
    assert default_tree(BuildOptions(), plan, 3) == Tree.chain(3)


def test_an_engine_with_an_older_default_tree_is_built_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(build, "default_tree", lambda *args: Tree.chain(3))
        assert not is_kept(capsys)
    assert not is_kept(capsys)
    assert is_kept(capsys)


def test_a_model_here_and_an_engine_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both as `.`; the name of an engine is that of the model's directory."""
    monkeypatch.chdir(folder / "model")
    assert main(["engine", ".", "--uncalibrated", "--precision", "fp32"]) == 0
    assert capsys.readouterr().out.startswith("engines/model-fp32: ")
    (folder / "here").mkdir()
    monkeypatch.chdir(folder / "here")
    for _ in range(2):
        assert main(["engine", "../model", "--uncalibrated", "--out", "."]) == 0
    open_engine(".", check_hashes=True)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
