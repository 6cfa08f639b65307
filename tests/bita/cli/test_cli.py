"""Commands as a user types them: output, exit status, and errors on one line."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from make_tiny_engine import write_plain_model

from bita.cli.main import command_parser, main, on_one_line
from bita.extras import install_command


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    status = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return status, out, err


def test_commands_lead_from_a_model_to_a_verified_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_plain_model(tmp_path / "Tiny Model")
    adapter = tmp_path / "adapter.safetensors"
    status, out, _ = run(
        capsys, "adapter", "init", model, "--out", adapter, "--masks", 2, "--prefix", 3
    )
    assert status == 0
    assert out.startswith(f"{adapter}: 2 masks, prefix of 3, ")
    engine = tmp_path / "engine"
    status, out, _ = run(
        *(capsys, "engine", model, "--adapter", adapter, "--precision", "fp32", "--out", engine),
        *("--capacity", 200, "--tree", "3,2", "--mode", "tree"),
    )
    assert status == 0
    assert out.startswith(f"{engine}: fp32, ")
    status, out, _ = run(capsys, "inspect", engine)
    assert status == 0
    for part in (
        "mode",
        "tree",
        "6 nodes (widths [3, 2]), 12 mask rows",
        "prefix of 3",
        "200 slots",
    ):
        assert part in out
    plain = run(capsys, "generate", engine, "Hello", "--max-new-tokens", 9)
    status, out, err = run(capsys, "generate", engine, "Hello", "--max-new-tokens", 9, "--stats")
    assert (status, out) == plain[:2]
    assert "tokens per step" in err
    status, out, _ = run(
        capsys, "verify", engine, "--limit", 2, "--max-new-tokens", 9, "--model", "-"
    )
    assert status == 0
    assert "own adapter: 2 of 2 prompts identical" in out
    assert "random adapter: 2 of 2 prompts identical" in out


def test_generate_compares_drafts_with_plain_decoding(
    tiny_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("generate", tiny_engine, "Hello tree", "--max-new-tokens", 40, "--threads", 1)
    _, answer, _ = run(capsys, *asked)
    for sampling in ((), ("--temperature", 1.5)):
        status, out, err = run(capsys, *asked, "--tree", "ngrams:3", "--compare", *sampling)
        assert status == 0
        assert sampling or out == answer
        assert re.search(r"plainly +[\d.]+ tokens/s\n +with drafts +[\d.]+ tokens/s: [\d.]+ ", err)
        figures = re.search(
            r"([\d.]+) tokens a step: 1 from the model, ([\d.]+) from masks, ([\d.]+) from n-", err
        )
        assert figures is not None
        total, masks, text = map(float, figures.groups())
        assert total == pytest.approx(1 + masks + text, abs=0.011)
        assert "both texts are the same, token by token" in err
    status, out, err = run(capsys, *asked, "--tree", "ar", "--compare")
    assert (status, out) == (0, answer)
    assert "this engine decodes plainly" in err
    status, out, err = run(capsys, *asked[:2], " ", "--compare")
    assert (status, out) == (2, "")
    assert "the prompt is empty" in err


def test_inspect_describes_models_and_adapters(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, _ = run(capsys, "inspect", tiny_engine / "adapter.safetensors")
    assert status == 0
    assert "prefix length" in out
    status, out, _ = run(capsys, "inspect", write_plain_model(tmp_path / "model"))
    assert status == 0
    assert "4 heads, 2 key-value heads of 16" in out


def test_generate_reads_standard_input(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello tree"))
    _, from_stdin, _ = run(capsys, "generate", tiny_engine, "-", "--raw", "--max-new-tokens", 12)
    _, direct, _ = run(
        capsys, "generate", tiny_engine, "Hello tree", "--raw", "--max-new-tokens", 12
    )
    assert from_stdin == direct
    assert len(direct) > 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["engine", "no/such/model.gguf"], "no/such/model.gguf"),
        (["engine", "smollm2-135m-instruckt"], "smollm2-135m-instruct"),
        (
            ["engine", "MODEL", "--precision", "int3"],
            "precision 'int3' is not one of fp32, fp16, int8, int4",
        ),
        (
            ["engine", "MODEL", "--adapter", "missing.safetensors"],
            "missing.safetensors does not exist",
        ),
        (["engine", "MODEL", "--tree", "oak"], "no tree 'oak'; give ar, chain"),
        (["engine", "MODEL", "--capacity", "600"], "capacity 600 exceeds the model's 512"),
        (["generate", "nowhere", "Hi"], "nowhere is not a directory; build one"),
        (["generate", "ENGINE", "  "], "the prompt is empty"),
        (["generate", "ENGINE", "Hi", "--raw", "--system", "x"], "--system needs a chat template"),
        (["generate", "ENGINE", "Hi", "--tree", "17"], "rank 17 is used; the engine gives 16"),
        (["verify", "ENGINE", "--prompts", "none.jsonl"], "cannot read prompts from none.jsonl"),
        (["inspect", "nothing-here"], "nothing-here"),
        (["adapter", "init", "MODEL", "--out", "ENGINE/manifest.json/x"], "manifest.json"),
    ],
)
def test_errors_are_reported_on_one_line(
    args: list[str],
    message: str,
    tiny_engine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write_plain_model(tmp_path / "model")
    names = {"MODEL": str(model), "ENGINE": str(tiny_engine)}
    filled = [arg.replace("ENGINE", names["ENGINE"]) for arg in args]
    status, _, err = run(capsys, *(names.get(arg, arg) for arg in filled))
    assert status == 2
    assert err.startswith("bita: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_lists_of_faults_become_one_line() -> None:
    message = "engine x: 2 faults:\n  - a is missing\n  - b is broken"
    assert on_one_line(message) == "engine x: 2 faults: a is missing; b is broken"


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="nowhere is not a directory"):
        main(["generate", "nowhere", "Hi", "--debug"])


@pytest.mark.parametrize("command", ["engine", "generate", "verify", "inspect", "adapter init"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    assert f"example:\n  bita {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args", [[], ["fly"], ["engine"], ["generate", "x", "y", "--max-new-tokens", "0"]]
)
def test_wrong_usage_exits_with_2(args: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("ENGINE", "hi", "--tempratur", "1"), "no flag --tempratur; did you mean --temperature?"),
        (("ENGINE", "hi", "--temp=1"), "no flag --temp; did you mean --temperature?"),
        (("ENGINE", "hi", "--max-new", "5"), "no flag --max-new; did you mean --max-new-tokens?"),
        (("ENGINE", "hi", "-x"), "no flag -x; --help lists the flags"),
        (("ENGINE", "why", "is", "it"), "too many arguments: is it; quote a text of several words"),
    ],
)
def test_unknown_arguments_are_reported_with_the_usage_of_the_command(
    args: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generate", *args])
    errors = capsys.readouterr().err
    assert caught.value.code == 2
    assert errors.startswith("usage: bita generate ")
    assert errors.endswith(f"bita generate: error: {message}\n")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["adapter", "init", "MODEL", "--mask", "3"], "no flag --mask; did you mean --masks?"),
        (["inspect", "x", "--debu"], "no flag --debu; did you mean --debug?"),
        (["inspect", "--debu"], "no flag --debu; did you mean --debug?"),
        (["generate", "--max-new=5"], "no flag --max-new; did you mean --max-new-tokens?"),
        (["profile", "e", "--max-row", "5"], "no flag --max-row; did you mean --max-rows?"),
        (["--versio"], "no flag --versio; did you mean --version?"),
        (["--debug", "inspect", "x"], "no flag --debug; --help lists the flags"),
        (["generat", "e", "Hi"], "'generat' is not one of "),
        (["generat", "e", "Hi"], "; did you mean generate?"),
        (["adapter", "int"], "'int' is not one of init; did you mean init?"),
        (["calibrate", "trees", "e"], "'trees' is not one of acceptance, latency, tree; did you"),
        (["fly"], "tune, completion\n"),
    ],
)
def test_unknown_flags_and_commands_are_refused_with_a_hint(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def all_parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command, by the command's name."""
    found: dict[str, argparse.ArgumentParser] = {"": command_parser()}
    for name in ("", "adapter"):
        for action in found[name]._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{name} {each}".strip(): p for each, p in action.choices.items()}
    return found


