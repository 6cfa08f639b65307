"""The chat page at `/`, as it is served and in a real browser."""

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Page, browser
from running_server import Running, running
from speed import thorough_but

from bita.runtime.text.grammar import Grammar

MAX_BYTES = 40_000
QUESTION = "Hello tree"
HARM = '<img src=x onerror="window.harmed=1"><b>bold</b><script>window.harmed=1</script>'
FIRST, SECOND = ".turn:nth-child(1)", ".turn:nth-child(2)"
ENTER, SHIFT, ESCAPE = "\ue007", "\ue008", "\ue00c"  # WebDriver key codes


@pytest.fixture(scope="module")
def server(tiny_engine: Path) -> Iterator[Running]:
    with running(tiny_engine) as server:
        yield server


def test_the_page_is_one_file_that_may_run_only_its_own_script(server: Running) -> None:
    response = httpx.get(server.url)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert len(response.content) < MAX_BYTES
    policy = dict(
        part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; ")
    )
    assert policy["default-src"] == policy["form-action"] == policy["base-uri"] == "'none'"
    assert policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("style", "script"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", response.text, flags=re.DOTALL)
        assert len(text) > 1000
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert httpx.post(server.url).status_code == 405


def test_the_page_needs_no_key_but_an_allowed_host(tiny_engine: Path) -> None:
    with running(tiny_engine, api_key="secret", allowed_hosts=("127.0.0.1",)) as server:
        assert httpx.get(server.url).status_code == 200
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(server.url, headers={"Host": "other.example"}).status_code == 400


@pytest.fixture(scope="module")
def opened() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture
def page(opened: Page, server: Running) -> Iterator[Page]:
    """The page of `server`, which must request nothing elsewhere and leave the console empty."""
    opened.open(server.url)
    opened.wait(lambda: opened.text("#model") == "tiny")
    yield opened
    assert opened.console_messages() == []
    addresses = opened.requested_urls()
    assert f"{server.url}/v1/models" in addresses
    others = [each for each in addresses if not each.startswith((f"{server.url}/", "data:"))]
    assert others == []


def halt(server: Running, monkeypatch: pytest.MonkeyPatch, num_tokens: int) -> None:
    """Pause the engine once an answer has this many tokens, until the gate is opened."""
    decoder = server.session.decoder
    step = decoder.step
    halted: list[Any] = []

    def halting(sequence: Any) -> list[int]:
        if len(sequence.token_ids) - sequence.num_prompt_tokens >= num_tokens and not halted:
            halted.append(sequence)
            server.gate.is_open.clear()
        return step(sequence)

    monkeypatch.setattr(decoder, "step", halting)


def ask(page: Page, question: str = QUESTION, max_tokens: int = 40) -> None:
    page.run("document.getElementById('max-tokens').value = arguments[0]", max_tokens)
    page.type("#question", question, ENTER)


def wait_for_state(page: Page, state: str, turn: str = FIRST, count: int = 1) -> None:
    page.wait(lambda: len(page.all(f"{turn} [data-state={state}]")) == count)


def answer_text(page: Page, turn: int = 0, pane: int = 0) -> str:
    """Return the answer that the page received, before it is formatted."""
    return str(page.run(f"return turns[{turn}].panes[{pane}].tokens.text"))


def answer_alone(server: Running, max_new_tokens: int = 40) -> Any:
    return server.alone([{"role": "user", "content": QUESTION}], max_new_tokens)


@pytest.mark.browser
def test_an_answer_is_shown_while_it_is_generated(
    page: Page, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    halt(server, monkeypatch, 20)
    ask(page)
    server.wait_until(lambda: server.gate.num_waiting == 1)
    page.wait(lambda: re.match("2[0-3] tokens", page.text(f"{FIRST} .note")))
    shown = page.text(f"{FIRST} .text")
    assert shown
    assert page.all("#stop")[0].is_displayed()
    assert not page.all("#send")[0].is_displayed()
    server.gate.is_open.set()
    wait_for_state(page, "complete")
    assert answer_text(page) == answer_alone(server).text
    assert len(page.text(f"{FIRST} .text")) > len(shown)
    assert page.text(f"{FIRST} .question") == QUESTION
    assert page.all("#send")[0].is_displayed()


@pytest.mark.browser
@pytest.mark.parametrize("way", ["button", "key", "new chat"])
def test_stopping_ends_the_request(
    page: Page, server: Running, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    halt(server, monkeypatch, 10)
    cancelled = server.metric('bita_answers_total{finish_reason="cancelled"}')
    ask(page, max_tokens=300)
    server.wait_until(lambda: server.gate.num_waiting == 1)
    page.wait(lambda: re.match("1[0-3] tokens", page.text(f"{FIRST} .note")))
    if way == "new chat":
        page.click("#new-chat")
    elif way == "button":
        page.click("#stop")
    else:
        page.type("#question", ESCAPE)
    server.wait_until(lambda: server.server.line.num_taken == 0)  # while the engine is paused
    server.gate.is_open.set()
    server.wait_until(
        lambda: server.metric('bita_answers_total{finish_reason="cancelled"}') == cancelled + 1
    )
    if way == "new chat":
        page.wait(lambda: not page.all(".turn"))
    else:
        wait_for_state(page, "stopped")
        assert re.match(r"Stopped: 1\d tokens, \d of them drafted\.", page.text(f"{FIRST} .note"))
        assert 0 < len(answer_text(page)) < len(answer_alone(server, 300).text)
        assert not page.all(f"{FIRST} .more button")  # a stopped answer is not compared
    page.click("#new-chat")
    ask(page, max_tokens=5)
    wait_for_state(page, "complete")


@pytest.mark.browser
@pytest.mark.parametrize("first", ["with", "without"])
@pytest.mark.parametrize("temperature", thorough_but(["", "0.9"], "0.9"))
def test_answers_with_and_without_drafts_are_compared(
    page: Page, first: str, temperature: str
) -> None:
    page.click("#settings-button")
    page.set("#temperature", temperature or " ")
    page.run("document.querySelector(`[value=${arguments[0]}]`).click()", first)
    ask(page)
    wait_for_state(page, "complete")
    assert re.match(r"\d+\.\d tokens/s · \d\.\d\d tokens per step", page.text(f"{FIRST} .note"))
    other = {"with": "without", "without": "with"}[first]
    assert page.text(f"{FIRST} .more") == f"Answer again {other} drafts"
    page.click(f"{FIRST} .more button")
    page.wait_for(".verdict")
    assert page.text(".verdict").endswith("Both texts are the same.")
    assert "times as fast" in page.text(".verdict")
    assert answer_text(page, pane=0) == answer_text(page, pane=1) != ""
    cells = [row.text.split() for row in page.all(".figures tbody tr")]
    assert [row[:2] for row in cells] == [["With", "drafts"], ["Without", "drafts"]]
    (_, _, *drafted), (_, _, *plain) = cells
    assert float(drafted[0]) > 0 < float(plain[0])  # tokens/s
    assert float(drafted[1]) >= float(plain[1]) == 1  # tokens per step
    assert int(drafted[2]) <= int(plain[2]) <= 39  # steps
    assert temperature or int(plain[2]) == 39  # a sampled answer may end earlier


@pytest.mark.browser
def test_texts_that_differ_are_reported_as_different(page: Page) -> None:
    said = [
        page.run("return textVerdict(arguments[0].map((text) => ({tokens: {text}})))", [one, other])
        for one, other in (("one two", "one toe"), ("one", "one two"), ("", "x"), ("a", "a"))
    ]
    assert said == [
        *(f"The texts differ from character {place} on." for place in (6, 4, 1)),
        "Both texts are the same.",
    ]


@pytest.mark.browser
def test_drafted_tokens_are_marked(page: Page, server: Running) -> None:
    ask(page, max_tokens=60)
    wait_for_state(page, "complete")
    request = {"messages": [{"role": "user", "content": QUESTION}], "draft_marks": True}
    (choice,) = server.post(json={**request, "max_tokens": 60}).json()["choices"]
    drafted = [each["text"].strip() for each in choice["bita"]["tokens"] if each["drafted"]]
    drafted = [text for text in drafted if text]  # a token may be a part of a character
    assert drafted
    marks = page.all(f"{FIRST} .text mark")
    assert [each.get_property("textContent").strip() for each in marks] == drafted
    color = marks[0].value_of_css_property("background-color")
    assert color != "rgba(0, 0, 0, 0)"
    assert page.all("#ways mark")[0].value_of_css_property("background-color") == color
    page.click("#marks")
    assert marks[0].value_of_css_property("background-color") == "rgba(0, 0, 0, 0)"


@pytest.mark.browser
def test_a_second_question_follows_the_first(page: Page, server: Running) -> None:
    page.click("#settings-button")
    page.set("#system", "Be brief")
    ask(page, max_tokens=8)
    wait_for_state(page, "complete")
    page.type("#question", "Grow", SHIFT, ENTER, SHIFT, "after")
    assert len(page.all(".turn")) == 1
    page.type("#question", ENTER)
    wait_for_state(page, "complete", SECOND)
    assert page.run("return turns[1].messages") == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": answer_text(page)},
        {"role": "user", "content": "Grow\nafter"},
    ]
    expected = server.alone(page.run("return turns[1].messages"), 8)
    assert answer_text(page, turn=1) == expected.text


@pytest.mark.browser
def test_html_is_shown_but_not_interpreted(opened: Page, tiny_engine: Path) -> None:
    """This holds in a question, and in an answer that a grammar forces."""
    said = Grammar.lark(f"start: {json.dumps(HARM)}")
    with running(tiny_engine, defaults={"temperature": 0.0, "grammar": said}) as server:
        opened.open(server.url)
        ask(opened, HARM, max_tokens=200)
        wait_for_state(opened, "complete")
        assert opened.text(f"{FIRST} .question") == HARM
        assert opened.text(f"{FIRST} .text") == answer_text(opened) == HARM
        tags = opened.run("return [...document.querySelectorAll('.turn *')].map((e) => e.tagName)")
        assert "MARK" in tags
        assert {"IMG", "B", "SCRIPT"}.isdisjoint(tags)
        assert opened.run("return window.harmed") is None
        assert opened.console_messages() == []


@pytest.mark.browser
@pytest.mark.parametrize("drafted", [False, True])
def test_html_in_one_token_is_not_interpreted(page: Page, drafted: bool) -> None:
    script = r"""
        const element = document.createElement("div"), shown = new TokenText(element);
        const [text, drafted] = arguments;
        shown.add([{ text: `${text} **${text}** \`${text}\`\n\`\`\`\n${text}`, drafted }]);
        shown.show();
        const tags = [...element.querySelectorAll("*")].map((each) => each.tagName);
        return [tags.filter((tag) => tag !== "MARK"), element.textContent];
    """
    tags, text = page.run(script, HARM, drafted)
    assert tags == ["P", "STRONG", "CODE", "PRE"]
    assert text.count(HARM) == 4


@pytest.mark.browser
def test_formatted_text_does_not_depend_on_its_pieces(page: Page) -> None:
    text = (
        "# One\ntwo **three** four\nfive\n\n```py\ndef six():\n\n    `7`\n```\neight `nine` ** *\n"
    )
    script = """
        const [text, pieces] = arguments, element = document.createElement("div");
        const shown = new TokenText(element);
        pieces.forEach((piece, place) => {
          shown.add([{ text: piece, drafted: place % 3 === 1 }]);
          shown.show();
        });
        const tags = [...element.children].map((each) => [each.tagName, each.textContent]);
        const html = element.innerHTML.replace(/<.?mark>/g, "");
        return [tags, html, element.querySelectorAll("mark").length];
    """
    found = [
        page.run(script, text, [text[i : i + width] for i in range(0, len(text), width)])
        for width in (1, 2, 3, 5, 100)
    ]
    assert {html for _, html, _ in found} == {found[-1][1]}
    assert all(tags == found[-1][0] for tags, _, _ in found)
    assert found[-1][0] == [
        ["H3", "One"],
        ["P", "two three four\nfive"],
        ["PRE", "def six():\n\n    `7`\n"],
        ["P", "eight nine ** *"],
    ]
    assert "<strong>three</strong>" in found[-1][1]
    assert "<code>nine</code>" in found[-1][1]
    assert [num_marks > 0 for _, _, num_marks in found] == [True, True, True, True, False]


@pytest.mark.slow
@pytest.mark.browser
def test_errors_are_shown_and_requests_can_be_repeated(
    opened: Page, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.open(server.url)
    opened.type("#question", "word " * 400, ENTER)
    wait_for_state(opened, "failed")
    note = opened.all(f"{FIRST} .note")[0]
    assert "this engine holds" in note.text
    assert note.get_attribute("role") == "alert"
    with monkeypatch.context() as patch:
        patch.setattr(server.server.line, "_num_places", 0)
        ask(opened, max_tokens=5)
        wait_for_state(opened, "failed", SECOND)
        assert " requests; try again later" in opened.text(f"{SECOND} .note")
    opened.click(f"{SECOND} .note button")
    wait_for_state(opened, "complete", SECOND)
    assert answer_text(opened, turn=1)


@pytest.mark.browser
def test_an_unreachable_server_is_reported(opened: Page, tiny_engine: Path) -> None:
    with running(tiny_engine) as server:
        opened.open(server.url)
        opened.wait(lambda: opened.text("#model") == "tiny")
    ask(opened)
    wait_for_state(opened, "failed")
    assert "Cannot reach the server" in opened.text(f"{FIRST} .note")


@pytest.mark.browser
def test_the_page_asks_for_the_key_and_keeps_it(opened: Page, tiny_engine: Path) -> None:
    with running(tiny_engine, api_key="clé") as server:
        opened.open(server.url)
        opened.wait_for("#key-dialog[open]")
        opened.type("#key", "wrong", ENTER)
        opened.wait(lambda: opened.run("return apiKey.value") == "wrong")
        opened.wait_for("#key-dialog[open]")
        opened.type("#key", "clé", ENTER)
        opened.wait(lambda: opened.text("#model") == "tiny")
        ask(opened, max_tokens=5)
        wait_for_state(opened, "complete")
        assert opened.run("return Object.values(sessionStorage)") == ["clé"]
        assert opened.run("return [document.cookie, localStorage.length]") == ["", 0]
        opened.driver.get(server.url)
        opened.wait(lambda: opened.text("#model") == "tiny")
        assert not opened.all("#key-dialog[open]")


@pytest.mark.browser
def test_the_page_fits_a_phone(page: Page) -> None:
    page.resize(360, 640)
    try:
        ask(page)
        wait_for_state(page, "complete")
        page.click(f"{FIRST} .more button")
        page.wait_for(".verdict")
        assert page.run("return document.documentElement.scrollWidth") == 360
        assert page.run("return at('chat').scrollWidth <= at('chat').clientWidth")
        panes = [each.rect for each in page.all(f"{FIRST} .pane")]
        assert panes[0]["y"] + panes[0]["height"] < panes[1]["y"]  # panes are stacked
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.browser
def test_every_control_has_a_name(page: Page) -> None:
    ask(page)
    wait_for_state(page, "complete")
    page.click("#settings-button")
    controls = page.all("button, input, textarea, main, section")
    assert len(controls) > 12
    assert [
        each.get_attribute("id")
        for each in controls
        if not each.accessible_name and each.is_displayed() and each.aria_role != "none"
    ] == []
