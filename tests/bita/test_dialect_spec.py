"""Tests of the properties of dialects that the builder and the runtime read."""

import pytest

from bita.dialect_spec import DIALECTS, NATIVE, ORT, dialects_on


def test_native_engines_compute_in_float32_with_a_float16_cache() -> None:
    for precision in NATIVE.precisions:
        assert NATIVE.computes_in(precision) == "float32"
        assert NATIVE.cache_item_bytes(precision) == 2
    assert {ORT.cache_item_bytes(precision) for precision in ORT.precisions} == {4}
    assert DIALECTS["standard"].cache_item_bytes("fp32") == 4
    assert DIALECTS["standard"].cache_item_bytes("int4") == 2


def test_int8_needs_ranges_or_smoothing_in_some_dialects() -> None:
    assert {name for name, spec in DIALECTS.items() if spec.needs_ranges("int8")} == {
        *("standard", "plain", "cuda")
    }
    assert [name for name, spec in DIALECTS.items() if spec.needs_smoothing("int8")] == ["ort"]
    assert not ORT.needs_smoothing("int4")


@pytest.mark.parametrize("name", DIALECTS)
def test_branches_are_searched_where_they_are_accepted(name: str) -> None:
    spec = DIALECTS[name]
    assert spec.accepts("tree") == "tree"
    assert spec.accepts("exact") == ("tree" if name == "native" else "exact")


def test_four_dialects_run_on_a_cpu() -> None:
    assert set(dialects_on("ort-cpu")) == {"ort", "native", "standard", "plain"}
