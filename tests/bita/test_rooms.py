"""Which room may import which, and that tests do not lean on each other."""

import ast
import re
from pathlib import Path

import rooms
from paths import ROOT

DOORS = ("bita", "bita.__main__")  # lazy names, and `python -m bita`: they lead to every floor


def test_no_module_imports_itself_by_a_detour() -> None:
    edges = rooms.imports(rooms.modules(ROOT))
    assert rooms.circles(edge for edge in edges if edge[0] not in DOORS) == []


def test_imports_go_downstairs() -> None:
    edges = rooms.imports(rooms.modules(ROOT))
    assert [edge for edge in rooms.against_the_order(edges) if edge[0] not in DOORS] == []


def test_a_circle_and_a_climb_are_seen() -> None:
    edges = {("bita.tree", "bita.cli.main"), ("bita.cli.main", "bita.tree")}
    assert rooms.circles(edges) == [["bita.cli.main", "bita.tree"]]
    assert rooms.against_the_order(edges) == [("bita.tree", "bita.cli.main")]
    siblings = {("bita.calibration.latency", "bita.tuning.tune")}
    assert rooms.against_the_order(siblings) == sorted(siblings)
    assert rooms.against_the_order({("bita.runtime.serving.app", "bita.runtime.session")}) == []


def test_every_room_is_installed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    installed = re.search(r"^packages = \[\n(.*?)\]", text, flags=re.MULTILINE | re.DOTALL)
    assert installed
    found = rooms.modules(ROOT)
    assert {rooms.room(module, found) for module in found} == {*re.findall(r'"(.+)"', installed[1])}


def test_no_test_imports_another() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = [module for module in _imported(path) if module.startswith("test_")]
        assert not names, f"{path.relative_to(ROOT)} imports {names}; move it to tests/support"


def _imported(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [*names, *(n.module or "" for n in nodes if isinstance(n, ast.ImportFrom))]
