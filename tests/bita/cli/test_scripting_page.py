"""docs/scripting.md lists exactly the exit codes, JSON keys and environment variables in use."""

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


def read_section(title: str) -> str:
    """Return the text below a heading, up to the next heading of the same or a higher level."""
    text = PAGE.read_text(encoding="utf-8")
    level = title.split(" ")[0]
    _, found, rest = text.partition(f"\n{title}\n")
    assert found, title
    return re.split(rf"^#{{1,{len(level)}}} ", rest, flags=re.MULTILINE)[0]


def read_first_cells(text: str) -> list[str]:
    """Return what is in backticks in the first column of the tables."""
    return [
        name
        for line in text.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]


# --- exit codes


def test_exit_codes_are_listed_for_every_command() -> None:
    rows = re.findall(r"^\| (`[a-z`, ]+`) \| (.+) \|$", read_section("## Exit codes"), re.MULTILINE)
    codes = {name: codes for names, codes in rows for name in re.findall(r"`(\w+)`", names)}
    assert sorted(codes) == sorted(COMMANDS)
    for name, text in codes.items():
        assert {"0", "2", "130"} <= {*re.findall(r"\d+", text)}
        assert ("1" in re.findall(r"\d+", text)) == (name in ("generate", "verify"))


def test_differing_texts_give_exit_status_1(
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
def test_wrong_usage_gives_exit_status_2(command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--nothing"])
    assert caught.value.code == 2


# --- JSON


def find_key_paths(value: Any, leaves: set[str], at: str = "") -> Iterator[str]:
    """Yield every key as the page writes it: a.b for objects, a[].b for lists of objects.

    Keys below those in `leaves` are left out.
    """
    if isinstance(value, list):
        for each in value:
            yield from find_key_paths(each, leaves, f"{at}[]")
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        path = f"{at}.{name}".removeprefix(".")
        yield path
        if path not in leaves:
            yield from find_key_paths(inner, leaves, path)


SAME_KEYS_AS = {
    "ar": "chosen",
    "triangle": "chosen",
    "others[]": "chosen",
}


@pytest.fixture(scope="module")
def engine(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tiny engine; the tests share it, and `bita calibrate` changes it."""
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
def test_the_page_lists_the_keys_of_each_object(
    title: str, engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each object has exactly the listed keys; those below a null or empty list may be missing."""
    names = {
        "ENGINE": str(engine),
        "MODEL": str(write_plain_model(tmp_path / "model")),
        "OUT": str(tmp_path / "out"),
    }
    text = read_section(title)
    listed = {*read_first_cells(text)}
    for paragraph in re.findall(r"^Of an? \w+( file)?: (`.+?)\n\n", text, re.MULTILINE | re.DOTALL):
        listed |= {*re.findall(r"`([a-z_]+)`", paragraph[1])}
    # objects whose keys another section lists, or whose keys the page does not list
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
        found |= {*find_key_paths(report, leaves | {*SAME_KEYS_AS, "others"})}
        empty |= {*find_empty_keys(report)}
    parents = {name for name in found if any(each.startswith(f"{name}.") for each in listed)}
    assert sorted(found - listed - parents) == []
    missing = {name for name in listed - found if not any(name.startswith(each) for each in empty)}
    assert sorted(missing) == []


def find_empty_keys(value: Any, at: str = "") -> Iterator[str]:
    """Yield the keys whose value is null or an empty list, which has no keys below it."""
    if value in (None, []):
        yield at
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from find_empty_keys(inner, f"{at}.{name}".removeprefix("."))
    if isinstance(value, list):
        for each in value:
            yield from find_empty_keys(each, f"{at}[]")


@pytest.mark.parametrize("title", REPORTS)
def test_the_examples_have_only_listed_keys(title: str) -> None:
    text = read_section(title)
    listed = {
        name.split(".")[0].removesuffix("[]") for name in re.findall(r"`([a-z_.\[\]]+)`", text)
    }
    examples = re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert examples
    for example in map(json.loads, examples):
        assert {*example} <= listed


# --- environment variables


def find_variables(path: Path) -> Iterator[str]:
    """Yield the names of the environment variables that a Python module reads."""
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
        name = find_name_expression(node)
        if isinstance(name, ast.Name):
            name = assigned.get(name.id, name)
        if isinstance(name, ast.Constant):
            yield str(name.value)
        elif name is not None:  # an argument or a loop variable: any name in the module
            yield from (each for each in names if len(each) > 3)


def find_name_expression(node: ast.AST) -> ast.expr | None:
    """Return the expression of the name that a node looks up in os.environ, or None."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        called = ast.unparse(node.func)
        if called in ("os.environ.get", "os.environ.setdefault", "os.getenv"):
            return node.args[0]
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
        return node.slice if ast.unparse(node.value) == "os.environ" else None
    if isinstance(node, ast.Compare) and ast.unparse(node.comparators[0]) == "os.environ":
        return node.left
    return None


def test_the_page_lists_the_environment_variables_that_the_code_reads() -> None:
    found: set[str] = set()
    for folder in CODE:
        for path in (ROOT / folder).rglob("*"):
            if path.suffix == ".py":
                found |= {*find_variables(path)}
            elif path.suffix in (".c", ".cpp", ".h", ".hpp") and path.is_file():
                text = path.read_text(encoding="utf-8")
                found |= {*re.findall(r"\bgetenv\(\s*\"(\w+)\"", text)}
    text, _, libraries = read_section("## Environment variables").partition("The libraries below")
    listed = set(re.findall(r"`([A-Z_]+)`", text))
    assert listed == found
    assert "NO_COLOR" in libraries


def test_every_way_to_read_a_variable_is_found(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        'import os\nKEY = "A_KEY"\nos.environ.get("A"), os.environ["B"], "C" in os.environ\n'
        'os.environ["NOT_READ"] = "1"\nos.environ.get(KEY)\n',
        encoding="utf-8",
    )
    assert {*find_variables(path)} == {"A", "B", "C", "A_KEY"}
