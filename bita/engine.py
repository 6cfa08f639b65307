"""The engine directory: the only thing that is copied from the build machine to the device.

manifest.json        description of the engine; size and sha256 of every other file
model.onnx(.data)    the step graph
model.plan           the graph compiled for GPUs, in engines of the TensorRT backends
adapter.safetensors  mask embeddings, prefix, LoRA, pair scores
pairs.safetensors    left, right [V, r] of the pair scores, if the adapter has them
tree.json            the tree, or the table of trees
calibration.json     measurements: error against float32, acceptance, latency; optional
calibration.png      the measurements as a picture; optional
tokenizer.json, generation.json, chat_template.jinja
chat_pieces.json     the chat template for programs without Jinja, or why it has no such form
"""

import json
import os
import shutil
import stat
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bita.directory_swap import put
from bita.engine_access import undisturbed, unwritable, writing
from bita.engine_files import file_fault, table_faults
from bita.engine_files import sha256 as sha256
from bita.engine_place import INCOMING, WITHIN, Place
from bita.errors import EngineError, raise_faults
from bita.graph_weights import weight_locations
from bita.json_values import read_json_object, shown
from bita.manifest import MANIFEST_FILE, Manifest, format_faults, parse_manifest, read_manifest
from bita.plan import plan_faults

GRAPH_FILE, WEIGHTS_FILE, ADAPTER_FILE = "model.onnx", "model.onnx.data", "adapter.safetensors"
PAIRS_FILE, PLAN_FILE = "pairs.safetensors", "model.plan"
TREE_FILE, TOKENIZER_FILE = "tree.json", "tokenizer.json"
CALIBRATION_FILE = "calibration.json"
MAX_CALIBRATION_BYTES = 40 << 20  # for 2 million tokens of answers; usually below 1 MB
GENERATION_FILE, TEMPLATE_FILE = "generation.json", "chat_template.jinja"
CHAT_PIECES_FILE = "chat_pieces.json"
REQUIRED_FILES = (
    *(GRAPH_FILE, WEIGHTS_FILE, ADAPTER_FILE, TREE_FILE, TOKENIZER_FILE, GENERATION_FILE),
)
LARGE_FILES = (WEIGHTS_FILE, PLAN_FILE)  # hashed on request only; a plan also when it is loaded
MIN_SLOTS = "bita.least_slots"  # metadata of a graph: fewest cache slots that a step writes
NEW_ROWS = "rows"  # output of a graph that leaves writing the cache to the runtime
SLOTS = "slots"  # input of a graph that reads only the first slots of the cache
OPERATORS = "bita.operators"  # in manifests and graphs: version of the native operators in use
OPERATORS_VERSION = "3"  # version written and run here; covers the layout of the weights too
PAGE_SLOTS = 16  # slots per page of a paged cache


@dataclass(frozen=True)
class Engine:
    """A checked engine directory."""

    path: Path
    manifest: Manifest
    files: dict[str, dict[str, Any]]  # the manifest's entries by file name

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def num_bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files.values())


@undisturbed
def open_engine(
    path: str | Path, check_hashes: bool = False, unchecked: Container[str] = ()
) -> Engine:
    """Check an engine directory and return it, without loading any of it.

    Args:
        path: The engine directory.
        check_hashes: Hash the weights and the plan too, which takes about a second per GB. All
            other files are always hashed.
        unchecked: Files that may be missing or damaged.

    Raises:
        EngineError: if the engine is broken; it lists every fault.
    """
    directory = Path(path)
    data = read_manifest(directory)
    raise_faults(EngineError, f"engine {directory}", format_faults(data))
    manifest, faults = parse_manifest(data)
    if manifest and PLAN_FILE not in unchecked:
        faults += plan_faults(manifest.backend, manifest.plan)
    files: Any = data.get("files")
    if broken := table_faults(files):
        faults += [f"{MANIFEST_FILE}: {fault}" for fault in broken]
    else:
        faults += _missing_entries(directory, files, manifest)
        faults += _file_faults(directory, files, check_hashes, unchecked)
    raise_faults(EngineError, f"engine {directory}", faults)
    assert manifest is not None
    return Engine(directory, manifest, files)


def _missing_entries(
    directory: Path, files: Mapping[str, Any], manifest: Manifest | None
) -> list[str]:
    further = [PAIRS_FILE] if manifest and manifest.pair_rank else []
    further += [PLAN_FILE] if manifest and manifest.plan else []
    # Optional files must be listed if they are present, even as a broken link.
    for name in (TEMPLATE_FILE, CHAT_PIECES_FILE):
        path = directory / name
        further += [name] if path.exists() or path.is_symlink() else []
    required = [name for name in (*REQUIRED_FILES, *further) if name not in files]
    return [f"{MANIFEST_FILE} does not list {name}" for name in required]


def _file_faults(
    directory: Path, files: Mapping[str, Any], check_hashes: bool, unchecked: Container[str]
) -> Iterator[str]:
    for name, entry in files.items():
        if name in unchecked:
            continue
        fix = f"bita compile {directory}" if name == PLAN_FILE else "rebuild the engine"
        check_hash = check_hashes or name not in LARGE_FILES
        fault = file_fault(directory / name, entry, check_hash, fix)
        if fault is None and name == GRAPH_FILE:
            fault = _graph_fault(directory / name)
        if fault:
            yield fault


