"""Folders import only lower layers of the package, and tests do not import each other."""

import ast
import re
from pathlib import Path

import rooms
from paths import ROOT

ENTRY_POINTS = ("bita", "bita.__main__")  # lazy names and `python -m bita` may import everything


def test_there_are_no_circular_imports() -> None:
    edges = rooms.imports(rooms.modules(ROOT))
    assert rooms.import_cycles(edge for edge in edges if edge[0] not in ENTRY_POINTS) == []


def test_imports_follow_the_order_of_layers() -> None:
    edges = rooms.imports(rooms.modules(ROOT))
    assert [edge for edge in rooms.wrong_imports(edges) if edge[0] not in ENTRY_POINTS] == []


def test_circular_and_upward_imports_are_found() -> None:
    edges = {("bita.tree", "bita.cli.main"), ("bita.cli.main", "bita.tree")}
    assert rooms.import_cycles(edges) == [["bita.cli.main", "bita.tree"]]
    assert rooms.wrong_imports(edges) == [("bita.tree", "bita.cli.main")]
    siblings = {("bita.calibration.latency", "bita.tuning.tune")}
    assert rooms.wrong_imports(siblings) == sorted(siblings)
    assert rooms.wrong_imports({("bita.runtime.serving.app", "bita.runtime.session")}) == []


def test_every_folder_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    installed = re.search(r"^packages = \[\n(.*?)\]", text, flags=re.MULTILINE | re.DOTALL)
    assert installed
    found = rooms.modules(ROOT)
    assert {rooms.folder_of(module, found) for module in found} == {
        *re.findall(r'"(.+)"', installed[1])
    }


def test_no_test_imports_another() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = [module for module in _imported_modules(path) if module.startswith("test_")]
        assert not names, f"{path.relative_to(ROOT)} imports {names}; move it to tests/support"


def _imported_modules(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [*names, *(n.module or "" for n in nodes if isinstance(n, ast.ImportFrom))]
