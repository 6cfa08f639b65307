"""Stop strings and the end of a generation, compared with brute force."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models

from bita.errors import PromptError
from bita.runtime.text.codec import IncrementalText, TextCodec
from bita.runtime.text.stopping import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, StopRule, StopStrings

WORDS = ["<eos>", "a", "b", "ab", "ba", "aab", "\n", "<0xF0>", "<0x9F>", "<0x9A>", "<0x80>"]
EOS, A, B, AB, BA, AAB, LINE = range(7)
ROCKET = [7, 8, 9, 10]


def make_codec() -> TextCodec:
    vocab = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True))
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return TextCodec(tokenizer)


CODEC = make_codec()


def make_rule(
    stops: list[str] | None = None, max_new_tokens: int = 100, eos_ids: tuple[int, ...] = (EOS,)
) -> StopRule:
    return StopRule(IncrementalText(CODEC), eos_ids, max_new_tokens, stops or [])


def brute_force_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Cut the text before the stop string that ends first, preferring the longest."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def held_back_length(text: str, stops: list[str]) -> int:
    """Return the length of the longest suffix of `text` that may start a stop string."""
    ends = range(1, len(text) + 1)
    return max((n for n in ends for s in stops if s[:n] == text[-n:] and n < len(s)), default=0)


@pytest.mark.parametrize("seed", range(300))
def test_stop_strings_equal_brute_force_for_any_pieces(seed: int) -> None:
    rng = random.Random(seed)
    stops = ["".join(rng.choices("ab", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 4))]
    text = "".join(rng.choices("abc", [4, 4, 1], k=rng.randint(0, 40)))
    expected, found = brute_force_stop(text, stops)
    watch, shown, read = StopStrings(stops), "", ""
    while read != text and watch.found is None:
        piece = text[len(read) : len(read) + rng.randint(1, 4)]
        shown, read = shown + watch.push(piece), read + piece
        if watch.found is None:
            assert shown == read[: len(read) - held_back_length(read, stops)]
    shown += watch.push("" if watch.found is None else "more") + watch.flush()
    assert (shown, watch.found) == (expected, found)


def test_text_is_unchanged_without_stop_strings() -> None:
    watch = StopStrings()
    assert [watch.push("a"), watch.push(""), watch.flush()] == ["a", "", ""]


@pytest.mark.parametrize(
    ("stops", "message"),
    [
        ([""], r"stop strings: number 0 is empty.*leave it out"),
        ("END", r"stop strings: 'END' is not a list of strings; pass \['END'\]"),
        ([3], r"number 0 is 3, not a string"),
        (["x"] * (MAX_STOP_STRINGS + 1), r"there are 17; give at most 16"),
        (["x" * (MAX_STOP_CHARACTERS + 1)], r"number 0 has 257 characters; use at most 256"),
        (["", 3], r"2 faults:\n.*empty.*\n.*not a string"),
    ],
)
def test_invalid_stop_strings_are_refused(stops: list[str], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        make_rule(stops)


@pytest.mark.parametrize("limit", [0, -1, 1.5])
def test_an_invalid_limit_is_refused(limit: int) -> None:
    with pytest.raises(PromptError, match=rf"max_new_tokens is {limit}; .*positive integer"):
        make_rule(max_new_tokens=limit)


def run(rule: StopRule, token_ids: list[int]) -> tuple[list[int], str | None, str]:
    """Feed all tokens, taking the text after each of them."""
    text = ""
    for token_id in token_ids:
        rule.feed(token_id)
        text += rule.take_text()
    return rule.token_ids, rule.finish_reason, text + rule.close()


@pytest.mark.parametrize(
    ("stops", "limit", "fed", "kept", "reason", "text"),
    [
        ([], 9, [A, B], 2, None, "ab"),
        ([], 9, [A, EOS, B], 2, "eos", "a"),  # kept, not shown, nothing after it
        ([], 2, [A, EOS], 2, "eos", "a"),  # EOS before the limit
        ([], 2, [A, B, A], 2, "length", "ab"),
        (["b"], 2, [A, AB], 2, "stop", "aa"),  # the stop string before the limit
        (["ab"], 9, [A, B, A], 2, "stop", ""),  # spans two tokens
        (["a"], 9, [BA, A], 1, "stop", "b"),  # inside one token: cut, token kept
        (["bb"], 9, [A, B, EOS], 3, "eos", "ab"),  # held-back text is shown at the end
        (["bb"], 2, [A, B, B], 2, "length", "ab"),
        (["🚀"], 9, [A, *ROCKET, B], 5, "stop", "a"),
        ([], 3, [A, *ROCKET], 3, "length", "a\ufffd"),  # half a character at the limit
    ],
)
def test_a_generation_ends_with_the_right_reason_and_text(
    stops: list[str], limit: int, fed: list[int], kept: int, reason: str | None, text: str
) -> None:
    rule = make_rule(stops, limit)
    assert run(rule, fed) == (fed[:kept], reason, text)
    assert (rule.take_text(), rule.close()) == ("", "")


def test_an_ignored_eos_counts_as_any_other_token() -> None:
    assert run(make_rule(eos_ids=()), [A, EOS, B]) == ([A, EOS, B], None, "ab")


@pytest.mark.parametrize("seed", range(200))
def test_the_rule_equals_brute_force_on_whole_texts(seed: int) -> None:
    rng = random.Random(seed)
    ids = rng.choices(range(7), [1, 4, 4, 4, 4, 4, 2], k=30)
    stops = ["".join(rng.choices("ab\n", k=rng.randint(1, 5))) for _ in range(rng.randint(0, 3))]
    limit = rng.randint(1, 30)
    kept, reason = limit, "length"
    for count in range(1, limit + 1):
        if brute_force_stop(CODEC.decode(ids[:count]), stops)[1] is not None:
            kept, reason = count, "stop"
            break
        if ids[count - 1] == EOS:
            kept, reason = count, "eos"
            break
    shown_ids = [token_id for token_id in ids[:kept] if token_id != EOS]
    text = brute_force_stop(CODEC.decode(shown_ids), stops)[0]
    assert run(make_rule(stops, limit), ids) == (ids[:kept], reason, text)


def test_text_once_shown_is_never_retracted() -> None:
    rule, shown = make_rule(["\na"]), []
    for token_id in [A, LINE, B, LINE, A]:
        rule.feed(token_id)
        shown.append(rule.take_text())
    assert shown == ["a", "", "\nb", "", ""]
    assert rule.finish_reason == "stop"


def test_the_end_of_each_token_in_the_text_is_known() -> None:
    """A character's bytes except the last end where it begins; EOS has no text."""
    rule = make_rule(["zz"])
    for token_id in [AAB, *ROCKET, B, EOS, A]:
        rule.feed(token_id)
    assert list(rule.text_ends) == [3, 3, 3, 3, 4, 5, 5]
    assert rule.close() == "aab🚀b"


