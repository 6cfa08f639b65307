"""Commands run no file of a hostile engine, and read and write nothing outside it.

Commands run in separate processes with `tripwire/sitecustomize.py`, which logs every module,
program, library, file and connection that is not on its lists.
"""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
from engine_edits import copy_engine, edit_files, edit_manifest, entry_of, read_manifest
from paths import ROOT
from speed import slow_but, thorough_but

TRIPWIRE = ROOT / "tests" / "support" / "tripwire"
MODULES = ("numpy", "json", "re", "rich", "onnxruntime", "tokenizers", "safetensors", "jinja2")
COMMANDS = {
    "inspect": ("inspect", "{}"),
    "generate": ("generate", "{}", "hi", "--max-new-tokens", "4", "--threads", "1"),
    "verify": ("verify", "{}", "--limit", "1", "--max-new-tokens", "4", "--threads", "1"),
    "latency": ("calibrate", "latency", "{}", "--repeats", "1", "--max-rows", "2"),
    "profile": ("profile", "{}", "--max-new-tokens", "4", "--latency-seconds", "1"),
    "compile": ("compile", "{}", "--backend", "tensorrt"),
}


@dataclass(frozen=True)
class Place:
    """An engine in a directory of its own, and a folder outside that no command may touch."""

    root: Path

    @property
    def engine(self) -> Path:
        return self.root / "inner" / "engine"

    @property
    def outside(self) -> Path:
        return self.root / "outside"

    @property
    def trips(self) -> str:
        log = self.root / "log"
        return log.read_text() if log.exists() else ""

    def environment(self) -> dict[str, str]:
        own = {name: str(self.root / name) for name in ("home", "temp", "cache")}
        writable = os.pathsep.join([*own.values(), str(self.engine.parent)])
        return {
            **os.environ,
            "HOME": own["home"],
            "TMPDIR": own["temp"],
            "XDG_CACHE_HOME": own["cache"],
            "PYTHONPATH": os.pathsep.join([str(TRIPWIRE), str(ROOT)]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TRIPWIRE_LOG": str(self.root / "log"),
            "TRIPWIRE_READABLE": os.pathsep.join([str(ROOT), str(self.engine.parent)]),
            "TRIPWIRE_WRITABLE": writable,
            "TRIPWIRE_DATA": str(self.engine.parent),
        }

    def start(self, *arguments: str, directory: Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=directory,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, name: str, directory: Path | None = None) -> tuple[int, str]:
        """Run `bita` in a directory; return its exit status and output."""
        directory = directory or self.engine.parent
        engine = os.path.relpath(self.engine, directory)
        arguments = [part.format(engine) for part in COMMANDS[name]]
        process = self.start("-m", "bita", *arguments, directory=directory)
        out, err = process.communicate(timeout=100)
        return process.returncode, out + err


@pytest.fixture
def place(tiny_engine: Path, tmp_path: Path) -> Place:
    place = Place(tmp_path)
    for name in ("home", "temp", "cache", "outside"):
        (tmp_path / name).mkdir()
    place.engine.parent.mkdir()
    copy_engine(tiny_engine, place.engine)
    (place.outside / "secret").write_bytes(b"secret" * 1000)
    return place


def write_modules(place: Place) -> None:
    """Write modules, a library and settings into the engine and into its parent directory."""
    mark = place.engine.parent / "RAN"
    text = f"open({str(mark)!r}, 'w').write(__name__)\n"
    for directory in (place.engine, place.engine.parent):
        for name in (*MODULES, "sitecustomize", "usercustomize", "conftest", "tensorrt"):
            (directory / f"{name}.py").write_text(text)
        for name in ("encodings", "pydantic", "psutil", "pynvml"):
            (directory / name).mkdir()
            (directory / name / "__init__.py").write_text(text)
        (directory / "evil.pth").write_text(f"import sys; {text}")
        (directory / "libcudart.so").write_bytes(b"\x7fELF")
        (directory / "matplotlibrc").write_text("text.usetex: True\nbackend: module://json\n")
        (directory / ".env").write_text("PYTHONPATH=.\n")


@pytest.mark.parametrize("name", thorough_but(COMMANDS, "inspect", "generate"))
@pytest.mark.parametrize("inside", [True, False], ids=["in the engine", "next to it"])
def test_no_module_near_an_engine_is_run(place: Place, name: str, inside: bool) -> None:
    write_modules(place)
    status, text = place.run(name, place.engine if inside else place.engine.parent)
    assert place.trips == ""
    assert not (place.engine.parent / "RAN").exists()
    assert status == (2 if name == "compile" else 0), text


@pytest.mark.parametrize(
    "inside", slow_but([True, False], True), ids=["in the engine", "next to it"]
)
def test_the_server_runs_no_module_of_an_engine(place: Place, inside: bool) -> None:
    pytest.importorskip("uvicorn")
    write_modules(place)
    directory = place.engine if inside else place.engine.parent
    engine = os.path.relpath(place.engine, directory)
    arguments = ("-m", "bita", "serve", engine, "--port", "0")
    process = place.start(*arguments, directory=directory)
    assert process.stdout is not None
    try:
        address = re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())
        assert address
        # once this is answered, the server's signal handler is installed
        with urllib.request.urlopen(f"{address[0]}/health", timeout=60) as answer:
            assert answer.status == 200
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert place.trips == ""
    assert not (place.engine.parent / "RAN").exists()


