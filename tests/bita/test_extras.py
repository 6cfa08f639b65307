"""How packages that are missing are installed, as long as bita-edge is on no index."""

import re
import shlex
from pathlib import Path

import pytest
from paths import ROOT

from bita.errors import MissingExtraError
from bita.extras import install_command

PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
OPTIONAL = PYPROJECT.split("[project.optional-dependencies]")[1].split("[project.scripts]")[0]
EXTRAS = dict(re.findall(r"^([a-z-]+) = \[\n(.*?)^\]", OPTIONAL, re.M | re.S))


def test_a_checkout_is_installed_with_the_extra() -> None:
    told = str(MissingExtraError("`bita serve`", "serve"))
    assert told.endswith(f"not installed: pip install -e '{ROOT}[serve]'")


def test_a_checkout_with_spaces_in_its_name(tmp_path: Path) -> None:
    root = tmp_path / "my code"
    root.mkdir()
    (root / "pyproject.toml").touch()
    words = shlex.split(install_command("serve", root))
    assert words == ["pip", "install", "-e", f"{root}[serve]"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_elsewhere_the_packages_are_named(extra: str, tmp_path: Path) -> None:
    """As pyproject.toml has them; none is bita-edge itself, which is on no index."""
    words = shlex.split(install_command(extra, tmp_path))
    entries = re.findall(r'^    "(.*?)"', EXTRAS[extra], re.M)
    assert words[:2] == ["pip", "install"]
    assert words[2:] == [entry.split(";")[0].strip() for entry in entries]


def test_without_any_distribution_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bita.extras.DISTRIBUTION", "no-such-distribution")
    assert install_command("serve", tmp_path) == "pip install 'no-such-distribution[serve]'"
