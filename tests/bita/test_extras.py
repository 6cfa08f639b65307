"""Tests of the install commands for missing packages while bita-edge is on no package index."""

import shlex
from pathlib import Path

import pytest
from paths import ROOT

from bita.errors import MissingExtraError
from bita.extras import install_command

METADATA = """\
Metadata-Version: 2.4
Name: some-engine
Version: 1.0
Requires-Dist: numpy>=1.26
Requires-Dist: starlette>=0.46; extra == "serve"
Requires-Dist: uvicorn>=0.30 ; extra == 'serve'
Requires-Dist: rtx>=1.7; (sys_platform == "linux" and os_name == "posix") and extra == "rtx"
Requires-Dist: other; extra == "serve-more"
"""


def test_a_checkout_is_installed_with_the_extra() -> None:
    message = str(MissingExtraError("`bita serve`", "serve"))
    assert message.endswith(f"not installed: pip install -e '{ROOT}[serve]'")


def test_a_path_with_spaces_is_quoted(tmp_path: Path) -> None:
    root = tmp_path / "my code"
    root.mkdir()
    (root / "pyproject.toml").touch()
    words = shlex.split(install_command("serve", root))
    assert words == ["pip", "install", "-e", f"{root}[serve]"]


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("serve", "pip install 'starlette>=0.46' 'uvicorn>=0.30'"),
        ("rtx", "pip install 'rtx>=1.7'"),
        ("nothing", "pip install 'some-engine[nothing]'"),
    ],
)
def test_outside_a_checkout_the_packages_are_named(
    extra: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names come from the installed distribution, which is on no index itself."""
    folder = tmp_path / "some_engine-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("bita.extras.DISTRIBUTION", "some-engine")
    assert install_command(extra, tmp_path) == command


def test_without_any_distribution_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bita.extras.DISTRIBUTION", "no-such-distribution")
    assert install_command("serve", tmp_path) == "pip install 'no-such-distribution[serve]'"
