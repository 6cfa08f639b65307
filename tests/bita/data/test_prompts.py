"""Tests of self-written prompts: where a turn begins and ends, and which are kept."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_fakes import HashGenerator, WordSampler
from make_tiny_engine import write_plain_model

from bita.data.generate_data import DataLimits, generate_data
from bita.data.model_texts import ModelTexts
from bita.data.prompt_filters import (
    FilterOptions,
    NearDuplicates,
    PromptFilter,
    jaccard,
    text_fault,
    word_ngrams,
)
from bita.data.self_prompts import (
    BUNDLED_OPENINGS,
    SelfPromptOptions,
    SelfPrompts,
    read_openings,
)
from bita.data.user_turn import UserTurn
from bita.errors import ModelError, TuningError
from bita.export.sources import open_checkpoint
from bita.runtime.text.chat_template import ChatTemplate

PAD, END, USER, ASSISTANT = range(4)
INSTRUCT = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}<|end|>{% endif %}{% endfor %}"
)
GOOD = "Explain how the draft tree grows when a mask token is accepted by the model."


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> ModelTexts:
    directory = write_plain_model(tmp_path_factory.mktemp("plain"))
    return ModelTexts.of(open_checkpoint(str(directory)))


def with_template(texts: ModelTexts, template: ChatTemplate | None) -> ModelTexts:
    return replace(texts, encoder=replace(texts.encoder, template=template))


def test_a_turn_begins_and_ends_where_the_template_says(texts: ModelTexts) -> None:
    turn = UserTurn.after([], texts)
    assert turn.before_ids == (USER,)
    assert turn.end_ids == {END}
    assert turn.stop_ids == {PAD, END, USER, ASSISTANT}
    words = texts.codec.encode("the fox", add_special_tokens=False)
    assert turn.words([*words, END], texts) == "the fox"
    assert turn.words(words, texts) is None
    assert turn.words([*words, USER], texts) is None
    chat = [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "jumps"}]
    second = UserTurn.after(chat, texts)
    before = texts.codec.encode("<|user|>the fox<|end|><|assistant|>jumps<|end|><|user|>", False)
    assert second.before_ids == tuple(before)


def test_a_template_may_end_a_turn_with_text(texts: ModelTexts) -> None:
    instruct = with_template(texts, ChatTemplate(INSTRUCT))
    turn = UserTurn.after([], instruct)
    assert texts.codec.decode(turn.before_ids) == "[INST]"  # its space belongs to the next word
    assert turn.end_text == "[/INST]"
    words = texts.codec.encode(" the fox [/INST] jumps", add_special_tokens=False)
    assert turn.words(words, instruct) == "the fox"
    assert turn.words(words[:2], instruct) is None
    with pytest.raises(ModelError, match="writes a user's message 0 times"):
        UserTurn.after([], with_template(texts, ChatTemplate("{{ messages | length }}")))


def test_without_a_template_a_prompt_begins_at_bos(texts: ModelTexts, tmp_path: Path) -> None:
    base = replace(with_template(texts, None), bos_ids=(7,))
    turn = UserTurn.after([], base)
    assert turn.before_ids == (7,)
    words = texts.codec.encode("the fox", add_special_tokens=False)
    assert turn.words(words, base) == turn.words([*words, END], base) == "the fox"
    generator = HashGenerator()
    options = SelfPromptOptions(two_turn_share=1.0, max_turn_tokens=60)
    prompts = SelfPrompts(base, WordSampler(base.codec), generator, options)
    data = list(generate_data(base, prompts, generator, tmp_path / "data", DataLimits(6, 5)))
    assert len(data) == 6
    assert all(ASSISTANT not in conversation.prompt_ids for conversation in data)


def test_a_turn_may_begin_with_given_words(texts: ModelTexts) -> None:
    turn = UserTurn.after([], texts).opened("the fox", texts)
    opening = texts.codec.encode("the fox", add_special_tokens=False)
    assert turn.before_ids == (USER, *opening)
    sampled = texts.codec.encode(" jumps", add_special_tokens=False)
    assert turn.words([*sampled, END], texts) == "the fox jumps"
    instruct = with_template(texts, ChatTemplate(INSTRUCT))
    turn = UserTurn.after([], instruct).opened("the fox", instruct)
    assert texts.codec.decode(turn.before_ids) == "[INST] the fox"
    ended = texts.codec.encode(" jumps [/INST]", add_special_tokens=False)
    assert turn.words(ended, instruct) == "the fox jumps"


def first_turns(texts: ModelTexts, directory: Path, options: SelfPromptOptions) -> list[str]:
    generator = HashGenerator()
    prompts = SelfPrompts(texts, WordSampler(texts.codec), generator, options)
    generate_data(texts, prompts, generator, directory, DataLimits(24, 5))
    lines = (directory / "prompts.jsonl").read_text().splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def test_prompts_begin_with_openings(texts: ModelTexts, tmp_path: Path) -> None:
    openings = ("Hello", "Translate the")
    plain = SelfPromptOptions(two_turn_share=0.0, max_turn_tokens=60)
    own = first_turns(texts, tmp_path / "own", plain)
    assert not any(text.startswith(openings) for text in own)
    never = replace(plain, openings=openings, opened_share=0.0)
    assert first_turns(texts, tmp_path / "never", never) == own
    always = replace(never, opened_share=1.0)
    opened = first_turns(texts, tmp_path / "always", always)
    assert min(sum(text.startswith(each) for text in opened) for each in openings) > 4
    assert all(text.startswith(openings) for text in opened)
    half = first_turns(texts, tmp_path / "half", replace(never, opened_share=0.5))
    assert 6 < sum(text.startswith(openings) for text in half) < 18
    info = json.loads((tmp_path / "half" / "info.json").read_text())
    assert info["options"]["openings"] == [*openings]
    info = json.loads((tmp_path / "own" / "info.json").read_text())
    assert not {"openings", "opened_share"} & {*info["options"]}  # older data still match
    with pytest.raises(ModelError, match=r"option openings None against \['H"):
        first_turns(texts, tmp_path / "own", never)


def test_openings_are_read_from_a_file(tmp_path: Path) -> None:
    bundled = read_openings(BUNDLED_OPENINGS)
    assert len(bundled) == len(set(bundled)) > 150
    assert all(each == each.strip() and each for each in bundled)
    path = tmp_path / "openings.txt"
    path.write_text(" Write a poem about \n\nWhy\nWhy\n")
    assert read_openings(path) == ("Write a poem about", "Why")
    for content, message in (
        (b"\n \n", "has no openings of prompts; write one on each line"),
        (b"Why\n" + 81 * b"a", "an opening has 81 characters, more than 80: 'aaa"),
        (b"\xff\xfe", "cannot be read as openings of prompts"),
    ):
        path.write_bytes(content)
        with pytest.raises(TuningError, match=message):
            read_openings(path)
    with pytest.raises(TuningError, match="cannot be read as openings"):
        read_openings(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD, None),
        ("What is 12 + 30?", None),
        ("日本の首都はどこですか", None),
        ("Где находится столица Японии?", None),
        ("में की दो तीन को भी नहीं? है!", None),
        ("", "not text"),
        ("half a character \ufffd is missing here", "not text"),
        ("bell \x07 rings in the text", "not text"),
        ("one two three -------- ******** ======== ~~~~", "not text"),
        ("Hello there", "short"),
        (" ".join(f"word{i}" for i in range(151)), "long"),
        ("the same words " * 12, "repetitive"),
    ],
)
def test_texts_that_cannot_be_prompts_are_rejected(text: str, fault: str | None) -> None:
    assert text_fault(text, FilterOptions()) == fault


def test_near_duplicates_are_rejected() -> None:
    judge = PromptFilter(FilterOptions())
    assert judge.keep(GOOD)
    assert not judge.keep(GOOD.upper() + "  Please!")
    assert judge.keep("Name three rivers of Europe and the seas they flow into.")
    judge.remember("Write a poem about winter in the mountains")
    assert not judge.keep("Write a poem about winter in the mountains.")
    assert not judge.keep("Hi")
    assert judge.rejected == {"duplicate": 2, "short": 1}


def test_words_are_counted_in_scripts_with_marks_and_without_spaces() -> None:
    few = FilterOptions(min_words=4, max_words=4)
    for text in ("हिन्दी में कविता लिखो", "東京都は", "naïve cafés: déjà vu"):
        assert text_fault(text, few) is None


def test_similarity_equals_a_computation_by_hand() -> None:
    """There are 4 and 3 word 3-grams, of which 2 are shared: 2 of 5."""
    left, right = word_ngrams("one two three four five six"), word_ngrams("two three four five ten")
    assert (len(left), len(right)) == (4, 3)
    assert jaccard(left, right) == pytest.approx(2 / 5)
    assert jaccard(frozenset(), frozenset()) == 0


@pytest.mark.parametrize("limit", [0.0, 0.3, 0.5, 0.6, 0.9])
def test_the_index_finds_what_a_scan_finds(limit: float) -> None:
    rng = np.random.default_rng(int(100 * limit))
    index, answers = NearDuplicates(limit), set()
    kept: list[frozenset[int]] = []
    for _ in range(600):
        pool = np.arange(12) + 12 * rng.integers(
            5 if limit else 60
        )  # sets from one pool overlap a lot
        grams = frozenset(rng.choice(pool, rng.integers(1, 12), replace=False).tolist())
        expected = any(jaccard(grams, other) > limit for other in kept)
        assert index.has_similar(grams) == expected
        answers.add(expected)
        if not expected:
            index.add(grams)
            kept.append(grams)
    assert answers == {True, False}


def test_too_few_usable_prompts_are_an_error(texts: ModelTexts, tmp_path: Path) -> None:
    generator = HashGenerator()
    sampler = WordSampler(texts.codec, words=["tree"])  # always the same
    prompts = SelfPrompts(texts, sampler, generator, SelfPromptOptions(max_turn_tokens=60))
    with pytest.raises(TuningError, match=r"only 0 of \d+ .*repetitive.*unfinished|give prompts"):
        generate_data(texts, prompts, generator, tmp_path / "data", DataLimits(4))
    with pytest.raises(TuningError, match="is unlimited; give num"):
        generate_data(texts, prompts, generator, tmp_path / "data")
