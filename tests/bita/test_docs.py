"""Every command and every program in the documentation works, and no link is dead."""

import ast
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from make_tiny_engine import CONFIG, write_plain_model
from paths import ROOT
from speed import slow_but

ENGINE = "engines/smollm2-135m-instruct-int4"
PAGES = (
    *("sampling.md", "serving.md", "python.md", "profiling.md", "how-it-works.md", "engine.md"),
    *("speed.md", "exactness.md", "scripting.md"),
)
BUILDING_PAGES = ("../README.md", "build.md", "tuning.md", "calibration.md")
# These take too long for a test: their recipes are read, not run.
ONLY_READ = ("make demo", "make test", "make check", "make bench", "make adapter")
# Replacements make the commands take seconds: smaller models, and less text.
SHORTER = {
    "bita profile ": "bita profile --threads 1 ",  # the other core has other tests
    "--latency-seconds 5 ": "--latency-seconds 1 ",
    "--latency-seconds 2 ": "--latency-seconds 1 ",
    "int4 --page": "int4 --latency-seconds 1 --limit 4 --page",
}
FEW = "--threads 1 --limit 4 --max-new-tokens 16"
SMALLER = SHORTER | {
    "model.gguf": "model",
    "MODEL=smollm2": "UNCALIBRATED=1 MODEL=tiny/smollm2",
    "MODEL=path": "UNCALIBRATED=1 MODEL=path",
    "MODEL=Qwen": "UNCALIBRATED=1 MODEL=Qwen",
    "tune smollm2": "tune tiny/smollm2",
    "init smollm2": "init tiny/smollm2",
    "bita verify ": "bita verify --threads 1 ",
    "--max-minutes 60": "--prompts mine.jsonl --num-steps 1 --max-new-tokens 8 --held-out 2",
    "calibrate tree": f"calibrate tree {FEW} --max-rows 4 --repeats 1",
    "calibrate acceptance": f"calibrate acceptance {FEW}",
    "calibrate latency": "calibrate latency --threads 1 --max-rows 4 --repeats 1",
}


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Yield the language and text of each code block of a page that can be run."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    yield from re.findall(r"^```(bash|python)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


class Desk:
    """A folder in which the commands of a page run, one after the other."""

    def __init__(self, folder: Path, engine: Path) -> None:
        self._folder = folder
        (folder / ENGINE).parent.mkdir()
        (folder / ENGINE).symlink_to(engine)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = str(free.getsockname()[1])
        bin_folder = Path(sys.executable).parent
        self._environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
        self._environment.pop("BITA_API_KEY", None)
        self._server: subprocess.Popen[str] | None = None
        self.smaller: Mapping[str, str] = SHORTER

    def run(self, language: str, text: str) -> None:
        text = text.replace("8000", self._port)
        for large, small in self.smaller.items():
            text = text.replace(large, small)
        if language == "python":
            self._finish([sys.executable, "-c", text])
            return
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("pip install"):
                self._check_extra(line)
            elif line.startswith("export "):
                name, value = line.removeprefix("export ").split("=")
                self._environment[name] = value
            elif line.startswith("bita serve"):
                self._serve(line)
            elif line.startswith("make "):
                self._make(line)
            else:
                out = self._finish(["bash", "-euo", "pipefail", "-c", line])
                assert '"error"' not in out, out

    def _check_extra(self, line: str) -> None:
        (extra,) = re.findall(r"-e '\.\[([\w-]+)\]'$", line)
        text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert re.search(rf"^{extra} = \[", text, flags=re.MULTILINE)

    def _make(self, line: str) -> None:
        """Run the repository's Makefile in this environment, without installing anything."""
        venv = Path(sys.prefix)
        command = ["make", "-f", str(ROOT / "Makefile"), f"VENV={venv}"]
        for stamp in (
            ".export",
            ".model",
            ".tune",
            ".tensorrt-rtx",
            ".dev",
            ".cmake",
            ".native",
            ".test",
        ):
            command += ["-o", str(venv / stamp)]
        words = shlex.split(line, comments=True)[1:]
        self._finish([*command, *(["-n"] if line.startswith(ONLY_READ) else []), *words])

    def _serve(self, line: str) -> None:
        self.close()
        self._server = subprocess.Popen(
            shlex.split(line, comments=True),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._folder,
            env=self._environment,
            text=True,
        )
        assert self._server.stdout is not None
        assert "/v1" in self._server.stdout.readline()

    def _finish(self, command: list[str]) -> str:
        result = subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert result.returncode == 0, (command, result.stdout, result.stderr)
        return result.stdout

    def close(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.communicate(timeout=20)


@pytest.mark.parametrize("page", slow_but(PAGES, "engine.md"))
def test_commands_and_programs_of_a_page_work(page: str, tiny_engine: Path, tmp_path: Path) -> None:
    if shutil.which("curl") is None and page == "serving.md":
        pytest.skip("needs curl")
    desk = Desk(tmp_path, tiny_engine)
    try:
        found = [*blocks(page)]
        assert found
        for language, text in found:
            desk.run(language, text)
    finally:
        desk.close()


@pytest.mark.slow
@pytest.mark.compile
@pytest.mark.parametrize("page", BUILDING_PAGES)
def test_commands_of_pages_that_build_engines_work(
    page: str, tiny_engine: Path, tmp_path: Path
) -> None:
    for package in ("torch", "tensorrt_rtx"):
        pytest.importorskip(package)
    desk = Desk(tmp_path, tiny_engine)
    desk.smaller = SMALLER
    (tmp_path / ENGINE).unlink()
    shutil.copytree(tiny_engine, tmp_path / ENGINE)
    for name in ("path/to/model", "Qwen/Qwen3-0.6B", "tiny/smollm2-135m-instruct"):
        write_plain_model(tmp_path / name, config={**CONFIG, "max_position_embeddings": 8192})
    desk.run("bash", "bita adapter init path/to/model --out adapter.safetensors")
    (tmp_path / "adapters").mkdir()
    shutil.copy(tmp_path / "adapter.safetensors", tmp_path / "adapters" / "model.safetensors")
    for name in ("Makefile", "pyproject.toml", "setup.py", "benchmarks", "runtime"):
        (tmp_path / name).symlink_to(ROOT / name)
    lines = [json.dumps({"prompt": f"Describe tree number {n}."}) for n in range(8)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines), encoding="utf-8")
    try:
        for language, text in blocks(page):
            desk.run(language, text)
    finally:
        desk.close()


def test_tables_of_results_are_those_of_their_json() -> None:
    """Run python benchmarks/result_pages.py if it fails."""
    script = ROOT / "benchmarks" / "result_pages.py"
    assert subprocess.run([sys.executable, script, "--check"]).returncode == 0


@pytest.mark.slow
def test_the_site_is_built_without_a_dead_link(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "repository" / "benchmarks" / "results" / "peers.json").is_file()


@pytest.mark.parametrize(
    ("script", "image"),
    [("figures.py", "tree-mask.svg"), ("layers_figure.py", "architecture.svg")],
)
def test_drawn_pictures_show_the_code(script: str, image: str, tmp_path: Path) -> None:
    """Run the script in docs/ if it fails."""
    for package in ("matplotlib", "grimp"):
        pytest.importorskip(package)

    def shown(path: Path) -> tuple[list[str], int]:
        text = path.read_text(encoding="utf-8")
        return re.findall(r"<text[^>]*>(.*?)</text>", text), text.count("fill: #3f6d99")

    subprocess.run([sys.executable, ROOT / "docs" / script, tmp_path / image], check=True)
    assert shown(tmp_path / image) == shown(ROOT / "docs" / "images" / image)
    assert len(shown(tmp_path / image)[0]) > 20


def test_links_between_pages_exist() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / link).exists(), (page.name, link)


def program_strings() -> Iterator[str]:
    """Yield all strings of the package's code; values in them are written as …."""
    for folder in ("bita", "export", "runtime", "calibration"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [getattr(part, "value", None) for part in node.values]
                    yield "".join(part if isinstance(part, str) else "…" for part in parts)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value


def test_the_troubleshooting_page_quotes_messages_of_the_code() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    tables = text.split("## It runs, but")[0]
    messages = re.findall(r"^\| `(.+?)` \|", tables, flags=re.MULTILINE)
    assert len(messages) > 20
    known = "\n".join(program_strings())
    unknown = [
        message
        for message in messages
        if any(part.strip(" ;") not in known for part in message.split("…"))
    ]
    assert unknown == []


def guide_to_c() -> list[tuple[str, str]]:
    """Return the language and text of the blocks in C, C++ and cmake of docs/cpp.md."""
    text = (ROOT / "docs" / "cpp.md").read_text(encoding="utf-8")
    return re.findall(r"^```(c|cpp|cmake)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(
    ("language", "file"),
    [("c", "c/generate.c"), ("cpp", "cpp/chat.cpp"), ("cmake", "cpp/CMakeLists.txt")],
)
def test_the_guide_to_c_has_the_examples(language: str, file: str) -> None:
    assert (language, (ROOT / "examples" / file).read_text(encoding="utf-8")) in guide_to_c()


