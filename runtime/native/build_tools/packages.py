"""Find the libraries that libbita is linked with, or download them, and print their prefix.

    python packages.py [--architecture arm64]

They are PCRE2, utf8proc and nlohmann-json: headers, and static libraries. The search order is: the
system; the cache ($XDG_CACHE_HOME/bita-edge, or ~/.cache/bita-edge); Debian's packages, from the
system's own sources or from Debian 12. A download takes seconds and is kept in the cache. Nothing
is installed, and no system file is changed. If everything fails, each reason is printed on stderr
and the exit status is 1. Needs only the standard library.
"""

import argparse
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from headers import HeadersError, cached, debian_options, download_packages

SUITE = "bookworm"  # Debian 12, whose libraries require a glibc that most systems have
PACKAGES = ("libpcre2-dev", "libutf8proc-dev", "nlohmann-json3-dev")
HEADERS = ("pcre2.h", "utf8proc.h", "nlohmann/json.hpp")
LIBRARIES = ("libpcre2-8.a", "libutf8proc.a")
TRIPLES = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def find_packages(architecture: str) -> Path:
    """Return the libraries' prefix, and download them first if there is none.

    Args:
        architecture: Debian's name of the target's architecture.

    Raises:
        HeadersError: with every reason, if they cannot be found or downloaded.
    """
    is_own = architecture == own_architecture()
    for prefix in (*([Path("/usr")] if is_own else []), cached_prefix(architecture)):
        if _fault(prefix, architecture) is None:
            return prefix
    return _download(architecture, is_own)


def static_libraries(prefix: Path, architecture: str) -> list[Path]:
    """Return the files of the libraries in a prefix from `find_packages`."""
    folder = prefix / "lib" / TRIPLES.get(architecture, "")
    return [folder / name for name in LIBRARIES]


def own_architecture() -> str:
    """Return Debian's name of this processor's architecture."""
    machine = platform.machine()
    return ARCHITECTURES.get(machine, machine)


def cached_prefix(architecture: str) -> Path:
    """Return the prefix for downloaded packages."""
    return cached(f"libraries-{architecture}") / "usr"


def _fault(prefix: Path, architecture: str) -> str | None:
    wanted = [*(prefix / "include" / name for name in HEADERS)]
    wanted += static_libraries(prefix, architecture)
    missing = [path for path in wanted if not path.is_file()]
    return f"there is no {missing[0]}" if missing else None


def _download(architecture: str, is_own: bool) -> Path:
    """Download from Debian 12 or, for this architecture, from the system's own sources first."""
    reasons = []
    for own_sources in (True, False) if is_own else (False,):
        try:
            with tempfile.TemporaryDirectory() as name:
                work = Path(name)
                options = [] if own_sources else debian_options(work, SUITE, architecture)
                download_packages(work, PACKAGES, options)
                return _keep(work / "package", architecture)
        except (HeadersError, OSError) as error:
            where = "this system's packages" if own_sources else f"packages of Debian ({SUITE})"
            reasons.append(f"{where}: {error}")
    raise HeadersError("; ".join(reasons))


def _keep(package: Path, architecture: str) -> Path:
    """Copy the files into the cache, and allow for another process that does the same."""
    prefix = cached_prefix(architecture)
    fault = _fault(package / "usr", architecture)
    if fault:
        raise HeadersError(fault)
    prefix.parent.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=prefix.parent.parent) as partial:
        copy = Path(partial) / "packages"
        shutil.copytree(package, copy, symlinks=True)
        if _fault(prefix, architecture) is not None:
            shutil.rmtree(prefix.parent, ignore_errors=True)
            try:
                copy.rename(prefix.parent)
            except OSError:
                if _fault(prefix, architecture) is not None:
                    raise
    return prefix


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--architecture", default=own_architecture(), help="Debian's name of the architecture"
    )
    given = parser.parse_args(arguments)
    try:
        print(find_packages(given.architecture))
    except HeadersError as error:
        print(
            f"no libraries for libbita: {error}; install {' '.join(PACKAGES)}, or your system's "
            "packages of PCRE2, utf8proc and nlohmann-json",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
