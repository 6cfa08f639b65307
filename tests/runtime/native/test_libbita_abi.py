"""Programs built with an older header run with the newest libbita."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from answer_tool import BUILD, onnxruntime_library
from libbita_programs import (
    answer_of_generate,
    compile_c,
    needs_c,
    needs_libbita,
    printed,
    tiny_engine,
)
from paths import DATA, ROOT

from bita.runtime.session import Session

NATIVE = ROOT / "runtime" / "native"
HEADER = NATIVE / "include" / "bita" / "bita.h"
FIRST_HEADER = DATA / "bita_0_1_0.h"
ABI = NATIVE / "abi" / "libbita.abi"
HERE = Path(__file__).parent
PROMPT = "The tree asks"

needs_abigail = pytest.mark.skipif(
    shutil.which("abidiff") is None, reason="needs abigail-tools (Debian: apt install)"
)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine(tmp_path_factory.mktemp("native"))


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the module that compares interfaces importable."""
    monkeypatch.syspath_prepend(str(NATIVE / "build_tools"))
    yield
    sys.modules.pop("library_abi", None)


def copy_first_header(folder: Path) -> Path:
    """Create an include folder that has the first released header."""
    (folder / "bita").mkdir(parents=True)
    shutil.copy(FIRST_HEADER, folder / "bita" / "bita.h")
    return folder


@pytest.mark.slow
@needs_abigail
@needs_libbita
def test_the_interface_stays_compatible() -> None:
    """The message of a failure says what to do."""
    script = NATIVE / "build_tools" / "library_abi.py"
    command = [sys.executable, str(script), "--check", "--build", str(BUILD)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


FIELD = """      <data-member access='public' layout-offset-in-bits='{}'>
        <var-decl name='later' type-id='9da381c4' visibility='default'/>
      </data-member>
"""


def struct_element(text: str, name: str) -> str:
    """Return the element of a struct in abidw's output."""
    (found,) = re.findall(rf"    <class-decl name='{name}' size.*?</class-decl>\n", text, re.DOTALL)
    assert isinstance(found, str)
    return found


def add_field(text: str, name: str, num_padded: int = 0) -> str:
    """Add a 64-bit field at the end of a struct; it fills `num_padded` bits of end padding."""
    old = struct_element(text, name)
    before = int(re.findall(r"size-in-bits='(\d+)'", old)[0])
    offset, size = before - num_padded, before + 64 - 2 * num_padded
    new = old.replace("    </class-decl>", FIELD.format(offset) + "    </class-decl>")
    return text.replace(old, re.sub(r"size-in-bits='\d+'", f"size-in-bits='{size}'", new, count=1))


def named_element(text: str, kind: str, name: str) -> str:
    pattern = rf"    <{kind} name='{name}'(?:[^>]*/>|.*?</{kind}>)\n"
    (found,) = re.findall(pattern, text, re.DOTALL)
    assert isinstance(found, str)
    return found


def apply_edit(text: str, edit: str) -> str:
    """Return the interface after an edit of the header."""
    symbol = named_element(text, "elf-symbol", "bita_cancel")
    function = named_element(text, "function-decl", "bita_cancel")
    seed = "<var-decl name='seed' type-id='9c313c2d'"
    double = seed.replace("9c313c2d", "a0eb0f08")
    renamed = ("bita_cancel", "bita_stop")
    edits = {
        "a field at the end": lambda: add_field(text, "bita_step"),
        "a function": lambda: text.replace(symbol, symbol + symbol.replace(*renamed)).replace(
            function, function + function.replace(*renamed)
        ),
        "a field in the padding": lambda: add_field(text, "bita_session_options", 32),
        "a field of a struct without size": lambda: add_field(text, "bita_message"),
        "a field of another type": lambda: text.replace(seed, double),
        "both": lambda: add_field(text, "bita_step").replace(seed, double),
        "a field of another name": lambda: text.replace("'num_dropped'", "'num_left'"),
        "a function less": lambda: text.replace(symbol, "").replace(function, ""),
        "a parameter of another type": lambda: text.replace(
            "<parameter type-id='c894953d'/>", "<parameter type-id='9da381c4'/>"
        ),
    }
    found: str = edits[edit]()
    assert found != text
    return found


@needs_abigail
@pytest.mark.usefixtures("tool")
@pytest.mark.parametrize("edit", ["a field at the end", "a function"])
def test_additions_are_not_reported_as_changes(edit: str, tmp_path: Path) -> None:
    import library_abi

    (tmp_path / "new.abi").write_text(apply_edit(ABI.read_text(encoding="utf-8"), edit))
    assert library_abi.changes(ABI, tmp_path / "new.abi") == ""


@needs_abigail
@pytest.mark.usefixtures("tool")
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ("a field in the padding", "1 data member insertion"),
        ("a field of a struct without size", "type size changed from 128 to 192"),
        ("a field of another type", "from 'typedef uint64_t' to compatible type 'double'"),
        ("both", "from 'typedef uint64_t' to compatible type 'double'"),
        ("a field of another name", "name of 'bita_step::num_dropped' changed"),
        ("a function less", "[D] 'function void bita_cancel(bita_session*)'"),
        ("a parameter of another type", "'function bita_status bita_start_text("),
    ],
)
def test_incompatible_changes_are_reported(edit: str, said: str, tmp_path: Path) -> None:
    import library_abi

    (tmp_path / "new.abi").write_text(apply_edit(ABI.read_text(encoding="utf-8"), edit))
    assert said in library_abi.changes(ABI, tmp_path / "new.abi")


