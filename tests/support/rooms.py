"""Imports among the folders of the package, read from the source.

python tests/support/rooms.py [ROOT] prints the number of modules and folders, the number of imports
among folders, the same inside each folder with many modules, then import cycles, and imports
against the order of layers.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

TOP_LEVEL = ("export", "runtime", "calibration")  # folders of the repository inside the package
LAYERS = (
    ("bita.cli",),
    ("bita.calibration", "bita.tuning"),
    ("bita.data",),
    ("bita.torch",),
    ("bita.export",),
    ("bita.runtime.serving",),
    ("bita.runtime",),
    ("bita",),
)
Edge = tuple[str, str]


def modules(root: Path) -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    folders = [("bita", root / "bita"), *((f"bita.{name}", root / name) for name in TOP_LEVEL)]
    found = {}
    for package, folder in folders:
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            if package == "bita" and inside[0] in TOP_LEVEL:
                continue  # reached through the links
            if not (path.parent / "__init__.py").is_file():
                continue  # a program that builds the package, not a module
            name = ".".join((package, *inside)).removesuffix(".__init__")
            found[name] = path
    return found


def imports(found: dict[str, Path]) -> set[Edge]:
    """Return (importing, imported) of all modules, including imports inside functions."""
    edges = set()
    for name, path in found.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            edges |= {(name, target) for target in _targets(node, found) if target != name}
    return edges


def _targets(node: ast.AST, found: dict[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in found)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            if inner in found:
                yield inner
            elif node.module in found:
                yield node.module


def folder_of(module: str, found: dict[str, Path]) -> str:
    """Return the folder of a module as a dotted name."""
    return module if found[module].name == "__init__.py" else module.rpartition(".")[0]


def imports_inside(edges: Iterable[Edge], inside: str) -> tuple[set[str], set[Edge]]:
    """Return the modules and subfolders directly in a folder, and the imports among them."""
    prefix = inside + "."

    def child(module: str) -> str | None:
        return module.removeprefix(prefix).split(".")[0] if module.startswith(prefix) else None

    pairs = {(child(one), child(other)) for one, other in edges}
    inner = {(a, b) for a, b in pairs if a and b and a != b}
    return {name for pair in inner for name in pair}, inner


def layer_of(module: str) -> int:
    """Return the layer of a module, 0 being the highest, by the longest matching folder."""
    places = [
        (len(name), number)
        for number, names in enumerate(LAYERS)
        for name in names
        if f"{module}.".startswith(f"{name}.")
    ]
    return max(places)[1]


def wrong_imports(edges: Iterable[Edge]) -> list[Edge]:
    """Return imports of a higher layer, and imports between siblings of one layer."""
    return sorted((a, b) for a, b in edges if layer_of(b) < layer_of(a) or _are_siblings(a, b))


def _are_siblings(one: str, other: str) -> bool:
    names = LAYERS[layer_of(one)]
    if layer_of(one) != layer_of(other) or len(names) == 1:
        return False
    places = [next(n for n in names if f"{m}.".startswith(f"{n}.")) for m in (one, other)]
    return places[0] != places[1]


def import_cycles(edges: Iterable[Edge]) -> list[list[str]]:
    """Return groups of modules that import each other, directly or indirectly."""
    following: dict[str, set[str]] = {}
    for one, other in edges:
        following.setdefault(one, set()).add(other)

    def reachable(start: str) -> set[str]:
        seen, waiting = set[str](), [start]
        while waiting:
            for other in following.get(waiting.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    reach = {module: reachable(module) for module in following}
    groups = {
        tuple(sorted(o for o in reach[m] if m in reach.get(o, ()))) for m in reach if m in reach[m]
    }
    return [list(group) for group in sorted(groups)]


def report(root: Path) -> str:
    """Return the report that the module's docstring describes."""
    found = modules(root)
    edges = imports(found)
    folders = {(folder_of(a, found), folder_of(b, found)) for a, b in edges}
    among = {(a, b) for a, b in folders if a != b}
    lines = [f"{len(found)} modules, {len({f for pair in among for f in pair})} folders"]
    lines.append(f"imports among folders: {len(among)}")
    for inside in sorted({folder_of(module, found) for module in found}):
        children, inner = imports_inside(edges, inside)
        if len(children) > 6 or inside in ("bita.runtime", "bita.export"):
            lines.append(f"inside {inside}: {len(children)} children, {len(inner)} imports")
    lines.append(f"import cycles: {import_cycles(edges) or 'none'}")
    wrong = [f"{a} -> {b}" for a, b in wrong_imports(edges)]
    lines.append(f"against the order: {', '.join(wrong) or 'none'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2]))
