"""Data directories are the same after any number of kills, and refused for another model."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from data_fakes import HashGenerator, Killed, WordSampler
from make_tiny_engine import write_plain_model

from bita.data.dataset import (
    LOCK_FILE,
    SHARD_LINES,
    Conversation,
    Dataset,
    DatasetInfo,
    DatasetWriter,
)
from bita.data.generate_data import DataLimits, FilePrompts, generate_data
from bita.data.model_texts import ModelTexts
from bita.data.self_prompts import PROMPTS_FILE, SelfPromptOptions, SelfPrompts
from bita.errors import ModelError, PromptError
from bita.export.sources import open_checkpoint

NUM = 23  # neither a multiple of the generator's batch nor of the sampler's
WRITTEN = SelfPromptOptions(seed=3, two_turn_share=0.5, max_turn_tokens=60, max_answer_tokens=12)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> ModelTexts:
    directory = write_plain_model(tmp_path_factory.mktemp("plain"))
    return ModelTexts.of(open_checkpoint(str(directory)))


Generate = Callable[..., Dataset]


@pytest.fixture(scope="module")
def generate(texts: ModelTexts) -> Generate:
    """Return a function that writes data; `kill_at` counts batches of answers and responses."""

    def run(out: Path, num: int = NUM, kill_at: int | None = None) -> Dataset:
        generator = HashGenerator(kill_at=kill_at)
        prompts = SelfPrompts(texts, WordSampler(texts.codec), generator, WRITTEN)
        return generate_data(texts, prompts, generator, out, DataLimits(num, 9))

    return run


@pytest.fixture(scope="module")
def unbroken(generate: Generate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("data") / "unbroken").directory


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_run_killed_again_and_again_writes_the_same(
    generate: Generate, unbroken: Path, tmp_path: Path
) -> None:
    num_kills = 0
    for kill_at in (0, 1, 2, 3, 1, 4, 2, 0):
        try:
            generate(tmp_path / "data", kill_at=kill_at)
        except Killed:
            num_kills += 1
    generate(tmp_path / "data")
    assert num_kills >= 6
    assert contents(tmp_path / "data") == contents(unbroken)


@pytest.mark.parametrize("name", [PROMPTS_FILE, "shard-00000.jsonl"])
def test_a_file_cut_anywhere_is_continued(
    name: str, generate: Generate, unbroken: Path, tmp_path: Path
) -> None:
    whole = (unbroken / name).read_bytes()
    line_end = whole.index(b"\n", len(whole) // 2)
    for cut in (0, 1, len(whole) // 3, line_end, line_end + 1, len(whole) - 1, len(whole)):
        directory = tmp_path / str(cut)
        shutil.copytree(unbroken, directory)
        (directory / name).write_bytes(whole[:cut])
        if name == PROMPTS_FILE:
            (directory / "shard-00000.jsonl").unlink()  # responses come after all prompts
        generate(directory)
        assert contents(directory) == contents(unbroken)


def test_a_larger_number_continues_a_finished_run(
    generate: Generate, unbroken: Path, tmp_path: Path
) -> None:
    short, size = tmp_path / "data", 4 * (NUM // 4)
    generate(short, num=size)
    assert contents(short) != contents(unbroken)
    generate(short)
    assert contents(short) == contents(unbroken)


def test_only_what_is_missing_is_generated(texts: ModelTexts, unbroken: Path) -> None:
    generator, sampler = HashGenerator(), WordSampler(texts.codec)
    prompts = SelfPrompts(texts, sampler, generator, WRITTEN)
    seen = []
    limits = DataLimits(NUM, 9)
    generate_data(texts, prompts, generator, unbroken, limits, lambda *event: seen.append(event))
    assert generator.num_calls == sampler.num_sampled == 0
    assert seen == [("prompts", NUM, NUM), ("responses", NUM, NUM)]


def test_written_data_match_their_prompts(texts: ModelTexts, unbroken: Path) -> None:
    data = Dataset.load(unbroken, texts.identity, texts.tokenizer_sha256)
    lines = [json.loads(line) for line in (unbroken / PROMPTS_FILE).read_text().splitlines()]
    conversations = list(data)
    assert len(data) == len(conversations) == len(lines) == NUM
    turns = [len(line["messages"]) for line in lines]
    assert {1, 3} == set(turns)
    for line, conversation in zip(lines, conversations, strict=True):
        assert conversation.prompt_ids == tuple(texts.encode(line["messages"]))
        assert (conversation.response_ids[-1] in texts.eos_ids) == (conversation.finish == "eos")
    assert {conversation.finish for conversation in conversations} == {"eos", "length"}
    assert {conversation.source for conversation in conversations} == {"self"}
    candidates = [line["candidate"] for line in lines]
    assert candidates == sorted(candidates)
    assert candidates[-1] >= NUM  # some were left out


def test_the_share_of_second_turns_can_be_chosen(texts: ModelTexts, tmp_path: Path) -> None:
    counts = []
    for share in (0.0, 0.5, 1.0):
        generator, directory = HashGenerator(), tmp_path / str(share)
        options = replace(WRITTEN, two_turn_share=share)
        prompts = SelfPrompts(texts, WordSampler(texts.codec), generator, options)
        generate_data(texts, prompts, generator, directory, DataLimits(NUM, 9))
        lines = [json.loads(line) for line in (directory / PROMPTS_FILE).open()]
        counts.append(sum(len(line["messages"]) == 3 for line in lines))
    assert 0 == counts[0] < counts[1] < counts[2] < NUM  # some first answers have no end


def test_conversations_are_spread_over_shards(texts: ModelTexts, tmp_path: Path) -> None:
    info = DatasetInfo(texts.identity, texts.tokenizer_sha256, "hand")
    num = 2 * SHARD_LINES + 3
    conversations = [Conversation((i + 1,), (i + 2, 1), "eos", "file") for i in range(num)]
    ends = (0, SHARD_LINES, SHARD_LINES + 9, num)  # reopened at a shard's end and in a shard
    for part in map(range, ends, ends[1:]):
        with DatasetWriter(tmp_path, info) as writer:
            assert writer.num_lines == part[0]
            for index in part:
                writer.append(3 * index, conversations[index])
    assert writer.next_index == 3 * (num - 1) + 1
    with pytest.raises(ValueError, match="indices must increase"):
        writer.append(3, conversations[1])
    counts = [path.read_bytes().count(b"\n") for path in sorted(tmp_path.glob("shard-*"))]
    assert counts == [SHARD_LINES, SHARD_LINES, 3]
    with (tmp_path / "shard-00002.jsonl").open("ab") as file:
        file.write(b'{"index":9999,"pro')
    assert list(Dataset(tmp_path, info)) == conversations


def test_a_second_writer_waits_and_continues(texts: ModelTexts, tmp_path: Path) -> None:
    info = DatasetInfo(texts.identity, texts.tokenizer_sha256, "hand")
    conversation = Conversation((1,), (2, 1), "eos", "file")
    found: list[int] = []

    def write() -> None:
        with DatasetWriter(tmp_path, info) as writer:
            found.append(writer.next_index)
            writer.append(writer.next_index, conversation)

    with DatasetWriter(tmp_path, info) as first:
        second = threading.Thread(target=write)
        second.start()
        first.append(0, conversation)
        time.sleep(0.3)
        assert not found
        first.append(1, conversation)
    second.join(20)
    assert found == [2]
    assert list(Dataset(tmp_path, info)) == [conversation] * 3
    assert not (tmp_path / LOCK_FILE).exists()
    with pytest.raises(ModelError, match="holds other data"):
        DatasetWriter(tmp_path, replace(info, generator="other"))
    assert not (tmp_path / LOCK_FILE).exists()


def test_data_of_another_model_or_other_options_are_refused(
    texts: ModelTexts, unbroken: Path, generate: Generate, tmp_path: Path
) -> None:
    other = ModelTexts.of(open_checkpoint(str(write_plain_model(tmp_path / "other", seed=1))))
    with pytest.raises(ModelError, match=r"4 faults(.|\n)*another model(.|\n)*against 000"):
        Dataset.load(unbroken, other.identity, "000")
    with pytest.raises(ModelError, match=r"tokenizer .*the ids mean other text"):
        Dataset.load(unbroken, texts.identity, "000")
    before = contents(unbroken)
    generator = HashGenerator(batch_size=5)
    prompts = SelfPrompts(texts, WordSampler(texts.codec), generator, replace(WRITTEN, seed=4))
    with pytest.raises(ModelError, match=r"3 faults(.|\n)*max_new_tokens 9 .* 10(.|\n)*seed 3 .*4"):
        generate_data(texts, prompts, generator, unbroken, DataLimits(NUM, 10))
    assert contents(unbroken) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ModelError, match="holds other files"):
        generate(tmp_path / "full")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("info.json", '"format_version": 1', '"format_version": 2', "format_version 2; this is 1"),
        ("info.json", "bita-data", "bita-engine", "not of the format"),
        ("info.json", '"warnings": []', '"warnings": 3', "warnings is 3"),
        ("info.json", "{", "", "is not readable JSON"),
        ("info.json", "{", "[" * 10**5, "nested too deeply"),
        (
            "info.json",
            '"warnings": []',
            '"warnings": [3]',
            r"warnings is \[3\], not a list of texts",
        ),
        ("shard-00000.jsonl", '"response":[', '"response":["a",', "0.jsonl:1 .*response is not"),
        ("shard-00000.jsonl", '"source":"self"', '"source":"web"', "source is 'web'"),
        ("shard-00000.jsonl", "{", "", "shard-00000.jsonl:1 is not JSON"),
    ],
)
def test_broken_files_are_reported_by_name(
    texts: ModelTexts, unbroken: Path, tmp_path: Path, name: str, old: str, new: str, message: str
) -> None:
    shutil.copytree(unbroken, tmp_path / "data")
    path = tmp_path / "data" / name
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ModelError, match=message):
        list(Dataset.load(tmp_path / "data", texts.identity, texts.tokenizer_sha256))


def test_prompts_are_read_from_a_file_and_filtered_by_length(
    texts: ModelTexts, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    chat = [{"role": "user", "content": "a mask"}, {"role": "assistant", "content": "a tree"}]
    entries = [{"prompt": "word " * 50}, {"turns": ["the fox", "?"]}, {"messages": chat}]
    path.write_text("\n".join(map(json.dumps, entries)))
    out = tmp_path / "data"
    limits = DataLimits(max_new_tokens=5, max_prompt_tokens=30)
    data = generate_data(texts, FilePrompts(path), HashGenerator(), out, limits)
    expected = [[{"role": "user", "content": text}] for text in ("the fox", "a mask")]
    assert [c.prompt_ids for c in data] == [tuple(texts.encode(m)) for m in expected]
    assert [json.loads(line)["index"] for line in (out / "shard-00000.jsonl").open()] == [1, 2]
    assert {c.source for c in data} == {"file"}
    with pytest.raises(PromptError, match="none of 3 prompts has 1 to 2 tokens"):
        generate_data(
            texts, FilePrompts(path), HashGenerator(), tmp_path / "b", DataLimits(None, 5, 2)
        )
    with pytest.raises(PromptError, match="max_new_tokens is 0"):
        DataLimits(None, 0)
    path.write_text('{"messages": [{"role": "system", "content": "be kind"}]}')
    with pytest.raises(PromptError, match="no user's turn, only system"):
        FilePrompts(path)
