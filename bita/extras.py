"""How to install the packages of an extra: the distribution may be on no index."""

import re
from pathlib import Path
from shlex import quote

DISTRIBUTION = "bita-edge"
ROOT = Path(__file__).resolve().parent.parent


def install_command(extra: str, root: Path = ROOT) -> str:
    """A command that works here, for an extra of pyproject.toml.

    In a checkout of the source (`root` has its pyproject.toml) it installs that with the extra,
    elsewhere the packages themselves, as the installed distribution names them.
    """
    if (root / "pyproject.toml").is_file():
        return f"pip install -e {quote(f'{root}[{extra}]')}"
    names = _requirements(extra) or [f"{DISTRIBUTION}[{extra}]"]
    return f"pip install {' '.join(map(quote, names))}"


def _requirements(extra: str) -> list[str]:
    """What the extra of the installed distribution adds, with versions; empty if unknown."""
    from importlib import metadata  # not at the top: loading it takes longer than the rest of bita

    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    marker = re.compile(rf"""\bextra\s*==\s*['"]{re.escape(extra)}['"]""")
    parts = [line.partition(";") for line in lines]
    return [name.strip() for name, _, condition in parts if marker.search(condition)]
