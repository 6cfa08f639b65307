"""The command that installs an extra's packages, even if bita-edge is not on a package index."""

import re
from pathlib import Path
from shlex import quote

DISTRIBUTION = "bita-edge"
ROOT = Path(__file__).resolve().parent.parent


def install_command(extra: str, root: Path = ROOT) -> str:
    """Return the command that installs an extra of pyproject.toml into this installation.

    In a checkout of the source (`root` holds its pyproject.toml), the command installs the checkout
    with the extra. Elsewhere it installs the packages that the installed distribution lists.
    """
    if (root / "pyproject.toml").is_file():
        return f"pip install -e {quote(f'{root}[{extra}]')}"
    names = _requirements(extra) or [f"{DISTRIBUTION}[{extra}]"]
    return f"pip install {' '.join(map(quote, names))}"


def _requirements(extra: str) -> list[str]:
    """Return the requirements of an extra of the installed distribution; empty if unknown."""
    from importlib import metadata  # imported late: this takes longer than the rest of bita

    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    marker = re.compile(rf"""\bextra\s*==\s*['"]{re.escape(extra)}['"]""")
    parts = [line.partition(";") for line in lines]
    return [name.strip() for name, _, condition in parts if marker.search(condition)]