# --- stop strings of special tokens -------------------------------------------------------------

SPECIAL = {"<|end|>": 0, "<|tool|>": 1, "<|pad|>": 2}
TEXT = {"a": 3, "b": 4, "ab": 5, "\n": 6, "<": 7, "|end|>": 8}
NAMES = {token_id: token for token, token_id in (SPECIAL | TEXT).items()}


def make_special_codec() -> TextCodec:
    tokenizer = Tokenizer(models.BPE(SPECIAL | TEXT, [], byte_fallback=True))
    tokenizer.add_special_tokens([*SPECIAL])
    tokenizer.decoder = decoders.Fuse()
    return TextCodec(tokenizer)


SPECIAL_CODEC = make_special_codec()


def special_rule(stops: list[str], eos_ids: tuple[int, ...] = ()) -> StopRule:
    return StopRule(IncrementalText(SPECIAL_CODEC), eos_ids, 100, stops)


def tokens(*names: str) -> list[int]:
    return [(SPECIAL | TEXT)[name] for name in names]


@pytest.mark.parametrize(
    ("stops", "fed", "kept", "text"),
    [
        (["<|end|>"], ["a", "<|end|>", "b"], 2, "a"),
        (["\n<|end|>"], ["a", "\n", "<|end|>", "b"], 3, "a"),
        (["\n<|end|>"], ["a", "b", "<|end|>", "b"], None, "abb"),
        (["b<|end|>"], ["ab", "<|end|>"], 2, "a"),  # starts inside a token and ends after it
        (["<|end|>a"], ["b", "<|end|>", "ab"], 3, "b"),
        (["<|end|>a"], ["b", "<|end|>", "b", "a"], None, "bba"),
        (["<|end|>\n<|tool|>"], ["a", "<|end|>", "\n", "<|tool|>", "b"], 4, "a"),
        (["<|end|><|end|>"], ["a", "<|end|>", "<|end|>"], 3, "a"),
        (["<|end|>"], ["a", "<", "|end|>", "b"], 3, "a"),  # written in ordinary tokens
        (["<|end|>"], ["a", "<|tool|>", "b"], None, "ab"),
        (["end", "|>", "<"], ["a", "<|end|>", "b"], None, "ab"),  # hidden tokens have no text
        (["a<|end|>"], ["a", "<|pad|>", "<|end|>"], 3, ""),  # nor do other special tokens
        (["b", "<|end|>"], ["a", "b", "<|end|>"], 2, "a"),
        (["<|end|>", "a<|end|>"], ["b", "a", "<|end|>"], 3, "b"),  # the longest one
    ],
)
def test_special_tokens_complete_stop_strings(
    stops: list[str], fed: list[str], kept: int | None, text: str
) -> None:
    ids = tokens(*fed)
    rule = special_rule(stops)
    expected = (ids[:kept], None if kept is None else "stop", text)
    assert run(rule, ids) == expected


