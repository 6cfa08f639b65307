"""The `bita serve` process: addresses, API keys, errors, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionUserMessageParam
from speed import slow_but

from bita.cli.serve import open_listener
from bita.extras import install_command

SERVE = [sys.executable, "-m", "bita", "serve"]


def start_server(engine: Path, *args: object, key: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "BITA_API_KEY": key}
    return subprocess.Popen(
        [*SERVE, str(engine), "--threads", "1", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        # a shell's background jobs ignore SIGINT
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def read_address(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    match = re.search(r"at (http://\S+)/v1, a page to chat at (\S+) ", process.stdout.readline())
    assert match, process.communicate()
    assert match[2] == f"{match[1]}/"
    return match[1]


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """asyncio avoids a send delay of 40 ms only on sockets that are explicitly TCP."""
    with open_listener("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


@pytest.mark.parametrize("ending", slow_but([signal.SIGTERM, signal.SIGINT], signal.SIGTERM))
def test_the_server_answers_and_ends_cleanly(tiny_engine: Path, ending: int) -> None:
    process = start_server(tiny_engine, "--port", 0, "--seed", 7, "--model-name", "small/one")
    try:
        url = read_address(process)
        assert url.startswith("http://127.0.0.1:")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
        messages = [ChatCompletionUserMessageParam(role="user", content="Hello")]
        answers = [
            client.chat.completions.create(model="small/one", messages=messages, max_tokens=20)
            .choices[0]
            .message.content
            for _ in range(2)
        ]
        assert answers[0] == answers[1]  # --seed applies, at temperature 1
        assert client.models.retrieve("small/one").id == "small/one"
        assert "<title>bita-edge</title>" in httpx.get(f"{url}/").text
        with client.chat.completions.create(
            model="small/one",
            messages=messages,
            stream=True,
            extra_body={"ignore_eos": True},
        ) as stream:
            next(iter(stream))
            process.send_signal(ending)
            assert process.wait(timeout=20) in (0, 130, -ending)
    finally:
        process.kill()
        _, err = process.communicate()
    assert "Traceback" not in err
    assert "length: prompt of" in err or "eos: prompt of" in err
    assert "Hello" not in err  # prompts are not logged


def test_the_given_model_names_and_hosts_are_accepted(tiny_engine: Path) -> None:
    names = ("--model-name", "one", "--model-name", "two")
    process = start_server(tiny_engine, "--port", 0, *names, "--allow-host", "proxy.example")
    try:
        url = read_address(process)
        for host, status in (("proxy.example", 200), ("127.0.0.1", 200), ("other.example", 400)):
            found = httpx.get(f"{url}/v1/models", headers={"Host": host})
            assert found.status_code == status
            if status == 200:
                assert [each["id"] for each in found.json()["data"]] == ["one", "two"]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_an_interrupt_right_after_the_start_is_reported_on_one_line(tiny_engine: Path) -> None:
    process = start_server(tiny_engine, "--port", 0)
    read_address(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "bita: interrupted\n")


@pytest.mark.slow
def test_the_api_key_comes_from_the_environment_or_a_file(
    tiny_engine: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("from-file\n")
    for args, key, good in (
        ((), "from-env", "from-env"),
        (("--api-key-file", tmp_path / "key"), "x", "from-file"),
    ):
        process = start_server(tiny_engine, "--port", 0, *args, key=key)
        try:
            url = read_address(process)
            for given, status in ((good, 200), ("x", 401)):
                headers = {"Authorization": f"Bearer {given}"}
                assert httpx.get(f"{url}/v1/models", headers=headers).status_code == status
        finally:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_unusable_options_are_refused_on_one_line(tiny_engine: Path, tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    (tmp_path / "empty").write_text("\n")
    for args, message in (
        (("--host", "0.0.0.0"), "lets other machines in: set BITA_API_KEY, give --api-key-file"),
        (("--port", port), f"cannot listen at 127.0.0.1 port {port}"),
        (("--host", "no.such.host.invalid", "--no-api-key"), "cannot listen at no.such.host"),
        (("--api-key-file", tmp_path / "none"), "cannot read the API key from"),
        (("--api-key-file", tmp_path / "empty"), "is empty; write the API key into it"),
        (("--port", 0, "--temperature", -1), "temperature is -1.0"),
        (("--port", 0, "--request-seconds", 0), "--request-seconds is 0; give a number above 0"),
        (("--port", 0, "--tree", "oak"), "no tree 'oak'"),
    ):
        process = start_server(tiny_engine, *args)
        out, err = process.communicate(timeout=30)
        assert (process.returncode, out) == (2, ""), (args, out, err)
        assert err.startswith("bita: error: ")
        assert err.count("\n") == 1
        assert message in err
    taken.close()


def test_a_missing_extra_is_reported_with_its_install_command(tiny_engine: Path) -> None:
    code = (
        "import sys; sys.modules['starlette'] = None\n"
        f"from bita.cli.main import main; sys.exit(main(['serve', {str(tiny_engine)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert install_command("serve") in result.stderr