def write_layout_program(header: str) -> str:
    """Write a C program that prints every constant and field offset of a header."""
    constants = re.findall(r"^  (BITA_\w+) = ", header, flags=re.MULTILINE)
    constants += re.findall(r"\b(BITA_(?:LOG|OVERFLOW)_\w+) =", header)  # several on a line
    constants.append("BITA_STATS_DEPTHS")
    lines = [f'  printf("{name} %d\\n", (int){name});' for name in sorted({*constants})]
    for name, body in re.findall(r"typedef struct (\w+) \{\n(.*?)\n\} \1;", header, re.DOTALL):
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        for field in re.findall(r"(\w+)(?:\[\w+\])?(?=[,;])", body):
            place = f"offsetof({name}, {field})"
            lines.append(f'  printf("{name}.{field} %d\\n", (int){place});')
    text = "\n".join(lines)
    return (
        f"#include <bita/bita.h>\n#include <stdio.h>\nint main(void) {{\n{text}\n  return 0;\n}}\n"
    )


@needs_c
def test_constants_and_field_offsets_are_unchanged(tmp_path: Path) -> None:
    """A program compares them with the first header: abidw omits enumeration constants."""
    source = tmp_path / "layout.c"
    source.write_text(
        write_layout_program(FIRST_HEADER.read_text(encoding="utf-8")), encoding="utf-8"
    )
    first = compile_c(source, tmp_path / "first", copy_first_header(tmp_path / "include"))
    newest = compile_c(source, tmp_path / "newest", NATIVE / "include")
    lines = printed(first)
    assert len(lines.splitlines()) > 80
    assert "BITA_ERROR_SIZE -7\n" in lines
    assert "bita_engine_info.min_p 88\n" in lines
    assert printed(newest) == lines


@needs_c
@needs_libbita
def test_a_program_built_with_the_first_header_runs(engine: Path, tmp_path: Path) -> None:
    source = ROOT / "examples" / "c" / "generate.c"
    include = copy_first_header(tmp_path / "include")
    program = compile_c(source, tmp_path / "generate", include, with_library=True)
    text = answer_of_generate(printed(program, str(engine), PROMPT))
    assert text == Session.open(engine, num_threads=1).generate(PROMPT, max_new_tokens=256).text


@needs_c
@needs_libbita
def test_structs_without_their_last_fields_are_accepted(engine: Path, tmp_path: Path) -> None:
    """A program built with an older header passes such structs."""
    source = HERE / "short_structs.c"
    program = compile_c(source, tmp_path / "short", NATIVE / "include", with_library=True)
    text = printed(program, str(onnxruntime_library()), str(engine), PROMPT)
    assert text == Session.open(engine, num_threads=1).generate(PROMPT, max_new_tokens=40).text