@pytest.mark.parametrize(("language", "compiler"), [("c", "gcc"), ("cpp", "g++")])
def test_pieces_of_programs_compile(language: str, compiler: str, tmp_path: Path) -> None:
    """The pieces may use an engine and a session, as the page has them before."""
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    begin = {
        "c": "#include <bita/bita.h>\n#include <stdio.h>\n"
        "void piece(bita_engine *engine, bita_session *session) {\n(void)engine;\n",
        "cpp": "#include <bita/bita.hpp>\n#include <iostream>\n"
        "void piece(bita::Engine& engine, bita::Session& session) {\n"
        "(void)engine, (void)session;\n",
    }
    found = [text for kind, text in guide_to_c() if kind == language and "#include" not in text]
    assert found
    include = ROOT / "runtime" / "native" / "include"
    command = [compiler, f"-std={'c99' if language == 'c' else 'c++17'}", "-Wall", "-Wextra"]
    for number, text in enumerate(found):
        source = tmp_path / f"piece{number}.{language}"
        source.write_text(f"{begin[language]}{text}}}\n", encoding="utf-8")
        subprocess.run(
            [*command, "-Werror", "-pedantic", f"-I{include}", "-fsyntax-only", source], check=True
        )


def test_every_metric_is_described() -> None:
    pytest.importorskip("prometheus_client")
    from bita.runtime.serving.metrics import Metrics

    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    names = set(re.findall(r"^# TYPE (bita_\w+)", Metrics().text().decode(), flags=re.MULTILINE))
    assert len(names) > 12
    assert [name for name in names if name not in text] == []
