"""docs/scripting.md lists the exit codes, JSON keys and environment variables that there are."""

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from make_tiny_engine import write_plain_model
from paths import ROOT

from bita.calibration import verify
from bita.calibration.draft_gain import DraftGain
from bita.cli.main import COMMANDS, main

PAGE = ROOT / "docs" / "scripting.md"
CODE = ("bita", "export", "runtime", "calibration", "benchmarks", "docs", "examples")
FEW = ("--threads", "1", "--limit", "3", "--max-new-tokens", "8")
FEW_ROWS = (*FEW, "--max-rows", "3", "--repeats", "1")
VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*")


def section(title: str) -> str:
    """The text of the page below a heading, up to the next heading of its level."""
    text = PAGE.read_text(encoding="utf-8")
    level = title.split(" ")[0]
    _, found, rest = text.partition(f"\n{title}\n")
    assert found, title
    return re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def first_cells(text: str) -> list[str]:
    """What stands in backticks in the first column of the tables."""
    return [
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]


# --- exit codes


def test_exit_codes_are_listed_for_every_command() -> None:
    rows = re.findall(r"^\| (`[a-z`, ]+`) \| (.+) \|$", section("## Exit codes"), re.MULTILINE)
    codes = {name: codes for names, codes in rows for name in re.findall(r"`(\w+)`", names)}
    assert sorted(codes) == sorted(COMMANDS)
    for name, text in codes.items():
        assert {"0", "2", "130"} <= {*re.findall(r"\d+", text)}
        assert ("1" in re.findall(r"\d+", text)) == (name in ("generate", "verify"))