@pytest.mark.parametrize(
    ("stops", "reason", "text"),
    [
        ([], "eos", "a\n"),
        (["<|end|>"], "eos", "a\n"),
        (["\n<|end|>"], "stop", "a"),  # the stop string includes more than the EOS token
        (["b<|end|>"], "eos", "a\n"),
    ],
)
def test_a_stop_string_that_an_eos_token_completes_cuts_the_text(
    stops: list[str], reason: str, text: str
) -> None:
    ids = tokens("a", "\n", "<|end|>")
    assert run(special_rule(stops, eos_ids=(SPECIAL["<|end|>"],)), ids) == (ids, reason, text)


def test_a_stop_at_a_special_token_is_not_counted_as_text() -> None:
    for stops, is_text in ((["<|end|>"], False), (["b"], True)):
        rule = special_rule(stops)
        run(rule, tokens("a", "b", "<|end|>"))
        assert rule.ended_at_token is not is_text


@pytest.mark.parametrize("seed", range(150))
def test_special_tokens_equal_brute_force_on_spelled_texts(seed: int) -> None:
    """Special tokens named by stop strings are spelled as text; the others are empty."""
    rng = random.Random(seed)
    ids = rng.choices(range(7), [2, 2, 1, 4, 4, 3, 3], k=25)
    pieces = ["<|end|>", "<|tool|>", "a", "b", "\n"]
    stops = ["".join(rng.choices(pieces, k=rng.randint(1, 3))) for _ in range(rng.randint(1, 3))]
    named = [token for token in SPECIAL if any(token in stop for stop in stops)]
    # Each is a single character, so no stop string begins or ends inside a special token.
    mark = {token: chr(0xE000 + SPECIAL[token]) for token in named}

    def spell(count: int) -> str:
        names = [NAMES[token_id] for token_id in ids[:count]]
        return "".join(mark.get(name, "" if name in SPECIAL else name) for name in names)

    marked = []
    for stop in stops:
        for token, character in mark.items():
            stop = stop.replace(token, character)
        marked.append(stop)
    kept = next((n for n in range(26) if brute_force_stop(spell(n), marked)[1]), None)
    text = brute_force_stop(spell(25), marked)[0]
    shown = "".join(character for character in text if character < "\ue000")
    reason = None if kept is None else "stop"
    assert run(special_rule(stops), ids) == (ids[:kept], reason, shown)


def test_half_a_surrogate_pair_is_refused_as_a_stop_string() -> None:
    with pytest.raises(PromptError, match="number 1 holds half a surrogate pair"):
        special_rule(["a", "\ud800"])
