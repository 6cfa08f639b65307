"""Find ONNX Runtime's C headers, or download them, and print their folder.

    python headers.py

The search order is: $ONNXRUNTIME_INCLUDE_DIR; the system's include folders; the cache
($XDG_CACHE_HOME/bita-edge, or ~/.cache/bita-edge); Debian's package libonnxruntime-dev from the
system's own sources; the same package from Debian 13; the official release archive. A download
takes seconds and is kept in the cache. Nothing is installed, and no system file is changed. If
everything fails, each reason is printed on stderr and the exit status is 1. Needs only the standard
library.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

HEADER = "onnxruntime_c_api.h"
INTERFACE_VERSION = 21  # API version that the library requests of ONNX Runtime (CMakeLists.txt)
RELEASE = "1.21.0"  # the first with that version; later runtimes accept libraries built with it
SYSTEM_FOLDERS = (
    "/usr/include/onnxruntime",
    "/usr/include/onnxruntime/core/session",
    "/usr/local/include/onnxruntime",
    "/usr/local/include/onnxruntime/core/session",
    "/usr/local/include",
    "/opt/homebrew/include/onnxruntime",
)
PACKAGE = "libonnxruntime-dev"
KEYRINGS = [Path(f"/usr/share/keyrings/debian-archive-keyring.{kind}") for kind in ("gpg", "pgp")]
SUITE = "trixie"  # Debian 13, the first that has the package
ARCHIVE = f"onnxruntime-linux-x64-{RELEASE}.tgz"  # the headers are the same for all platforms
ARCHIVE_URL = f"https://github.com/microsoft/onnxruntime/releases/download/v{RELEASE}/{ARCHIVE}"
ARCHIVE_SHA256 = "7485c7e7aac6501b27e353dcbe068e45c61ab51fbaf598d13970dfae669d20bf"
MAX_SECONDS = 60  # for one download, which takes 1 to 3


class HeadersError(Exception):
    """Raised if one source does not provide the headers; the message gives the reason."""


def find_headers() -> Path:
    """Return the folder of the headers, and download them first if there is none.

    Raises:
        HeadersError: with every reason, if they cannot be found or downloaded.
    """
    given = os.environ.get("ONNXRUNTIME_INCLUDE_DIR")
    if given:
        _check(Path(given))
        return Path(given).absolute()
    for folder in (*map(Path, SYSTEM_FOLDERS), cached_folder()):
        if _fault(folder) is None:
            return folder
    return _download()


def cached_folder() -> Path:
    """Return the folder for downloaded headers."""
    return cached(f"onnxruntime-{RELEASE}") / "include"


def cached(name: str) -> Path:
    """Return the folder with this name for downloads."""
    base = os.environ.get("XDG_CACHE_HOME")
    cache = Path(base) if base else Path.home() / ".cache"
    return cache / "bita-edge" / name


def _fault(folder: Path) -> str | None:
    """Return why these headers are not usable, or None if they are."""
    try:
        text = (folder / HEADER).read_text(encoding="utf-8")
    except OSError:
        return f"{folder} has no {HEADER}"
    version = re.search(r"^#define ORT_API_VERSION (\d+)", text, flags=re.MULTILINE)
    if version is None or int(version[1]) < INTERFACE_VERSION:
        found = version[1] if version else "unknown"
        return f"{folder / HEADER} has interface {found}; {INTERFACE_VERSION} or later is needed"
    return None


def _check(folder: Path) -> None:
    fault = _fault(folder)
    if fault:
        raise HeadersError(fault)


def _download() -> Path:
    sources: dict[str, Callable[[Path], Path]] = {
        f"{PACKAGE} of this system": _from_system_package,
        f"{PACKAGE} of Debian 13": _from_debian_package,
        ARCHIVE_URL: _from_archive,
    }
    reasons = []
    for name, fetch in sources.items():
        try:
            with tempfile.TemporaryDirectory() as work:
                folder = fetch(Path(work))
                _check(folder)
                return _keep(folder)
        except (HeadersError, OSError, tarfile.TarError) as error:
            reasons.append(f"{name}: {error}")
    raise HeadersError("; ".join(reasons))


def _keep(folder: Path) -> Path:
    """Copy the headers into the cache, and allow for another process that does the same."""
    kept = cached_folder()
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as partial:
        copy = Path(partial) / "include"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("core"))
        if _fault(kept) is not None:
            shutil.rmtree(kept, ignore_errors=True)
            _rename(copy, kept)
    return kept


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        _check(target)  # another process was faster


def _from_system_package(work: Path) -> Path:
    return _headers_of_package(work, [])


def _from_debian_package(work: Path) -> Path:
    return _headers_of_package(work, debian_options(work, SUITE))


def _headers_of_package(work: Path, options: list[str]) -> Path:
    download_packages(work, [PACKAGE], options)
    return work / "package" / "usr" / "include" / "onnxruntime"


def debian_options(work: Path, suite: str, architecture: str = "") -> list[str]:
    """Return apt options for a release of Debian, from the mirror that this system uses.

    apt's folders are in `work`, so it needs no root and changes nothing in the system; apt checks
    Debian's signatures.

    Args:
        work: Temporary folder.
        suite: Debian's name of the release.
        architecture: Debian's name of the architecture; "" for this system's.
    """
    keyring = next(filter(Path.is_file, KEYRINGS), None)
    if keyring is None:
        raise HeadersError(f"no {KEYRINGS[0]}, which is needed to verify Debian's packages")
    mirror = _mirror(work)
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True)
    sources = work / "sources.list"
    marks = f"signed-by={keyring}" + (f" arch={architecture}" if architecture else "")
    sources.write_text(f"deb [{marks}] {mirror} {suite} main\n", encoding="utf-8")
    values = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Dir::State": work / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": work / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "0",
        **({"APT::Architecture": architecture} if architecture else {}),
    }
    options = [word for name, value in values.items() for word in ("-o", f"{name}={value}")]
    _run(["apt-get", *options, "update"], work)
    return options


def download_packages(work: Path, names: Sequence[str], options: Sequence[str]) -> None:
    """Download Debian packages and unpack them into work / "package". Raises HeadersError."""
    _run(["apt-get", *options, "download", *names], work)
    packages = [*work.glob("*.deb")]
    if len(packages) < len(names):
        raise HeadersError("apt-get downloaded nothing")
    for package in packages:
        _run(["dpkg-deb", "-x", str(package), str(work / "package")], work)


def _mirror(work: Path) -> str:
    """Return the first mirror in the system's sources that serves main releases, not updates."""
    form = ["--no-release-info", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"]
    pairs = [line.split() for line in _run(["apt-get", "indextargets", *form], work).splitlines()]
    mirrors = [pair[0] for pair in pairs if len(pair) == 2 and "-" not in pair[1]]
    if not mirrors:
        raise HeadersError("apt has no source of a Debian release")
    return mirrors[0]


def _run(command: list[str], work: Path) -> str:
    """Run a command and return its output. Raises HeadersError if it fails."""
    # otherwise root's apt switches to a user that may not write here, and warns
    if command[0] == "apt-get":
        command = [command[0], "-q", "-o", "APT::Sandbox::User=root", *command[1:]]
    if shutil.which(command[0]) is None:
        raise HeadersError(f"no program {command[0]}")
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        result = subprocess.run(
            command, cwd=work, env=environment, capture_output=True, text=True, timeout=MAX_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise HeadersError(f"{command[0]} took more than {MAX_SECONDS} s") from None
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise HeadersError(lines[-1])
    return result.stdout


def _from_archive(work: Path) -> Path:
    archive = work / ARCHIVE
    with urllib.request.urlopen(ARCHIVE_URL, timeout=MAX_SECONDS) as answer:
        archive.write_bytes(answer.read())
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != ARCHIVE_SHA256:
        raise HeadersError(f"the archive's sha256 is {digest}, not {ARCHIVE_SHA256}")
    folder = work / "include"
    folder.mkdir()
    with tarfile.open(archive) as file:
        for member in file.getmembers():
            path = Path(member.name)
            if member.isfile() and path.parent.name == "include":
                member.name = path.name
                file.extract(member, folder)
    return folder


def main() -> int:
    try:
        print(find_headers())
    except HeadersError as error:
        print(f"no headers of ONNX Runtime: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
