"""`bita serve`: an engine behind OpenAI's HTTP interface."""

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
SHUTDOWN_SECONDS = 5  # for the answer that is being given
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


def add_parser(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "serve",
        "answer OpenAI's clients over HTTP",
        "bita serve engines/smollm2-135m-instruct-int4 --port 8000",
    )
    add_session(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (this machine)")
    parser.add_argument("--port", type=_port, default=8000, help="0: any that is free")
    parser.add_argument(
        "--model-name",
        type=text,
        action="append",
        default=[],
        help="that clients ask for, may be given several times; default: the engine's folder",
    )
    parser.add_argument(
        "--api-key-file", type=Path, help=f"file of the key; default: the variable {KEY_VARIABLE}"
    )
    parser.add_argument(
        "--no-api-key", action="store_true", help="let other machines in without a key"
    )
    parser.add_argument(
        "--allow-origin", action="append", default=[], help="of web pages that may use it"
    )
    parser.add_argument(
        "--allow-host",
        type=text,
        action="append",
        default=[],
        help="name in the Host header to answer to, beside those of this machine; * for any",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--queue", type=not_negative, default=32, help="requests in line; more are told 429"
    )
    limits.add_argument(
        "--parallel", type=positive, default=32, help="answers given at once, which share steps"
    )
    limits.add_argument(
        "--answer-tokens",
        type=positive,
        default=1024,
        help="the most of an answer whose request names no limit",
    )
    limits.add_argument(
        "--max-connections", type=positive, default=256, help="at once; idle ones make room"
    )
    limits.add_argument("--request-seconds", type=float, default=600.0, help="waiting included")
    limits.add_argument("--max-body-bytes", type=positive, default=1 << 20)
    limits.add_argument("--max-messages", type=positive, default=256)
    limits.add_argument(
        "--kept-text-mb",
        type=not_negative,
        default=256,
        help="host memory for conversations that are not in the cache",
    )
    add_sampling(parser, default="what the model's authors recommend, else temperature 1")
    parser.set_defaults(run=run)


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
    """Names that the server answers to: any, unless it listens to this machine or names are given.

    Raises PromptError for what cannot be a name in a Host header.
    """
    for name in allowed:
        if "/" in name or " " in name or (":" in name and not name.startswith("[")):
            raise PromptError(
                f"--allow-host {name!r} is not a host's name: leave out scheme, port and path, as "
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
    """The key of a file, or of the environment; None for none."""
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        with path.open("rb") as file:  # a pipe too, from a program that keeps keys
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
    """A bound socket; before the engine is loaded, so that a wrong port is told at once."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        # asyncio sends without delay only where a socket says that it is TCP
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise EngineError(
            f"cannot listen at {host} port {port}: {error}; give another --host or --port"
        ) from error
    return listener


def _logging() -> dict[str, Any]:
    """One line for each answer, and what the HTTP server has to say."""
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
