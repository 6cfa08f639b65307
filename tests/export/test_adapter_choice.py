"""A build uses the given adapter, the model's own, the shipped one, or none, in this order."""

from pathlib import Path

import pytest
from make_tiny_engine import write_plain_model
from paths import ROOT

from bita.adapter import random_adapter
from bita.cli.main import main
from bita.engine import open_engine
from bita.errors import AdapterError
from bita.export.adapter_choice import choose_adapter
from bita.export.model_name import adapter_path, engine_path, model_name
from bita.export.sources import open_checkpoint
from bita.identity import identify

SMALL = ROOT / "adapters" / "smollm2-135m-instruct.safetensors"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def model(folder: Path) -> str:
    write_plain_model(folder / "models" / "Tiny Model")
    return "models/Tiny Model/"


def write_adapter(model: str, path: Path, seed: int = 0) -> None:
    random_adapter(identify(open_checkpoint(model)), 2, 1, seed=seed).save(path)


def build(model: str, *more: str, out: str = "out") -> int:
    return main(["engine", model, "--uncalibrated", "--precision", "fp32", "--out", out, *more])


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("path/to/model/", "model"),
        ("path/to/Model_1.Q4_K.gguf", "Model_1.Q4_K"),
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("org/name@v1", "name-v1"),
        ("my models/tiny llama", "tiny-llama"),
        ("tiny:q4", "tiny-q4"),
        ("-dash", "dash"),
        ("$$$", "model"),
        (".hidden", "hidden"),
    ],
)
def test_the_name_of_a_model_gives_the_paths(model: str, name: str) -> None:
    assert model_name(model) == name
    assert engine_path(model, "int4", "ort-cpu") == Path("engines") / f"{name}-int4"
    assert engine_path(model, "int4", "ort-cuda") == Path("engines") / f"{name}-int4-ort-cuda"
    assert adapter_path(model) == Path("adapters") / f"{name}.safetensors"


def test_relative_directories_have_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "mine" / "inner").mkdir(parents=True)
    monkeypatch.chdir(folder / "mine" / "inner")
    assert (model_name("."), model_name("..")) == ("inner", "mine")


def test_the_adapter_with_the_models_name_is_used_and_reported(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_adapter(model, Path("adapters/Tiny-Model.safetensors"))
    assert build(model) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "adapter: adapters/Tiny-Model.safetensors"
    assert open_engine("out").manifest.num_masks == 2


def test_a_given_adapter_comes_first(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_adapter(model, Path("adapters/Tiny-Model.safetensors"))
    write_adapter(model, Path("my adapter.safetensors"), seed=1)
    assert build(model, "--adapter", "my adapter.safetensors") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "adapter: my adapter.safetensors"
    given = Path("my adapter.safetensors").read_bytes()
    assert Path("out/adapter.safetensors").read_bytes() == given


@pytest.mark.parametrize("more", [(), ("--adapter", "none")])
def test_an_untuned_engine_is_reported(
    more: tuple[str, ...], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if more:
        write_adapter(model, Path("adapters/Tiny-Model.safetensors"))
    assert build(model, *more) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("untuned: ")
    assert main(["inspect", "out"]) == 0
    assert "untuned: few drafts are right" in " ".join(capsys.readouterr().out.split())


def test_a_tuned_engine_is_not_reported_as_untuned(
    tiny_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(tiny_engine)]) == 0
    assert "untuned" not in capsys.readouterr().out


def test_an_adapter_with_the_name_but_for_another_model_is_refused(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_plain_model(Path("other"), seed=5)
    write_adapter("other", Path("adapters/Tiny-Model.safetensors"))
    assert build(model) == 2
    err = capsys.readouterr().err
    assert (
        "the adapter adapters/Tiny-Model.safetensors was used because it has the model's name"
        in err
    )
    assert "--adapter none for an untuned engine" in err
    assert "weights are of another model" in err
    assert not Path("out").exists()
    assert build(model, "--adapter", "none") == 0


@pytest.mark.parametrize("harm", ["text", "directory"])
def test_a_broken_adapter_with_the_models_name_is_refused(
    harm: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("adapters/Tiny-Model.safetensors")
    path.parent.mkdir()
    path.mkdir() if harm == "directory" else path.write_text("no adapter")
    assert build(model) == 2
    assert "--adapter none for an untuned engine" in capsys.readouterr().err


def test_the_shipped_adapter_is_only_for_its_model() -> None:
    shipped = choose_adapter(None, "smollm2-135m-instruct")
    assert shipped.adapter is not None
    assert shipped.source == "smollm2-135m-instruct.safetensors, which ships with bita-edge"
    assert choose_adapter(None, "models/smollm2-135m-instruct").adapter is None
    assert choose_adapter("none", "smollm2-135m-instruct").adapter is None


def test_a_local_adapter_comes_before_the_shipped_one() -> None:
    path = Path("adapters/smollm2-135m-instruct.safetensors")
    path.parent.mkdir()
    path.write_bytes(SMALL.read_bytes())
    assert choose_adapter(None, "smollm2-135m-instruct").source == str(path)


def test_errors_of_a_given_adapter_are_unchanged() -> None:
    with pytest.raises(AdapterError, match=r"^missing does not exist"):
        choose_adapter("missing", "smollm2-135m-instruct")
