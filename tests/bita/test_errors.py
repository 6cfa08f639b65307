"""Tests of error messages: they list the faults and have a bounded length."""

import pytest

from bita.errors import (
    MAX_FAULTS,
    MAX_MESSAGE,
    BitaError,
    EngineError,
    PromptTooLongError,
    raise_faults,
)


@pytest.mark.parametrize("kind", [BitaError, EngineError, PromptTooLongError])
def test_a_message_has_a_bounded_length(kind: type[BitaError]) -> None:
    assert str(kind("short")) == "short"
    assert len(str(kind("x" * 10**6))) == MAX_MESSAGE + 3
    with pytest.raises(kind) as caught:
        raise_faults(kind, "subject", ["x" * 10**5] * 50)
    assert len(str(caught.value)) == MAX_MESSAGE + 3


def test_a_few_faults_are_listed_and_the_rest_counted() -> None:
    with pytest.raises(EngineError) as caught:
        raise_faults(EngineError, "subject", [f"fault {n}" for n in range(10**5)])
    lines = str(caught.value).splitlines()
    assert lines[0] == "subject: 100000 faults:"
    assert lines[1] == "  - fault 0"
    assert lines[MAX_FAULTS + 1 :] == [f"  and {10**5 - MAX_FAULTS} more"]
