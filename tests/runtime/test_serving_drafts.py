"""Two extra request fields: `drafts` turns drafts off, `draft_marks` marks drafted tokens."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_server import MESSAGES, Running, running

ASKED: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 60}
MARKED: dict[str, Any] = {**ASKED, "draft_marks": True}
FORCED = {"type": "regex", "regex": "(grow model tree after )+<b>"}


@pytest.fixture(scope="module")
def server(tiny_engine: Path) -> Iterator[Running]:
    with running(tiny_engine) as server:
        yield server


@pytest.fixture
def steps(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of each step that emits any."""
    decoder = server.session.decoder
    step = decoder.step
    emitted: list[list[int]] = []

    def recorded(sequence: Any) -> list[int]:
        tokens = step(sequence)
        if tokens:
            emitted.append(tokens)
        return tokens

    monkeypatch.setattr(decoder, "step", recorded)
    return emitted


def choices(server: Running, path: str = "chat/completions", **fields: Any) -> Any:
    response = server.post(path, json=fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def chunks(server: Running, path: str = "chat/completions", **fields: Any) -> list[Any]:
    """Return the only choice of each event of a stream."""
    events = server.post(path, json={**fields, "stream": True}).text.split("\n\n")
    data = [
        json.loads(event.removeprefix("data: "))
        for event in events
        if "[DONE]" not in event and event
    ]
    return [each["choices"][0] for each in data]


def flags(tokens: list[dict[str, Any]]) -> list[bool]:
    return [token["drafted"] for token in tokens]


def text_of(tokens: list[dict[str, Any]]) -> str:
    return "".join(token["text"] for token in tokens)


@pytest.mark.parametrize("more", [{}, {"response_format": FORCED}, {"temperature": 1, "seed": 4}])
def test_marks_show_which_tokens_steps_accepted(
    server: Running, steps: list[list[int]], more: dict[str, Any]
) -> None:
    """All tokens of a step are drafted except for the last, which the model chose after them."""
    (choice,) = choices(server, **MARKED, **more)
    accepted = [place < len(tokens) - 1 for tokens in steps for place in range(len(tokens))]
    marks, figures = choice["bita"]["tokens"], choice["bita"]["figures"]
    assert flags(marks) == accepted[: len(marks)]
    assert text_of(marks) == choice["message"]["content"]
    assert any(flags(marks)) or "temperature" in more
    assert (figures["drafted"], figures["steps"]) == (sum(flags(marks)), len(steps) - 1)
    assert figures["tokens"] == len(marks) + (choice["finish_reason"] == "stop" and not more)


def test_tokens_forced_by_a_grammar_count_as_drafted(server: Running) -> None:
    (free,) = choices(server, **MARKED)
    (forced,) = choices(server, **MARKED, response_format=FORCED)
    assert forced["bita"]["figures"]["tokens_per_step"] > 2
    assert free["bita"]["figures"]["tokens_per_step"] < 1.5


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
@pytest.mark.parametrize("stop", [[], ["odeJ}", "enQ"]])
def test_each_piece_of_a_stream_has_its_marks(server: Running, path: str, stop: list[str]) -> None:
    prompt = server.alone(MESSAGES, 1).prompt_ids
    asked = {**MARKED, "stop": stop}
    if path == "completions":
        asked = {"prompt": list(prompt), "max_tokens": 60, "draft_marks": True, "stop": stop}
    (whole,) = choices(server, path, **asked)
    pieces = [piece for piece in chunks(server, path, **asked) if "bita" in piece]
    *texts, end = pieces
    for piece in texts:
        shown = piece["delta"]["content"] if "delta" in piece else piece["text"]
        assert text_of(piece["bita"]["tokens"]) == shown
        assert "figures" not in piece["bita"]
    tokens = [token for piece in pieces for token in piece["bita"]["tokens"]]
    assert text_of(tokens) == text_of(whole["bita"]["tokens"])
    assert len(texts) > 5
    if not stop:  # a stop string may cut a token
        assert flags(tokens) == flags(whole["bita"]["tokens"])
    figures = dict(end["bita"]["figures"])
    assert figures.pop("seconds") > 0
    assert figures.pop("tokens_per_second") > 0
    assert figures.items() <= whole["bita"]["figures"].items()


def test_a_token_cut_by_a_stop_string_is_marked_once(server: Running) -> None:
    """Text that was held back, or is cut off, belongs to the same token."""
    (whole,) = choices(server, **MARKED)
    texts = [token["text"] for token in whole["bita"]["tokens"]]
    place = texts.index(" model")
    asked = {**MARKED, "stop": ["l and more"]}
    pieces = [piece["bita"]["tokens"] for piece in chunks(server, **asked) if "bita" in piece]
    sent = [token["text"] for tokens in pieces for token in tokens]
    assert sent == [*texts[:place], " mode", "l", *texts[place + 1 :]]
    (cut,) = choices(server, **MARKED, stop=[f"l{texts[place + 1]}"])
    marks = cut["bita"]["tokens"]
    assert [token["text"] for token in marks] == [*texts[:place], " mode", ""]
    assert flags(marks) == flags(whole["bita"]["tokens"])[: place + 2]
    assert cut["bita"]["figures"]["tokens"] == place + 2


def test_without_drafts_a_step_gives_one_token(server: Running) -> None:
    (drafted,) = choices(server, **MARKED, temperature=0.8, seed=2)
    (plain,) = choices(server, **MARKED, temperature=0.8, seed=2, drafts=False)
    assert plain["message"] == drafted["message"]
    figures = plain["bita"]["figures"]
    assert figures["steps"] == figures["tokens"] - 1 == 59  # the prompt's step gives the first
    assert (figures["drafted"], figures["tokens_per_step"]) == (0, 1)
    assert not any(flags(plain["bita"]["tokens"]))
    greedy = choices(server, **MARKED)[0], choices(server, **MARKED, drafts=False)[0]
    assert greedy[0]["message"] == greedy[1]["message"]
    assert greedy[0]["bita"]["figures"]["steps"] < greedy[1]["bita"]["figures"]["steps"] == 59


def test_each_choice_has_its_own_figures(server: Running) -> None:
    alone = [choices(server, **{**MARKED, "max_tokens": n})[0]["bita"]["figures"] for n in (1, 60)]
    assert alone[0]["tokens_per_second"] == alone[0]["tokens_per_step"] == alone[0]["steps"] == 0
    several = choices(server, **MARKED, n=2, temperature=1, seed=4)
    for choice in several:
        figures = choice["bita"]["figures"]
        assert text_of(choice["bita"]["tokens"]) == choice["message"]["content"]
        decoded = figures["tokens"] - 1
        assert figures["tokens_per_step"] == pytest.approx(decoded / figures["steps"], abs=1e-4)
        speed = pytest.approx(decoded / figures["seconds"], rel=1e-2)
        assert figures["tokens_per_second"] == speed
        assert 0 < figures["steps"] <= decoded


def test_nothing_is_added_unless_requested(server: Running) -> None:
    assert "bita" not in choices(server, **ASKED)[0]
    assert "bita" not in choices(server, **ASKED, draft_marks=False, drafts=True)[0]
    assert not [piece for piece in chunks(server, **ASKED) if "bita" in piece]


@pytest.mark.parametrize("name", ["drafts", "draft_marks"])
def test_a_value_that_is_not_boolean_is_refused(server: Running, name: str) -> None:
    response = server.post(json={**ASKED, name: "no"})
    assert response.status_code == 400
    assert f"{name}: Input should be a valid boolean (given: 'no')" in response.text
    assert server.post(json={**ASKED, name: None}).status_code == 200  # the default
