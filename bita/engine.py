"""The engine directory: the only thing that crosses from the build machine to the device.

    manifest.json        what the engine is, and size and sha256 of every other file
    model.onnx(.data)    the step graph
    model.plan           the same compiled for GPUs, in engines of the TensorRT backends
    adapter.safetensors  mask embeddings, prefix, LoRA, pair scores
    pairs.safetensors    left, right [V, r] of the pair scores, if the adapter has them
    tree.json            the tree, and what it was chosen by
    calibration.json     what was measured: its error against float32, acceptance, latency
    calibration.png      the same as a picture; both are optional
    tokenizer.json, generation.json, chat_template.jinja

Compatibility: `format_version` grows when an older runtime could not run the directory; it is 2
where one of format 2 can.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin

from bita.directory_swap import MANIFEST_FILE, put
from bita.engine_access import undisturbed, unwritable, writing
from bita.engine_place import INCOMING, WITHIN, Place
from bita.errors import EngineError, raise_faults

FORMAT, FORMAT_VERSIONS = "bita-engine", (2, 3)
GRAPH_FILE, ADAPTER_FILE = "model.onnx", "adapter.safetensors"
WEIGHTS_FILE = "model.onnx.data"
PAIRS_FILE, PLAN_FILE = "pairs.safetensors", "model.plan"
TREE_FILE, TOKENIZER_FILE = "tree.json", "tokenizer.json"
CALIBRATION_FILE = "calibration.json"
GENERATION_FILE, TEMPLATE_FILE = "generation.json", "chat_template.jinja"
REQUIRED_FILES = (GRAPH_FILE, ADAPTER_FILE, TREE_FILE, TOKENIZER_FILE, GENERATION_FILE)
MODES = ("exact", "tree")
LEAST_SLOTS = "bita.least_slots"  # metadata of a graph: cache slots that a step writes at least
NEW_ROWS = "rows"  # output of a graph that leaves it to the runtime to write the cache
SLOTS = "slots"  # input of a graph that looks at the first slots of the cache only
SMALL_FILE = 4 << 20  # up to here a hash costs nothing beside opening the engine


@dataclass(frozen=True)
class Manifest:
    """What an engine says of itself; letters as in the documentation of the step graph.

    mode: "exact" (bit-identical to AR: only spine nodes are accepted) or "tree" (all nodes;
    equal up to the rounding of float32).
    """

    model: str  # as the user named it
    family: str  # model_type of transformers
    license: str | None  # SPDX id of the base model
    backend: str  # "ort-cpu", "ort-cuda", "tensorrt" or "tensorrt-rtx"
    precision: str  # "fp32", "fp16", "int8", "int4", "fp8"
    mode: str
    num_layers: int  # L
    num_kv_heads: int  # H
    head_dim: int  # D
    hidden_size: int
    vocab_size: int  # V
    capacity: int  # C: cache slots for prefix, text and the rows of a step
    num_ranks: int  # k: ids returned per row
    num_masks: int  # M
    prefix_length: int  # P
    lora_rank: int  # r; 0: the graph has no LoRA, else it takes any rank
    pair_rank: int  # of the adapter's pair scores, whose tables are in PAIRS_FILE; 0 for none
    tuned_on: str  # the adapter's data, "untuned" for none
    requires: dict[str, str]  # package: least version; "processor": what it must be able to
    created_by: str
    dialect: str = "ort"  # of the graph's operators
    plan: dict[str, str] = field(default_factory=dict)  # `bita.plan.PlanInfo`; empty for no plan
    inputs: str = ""  # digest of what it was built from, for `bita engine --if-needed`

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """[2L, H, C, D] of keys and values."""
        return 2 * self.num_layers, self.num_kv_heads, self.capacity, self.head_dim

    @property
    def is_tuned(self) -> bool:
        """Whether its masks have learned anything of the model."""
        return self.tuned_on != "untuned"

    @property
    def format_version(self) -> int:
        """The oldest format whose runtimes can run the engine."""
        return 2 if (self.backend, self.dialect) == ("ort-cpu", "ort") else 3

    def describe_files(
        self, directory: Path, known: Mapping[str, dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """The manifest with size and sha256 of every file of `directory`.

        known: entries of files that need not be hashed again.
        """
        files = sorted(path for path in directory.iterdir() if path.name != MANIFEST_FILE)
        entries = {
            path.name: (known or {}).get(path.name)
            or {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in files
        }
        head = {"format": FORMAT, "format_version": self.format_version}
        return {**head, **asdict(self), "files": entries}


@dataclass(frozen=True)
class Engine:
    """A checked engine directory."""

    path: Path
    manifest: Manifest
    files: dict[str, dict[str, Any]]

    def file(self, name: str) -> Path:
        return self.path / name

    @property
    def num_bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files.values())


@undisturbed
def open_engine(
    path: str | Path, check_hashes: bool = False, unchecked: Container[str] = ()
) -> Engine:
    """Check an engine directory and return it; nothing of it is loaded.

    check_hashes: hash the weights too (about a second per GB); small files always are.
    unchecked: files that may be missing or damaged.
    Raises EngineError that lists every fault.
    """
    directory = Path(path)
    data = _read_manifest(directory)
    faults = _format_faults(data)
    raise_faults(EngineError, f"engine {directory}", faults)
    manifest, faults = _parse(data)
    files = data.get("files")
    required = (*REQUIRED_FILES, *_further_files(manifest))
    faults += _file_faults(directory, files, required, check_hashes, unchecked)
    raise_faults(EngineError, f"engine {directory}", faults)
    assert manifest is not None
    assert files is not None
    return Engine(directory, manifest, files)


def _further_files(manifest: Manifest | None) -> Iterator[str]:
    if manifest and manifest.pair_rank:
        yield PAIRS_FILE
    if manifest and manifest.plan:
        yield PLAN_FILE


@dataclass
class EngineDraft:
    """An engine being written: files go to `path`; `manifest` is set before the end.

    known: the manifest's entries of files that are taken over as they are.
    """

    path: Path
    manifest: Manifest | None = None
    known: dict[str, dict[str, Any]] = field(default_factory=dict)


@contextmanager
def new_engine(out: Path) -> Iterator[EngineDraft]:
    """A draft that becomes the directory `out` when the block ends without an error.

    An older engine at `out` is replaced only then; anything else at `out` is left alone and
    raises EngineError. Nothing half-written is ever seen at `out`. Other writers of it wait.
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
    """Open an engine as its only writer, for work that ends in a revision of what was read.

    Its faults are told before another writer is waited for. Raises EngineError as `open_engine`.
    """
    open_engine(path, unchecked=unchecked)
    with writing(path):
        yield open_engine(path, unchecked=unchecked)


