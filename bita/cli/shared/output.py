"""Standard output: one JSON object for scripts, or tables that fit where they are printed."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bita.json_values import printable

DIGITS = 6  # of fractions in JSON, more than any measurement has
GAP = "  "  # between the columns of a table that is not for a terminal


def add_json(parser: argparse.ArgumentParser, contents: str) -> None:
    """Add --json, which `json_report` implements."""
    parser.add_argument(
        "--json",
        action="store_true",
        help=f"print {contents} as one JSON object on one line and nothing else",
    )


@contextmanager
def json_report(wanted: bool) -> Iterator[dict[str, Any]]:
    """Yield an object for the block to fill, and print it at the end if it is `wanted`.

    It is then the only line on standard output, since everything that the block prints goes to
    standard error. If the block fails, standard output stays empty.
    """
    report: dict[str, Any] = {}
    if not wanted:
        yield report
        return
    with redirect_stdout(sys.stderr):
        yield report
    # in ASCII, so that the line is valid JSON in any encoding that standard output may have
    print(json.dumps(as_json(report), allow_nan=False), flush=True)


def as_json(value: Any) -> Any:
    """Return `value` with dataclasses as objects and paths as text.

    Fractions are rounded to DIGITS significant digits. NaN and infinity, which JSON lacks, become
    null.
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): as_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def print_table(
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    title: str = "",
    caption: str = "",
    boxed: bool = True,
) -> None:
    """Print a table: drawn and wrapped to fit on a terminal, else one record per line.

    Args:
        header: Names of the columns; empty for a table without a header.
        rows: Cells of each record. Control characters in them are escaped.
        title: A line above the table.
        caption: A line below the table.
        boxed: Whether a terminal gets lines around the cells.
    """
    cells = [[printable(str(cell)) for cell in row] for row in rows]
    if is_terminal(sys.stdout):
        Console().print(_drawn(header, cells, title, caption, boxed))
        return
    lines = [printable(title)] if title else []
    lines += _aligned([list(header), *cells] if header else cells)
    print(*lines, *([printable(caption)] if caption else []), sep="\n")


def is_terminal(stream: Any) -> bool:
    """Whether people read `stream` on a terminal."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # it was closed, before or after the start
        return False


def _drawn(
    header: Sequence[str], rows: list[list[str]], title: str, caption: str, boxed: bool
) -> Table:
    """Return a rich table; `Text` keeps rich from reading markup in the cells."""
    look: dict[str, Any] = {} if boxed else {"box": None, "pad_edge": False}
    table = Table(
        title=Text(printable(title)) if title else None,
        caption=Text(printable(caption)) if caption else None,
        title_justify="left",
        caption_justify="left",
        show_header=bool(header),
        **look,
    )
    for name in header or rows[0]:
        table.add_column(Text(name) if header else "")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return a line for each row, its cells padded to the width of their columns."""
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return [
        GAP.join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]
