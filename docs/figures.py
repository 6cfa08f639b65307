"""Draw docs/images/tree-mask.svg: a tree, and which row of its step sees what.

    python docs/figures.py

The rows, and what they see, are taken from the runtime's own layout of the step.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from bita.runtime.backends.layout import Layout, tree_layout
from bita.tree import Tree

OUT = Path(__file__).parent / "images" / "tree-mask.svg"
INK, PALE, NODE, MASK, CACHED = "#1f3b57", "#eef2f6", "#3f6d99", "#d98b3a", "#8aa4bd"
NUM_PREFIX, NUM_TEXT = 3, 4  # cached columns that are drawn
TREE = Tree.from_paths([[1], [1, 1], [2]], num_masks=2)


def row_names(tree: Tree) -> list[str]:
    """Return the names of all rows in order: root, nodes by their ranks, masks after their node."""
    nodes = ["root", *(",".join(map(str, path)) for path in tree.paths[1:])]
    masks = [
        f"m{index} after {nodes[node]}"
        for node, count in enumerate(tree.num_masks)
        for index in range(count)
    ]
    return nodes + masks


def draw_tree(axes: Axes, tree: Tree) -> None:
    """Draw nodes with the masks after them; the spine is on top."""
    places: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, 0.0)}
    for path in tree.paths[1:]:
        x, y = places[path[:-1]]
        places[path] = (x + 1.5, y - 1.5 * (path[-1] - 1))
    for path, (x, y) in places.items():
        if path:
            (from_x, from_y), color = places[path[:-1]], INK
            axes.plot([from_x, x], [from_y, y], color=color, lw=1.2, zorder=1)
        for index in range(tree.num_masks[tree.paths.index(path)]):
            axes.plot([x, x + 0.42 * (index + 1)], [y, y - 0.55], color=MASK, lw=0.8, zorder=1)
            x_mask = x + 0.42 * (index + 1)
            axes.text(x_mask, y - 0.62, f"m{index}", ha="center", va="top", fontsize=8, color=MASK)
        name = ",".join(map(str, path)) or "root"
        box = {"boxstyle": "round,pad=0.35", "fc": NODE, "ec": "none"}
        axes.text(x, y, name, ha="center", va="center", fontsize=9, color="white", bbox=box)
    axes.set(xlim=(-0.6, 4.4), ylim=(-3.2, 0.8))
    axes.set_title("The tree: nodes hold drafts, masks make the next", fontsize=10, color=INK)
    axes.axis("off")


def draw_mask(axes: Axes, layout: Layout, names: list[str]) -> None:
    """Draw a line for each row, and a column for everything that it may see."""
    rows = layout.num_rows
    prefix = np.repeat(layout.sees_prefix[:, None], NUM_PREFIX, axis=1)
    seen = np.hstack([prefix, np.ones((rows, NUM_TEXT), np.bool_), layout.sees])
    colors = [CACHED] * (NUM_PREFIX + NUM_TEXT)
    colors += [MASK if mask >= 0 else NODE for mask in layout.mask_index]
    for row, column in np.ndindex(*seen.shape):
        color = colors[column] if seen[row, column] else PALE
        axes.add_patch(Rectangle((column, row), 0.9, 0.9, color=color, lw=0))
    heads = [*["prefix"] * NUM_PREFIX, *["text"] * NUM_TEXT, *names]
    axes.set_xticks(np.arange(seen.shape[1]) + 0.45, heads, rotation=90, fontsize=8)
    axes.set_yticks(np.arange(rows) + 0.45, names, fontsize=8)
    axes.set(xlim=(0, seen.shape[1]), ylim=(rows, 0), aspect="equal")
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("sees (filled)", fontsize=9, color=INK)


def two_panels(size: tuple[float, float], ratios: tuple[float, float]) -> tuple[Axes, Axes]:
    """Return the axes of a new figure of `size` inches, whose widths have these ratios."""
    mpl.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "bita", "font.family": "sans-serif"}
    )
    left, right = Figure(figsize=size, layout="constrained").subplots(1, 2, width_ratios=ratios)
    return left, right


def save(axes: Axes, out: Path) -> None:
    """Write the figure of `axes` as SVG, the same bytes each time."""
    out.parent.mkdir(exist_ok=True)
    FigureCanvasSVG(axes.get_figure(root=True)).print_svg(out, metadata={"Date": None})


def draw(out: Path = OUT) -> None:
    """Write the figure."""
    left, right = two_panels((11, 5.2), (1, 1.5))
    draw_tree(left, TREE)
    draw_mask(right, tree_layout(TREE, 1), row_names(TREE))
    save(left, out)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