def test_texts_that_differ_are_exit_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, engine = str(write_plain_model(tmp_path / "model")), str(tmp_path / "engine")
    assert main(["engine", model, "--uncalibrated", "--precision", "fp32", "--out", engine]) == 0
    monkeypatch.setattr(verify, "first_difference", lambda expected, found: 0)
    assert main(["verify", engine, "--model", "-", *FEW]) == 1
    capsys.readouterr()
    assert main(["verify", engine, "--model", "-", *FEW, "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["passed"]
    monkeypatch.setattr(DraftGain, "parting", property(lambda gain: 3))
    asked = ["generate", engine, "Hello", "--max-new-tokens", "8", "--threads", "1", "--compare"]
    assert main(asked) == 1
    capsys.readouterr()
    assert main([*asked, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["compare"]["first_difference"] == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_usage_is_exit_status_2(command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--nothing"])
    assert caught.value.code == 2


# --- JSON


def paths_of(value: Any, leaves: set[str], at: str = "") -> Iterator[str]:
    """Every key as the page writes it: a.b for objects, a[].b for lists of objects."""
    if isinstance(value, list):
        for each in value:
            yield from paths_of(each, leaves, f"{at}[]")
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        path = f"{at}.{name}".removeprefix(".")
        yield path
        if path not in leaves:
            yield from paths_of(inner, leaves, path)


LIKE_OTHERS = {
    "ar": "chosen",
    "triangle": "chosen",
    "others[]": "chosen",
}


@pytest.fixture(scope="module")
def engine(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, which is calibrated by the first test that does so."""
    return Path(shutil.copytree(tiny_engine, tmp_path_factory.mktemp("page") / "engine"))


REPORTS: dict[str, list[tuple[str, ...]]] = {
    "### `bita generate --json`": [
        ("generate", "ENGINE", "Hello tree", "--max-new-tokens", "12", "--compare")
    ],
    "### `bita verify --json`": [("verify", "ENGINE", "--model", "-", *FEW)],
    "### `bita calibrate --json`": [
        ("calibrate", "acceptance", "ENGINE", *FEW),
        ("calibrate", "latency", "ENGINE", *FEW_ROWS),
        ("calibrate", "tree", "ENGINE", *FEW_ROWS),
        ("calibrate", "tree", "ENGINE", *FEW_ROWS, "--what-if", "orin-nano"),
    ],
    "### `bita inspect --json`": [
        ("inspect", "ENGINE"),
        ("inspect", "ENGINE/adapter.safetensors"),
        ("inspect", "MODEL"),
    ],
    "### `bita engine --json`": [
        ("engine", "MODEL", "--uncalibrated", "--precision", "fp32", "--out", "OUT")
    ],
}


@pytest.mark.parametrize("title", REPORTS)
def test_the_page_has_the_keys_of_each_object(
    title: str, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page and the objects list the same keys, apart from those below a null here."""
    names = {
        "ENGINE": str(engine),
        "MODEL": str(write_plain_model(tmp_path / "model")),
        "OUT": str(tmp_path / "out"),
    }
    text = section(title)
    listed = {*first_cells(text)}
    for paragraph in re.findall(r"^Of an? \w+( file)?: (`.+?)\n\n", text, re.MULTILINE | re.DOTALL):
        listed |= {*re.findall(r"`([a-z_]+)`", paragraph[1])}
    # objects of another command's section, or without keys of their own on the page
    leaves = {
        name
        for name in listed
        if not any(each.startswith((f"{name}.", f"{name}[")) for each in listed)
    }
    found: set[str] = set()
    empty: set[str] = set()
    for words in REPORTS[title]:
        filled = [re.sub("ENGINE|MODEL|OUT", lambda m: names[m[0]], word) for word in words]
        assert main([*filled, "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        found |= {*paths_of(report, leaves | {*LIKE_OTHERS, "others"})}
        empty |= {*empties(report)}
    parents = {name for name in found if any(each.startswith(f"{name}.") for each in listed)}
    assert sorted(found - listed - parents) == []
    missing = {name for name in listed - found if not any(name.startswith(each) for each in empty)}
    assert sorted(missing) == []


def empties(value: Any, at: str = "") -> Iterator[str]:
    """Keys whose value is null or an empty list, so that nothing is below them."""
    if value in (None, []):
        yield at
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from empties(inner, f"{at}.{name}".removeprefix("."))
    if isinstance(value, list):
        for each in value:
            yield from empties(each, f"{at}[]")


@pytest.mark.parametrize("title", REPORTS)
def test_the_examples_have_these_keys(title: str) -> None:
    text = section(title)
    listed = {
        name.split(".")[0].removesuffix("[]") for name in re.findall(r"`([a-z_.\[\]]+)`", text)
    }
    examples = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert examples
    for example in map(json.loads, examples):
        assert {*example} <= listed


# --- environment variables


def variables_of(path: Path) -> Iterator[str]:
    """Names of the environment variables that a module of Python reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    names = [each for each in constants if isinstance(each, str) and VARIABLE.fullmatch(each)]
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        name = name_read_by(node)
        if isinstance(name, ast.Name):
            name = assigned.get(name.id, name)
        if isinstance(name, ast.Constant):
            yield str(name.value)
        elif name is not None:  # an argument or a loop variable: any of the module's names
            yield from (each for each in names if len(each) > 3)


def name_read_by(node: ast.AST) -> ast.expr | None:
    """The expression for the name that a node looks up in os.environ."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        called = ast.unparse(node.func)
        if called in ("os.environ.get", "os.environ.setdefault", "os.getenv"):
            return node.args[0]
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        return node.slice if ast.unparse(node.value) == "os.environ" else None
    if isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
        return node.left
    return None


def test_environment_variables_are_those_that_the_code_reads() -> None:
    found: set[str] = set()
    for folder in CODE:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py":
                found |= {*variables_of(path)}
            elif path.suffix in (".c", ".cpp", ".h", ".hpp") and path.is_file():
                text = path.read_text(encoding="utf-8")
                found |= {*re.findall(r"\bgetenv\(\s*\"(\w+)\"", text)}
    text, _, libraries = section("## Environment variables").partition("The libraries below")
    listed = set(re.findall(r"`([A-Z_]+)`", text))
    assert listed == found
    assert "NO_COLOR" in libraries


def test_variables_are_found_in_code(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        'import os\nKEY = "A_KEY"\nos.environ.get("A"), os.environ["B"], "C" in os.environ\n'
        'os.environ["NOT_READ"] = "1"\nos.environ.get(KEY)\n',
        encoding="utf-8",
    )
    assert {*variables_of(path)} == {"A", "B", "C", "A_KEY"}