def _graph_fault(path: Path) -> str | None:
    """Return why the graph must not be loaded; None if it reads weights from WEIGHTS_FILE only."""
    try:
        locations = weight_locations(path)
    except (OSError, ValueError) as error:
        return f"{path.name} is not a readable graph ({error}); rebuild the engine"
    foreign = sorted(locations - {WEIGHTS_FILE.encode()})
    if not foreign:
        return None
    return (
        f"{path.name} takes weights from {shown(foreign[0])}, which is not {WEIGHTS_FILE}; "
        "rebuild the engine"
    )


@dataclass
class EngineDraft:
    """An engine that is being written."""

    path: Path  # directory for the files
    manifest: Manifest | None = None  # must be set before the draft is finished
    known: dict[str, dict[str, Any]] = field(default_factory=dict)  # entries of unchanged files


@contextmanager
def new_engine(out: Path) -> Iterator[EngineDraft]:
    """Yield a draft that becomes the directory `out` when the block ends without an error.

    An older engine at `out` is replaced only then, so that a half-written engine is never visible.
    Other writers of `out` wait.

    Raises:
        EngineError: if there is anything but an engine at `out`, which is left alone.
    """
    check_replaceable(out)
    with writing(out) as place:
        check_replaceable(out)
        partial = place.own()
        try:
            partial.mkdir()
            draft = EngineDraft(partial)
            yield draft
            if draft.manifest is None:
                raise EngineError(f"{out}: the build ended without a manifest")
            text = json.dumps(draft.manifest.describe_files(partial, draft.known), indent=2) + "\n"
            (partial / MANIFEST_FILE).write_text(text, encoding="utf-8")
            _give_usual_modes(draft)
            _put(partial, place, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def revising(path: Path, unchecked: Container[str] = ()) -> Iterator[Engine]:
    """Open an engine as its only writer, for work that ends in a revision of the engine.

    A broken engine raises EngineError at once, as in `open_engine`, without waiting for another
    writer.
    """
    open_engine(path, unchecked=unchecked)
    with writing(path):
        yield open_engine(path, unchecked=unchecked)


@contextmanager
def revision(engine: Engine, exclude: Container[str]) -> Iterator[EngineDraft]:
    """Yield a draft of the same engine, with all of its files except those in `exclude`.

    Files are hard-linked if the file system supports that, otherwise copied. Raises EngineError if
    another writer has replaced the engine since it was read.
    """
    with writing(engine.path):
        _check_unchanged(engine)
        with new_engine(engine.path) as draft:
            take_over(engine, draft, exclude)
            draft.manifest = engine.manifest
            yield draft


def revise_engine(engine: Engine, files: Mapping[str, str | bytes]) -> Engine:
    """Add small files to an engine, or replace them, atomically.

    Raises EngineError, also if another writer has replaced the engine since it was read.
    """
    with writing(engine.path):
        with revision(engine, exclude=files) as draft:
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                (draft.path / name).write_bytes(data)
        return open_engine(engine.path)


def take_over(engine: Engine, draft: EngineDraft, exclude: Container[str]) -> None:
    """Link or copy every file of an engine into a draft, except those in `exclude`."""
    for name in engine.files:
        if name not in exclude:
            _link(engine.file(name), draft.path / name)
            draft.known[name] = engine.files[name]


def move_engine(engine: Engine, out: Path) -> Engine:
    """Move an engine that nobody else uses to `out`, and replace any engine there.

    Raises EngineError like `new_engine`.
    """
    check_replaceable(out)
    with writing(out) as place:
        check_replaceable(out)
        partial = place.own()
        try:
            # Moved under another name first: a kill must not leave the older engine at
            # `engine.path`.
            shutil.move(engine.path, partial)
            _put(partial, place, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return open_engine(out)


def _check_unchanged(engine: Engine) -> None:
    now = open_engine(engine.path, unchecked=engine.files)
    if (now.manifest, now.files) != (engine.manifest, engine.files):
        raise EngineError(
            f"engine {engine.path} was written by another process after this one read it, so "
            "nothing was changed; run the command again"
        )


def _give_usual_modes(draft: EngineDraft) -> None:
    """Set the modes that the umask gives; some libraries write files readable by the owner only."""
    usual = (draft.path / MANIFEST_FILE).stat().st_mode
    for path in draft.path.iterdir():
        if path.name not in draft.known and path.stat().st_mode != usual:
            path.chmod(stat.S_IMODE(usual))


def _put(finished: Path, place: Place, out: Path) -> None:
    try:
        put(finished, place)
    except OSError as error:
        raise unwritable(out, error) from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_calibration(engine: Engine) -> dict[str, Any]:
    """Return the engine's measurements by topic; empty if there are none. Raises EngineError."""
    if CALIBRATION_FILE not in engine.files:
        return {}
    path = engine.file(CALIBRATION_FILE)
    return read_json_object(path, EngineError, "calibrate again", MAX_CALIBRATION_BYTES)


def check_replaceable(out: Path) -> None:
    """Raise EngineError if there is something at `out` that is not an engine."""
    if not out.exists() or (out / MANIFEST_FILE).is_file() or (out / INCOMING).is_dir():
        return
    if not out.is_dir() or any(not _is_hidden(path.name) for path in out.iterdir()):
        raise EngineError(f"{out} exists and is not an engine; choose another OUT or remove it")


def _is_hidden(name: str) -> bool:
    """Return whether a name belongs to engine writers, or to the root of a file system."""
    return name.startswith(f"{WITHIN}.") or name == "lost+found"
