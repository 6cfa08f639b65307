"""Tests of `bita profile`: consistent figures, a page that needs no network, a complete trace."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from bita.calibration.profiling.recorder import Recorder, Span, shift, trace_events
from bita.calibration.profiling.sensors import Range, Sensors, parse_tegrastats, summary
from bita.cli.main import main
from bita.extras import install_command
from bita.runtime.session import Session

SHORT = ("--limit", "3", "--max-new-tokens", "12", "--latency-seconds", "0", "--threads", "1")


@pytest.fixture(scope="module")
def profiled(tiny_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the output of `bita profile A B`, both being the tiny engine."""
    folder = tmp_path_factory.mktemp("profile")
    prompts = folder / "prompts.jsonl"
    lines = [
        {"turns": ["Hello tree", "second"], "category": "greeting"},
        {"prompt": "The quick brown fox", "category": "animals"},
        {"prompt": "A mask token", "category": "animals"},
        {"prompt": "without a category"},
    ]
    prompts.write_text("\n\n".join(map(json.dumps, lines)), encoding="utf-8")
    pytest.importorskip("plotly")
    arguments = [
        "profile",
        tiny_engine,
        tiny_engine,
        "--prompts",
        prompts,
        "--limit",
        4,
        *SHORT[2:],
    ]
    arguments += ["--page", folder / "new" / "page.html", "--json", folder / "p.json"]
    assert main([*map(str, arguments), "--trace", str(folder / "t.json")]) == 0
    return folder


def reports(folder: Path) -> list[dict[str, Any]]:
    data: list[dict[str, Any]] = json.loads((folder / "p.json").read_text())["engines"]
    return data


def test_figures_add_up(profiled: Path) -> None:
    for report in reports(profiled):
        latency = report["latency"]
        assert len(latency["rows"]) > 5
        for place in range(len(latency["cache_lengths"])):
            curves = [latency[f"p{each}_ms"][place] for each in (50, 90, 99)]
            for low, middle, high in zip(*curves, strict=True):
                assert 0 < low <= middle <= high
        assert latency["runs"] >= 20
        for way in ("AR", "trees"):
            decode = report["decode"][way]
            answers = decode["answers"]
            assert len(answers) == 4
            assert decode["tokens"] == sum(answer["tokens"] for answer in answers)
            assert decode["steps"] == sum(answer["steps"] for answer in answers)
            assert decode["tokens_per_step"] == pytest.approx(
                decode["tokens"] / decode["steps"], abs=1e-3
            )
            given = sum(answer["from_masks"] + answer["from_guesses"] for answer in answers)
            # the last step may accept a draft after the token that ends the answer
            assert given >= decode["tokens"] - decode["steps"]
            shares = decode["masks_per_step"] + decode["guesses_per_step"]
            assert shares == pytest.approx(given / decode["steps"], abs=1e-3)
            assert decode["guarded_share"] == 0  # no costs, no guard
            groups = decode["by_category"]
            assert {name: group["answers"] for name, group in groups.items()} == {
                "greeting": 1,
                "animals": 2,
                "all": 1,
            }
            whole = decode["host_ms_per_step"] + decode["backend_ms_per_step"]
            assert decode["step_ms"]["p50"] < 3 * whole
        assert report["decode"]["AR"]["tokens_per_step"] == 1
        prefill = report["prefill"]
        assert prefill["tokens"] == [16, 64, 128, 256]
        assert all(speed > 0 for speed in prefill["tokens_per_second"])
        times = zip(prefill["p50_ms"], prefill["p90_ms"], prefill["p99_ms"], strict=True)
        assert all(0 < p50 <= p90 <= p99 for p50, p90, p99 in times)
        assert report["memory"]["decoding"]["host"] > 10e6
        assert 0 < report["start_up"]["open_ms"] < report["start_up"]["first_token_ms"]


def test_shares_of_operators_add_up_to_one(profiled: Path) -> None:
    operators = reports(profiled)[0]["operators"]
    assert [step["rows"] for step in operators.values()] == [1, 52, 128]
    for step in operators.values():
        assert sum(each["share"] for each in step["operators"]) == pytest.approx(1, abs=0.01)
        attention = [e for e in step["operators"] if e["operator"] == "GroupQueryAttention"]
        assert attention[0]["calls"] == 2  # one for each layer


