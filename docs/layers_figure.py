"""Draw docs/images/architecture.svg: the folders in layers, and which one imports which.

    python docs/layers_figure.py

Layers are read from the import contract in pyproject.toml, the sentences from the folders'
docstrings, and the imports from the code.
"""

import ast
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grimp
from figures import save, two_panels
from importlinter.api import read_configuration
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "images" / "architecture.svg"
INK, PALE, BAND, DOT = "#1f3b57", "#eef2f6", "#f7f9fb", "#3f6d99"
FOLDERS = {"bita.export": "export", "bita.runtime": "runtime", "bita.calibration": "calibration"}


@dataclass(frozen=True)
class Box:
    """A folder, or the modules of a folder that make layers of their own."""

    name: str  # as the repository has it, such as runtime/decoding/
    sentence: str  # the first one of its docstring
    members: tuple[str, ...]  # modules and packages, as they are imported
    layer: int  # 0 is the top


def read_boxes() -> list[Box]:
    """Return the boxes from top to bottom."""
    contracts = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    layers = next(each["layers"] for each in contracts if each["type"] == "layers")
    groups: list[tuple[str, int, list[str]]] = []  # package, its first layer, members
    for number, layer in enumerate(layers):
        for member in re.split(r"\s*[|:]\s*", layer):
            package = member if _folder(member).is_dir() else member.rpartition(".")[0]
            last = groups[-1] if groups else None
            if last and last[0] == package:
                last[2].append(member)
            else:
                groups.append((package, number, [member]))
    boxes = []
    for package, first_layer, members in groups:
        name = f"{_folder(package).relative_to(ROOT)}/"
        sentence = _sentence(members[0] if len(members) == 1 else package)
        if members != [package] and package != "bita":
            name += " " + ", ".join(each.rpartition(".")[2] for each in members)
        boxes.append(Box(name, sentence, tuple(members), first_layer))
    return boxes


def _folder(module: str) -> Path:
    """Return the path that a package has in the repository."""
    for package, folder in FOLDERS.items():
        if module == package or module.startswith(f"{package}."):
            return ROOT / folder / module.removeprefix(package).lstrip(".").replace(".", "/")
    return ROOT / module.replace(".", "/")


def _sentence(module: str) -> str:
    folder = _folder(module)
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = path.read_text(encoding="utf-8")
    first = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    return " ".join(first.replace("`", "").split())


def find_imports(boxes: Sequence[Box]) -> set[tuple[int, int]]:
    """Return the pairs (importer, imported) of indices in `boxes`."""
    graph = grimp.build_graph("bita")

    def index_of(module: str) -> int | None:
        found = [
            (len(member), index)
            for index, box in enumerate(boxes)
            for member in box.members
            if module == member or module.startswith(f"{member}.")
        ]
        return max(found)[1] if found else None

    pairs = set()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            source, target = index_of(module), index_of(imported)
            if source is not None and target is not None and source != target:
                pairs.add((source, target))
    return pairs


def draw_boxes(axes: Axes, boxes: Sequence[Box]) -> None:
    """Draw a line for each box: its name and its sentence, on a band for each layer."""
    for row, box in enumerate(boxes):
        if box.layer % 2:
            axes.add_patch(Rectangle((0, row), 1, 1, color=BAND, lw=0))
        axes.add_patch(Rectangle((0.005, row + 0.08), 0.99, 0.84, color=PALE, lw=0))
        name = "\n".join(textwrap.wrap(box.name, 34))
        axes.text(0.02, row + 0.5, name, va="center", fontsize=8.5, color=INK, weight="bold")
        sentence = "\n".join(textwrap.wrap(box.sentence, 62))
        axes.text(0.37, row + 0.5, sentence, va="center", fontsize=8.5, color=INK)
    axes.set(xlim=(0, 1), ylim=(len(boxes), 0))
    axes.axis("off")


def draw_imports(axes: Axes, boxes: Sequence[Box], pairs: set[tuple[int, int]]) -> None:
    """Draw a dot where the box of the row imports the box of the column."""
    for row in range(len(boxes)):
        for column in range(len(boxes)):
            color = DOT if (row, column) in pairs else PALE
            if row == column:
                color = "#ccd6df"
            axes.add_patch(Rectangle((column + 0.06, row + 0.08), 0.88, 0.84, color=color, lw=0))
    heads = ["/".join(box.name.split("/ ")[:2]).partition(",")[0] for box in boxes]
    axes.set_xticks([column + 0.5 for column in range(len(boxes))], heads, rotation=90, fontsize=8)
    axes.set(xlim=(0, len(boxes)), ylim=(len(boxes), 0), yticks=[])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("filled: the row imports the column", fontsize=9, color=INK)


def draw(out: Path = OUT) -> None:
    """Write the figure."""
    boxes = read_boxes()
    left, right = two_panels((12, 0.5 * len(boxes) + 1.6), (1.7, 1))
    draw_boxes(left, boxes)
    draw_imports(right, boxes, find_imports(boxes))
    save(left, out)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
