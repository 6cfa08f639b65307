"""Tests of how answers end: EOS ids of files, and the token that ends a turn of the template."""

import json
from pathlib import Path
from typing import Any

import pytest
from make_tiny_engine import CONFIG, write_plain_model
from tiny_gguf import base_metadata

from bita.errors import ModelError
from bita.export.build import BuildOptions, build_engine, check_build
from bita.export.gguf.tokenizer import read_gguf_text_assets
from bita.export.huggingface.tokenizer import read_text_assets
from bita.export.sources import open_checkpoint
from bita.runtime.session import Session

PAD, END, USER, ASSISTANT = range(4)
CHAT = [{"role": "user", "content": "Hi"}]
EACH = "{% for m in messages %}<|{{ m.role }}|>"
TEMPLATES = {
    "right after the answer": (EACH + "{{ m.content }}<|end|>\n{% endfor %}", (END,)),
    "after a space": (EACH + " {{ m.content }} <|end|>{% endfor %}", (END,)),
    "and the end of the document": (EACH + "{{ m.content }}<|end|>{% endfor %}<|pad|>", (END,)),
    "the eos token by name": (EACH + "{{ m.content }}{{ eos_token }}{% endfor %}", (END,)),
    "not after the last answer": (
        EACH + "{{ m.content }}{% if not loop.last %}<|end|>{% endif %}{% endfor %}",
        (END,),
    ),
    "parts only": (EACH + "{{ m.content[0].text }}<|end|>{% endfor %}", (END,)),
    "no token": (EACH + "{{ m.content }}\n{% endfor %}", ()),
    "the next turn begins": (EACH + "{{ m.content }}{% endfor %}", ()),
    "words between": (EACH + "{{ m.content }} (end) <|end|>{% endfor %}", ()),
    "a template that fails": (EACH + "{{ m.content + 1 }}<|end|>{% endfor %}", ()),
}


def write(directory: Path, template: str | None = None, **files: Any) -> Path:
    """Write a tiny model with eos_token <|pad|>; `files` are changes of its files, by stem."""
    write_plain_model(directory)
    changes = {"tokenizer_config": {"chat_template": template, "eos_token": "<|pad|>"}, **files}
    for stem, content in changes.items():
        path = directory / f"{stem}.json"
        data = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**data, **content}))
    return directory


def read(directory: Path) -> Any:
    return read_text_assets(directory, json.loads((directory / "config.json").read_text()))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_token_after_an_answer_ends_chat_turns(name: str, tmp_path: Path) -> None:
    template, expected = TEMPLATES[name]
    names = {"eos_token": "<|end|>" if "{{ eos_token" in template else "<|pad|>"}
    config = {"chat_template": template, **names}
    path = write(tmp_path, tokenizer_config=config, generation_config={"eos_token_id": 0})
    assets = read(path)
    assert (assets.eos_ids, assets.turn_end_ids) == ((0,), expected)
    assert assets.defaults.chat_eos_ids == (*expected, 0)


def test_chat_turns_also_end_at_the_tokenizers_eos_token(tmp_path: Path) -> None:
    assets = read(write(tmp_path, generation_config={"eos_token_id": [3, 2]}))
    assert (assets.eos_ids, assets.turn_end_ids) == ((3, 2), (PAD,))


@pytest.mark.parametrize(
    "value", [True, 1.5, float("inf"), float("nan"), "1", -1, [[1]], [None], {}]
)
def test_invalid_eos_ids_are_refused(value: Any, tmp_path: Path) -> None:
    for stem in ("generation_config", "config"):
        path = write(tmp_path / stem, generation_config={})
        data = json.loads((path / f"{stem}.json").read_text())
        (path / f"{stem}.json").write_text(json.dumps({**data, "eos_token_id": value}))
        with pytest.raises(ModelError, match=rf"{stem}\.json: eos_token_id is .*, not a"):
            read(path)


def test_ids_that_the_model_does_not_have_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, generation_config={"eos_token_id": [320, 5, 5, 2**30]})
    assert read(path).eos_ids == (5,)
    path = write(tmp_path, generation_config={"eos_token_id": [320, 400]})
    with pytest.raises(ModelError, match=r"the model has none of the ids \[320, 400\]"):
        read(path)
    path = write(tmp_path, generation_config={"eos_token_id": None})
    assert read(path).eos_ids == (END,)  # the id of config.json


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"temperature": float("nan")}, "temperature is nan, not a number"),
        ({"temperature": "1"}, "temperature is '1', not a number"),
        ({"top_k": float("inf")}, "top_k is inf, not a whole number"),
        ({"top_p": 2}, "top_p is 2, not a number of 1e-09 to 1"),
        ({"do_sample": "yes"}, "do_sample is 'yes', not true or false"),
    ],
)
def test_invalid_sampling_numbers_are_refused(
    values: dict[str, Any], fault: str, tmp_path: Path
) -> None:
    content = {"do_sample": True, **values}
    with pytest.raises(ModelError, match=fault):
        read(write(tmp_path, generation_config=content))
    nulls = {"do_sample": True, "top_k": None, "temperature": None}
    assert read(write(tmp_path, generation_config={**nulls, "top_p": None})).sampling == {}


def test_the_template_of_a_gguf_file_gives_turn_ends_too() -> None:
    metadata = base_metadata("llama")
    metadata["tokenizer.ggml.token_type"] = [3] * 2 + [1] * (
        len(metadata["tokenizer.ggml.tokens"]) - 2
    )
    metadata["tokenizer.chat_template"] = "{% for m in messages %}{{ m.content }}B{% endfor %}"
    assets = read_gguf_text_assets("m", metadata)
    assert (assets.eos_ids, assets.turn_end_ids) == ((3,), (1,))


def test_answers_end_with_the_turn_only_in_chats(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    path = write(tmp_path / "m", template, generation_config={"eos_token_id": PAD})
    options = BuildOptions(precision="fp32", capacity=64)
    build_engine(check_build(open_checkpoint(str(path)), None, tmp_path / "engine", options))
    session = Session.open(tmp_path / "engine", num_threads=1)
    assert session.eos_ids == session.end_ids("Hi") == session.end_ids([5, 6]) == (PAD,)
    assert session.end_ids(CHAT) == (END, PAD)
    towards: dict[str, Any] = {"logit_bias": {END: 100.0}, "max_new_tokens": 4}
    for answer in (
        session.generate(CHAT, **towards),
        session.conversation(CHAT).answer(**towards).run(),
    ):
        assert (answer.token_ids, answer.finish_reason, answer.text) == ([END], "eos", "")
    plain = session.generate("Hi", **towards)
    assert (plain.token_ids, plain.finish_reason) == ([END] * 4, "length")
    ignored = session.generate(CHAT, ignore_eos=True, **towards)
    assert (ignored.token_ids, ignored.finish_reason) == ([END] * 4, "length")
    stopped = session.generate("Hi", stop=["<|end|>"], **towards)
    assert (stopped.token_ids, stopped.finish_reason) == ([END], "stop")
    assert CONFIG["eos_token_id"] == END
