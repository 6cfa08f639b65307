"""`bita completion` lets a shell complete commands, flags, values and paths."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bita.cli.main import main

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
words=$(complete -p bita); function=${words#*-F }; function=${function%% *}
$function bita "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "bita.bash"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    return path


@needs_bash
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gen"], ["generate"]),
        (["c"], ["compile", "chat", "calibrate", "completion"]),
        (["generate", "--max"], ["--max-new-tokens"]),
        (["adapter", "init", "--lora"], ["--lora-rank"]),
        (["calibrate", "a"], ["acceptance"]),
        (["completion", "z"], ["zsh"]),
        (["engine", "m", "--mode", "e"], ["exact"]),
        (["engine", "m", "--precision", "int"], ["int8", "int4"]),
        (["generate", "eng"], ["engines"]),
        (["verify", "e", "--prompts", "my"], ["my.jsonl"]),
        (["generate", "my"], []),
        (["inspect", "my"], ["my.jsonl"]),
    ],
)
def test_bash_completes_commands_flags_values_and_paths(
    words: list[str], expected: list[str], script: Path
) -> None:
    folder = script.parent
    (folder / "engines").mkdir()
    (folder / "my.jsonl").touch()
    result = subprocess.run(
        ["bash", "-c", ASK, "-", str(script), "bita", *words],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert sorted(result.stdout.split()) == sorted(expected), result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_each_shell_gets_a_valid_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("generate", "calibrate", "max-new-tokens", "what-if"):
        assert word in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)
