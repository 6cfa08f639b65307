"""Flags of commands that compile plans for GPUs."""

import argparse
import re
import sys
from typing import TYPE_CHECKING

from bita.dialect_spec import NATIVE, dialects_on
from bita.errors import EngineError, LibraryMissingError
from bita.plan import BACKENDS, LIBRARIES

if TYPE_CHECKING:
    from bita.export.tensorrt.compile_engine import CompileOptions


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --target, --rows and --force."""
    parser.add_argument(
        "--target",
        help="GPU generations of a tensorrt-rtx plan, such as sm86,sm89,sm120 (default); tensorrt "
        "always compiles for the GPU of this machine",
    )
    parser.add_argument(
        "--rows",
        help="sizes of a decode step in a plan, such as 2,16,32; default: those of plain decoding "
        "and of the engine's trees",
    )
    parser.add_argument(
        "--force", action="store_true", help="compile a plan even if memory or disk seem too small"
    )


def read_compile_options(args: argparse.Namespace) -> "CompileOptions | None":
    """Return the checked options; None for a backend without plans. Raises EngineError."""
    if args.backend not in BACKENDS:
        raise EngineError(f"backend {args.backend!r} is not one of {', '.join(BACKENDS)}")
    if args.backend not in LIBRARIES:
        given = [name for name in ("target", "rows") if getattr(args, name)]
        if given:
            plans = " or ".join(LIBRARIES)
            raise EngineError(f"--{given[0]} is for --backend {plans}, not {args.backend}")
        return None
    from bita.export.tensorrt.compile_engine import CompileOptions

    targets = tuple(args.target.split(",")) if args.target else None
    options = CompileOptions(args.backend, targets, _rows(args.rows), args.force)
    options.check()
    return options


def default_dialect(
    backend: str, precision: str, compile_options: "CompileOptions | None" = None
) -> str:
    """Return the dialect of a graph for which the user named none.

    Quantized engines for a CPU get the native one. If its library cannot be loaded, a line on
    stderr says why and what that costs.
    """
    if compile_options:
        return compile_options.default_dialect()
    from bita.runtime.native.library import loaded_operators

    known = dialects_on(backend)
    if NATIVE.name in known and precision in NATIVE.precisions:
        try:
            loaded_operators()
            return NATIVE.name
        except LibraryMissingError as error:
            print(f"bita: {error}", file=sys.stderr)
    return known[0]


def _rows(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise EngineError(f"--rows {text!r} is not a list of sizes; give one such as 2,16,32")
    return tuple(sorted({int(size) for size in text.split(",")}))
