"""The command line `bita`: parsing, and how errors reach the user.

Exit status: 0 done, 1 a check failed (`bita verify`), 2 an error, 130 interrupted.
"""

import argparse
import io
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib import import_module

from bita import __version__
from bita.errors import BitaError, MissingExtraError

# The extra that brings a module; what is not named here is a fault of the installation.
EXTRAS = {
    **dict.fromkeys(("gguf", "huggingface_hub", "onnx_ir"), "export"),
    **dict.fromkeys(("torch", "transformers", "accelerate"), "tune"),
    "bitsandbytes": "bnb",
    "plotly": "profile",
    **dict.fromkeys(("starlette", "uvicorn", "pydantic", "prometheus_client"), "serve"),
}
LAUNCHER_S = 10.0  # by then a launcher has ended the processes beside one that failed
COMMANDS = (
    *("engine", "compile", "generate", "chat", "serve"),
    *("verify", "inspect", "profile", "calibrate", "adapter", "tune"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    with _told_once():
        args = _parser().parse_args(argv)
    if args.debug:
        return int(args.run(args))
    try:
        return int(args.run(args))
    except BrokenPipeError:
        return 0  # the reader has seen enough, as `head` does
    except KeyboardInterrupt:
        with _told_once():
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
    with _told_once():
        print(f"bita: error: {on_one_line(str(error) or repr(error))}", file=sys.stderr)
    return 2


@contextmanager
def _told_once() -> Iterator[None]:
    """Let one of several launched processes tell an error that all of them meet.

    The main one tells it at once. Another keeps it until the launcher, having seen the main one
    fail, ends it; what it still tells then is an error of its own.
    """
    if os.environ.get("LOCAL_RANK") is None or os.environ.get("RANK", "0") == "0":
        yield
        return
    kept = io.StringIO()
    try:
        with redirect_stderr(kept):
            yield
    finally:
        if kept.getvalue():
            time.sleep(LAUNCHER_S)
            sys.stderr.write(kept.getvalue())


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
