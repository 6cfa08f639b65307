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

# The extra that brings a module; what is not named here is a fault of the installation.
EXTRAS = {
    **dict.fromkeys(("gguf", "huggingface_hub", "onnx_ir"), "export"),
    **dict.fromkeys(("torch", "transformers"), "tune"),
}
COMMANDS = ("engine", "generate", "verify", "inspect", "adapter", "tune")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    args = _parser().parse_args(argv)
    if args.debug:
        return int(args.run(args))
    try:
        return int(args.run(args))
    except BrokenPipeError:
        return 0  # the reader has seen enough, as `head` does
    except KeyboardInterrupt:
        print("bita: interrupted", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        return _fail(MissingExtraError(f"`bita {args.command}`", EXTRAS[error.name]))
    except (BitaError, OSError, MemoryError) as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    print(f"bita: error: {on_one_line(str(error) or repr(error))}", file=sys.stderr)
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
        import_module(f"bita.commands.{name}").add_parser(subparsers)
    return parser


if __name__ == "__main__":
    sys.exit(main())
