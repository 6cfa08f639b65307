"""Texts that would make an engine unusable are refused before the build."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from make_tiny_engine import write_plain_model

from bita.errors import ModelError
from bita.export.build import BuildOptions, check_build
from bita.export.huggingface.tokenizer import read_text_assets
from bita.export.sources import open_checkpoint

READS = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain_model(tmp_path_factory.mktemp("plain"))


def edit_copy(plain: Path, out: Path, name: str, **values: Any) -> Path:
    shutil.copytree(plain, out)
    data = json.loads((out / name).read_text())
    (out / name).write_text(json.dumps({**data, **values}))
    return out


def check(path: Path) -> None:
    options = BuildOptions(precision="fp32", capacity=64)
    check_build(open_checkpoint(str(path)), None, path / "engine", options)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for %}", "does not compile: line 1"),
        ("{{ x|wordwrap }}", "does not compile: line 1: No filter named 'wordwrap'"),
        ("{% for m in messages recursive %}{% endfor %}", "recursive loops are not supported"),
        ("x" * 300_000, "has 300000 characters"),
        ("{{ messages.at.all }}{{ nothing.at.all }}", "fails with UndefinedError"),
        ("{% include 'x' %}", "fails with TypeError: no loader"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("Answer the question.", "does not write the text of this user"),
        ("{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}", "is lost"),
    ],
)
def test_unusable_templates_are_refused(
    plain: Path, tmp_path: Path, template: str, reason: str
) -> None:
    path = edit_copy(plain, tmp_path / "m", "tokenizer_config.json", chat_template=template)
    with pytest.raises(
        ModelError, match=rf"(?s){reason}.*chat_template.jinja into the model|{reason}"
    ):
        check(path)
    assert not (path / "engine").exists()


@pytest.mark.parametrize(
    "template",
    [
        None,
        "",
        " \n",
        READS,
        "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + READS,
        "{% if tools is none %}{{ raise_exception('tools!') }}{% endif %}" + READS,
        "{{ messages[1].content[0] and '' }}" + READS,  # fails without a system message
    ],
)
def test_usable_templates_are_accepted(plain: Path, tmp_path: Path, template: str | None) -> None:
    check(edit_copy(plain, tmp_path / "m", "tokenizer_config.json", chat_template=template))


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}, "by WordPiece"),
        (
            {
                "decoder": {
                    "type": "CTC",
                    "pad_token": "a",
                    "word_delimiter_token": "b",
                    "cleanup": True,
                }
            },
            "CTC",
        ),
        ({"decoder": {"type": "BPEDecoder", "suffix": "</w>"}}, "by BPEDecoder"),
        (
            {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}},
            "cannot be turned into",
        ),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 999}}, "999 times longer"),
    ],
)
def test_unsupported_tokenizers_are_refused(
    plain: Path, tmp_path: Path, part: dict[str, Any], reason: str
) -> None:
    path = edit_copy(plain, tmp_path / "m", "tokenizer.json", **part)
    with pytest.raises(ModelError, match=reason):
        check(path)


def test_clean_up_of_spaces_is_refused_only_if_forced(plain: Path, tmp_path: Path) -> None:
    """transformers ignores the first setting for BPE unless the second one forces it."""
    insists = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    config = {"clean_up_tokenization_spaces": True}
    check(edit_copy(plain, tmp_path / "m", "tokenizer_config.json", **config))
    path = edit_copy(plain, tmp_path / "n", "tokenizer_config.json", **{**config, insists: True})
    with pytest.raises(ModelError, match="clean_up_tokenization_spaces changes the results"):
        check(path)


def template_of(directory: Path) -> str | None:
    return read_text_assets(directory, {"eos_token_id": 1}).chat_template


def test_templates_are_found_in_the_same_order_as_by_transformers(
    plain: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")

    def theirs(path: Path) -> Any:
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
        return tokenizer.get_chat_template() if tokenizer.chat_template else None

    path = edit_copy(plain, tmp_path / "m", "tokenizer_config.json", chat_template=None)
    assert template_of(path) is theirs(path) is None
    (path / "chat_template.json").write_text(json.dumps({"chat_template": "of the processor"}))
    assert template_of(path) == "of the processor"  # tokenizers of transformers ignore it
    config = json.loads((path / "tokenizer_config.json").read_text())
    entries = [("tool_use", "1"), ("default", "2"), ("default", "3")]
    named = [{"name": name, "template": text} for name, text in entries]
    for given in (named, dict(entries), "4"):
        content = json.dumps({**config, "chat_template": given})
        (path / "tokenizer_config.json").write_text(content)
        assert template_of(path) == theirs(path)
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "default.jinja").write_text("5")
    assert template_of(path) == theirs(path) == "5"
    (path / "chat_template.jinja").write_text("6")
    (path / "additional_chat_templates" / "default.jinja").unlink()
    (path / "additional_chat_templates" / "rag.jinja").write_text("7")
    assert template_of(path) == theirs(path) == "6"
    (path / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has the chat templates rag but no 'default'"):
        template_of(path)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (3, "chat_template is 3, not a text"),
        ([{"name": "default"}], r"chat_template has \{'name': 'default'\}, not a name and a"),
        (["default"], "chat_template has 'default', not a name"),
        ({"default": 3}, "not a name and a template"),
        ([{"name": "rag", "template": "x"}], "chat templates rag but no 'default'"),
    ],
)
def test_templates_of_other_types_are_refused(
    plain: Path, tmp_path: Path, given: Any, reason: str
) -> None:
    path = edit_copy(plain, tmp_path / "m", "tokenizer_config.json", chat_template=given)
    with pytest.raises(ModelError, match=reason):
        template_of(path)


def test_a_template_file_that_is_not_text_is_refused(plain: Path, tmp_path: Path) -> None:
    path = edit_copy(plain, tmp_path / "m", "tokenizer_config.json")
    (path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ModelError, match=r"chat_template.jinja cannot be read"):
        template_of(path)