def test_no_parser_accepts_abbreviated_flags() -> None:
    assert len(all_parsers()) == 14
    assert all(not parser.allow_abbrev for parser in all_parsers().values())


@pytest.mark.parametrize("command", all_parsers())
def test_help_is_complete_and_fits_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Help explains every flag, shows an example, and says what goes to standard output."""
    monkeypatch.setenv("COLUMNS", "80")
    parser = all_parsers()[command]
    text = parser.format_help()
    assert f"example:\n  bita {command}" in text
    assert "standard output" in text
    for action in parser._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action.dest
    _, rest = text.split("\n\n", 1)
    assert max(map(len, rest.splitlines())) <= 80


def test_argparse_errors_are_short_and_escape_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["calibrate", "\x1b[31m\n" + "x" * 10**5, "engine"])
    errors = capsys.readouterr().err
    assert "\x1b" not in errors
    assert len(errors.split("error:")[1]) < 700


def test_an_unexpected_error_is_reported_on_one_line(
    tiny_engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bita.cli import inspect

    for error in (RecursionError("too deep"), ValueError("a\n\x1b[0m" + "x" * 10**5)):

        def fail(path: Path, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(inspect, "read_engine_facts", fail)
        status, _, err = run(capsys, "inspect", tiny_engine)
        assert (status, err.count("\n")) == (2, 1)
        assert err.startswith(f"bita: error: {type(error).__name__}: ")
        assert "\x1b" not in err
        assert len(err) < 9000
        with pytest.raises(type(error)):
            main(["inspect", str(tiny_engine), "--debug"])


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--max-new-tokens", "0.5", "'0.5' is not a whole number"),
        ("--max-new-tokens", "0", "0 is not above 0"),
        ("--threads", "two", "'two' is not a whole number"),
        ("--threads", "-1", "-1 is below 0"),
        ("--threads", "1025", "1025 is above 1024"),
        ("--threads", "9" * 30, f"'{'9' * 30}' is beyond 2^63"),
    ],
)
def test_a_flag_reports_an_invalid_number(
    flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "engine", "Hi", flag, value])
    assert f"argument {flag}: {message}" in capsys.readouterr().err


def test_help_loads_no_heavy_library() -> None:
    """`bita --help` loads neither the runtime nor an export library."""
    code = (
        "import sys, bita.cli.main\n"
        "try: bita.cli.main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('onnxruntime', 'onnx_ir', 'torch', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.endswith("[]\n")


def test_a_missing_extra_is_reported_with_its_install_command(tmp_path: Path) -> None:
    """Without the export libraries, the error says how to install them."""
    model = write_plain_model(tmp_path / "model")
    code = (
        "import sys; sys.modules['onnx_ir'] = None\n"
        f"from bita.cli.main import main; sys.exit(main(['engine', {str(model)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        "bita: error: `bita engine` needs packages that are not installed: "
        f"{install_command('export')}\n"
    )


def test_an_adapter_of_another_model_is_refused(
    tmp_path: Path, tiny_engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_plain_model(tmp_path / "other", seed=5)
    status, _, err = run(
        capsys,
        "engine",
        other,
        "--adapter",
        tiny_engine / "adapter.safetensors",
        "--out",
        tmp_path / "e",
    )
    assert status == 2
    assert "weights are of another model" in err
    assert not (tmp_path / "e").exists()


def test_the_committed_engine_keeps_its_format_version(tiny_engine: Path) -> None:
    """The committed engine was written by an earlier commit; its format must stay readable."""
    manifest = json.loads((tiny_engine / "manifest.json").read_text())
    assert manifest["format_version"] == 2
