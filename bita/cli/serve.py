"""`bita serve`: an engine as a server with OpenAI's HTTP interface."""

import argparse
import ipaddress
import os
import socket
from pathlib import Path
from typing import Any

from bita.cli.shared.answers import add_sampling, add_session, open_session, sampling_of
from bita.cli.shared.flags import add_command, not_negative, positive, text
from bita.errors import EngineError, PromptError

KEY_VARIABLE = "BITA_API_KEY"
MAX_KEY_BYTES = 1000
SHUTDOWN_SECONDS = 5  # time that answers in progress get to finish
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "serve",
        "serve an engine over HTTP to clients of OpenAI's interface",
        "bita serve engines/smollm2-135m-instruct-int4 --port 8000",
        stdout="one line with the address, once it accepts requests; the log goes to standard "
        "error",
    )
    add_session(parser)
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default 127.0.0.1: this machine only)",
    )
    parser.add_argument(
        "--port", type=_port, default=8000, help="port (default 8000); 0: any free one"
    )
    parser.add_argument(
        "--model-name",
        type=text,
        action="append",
        default=[],
        help="model name that clients ask for, repeatable; default: the engine's directory",
    )
    _add_access(parser)
    _add_limits(parser)
    add_sampling(parser, default="what the model's authors recommend, otherwise temperature 1")
    parser.set_defaults(run=run)


def _add_access(parser: argparse.ArgumentParser) -> None:
    """Add the flags that decide who may send requests."""
    parser.add_argument(
        "--api-key-file",
        type=Path,
        help=f"file with the API key; default: the environment variable {KEY_VARIABLE}",
    )
    parser.add_argument(
        "--no-api-key", action="store_true", help="accept requests of other machines without a key"
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        help="origin of web pages that may send requests, repeatable",
    )
    parser.add_argument(
        "--allow-host",
        type=text,
        action="append",
        default=[],
        help="name in the Host header to answer to besides those of this machine, repeatable; "
        "* for any",
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the flags that bound what clients can use."""
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--queue",
        type=not_negative,
        default=32,
        help="requests that wait (default 32); more get status 429",
    )
    limits.add_argument(
        "--parallel",
        type=positive,
        default=32,
        help="answers at the same time (default 32), which share steps",
    )
    limits.add_argument(
        "--answer-tokens",
        type=positive,
        default=1024,
        help="limit of an answer whose request names none (default 1024)",
    )
    limits.add_argument(
        "--max-connections",
        type=positive,
        default=256,
        help="open connections (default 256); new ones close idle ones",
    )
    limits.add_argument(
        "--request-seconds",
        type=float,
        default=600.0,
        help="longest time of a request, waiting included (default 600)",
    )
    limits.add_argument(
        "--max-body-bytes", type=positive, default=1 << 20, help="largest request (default 1 MiB)"
    )
    limits.add_argument(
        "--max-messages",
        type=positive,
        default=256,
        help="longest conversation in a request (default 256)",
    )
    limits.add_argument(
        "--kept-text-mb",
        type=not_negative,
        default=256,
        help="host memory for conversations outside the KV cache (default 256)",
    )


def run(args: argparse.Namespace) -> int:
    from bita.runtime.options import MAX_TIMEOUT_S
    from bita.runtime.serving.app import Server
    from bita.runtime.serving.connections import (
        AnnouncedServer,
        ConnectionLimits,
        server_config,
    )
    from bita.runtime.serving.settings import ServerSettings

    key = _api_key(args.api_key_file)
    is_local = _is_loopback(args.host)
    if not is_local and not key and not args.no_api_key:
        raise PromptError(
            f"--host {args.host} lets other machines in: set {KEY_VARIABLE}, give --api-key-file, "
            "or say --no-api-key"
        )
    if not 0 < args.request_seconds <= MAX_TIMEOUT_S:
        raise PromptError(
            f"--request-seconds is {args.request_seconds:g}; give a number above 0, up to "
            f"{MAX_TIMEOUT_S:g}"
        )
    listener = open_listener(args.host, args.port)
    session = open_session(args, keep_answers=True, kept_text_bytes=args.kept_text_mb << 20)
    names = args.model_name or [args.engine.absolute().name]
    settings = ServerSettings(
        model_name=names[0],
        other_names=names[1:],
        api_key=key,
        num_waiting=args.queue,
        num_running=args.parallel,
        answer_tokens=args.answer_tokens,
        max_body_bytes=args.max_body_bytes,
        max_messages=args.max_messages,
        request_seconds=args.request_seconds,
        allowed_hosts=_hosts(args.allow_host, is_local),
        allowed_origins=args.allow_origin,
        defaults={"temperature": 1.0, **session.sampling, **sampling_of(args)},
    )
    server = Server(session, settings)
    host, port = listener.getsockname()[:2]
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    limits = ConnectionLimits(num_connections=args.max_connections)
    config = server_config(
        server.app, limits, log_config=_logging(), timeout_graceful_shutdown=SHUTDOWN_SECONDS
    )
    line = (
        f"{', '.join(settings.names)} at http://{place}/v1, a page to chat at http://{place}/ "
        "(Ctrl-C ends it)"
    )
    AnnouncedServer(config, line).run(sockets=[listener])
    return 0


def _hosts(allowed: list[str], is_local: bool) -> list[str]:
    """Return the names that the server answers to; "*" for any.

    Any name is allowed where the server listens to other machines and no names are given. Raises
    PromptError for a text that cannot be in a Host header.
    """
    for name in allowed:
        if "/" in name or " " in name or (":" in name and not name.startswith("[")):
            raise PromptError(
                f"--allow-host {name!r} is not a host name: leave out scheme, port and path, as "
                "in --allow-host host.docker.internal"
            )
    if not is_local and not allowed:
        return ["*"]
    return [*LOOPBACK_NAMES, *allowed]


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{number} is not a port; give 0 to 65535")
    return number


def _api_key(path: Path | None) -> str | None:
    """Read the key from a file or from the environment; None without either."""
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        with path.open("rb") as file:  # also a pipe, from a program that keeps keys
            key = file.read(MAX_KEY_BYTES + 1).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"cannot read the API key from {path}: {error}") from error
    if not key:
        raise PromptError(f"{path} is empty; write the API key into it")
    if len(key) > MAX_KEY_BYTES or not key.isprintable():
        raise PromptError(
            f"{path} does not hold a key: write one line of at most {MAX_KEY_BYTES} characters"
        )
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_listener(host: str, port: int) -> socket.socket:
    """Return a bound socket, opened before the engine, so that a wrong port fails at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        # asyncio disables send delays only on sockets that are explicitly TCP
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise EngineError(
            f"cannot listen at {host} port {port}: {error}; give another --host or --port"
        ) from error
    return listener


def _logging() -> dict[str, Any]:
    """Return the log settings: a line per answer, and warnings of the HTTP server."""
    from bita.runtime.serving.log_lines import LogLines

    handler = {"class": "logging.StreamHandler", "formatter": "line"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": LogLines}},
        "handlers": {"stderr": handler},
        "loggers": {
            "bita": {"handlers": ["stderr"], "level": "INFO"},
            "uvicorn": {"handlers": ["stderr"], "level": "WARNING"},
            "asyncio": {"handlers": ["stderr"], "level": "WARNING"},
        },
    }