@contextmanager
def revision(engine: Engine, exclude: Container[str]) -> Iterator[EngineDraft]:
    """A draft of the same engine, with all of its files but those of `exclude`.

    Files are linked where the file system can, else copied. Raises EngineError if the engine is
    not the one any more that was read: another writer replaced it.
    """
    with writing(engine.path):
        _check_unchanged(engine)
        with new_engine(engine.path) as draft:
            take_over(engine, draft, exclude)
            draft.manifest = engine.manifest
            yield draft


def revise_engine(engine: Engine, files: Mapping[str, str | bytes]) -> Engine:
    """Add these small files to an engine, or replace them; all or none.

    Raises EngineError, also if another writer replaced the engine since it was read.
    """
    with writing(engine.path):
        with revision(engine, exclude=files) as draft:
            for name, content in files.items():
                data = content.encode() if isinstance(content, str) else content
                (draft.path / name).write_bytes(data)
        return open_engine(engine.path)


def take_over(engine: Engine, draft: EngineDraft, exclude: Container[str]) -> None:
    """Link, or copy, every file of an engine into a draft, except those of `exclude`."""
    for name in engine.files:
        if name not in exclude:
            _link(engine.file(name), draft.path / name)
            draft.known[name] = engine.files[name]


def move_engine(engine: Engine, out: Path) -> Engine:
    """Move an engine that nobody else uses to `out`, replacing any engine there.

    Raises EngineError as `new_engine`.
    """
    check_replaceable(out)
    with writing(out) as place:
        check_replaceable(out)
        partial = place.own()
        try:
            # by another name, else a kill could leave the older engine at `engine.path`
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
    """Some libraries write files that only their owner may read; the umask says who may."""
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
    """What was measured of the engine, by topic; empty if nothing was. Raises EngineError."""
    if CALIBRATION_FILE not in engine.files:
        return {}
    return _read_object(engine.file(CALIBRATION_FILE), "calibrate again")


