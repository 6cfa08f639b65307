"""Checks of an engine's files against the manifest's table: names, kinds, sizes and hashes."""

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from bita.json_values import shown

MAX_FILES = 1000  # an engine has about ten
MAX_NAME_BYTES = 255  # for a file's name, on all common file systems
NO_NAME = re.compile(r"[/\\\0]")  # characters that turn a name into a path, here or elsewhere
SHA256 = re.compile(r"[0-9a-f]{64}")


def table_faults(files: Any) -> list[str]:
    """Return what is wrong with the manifest's table of files; empty if nothing is."""
    if not isinstance(files, dict):
        return [f"files is {shown(files)}, not a table of files"]
    if len(files) > MAX_FILES:
        return [f"files lists {len(files)} files; an engine has at most {MAX_FILES}"]
    faults = [name_fault(name) or _entry_fault(name, entry) for name, entry in files.items()]
    return [fault for fault in faults if fault]


def name_fault(name: str) -> str | None:
    """Return why this cannot be the name of a file in the engine's directory; None if it can."""
    if name in ("", ".", "..") or NO_NAME.search(name) or Path(name).name != name:
        return f"files: {shown(name)} points out of the engine, or is not the name of a file"
    try:
        num_bytes = len(os.fsencode(name))
    except UnicodeEncodeError:
        return f"files: {shown(name)} is not the name of a file"
    if num_bytes > MAX_NAME_BYTES:
        return f"files: {shown(name)} is too long for the name of a file"
    return None


def file_fault(path: Path, entry: Mapping[str, Any], check_hash: bool, fix: str) -> str | None:
    """Return why a file does not match its entry, which was checked; None if it does.

    Only regular files and links to them are opened: reading a pipe may block forever.
    """
    name = path.name
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{name} is not a regular file; copy the whole directory or {fix}"
        if status.st_size != entry["bytes"]:
            return (
                f"{name} has {status.st_size} bytes, not {entry['bytes']}; copy it again or {fix}"
            )
        if check_hash and sha256(path) != entry["sha256"]:
            return f"{name} is damaged (sha256 differs); copy it again or {fix}"
    except FileNotFoundError:
        return f"{name} is missing; copy the whole directory or {fix}"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error}); copy it again or {fix}"
    return None


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return sha256_of(file)


def sha256_of(file: BinaryIO) -> str:
    """Return the hex digest of the rest of an open file."""
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _entry_fault(name: str, entry: Any) -> str | None:
    size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (0, 0)
    if type(size) is int and size >= 0 and isinstance(digest, str) and SHA256.fullmatch(digest):
        return None
    return f"files: entry of {shown(name)} is {shown(entry)}, not its size and sha256"
