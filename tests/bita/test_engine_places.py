"""Paths of an engine: links stay links, mount points stay mounted, and `.` can be replaced."""

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bita import engine_place
from bita.cli.main import main
from bita.engine import Engine, move_engine, new_engine, open_engine, revise_engine
from bita.engine_access import writing
from bita.engine_place import Place
from bita.errors import EngineError
from bita.export.tensorrt.build_costs import check_disk


@pytest.fixture
def engine(tiny_engine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_engine, tmp_path / "disk" / "engine"))


@pytest.fixture
def another(tiny_engine: Path, tmp_path: Path) -> Engine:
    """Return an engine to replace `engine` with."""
    shutil.copytree(tiny_engine, tmp_path / "another")
    return revise_engine(open_engine(tmp_path / "another"), {"calibration.json": '{"new": 1}'})


def revise(path: Path) -> None:
    """Revise the engine twice, as two commands would."""
    for number in range(2):
        text = f'{{"number": {number}}}'
        assert revise_engine(open_engine(path), {"calibration.json": text}).path == path
        assert (path / "calibration.json").read_text() == text


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_paths_that_lead_to_one_engine_have_one_place(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(engine)
    (tmp_path / "folder").symlink_to(engine.parent)
    monkeypatch.chdir(engine)
    paths = (f"{engine}/", f"{engine}/../engine", tmp_path / "link", tmp_path / "folder" / "engine")
    assert {Place.of(path) for path in (*paths, ".", "../engine/", "")} == {Place.of(engine)}


@pytest.mark.parametrize("target", ["disk/engine", "{tmp_path}/disk/engine", "first"])
def test_a_link_stays_a_link(
    target: str, engine: Path, another: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first").symlink_to("disk/engine")
    link = tmp_path / "link"
    link.symlink_to(target.format(tmp_path=tmp_path))
    revise(link)
    move_engine(another, link)
    assert os.readlink(link) == target.format(tmp_path=tmp_path)
    assert (engine / "calibration.json").read_text() == '{"new": 1}'
    assert names(tmp_path) == ["disk", "first", "link"]
    assert names(engine.parent) == ["engine"]


def test_a_link_to_a_missing_engine_is_kept(another: Engine, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("new")
    move_engine(another, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert open_engine(tmp_path / "new", check_hashes=True)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("unmounted/engine", r"is a link to .*unmounted/engine, but .*unmounted does not exist"),
        ("link", "is a link that leads back to itself"),
    ],
)
def test_a_link_without_a_usable_target_is_refused(
    target: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(EngineError, match=message), new_engine(tmp_path / "link"):
        pass
    assert names(tmp_path) == ["link"]


def test_the_current_directory_is_not_replaced(
    engine: Path, another: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a shell in it would be in a removed directory."""
    monkeypatch.chdir(engine)
    few = ["--max-rows", "2", "--repeats", "1", "--threads", "1"]
    for path in (".", f"../{engine.name}/"):
        assert main(["calibrate", "latency", path, *few, "--remeasure"]) == 0
        assert Path.cwd() == engine
    move_engine(another, Path("."))
    assert Path("calibration.json").read_text() == '{"new": 1}'
    assert names(engine.parent) == ["engine"]
    open_engine(".", check_hashes=True)


def test_a_directory_inside_the_engine_is_kept(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (engine / "inner").mkdir()
    monkeypatch.chdir(engine / "inner")
    revise(Path(".."))
    assert Path.cwd() == engine / "inner"


def test_a_removed_current_directory_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(EngineError, match="the current directory was removed or replaced"):
        Place.of(".")
    monkeypatch.chdir(tmp_path)


def is_mounted(path: Path) -> bool:
    return any(line.split(" ")[4] == str(path) for line in open("/proc/self/mountinfo"))


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Yield an empty directory that is a mount point."""
    source, point = tmp_path / "volume", tmp_path / "point"
    source.mkdir()
    point.mkdir()
    if subprocess.run(["mount", "--bind", source, point], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    yield point
    subprocess.run(["umount", point], check=True)


def test_a_mount_point_stays_mounted(mounted: Path, another: Engine) -> None:
    wanted = names(another.path)
    shutil.copytree(another.path, mounted.parent / "third")
    move_engine(another, mounted)
    revise(mounted)
    move_engine(open_engine(mounted.parent / "third"), mounted)
    assert is_mounted(mounted)
    assert names(mounted) == wanted
    assert names(mounted.parent) == ["point", "volume"]
    with new_engine(mounted) as draft:
        assert draft.path.parent == mounted  # on the same file system
        assert Place.of(mounted).lock.parent == mounted
        draft.manifest = open_engine(mounted).manifest
        for path in [*mounted.iterdir()]:
            if path.is_file() and path.name not in ("manifest.json", ".engine.lock"):
                shutil.copy(path, draft.path)
    open_engine(mounted, check_hashes=True)


def test_a_new_file_system_may_become_an_engine(mounted: Path, another: Engine) -> None:
    (mounted / "lost+found").mkdir()
    move_engine(another, mounted)
    open_engine(mounted, check_hashes=True)
    assert (mounted / "lost+found").is_dir()


def test_free_space_is_measured_where_the_engine_will_be(
    mounted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(Path(path))
        return SimpleNamespace(free=1 << 40)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    (tmp_path / "link").symlink_to(mounted / "engine")
    for out in (tmp_path / "link", mounted, tmp_path / "new" / "engine"):
        check_disk(out, 1)
    assert asked == [mounted, mounted, tmp_path]


def test_mount_points_with_escaped_names_are_recognized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(f"36 35 98:0 / {tmp_path}/my\\040disk rw - ext4 /dev/sda rw\n")
    monkeypatch.setattr(engine_place, "MOUNTS", table)
    assert Place.of(tmp_path / "my disk").is_mount
    assert not Place.of(tmp_path / "my").is_mount
    monkeypatch.setattr(engine_place, "MOUNTS", tmp_path / "nowhere")
    assert Place.of("/").is_mount


def test_a_read_only_place_is_reported_before_measuring(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error comes at once, not after minutes of measuring."""
    opened = os.open

    def refused(path: os.PathLike[str] | str, flags: int, *more: int) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *more)

    monkeypatch.setattr(os, "open", refused)
    assert main(["calibrate", "tree", str(engine)]) == 2
    err = capsys.readouterr().err
    assert f"cannot write the engine {engine}: Permission denied" in err
    assert err.count("\n") == 1


def test_files_left_by_killed_writers_are_removed(engine: Path) -> None:
    place = Place.of(engine)
    left = place.own()
    (left / "inner").mkdir(parents=True)
    lock = place.lock
    lock.write_text("of a killed process")
    other = engine.with_name(".engine.1-0123abcd.notes")
    other.write_text("of somebody else")
    revise_engine(open_engine(engine), {"calibration.json": "{}"})
    assert names(engine.parent) == [other.name, "engine"]


def test_the_draft_of_a_living_writer_is_kept(engine: Path) -> None:
    with writing(engine) as place:
        draft = place.own()
        draft.mkdir()
        revise_engine(open_engine(engine), {"calibration.json": "{}"})
        assert draft.exists()
    assert names(engine.parent) == [draft.name, "engine"]
