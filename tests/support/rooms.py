"""Imports among the rooms (folders) of the package, read from the source.

python tests/support/rooms.py [ROOT] prints, for the whole and for each room with many modules, how
many boxes (modules or subfolders) there are and how many arrows (one box imports another); then the
circles, and the arrows against the order of the floors.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

TOP_LEVEL = ("export", "runtime", "calibration")  # folders of the repository inside the package
FLOORS = (
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
    """Every module of the package by its dotted name."""
    folders = [("bita", root / "bita"), *((f"bita.{name}", root / name) for name in TOP_LEVEL)]
    found = {}
    for package, folder in folders:
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            if package == "bita" and inside[0] in TOP_LEVEL:
                continue  # through the links
            if not (path.parent / "__init__.py").is_file():
                continue  # programs that build the package, not modules of it
            name = ".".join((package, *inside)).removesuffix(".__init__")
            found[name] = path
    return found


def imports(found: dict[str, Path]) -> set[Edge]:
    """(importing, imported) of all modules, imports inside functions too."""
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


def room(module: str, found: dict[str, Path]) -> str:
    """The folder that a module lies in."""
    return module if found[module].name == "__init__.py" else module.rpartition(".")[0]


def arrows(edges: Iterable[Edge], inside: str) -> tuple[set[str], set[Edge]]:
    """The boxes directly in a room, and the arrows among them."""
    prefix = inside + "."

    def box(module: str) -> str | None:
        return module.removeprefix(prefix).split(".")[0] if module.startswith(prefix) else None

    pairs = {(box(one), box(other)) for one, other in edges}
    inner = {(a, b) for a, b in pairs if a and b and a != b}
    return {name for pair in inner for name in pair}, inner


def floor(module: str) -> int:
    """0 is the roof; the room with the longest fitting name counts."""
    places = [
        (len(name), number)
        for number, names in enumerate(FLOORS)
        for name in names
        if f"{module}.".startswith(f"{name}.")
    ]
    return max(places)[1]


def against_the_order(edges: Iterable[Edge]) -> list[Edge]:
    """Imports from a lower floor to a higher one, or between siblings of one floor."""
    return sorted((a, b) for a, b in edges if floor(b) < floor(a) or _are_siblings(a, b))


def _are_siblings(one: str, other: str) -> bool:
    names = FLOORS[floor(one)]
    if floor(one) != floor(other) or len(names) == 1:
        return False
    places = [next(n for n in names if f"{m}.".startswith(f"{n}.")) for m in (one, other)]
    return places[0] != places[1]


def circles(edges: Iterable[Edge]) -> list[list[str]]:
    """Groups of modules that import each other, directly or not."""
    following: dict[str, set[str]] = {}
    for one, other in edges:
        following.setdefault(one, set()).add(other)

    def reached(start: str) -> set[str]:
        seen, waiting = set[str](), [start]
        while waiting:
            for other in following.get(waiting.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    reach = {module: reached(module) for module in following}
    groups = {
        tuple(sorted(o for o in reach[m] if m in reach.get(o, ()))) for m in reach if m in reach[m]
    }
    return [list(group) for group in sorted(groups)]


def report(root: Path) -> str:
    """What the module's docstring says, as text."""
    found = modules(root)
    edges = imports(found)
    folders = {(room(a, found), room(b, found)) for a, b in edges}
    among = {(a, b) for a, b in folders if a != b}
    lines = [f"{len(found)} modules, {len({f for pair in among for f in pair})} rooms"]
    lines.append(f"arrows among rooms: {len(among)}")
    for inside in sorted({room(module, found) for module in found}):
        boxes, inner = arrows(edges, inside)
        if len(boxes) > 6 or inside in ("bita.runtime", "bita.export"):
            lines.append(f"inside {inside}: {len(boxes)} boxes, {len(inner)} arrows")
    lines.append(f"circles: {circles(edges) or 'none'}")
    wrong = [f"{a} -> {b}" for a, b in against_the_order(edges)]
    lines.append(f"against the order: {', '.join(wrong) or 'none'}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2]))