def test_the_page_needs_no_network(profiled: Path) -> None:
    text = (profiled / "new" / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", text)
    assert text.count('class="plotly-graph-div"') == 8
    assert text.count("<th class=number>") == 2
    for word in ("Step latency by rows", "Prefill", "Operators", "greeting", "Device"):
        assert word in text


def test_the_trace_has_every_step(profiled: Path) -> None:
    trace = json.loads((profiled / "t.json").read_text())
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    steps = sum(report["decode"]["trees"]["steps"] for report in reports(profiled))
    for name in ("draft", "backend", "accept and commit"):
        assert sum(event["name"] == name for event in events) == steps
    assert sum(event["name"] == "prefill" for event in events) == 8
    assert min(event["ts"] for event in events) == 0
    assert all(event["dur"] >= 0 for event in events)
    names = {e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name"}
    assert len(names) == 4
    assert {"GroupQueryAttention"} <= {event["name"] for event in events}


def test_recording_is_off_unless_requested(tiny_engine: Path) -> None:
    session, recorder = Session.open(tiny_engine, num_threads=1), Recorder()
    session.generate("Hello", 5)
    session.record(recorder.add)
    session.generate("Hello", 5, ignore_eos=True)
    parts = len(recorder.spans)
    assert parts == 1 + 3 * (session.stats.num_steps // 2)
    session.record(None)
    session.generate("Hello", 5)
    assert len(recorder.spans) == parts


def test_spans_become_trace_events() -> None:
    spans = [Span("a", 2.0, 2.5, "x"), Span("b", 1.5, 1.75, "y", {"rows": 3})]
    events = trace_events(shift(spans, 10.0))["traceEvents"]
    assert [event["args"].get("name") for event in events[:2]] == ["x", "y"]
    assert [(e["name"], e["ts"], e["dur"], e["tid"]) for e in events[2:]] == [
        ("a", 500_000, 500_000, 0),
        ("b", 0, 250_000, 1),
    ]
    assert trace_events([])["traceEvents"] == []


TEGRA = (
    "11-25-2026 10:00:00 RAM 2722/7620MB (lfb 4x4MB) SWAP 0/3810MB CPU [12%@1510,8%@1510] "
    "EMC_FREQ 3%@2133 GR3D_FREQ 45%@[612] cpu@50.5C soc2@49.062C gpu@49.406C tj@51.343C "
    "VDD_IN 5072mW/4980mW VDD_CPU_GPU_CV 1023mW/998mW VDD_SOC 1476mW/1470mW"
)


def test_tegrastats_output_is_parsed() -> None:
    assert parse_tegrastats(TEGRA) == {
        "gpu_percent": 45.0,
        "gpu_mhz": 612.0,
        "memory_bus_percent": 3.0,
        "memory_bus_mhz": 2133.0,
        "cpu_celsius": 50.5,
        "soc2_celsius": 49.062,
        "gpu_celsius": 49.406,
        "tj_celsius": 51.343,
        "vdd_in_watts": 5.072,
        "vdd_cpu_gpu_cv_watts": 1.023,
        "vdd_soc_watts": 1.476,
    }
    assert parse_tegrastats("GR3D_FREQ 0% cpu@40C") == {"gpu_percent": 0.0, "cpu_celsius": 40.0}
    assert parse_tegrastats("") == {}


def test_available_sensors_are_read_and_summarized() -> None:
    with Sensors() as sensors:
        pass
    (sample, *_) = sensors.samples
    assert sample["resident_mb"] > 10
    ranges = summary([{"seconds": 0, "a_mhz": 3}, {"seconds": 1, "a_mhz": 1}, {"seconds": 2}])
    assert ranges == {"a_mhz": Range(first=3, last=1, least=1, most=3)}


def test_each_fault_is_reported_in_one_line(
    tiny_engine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.delitem(sys.modules, "bita.calibration.profiling.page", raising=False)
    for arguments, message in (
        (["nowhere"], "nowhere is not a directory"),
        ([tiny_engine, "nowhere"], "nowhere is not a directory"),
        ([tiny_engine, "--prompts", "none.jsonl"], "cannot read prompts from none.jsonl"),
        ([tiny_engine, "--backend", "abacus"], "backend 'abacus' is not one of"),
        ([tiny_engine, "--page", tmp_path / "p.html"], install_command("profile")),
        ([tiny_engine, "--json", tiny_engine / "manifest.json" / "x"], "manifest.json"),
        ([tiny_engine, "--trace", tmp_path], "is a directory; give the name of a file"),
    ):
        assert main(["profile", *map(str, arguments), *SHORT]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1
