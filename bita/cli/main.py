"""The command line `bita`: parsing, and how errors reach the user.

Exit status: 0 done, 1 a check failed (`bita verify`), 2 an error, 130 interrupted.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from importlib import import_module

from bita import __version__
from bita.errors import BitaError, MissingExtraError
from bita.json_values import printable
from bita.tuning.launcher import report_once

# The extra that brings a module; what is not named here is a fault of the installation.
EXTRAS = {
    **dict.fromkeys(("gguf", "huggingface_hub", "onnx_ir"), "export"),
    **dict.fromkeys(("torch", "transformers", "accelerate"), "tune"),
    "bitsandbytes": "bnb",
    "plotly": "profile",
    **dict.fromkeys(("starlette", "uvicorn", "pydantic", "prometheus_client"), "serve"),
}
COMMANDS = (
    *("engine", "compile", "generate", "chat", "serve"),
    *("verify", "inspect", "profile", "calibrate", "adapter", "tune"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    with report_once():
        args = _parser().parse_args(argv)
    if args.debug:
        return int(args.run(args))
    try:
        return int(args.run(args))
    except BrokenPipeError:
        return 0  # the reader has seen enough, as `head` does
    except KeyboardInterrupt:
        with report_once():
            print("bita: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        return _fail(MissingExtraError(f"`bita {args.command}`", EXTRAS[package]))
    except (BitaError, OSError, MemoryError) as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    with report_once():
        message = printable(on_one_line(str(error) or repr(error)))
        print(f"bita: error: {message}", file=sys.stderr)
    return 2


def on_one_line(message: str) -> str:
    """A message with a list of faults, as one line."""
    message = re.sub(r":\n\s*- ", ": ", message.strip())
    return " ".join(re.sub(r"\n\s*- ", "; ", message).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bita",
        description="Put BiTA-accelerated language models on edge devices.",
        epilog="`bita COMMAND --help` shows an example of each.",
    )
    parser.add_argument("--version", action="version", version=f"bita-edge {__version__}")
    parser.set_defaults(debug=False)
    subparsers = parser.add_subparsers(
        title="commands", metavar="COMMAND", dest="command", required=True
    )
    for name in COMMANDS:
        import_module(f"bita.cli.{name}").add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