def check_replaceable(out: Path) -> None:
    """Raise EngineError if there is something at `out` that is not an engine."""
    if not out.exists() or (out / MANIFEST_FILE).is_file() or (out / INCOMING).is_dir():
        return
    if not out.is_dir() or any(not _is_hidden(path.name) for path in out.iterdir()):
        raise EngineError(f"{out} exists and is no engine; choose another OUT or remove it")


def _is_hidden(name: str) -> bool:
    """Whether it is what writers, or file systems at their root, keep in a directory."""
    return name.startswith(f"{WITHIN}.") or name == "lost+found"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST_FILE
    if not directory.is_dir():
        raise EngineError(f"{directory} is not a directory; build one: make engine MODEL=...")
    if not path.is_file():
        raise EngineError(
            f"{directory} has no {MANIFEST_FILE}; build an engine: make engine MODEL=..."
        )
    return _read_object(path, "rebuild the engine")


def _read_object(path: Path, fix: str) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} is not readable ({error}); {fix}") from error
    if not isinstance(data, dict):
        raise EngineError(f"{path} holds no JSON object; {fix}")
    return data


def _format_faults(data: dict[str, Any]) -> list[str]:
    if data.get("format") != FORMAT:
        return [f"format is {data.get('format')!r}, not {FORMAT!r}: no engine of bita-edge"]
    if data.get("format_version") not in FORMAT_VERSIONS:
        known = " and ".join(map(str, FORMAT_VERSIONS))
        return [
            f"format version {data.get('format_version')!r}; this bita-edge reads "
            f"{known}: rebuild the engine with it"
        ]
    return []


def _parse(data: dict[str, Any]) -> tuple[Manifest | None, list[str]]:
    given = [each for each in fields(Manifest) if each.name in data or not _has_default(each)]
    faults = [
        f"{MANIFEST_FILE}: {each.name} is {data.get(each.name)!r}, not {each.type}"
        for each in given
        if not _is_a(data.get(each.name), each.type)
    ]
    if data.get("mode") not in MODES:
        faults.append(f"{MANIFEST_FILE}: mode {data.get('mode')!r} is not one of {MODES}")
    if faults:
        return None, faults
    return Manifest(**{each.name: data[each.name] for each in given}), []


def _has_default(each: "Field[Any]") -> bool:
    return each.default is not MISSING or each.default_factory is not MISSING


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a JSON value has a field's type; numbers must not be negative."""
    if kind is int:
        return type(value) is int and value >= 0
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    return isinstance(value, get_args(kind) or kind)


def _file_faults(
    directory: Path,
    files: Any,
    required: Sequence[str],
    check_hashes: bool,
    unchecked: Container[str],
) -> list[str]:
    if not isinstance(files, dict):
        return [f"{MANIFEST_FILE}: files is {files!r}, not a table of files"]
    faults = [f"{MANIFEST_FILE} does not list {name}" for name in required if name not in files]
    for name, entry in files.items():
        fault = None if name in unchecked else _file_fault(directory, name, entry, check_hashes)
        if fault:
            faults.append(fault)
    return faults


def _file_fault(directory: Path, name: str, entry: Any, check_hashes: bool) -> str | None:
    if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
        return f"{MANIFEST_FILE}: entry of {name} is {entry!r}, not its size and hash"
    if Path(name).name != name:
        return f"{MANIFEST_FILE}: {name!r} points out of the engine"
    path = directory / name
    fix = f"bita compile {directory}" if name == PLAN_FILE else "rebuild the engine"
    if not path.is_file():
        return f"{name} is missing; copy the whole directory or {fix}"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"{name} has {size} bytes, not {entry['bytes']}; copy it again or {fix}"
    if (check_hashes or size <= SMALL_FILE) and sha256(path) != entry["sha256"]:
        return f"{name} is damaged (sha256 differs); copy it again or {fix}"
    return None