def name_a_module(place: Place) -> None:
    """Name a module as the library of a plan."""
    (place.engine / "evil.py").write_text("raise SystemExit(7)")
    plan = {"library": "evil", "version": "1", "targets": "x", "decode_rows": "1"}
    edit_files(place.engine, {"model.plan": b"x"})
    edit_manifest(
        place.engine,
        backend="tensorrt",
        dialect="standard",
        plan={**plan, "prefill_rows": "1", "prefill_outputs": "1"},
    )


def name_a_module_of_python(place: Place) -> None:
    name_a_module(place)
    plan = read_manifest(place.engine)["plan"]
    edit_manifest(place.engine, plan={**plan, "library": "antigravity"})


def list_a_file_outside(place: Place) -> None:
    files = read_manifest(place.engine)["files"]
    content = (place.outside / "secret").read_bytes()
    for path in ("../../outside/secret", str(place.outside / "secret")):
        files[path] = entry_of(content)
    edit_manifest(place.engine, files=files)


def link_out(place: Place) -> None:
    (place.engine / "tokenizer.json").unlink()
    (place.engine / "tokenizer.json").symlink_to(place.outside / "secret")


def link_to_a_pipe(place: Place) -> None:
    os.mkfifo(place.outside / "pipe")
    (place.engine / "tree.json").unlink()
    (place.engine / "tree.json").symlink_to(place.outside / "pipe")


def link_what_is_not_listed(place: Place) -> None:
    files = read_manifest(place.engine)["files"]
    del files["chat_template.jinja"]
    edit_manifest(place.engine, files=files)
    (place.engine / "chat_template.jinja").unlink()
    (place.engine / "chat_template.jinja").symlink_to(place.outside / "secret")


def take_weights(location: str) -> Callable[[Place], None]:
    def edit(place: Place) -> None:
        weights = (place.engine / "model.onnx.data").read_bytes()
        (place.outside / "weights").write_bytes(weights)
        model = onnx.load(place.engine / "model.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location.format(place.outside / "weights")
        edit_files(place.engine, {"model.onnx": model.SerializeToString()})

    return edit


HOSTILE: dict[str, Callable[[Place], object]] = {
    "a module": name_a_module,
    "a module of Python": name_a_module_of_python,
    "a path in the table": list_a_file_outside,
    "a link out": link_out,
    "a link to a pipe": link_to_a_pipe,
    "a link that is not listed": link_what_is_not_listed,
    "weights by a path": take_weights("../../outside/weights"),
    "weights by an absolute path": take_weights("{}"),
}


@pytest.mark.parametrize("kind", slow_but(HOSTILE, "a link out", "a path in the table"))
@pytest.mark.parametrize("name", thorough_but(["inspect", "generate", "compile"], "generate"))
def test_references_out_of_an_engine_are_refused_and_not_followed(
    place: Place, kind: str, name: str
) -> None:
    HOSTILE[kind](place)
    status, text = place.run(name, place.engine)
    assert place.trips == ""
    assert status == 2
    assert text.startswith("bita: error: "), text


@pytest.mark.slow
def test_texts_of_an_engine_are_never_interpreted(place: Place) -> None:
    """They are not run, opened, rendered as markup, or printed with terminal escapes."""
    mark = place.engine.parent / "RAN"
    evil = f"[/b]\x1b]0;x\x07$(touch {mark})`touch {mark}`;touch {mark} #"
    names = ("model", "family", "license", "tuned_on", "created_by")
    edit_manifest(place.engine, **dict.fromkeys(names, evil))
    edit_manifest(place.engine, requires={evil: evil, "onnxruntime": "0"})
    generation = json.loads((place.engine / "generation.json").read_text())
    generation["special_tokens"]["bos_token"] = evil
    reports = {"tree": {"why": evil}}
    edit_files(
        place.engine,
        {
            "generation.json": json.dumps(generation).encode(),
            "calibration.json": json.dumps(reports).encode(),
        },
    )
    for name in ("inspect", "generate", "verify"):
        status, text = place.run(name, place.engine)
        assert status == 0, text
        assert "\x1b]" not in text  # the random model itself may generate an escape
    assert place.trips == ""
    assert not mark.exists()


def test_the_tripwires_see_every_kind_of_access(place: Place) -> None:
    """The tests above prove nothing if this fails."""
    write_modules(place)
    code = (
        "import os, subprocess, sys, ctypes, mmap\n"
        "sys.path.insert(0, '')\n"
        "import psutil\n"
        "open('../../outside/secret').close()\n"
        "open('../../outside/new', 'w').close()\n"
        "subprocess.run(['true'])\n"
        "os.system('true')\n"
        "try: ctypes.CDLL('./libcudart.so')\n"
        "except OSError: pass\n"
        "number = os.open(sys.argv[1], os.O_RDONLY)\n"
        "kept = mmap.mmap(number, 0, prot=mmap.PROT_READ)\n"
    )
    secret = str(place.outside / "secret")
    process = place.start("-c", code, secret, directory=place.engine)
    process.communicate(timeout=60)
    kinds = {line.split(":")[0] for line in place.trips.splitlines()}
    assert kinds == {"runs", "compiles", "reads", "writes", "starts", "loads", "maps"}
    assert (place.engine.parent / "RAN").exists()
