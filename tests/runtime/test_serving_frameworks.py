"""Frameworks that use OpenAI's interface, with typical uses of tools and structured output.

Each test runs if its package is installed: pip install langchain-openai 'pydantic-ai-slim[openai]'
openai-agents instructor litellm llm
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_edits import copy_engine, edit_files
from pydantic import BaseModel, Field
from running_server import Running, running
from tool_templates import TINY

pytestmark = pytest.mark.filterwarnings("ignore")
LIMITS: dict[str, Any] = {"temperature": 0, "max_tokens": 200}


class Plant(BaseModel):
    """A plant of a garden."""

    kind: str = Field(pattern="^(oak|fir)$")
    height: int = Field(ge=1, le=99)


@pytest.fixture(scope="module")
def server(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    engine = copy_engine(tiny_engine, tmp_path_factory.mktemp("frameworks") / "engine")
    edit_files(engine, {"chat_template.jinja": TINY.encode()})
    with running(engine, max_body_bytes=1 << 20) as server:
        yield server


def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


def check_plant(plant: Any) -> None:
    assert isinstance(plant, Plant)
    assert plant.kind in ("oak", "fir")


def check_arguments(arguments: Any) -> None:
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert set(given) == {"a", "b"}
    assert all(isinstance(number, int) for number in given.values())


class TestLangChain:
    @pytest.fixture
    def model(self, server: Running) -> Any:
        openai = pytest.importorskip("langchain_openai")
        url = f"{server.url}/v1"
        return openai.ChatOpenAI(model="tiny", base_url=url, api_key="none", **LIMITS)

    def test_tools_are_called_with_valid_arguments(self, model: Any) -> None:
        bound = model.bind_tools([multiply], tool_choice="any")
        message = bound.invoke("What is 3 * 12?")
        assert [call["name"] for call in message.tool_calls] == ["multiply"] * len(
            message.tool_calls
        )
        for call in message.tool_calls:
            check_arguments(call["args"])
        chunks = list(bound.stream("What is 3 * 12?"))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        assert [call["args"] for call in whole.tool_calls] == [
            call["args"] for call in message.tool_calls
        ]

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_structured_output_is_valid(self, model: Any, method: str) -> None:
        check_plant(model.with_structured_output(Plant, method=method).invoke("A plant?"))

    def test_a_tool_result_is_returned_to_the_model(self, model: Any) -> None:
        messages = pytest.importorskip("langchain_core.messages")
        asked = messages.HumanMessage("What is 3 * 12?")
        called = model.bind_tools([multiply], tool_choice="multiply").invoke([asked])
        (call,) = called.tool_calls
        result = messages.ToolMessage(str(multiply(**call["args"])), tool_call_id=call["id"])
        answer = model.bind_tools([multiply]).invoke([asked, called, result])
        assert answer.content


class TestPydanticAI:
    @pytest.fixture
    def model(self, server: Running) -> Any:
        models = pytest.importorskip("pydantic_ai.models.openai")
        providers = pytest.importorskip("pydantic_ai.providers.openai")
        provider = providers.OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
        return models.OpenAIChatModel("tiny", provider=provider)

    def test_structured_output_through_a_tool_is_valid(self, model: Any) -> None:
        pydantic_ai = pytest.importorskip("pydantic_ai")
        agent = pydantic_ai.Agent(model, output_type=Plant, model_settings=LIMITS)
        check_plant(agent.run_sync("A plant?").output)

    def test_native_structured_output_is_valid(self, model: Any) -> None:
        pydantic_ai = pytest.importorskip("pydantic_ai")
        agent = pydantic_ai.Agent(
            model, output_type=pydantic_ai.NativeOutput(Plant), model_settings=LIMITS
        )
        check_plant(agent.run_sync("A plant?").output)

    def test_text_is_allowed_alongside_a_tool(self, model: Any) -> None:
        pydantic_ai = pytest.importorskip("pydantic_ai")
        agent = pydantic_ai.Agent(model, tools=[multiply], model_settings=LIMITS)
        assert agent.run_sync("What is 3 * 12?").output


def test_openai_agents_call_tools_and_return_structured_output(server: Running) -> None:
    agents = pytest.importorskip("agents")
    agents.set_tracing_disabled(True)
    client = pytest.importorskip("openai").AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none")
    model = agents.OpenAIChatCompletionsModel(model="tiny", openai_client=client)
    settings = agents.ModelSettings(tool_choice="required", **LIMITS)
    agent = agents.Agent(
        name="Gardener",
        instructions="Be brief.",
        model=model,
        tools=[agents.function_tool(multiply)],
        model_settings=settings,
        tool_use_behavior="stop_on_first_tool",
    )
    product = str(agents.Runner.run_sync(agent, "What is 3 * 12?").final_output)
    assert product.lstrip("-").isdecimal()
    shaped = agents.Agent(
        name="Gardener",
        model=model,
        output_type=Plant,
        model_settings=agents.ModelSettings(**LIMITS),
    )
    check_plant(agents.Runner.run_sync(shaped, "A plant?").final_output)


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA", "TOOLS_STRICT"])
def test_instructor_returns_structured_output(server: Running, mode: str) -> None:
    instructor = pytest.importorskip("instructor")
    client = instructor.from_openai(server.client(), mode=instructor.Mode[mode])
    messages = [{"role": "user", "content": "A plant?"}]
    plant = client.chat.completions.create(
        model="tiny", response_model=Plant, messages=messages, max_retries=0, **LIMITS
    )
    assert plant.kind in ("oak", "fir")


def test_litellm_calls_tools_and_returns_structured_output(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}
    parameters = {**schema, "required": ["a", "b"]}
    tool = {"type": "function", "function": {"name": "multiply", "parameters": parameters}}
    options: dict[str, Any] = {
        "model": "openai/tiny",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": "What is 3 * 12?"}],
        "drop_params": True,
        "metadata": {"run": "1"},
        **LIMITS,
    }
    answer = litellm.completion(tools=[tool], tool_choice="required", **options)
    for call in answer.choices[0].message.tool_calls:
        check_arguments(call.function.arguments)
    assert answer.choices[0].finish_reason == "tool_calls"
    answer = litellm.completion(response_format=Plant, **options)
    Plant.model_validate_json(answer.choices[0].message.content)


def test_llm_streams_and_returns_structured_output(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    monkeypatch.setenv("LLM_LOAD_PLUGINS", "")  # only its built-in plugins
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: garden\n  model_name: tiny\n  api_base: {server.url}/v1\n"
        "  api_key_name: none\n  supports_tools: true\n  supports_schema: true\n"
    )
    llm = pytest.importorskip("llm")
    model = llm.get_model("garden")
    model.key = "none"
    plant = model.prompt("A plant?", schema=Plant, stream=False, **LIMITS)
    Plant.model_validate_json(plant.text())
    streamed = model.prompt("What is 3 * 12?", tools=[multiply], **LIMITS)
    assert streamed.text()
    assert streamed.tool_calls() == []
