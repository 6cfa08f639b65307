"""The command line `bita`: parsing, and reporting of errors.

Exit status: 0 done, 1 a check failed (`bita verify`, `bita generate --compare`), 2 an error,
130 interrupted.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from bita import __version__
from bita.cli.shared.flags import CommandParser
from bita.cli.shared.streams import flush_or_discard, prepare_streams, reader_is_gone
from bita.errors import MAX_MESSAGE, BitaError, MissingExtraError
from bita.json_values import printable
from bita.tuning.launcher import report_once

# The extra that installs a module. A missing module that is not listed is a broken installation.
EXTRAS = {
    **dict.fromkeys(("gguf", "huggingface_hub", "onnx_ir"), "export"),
    **dict.fromkeys(("torch", "transformers", "accelerate"), "tune"),
    "bitsandbytes": "bnb",
    "plotly": "profile",
    **dict.fromkeys(("starlette", "uvicorn", "pydantic", "prometheus_client"), "serve"),
}
COMMANDS = (
    *("engine", "compile", "generate", "chat", "serve"),
    *("verify", "inspect", "profile", "calibrate", "adapter", "tune", "completion"),
)

EPILOG = """\
`bita COMMAND --help` shows an example and says what goes to standard output.
Flags cannot be abbreviated.

example:
  bita generate engines/smollm2-135m-instruct-int4 "Why is the sky blue?\""""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    prepare_streams()
    args = None
    try:
        with report_once():
            args = command_parser().parse_args(argv)
        status = int(args.run(args))
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except BaseException as error:
        if args is not None and args.debug:
            raise
        return _status_of(error, args)
    finally:
        flush_or_discard()


def _status_of(error: BaseException, args: argparse.Namespace | None) -> int:
    """Report an error on one line and return the exit status. SystemExit is raised again."""
    if isinstance(error, BrokenPipeError) and reader_is_gone():
        return 0  # the reader, such as `head`, has read enough
    if isinstance(error, KeyboardInterrupt):
        report("bita: interrupted")
        return 130
    if isinstance(error, SystemExit):
        raise error
    if isinstance(error, ModuleNotFoundError) and args is not None:
        package = (error.name or "").split(".")[0]
        if package in EXTRAS:
            error = MissingExtraError(f"`bita {args.command}`", EXTRAS[package])
    text = str(error) or repr(error)
    if not isinstance(error, (BitaError, OSError)):
        text = f"{type(error).__name__}: {text}; --debug shows where it was raised"
    report(f"bita: error: {on_one_line(text)}")
    return 2


def report(line: str) -> None:
    """Print to standard error, unless its reader is gone."""
    with report_once(), suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def on_one_line(message: str) -> str:
    """Join a message with a list of faults into one line of bounded length."""
    message = re.sub(r":\n\s*- ", ": ", message[: 2 * MAX_MESSAGE].strip())
    line = " ".join(re.sub(r"\n\s*- ", "; ", message).split())
    return printable(line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}...")


def command_parser() -> CommandParser:
    """Return the parser of all commands."""
    parser = CommandParser(
        prog="bita",
        description="Put BiTA-accelerated language models on edge devices.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
