"""Options outside their ranges are refused, and all values within them give tokens."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bita.errors import PromptError
from bita.runtime.decoding.chooser import Chooser
from bita.runtime.options import Options
from bita.runtime.session import Session

ROW = np.array([1.5, -2.0, 0.5, 3.0, 3.0, -1.0, 0.0, 2.5, -4.0, 1.0, 0.7, -0.3], np.float32)
EXTREMES: list[dict[str, Any]] = [
    {"logit_bias": {5: 1e9, 9: -1e9}, "presence_penalty": 1e6, "frequency_penalty": 1e6},
    {"logit_bias": {5: -1e9}, "presence_penalty": -1e6, "frequency_penalty": -1e6},
    {"logit_bias": dict.fromkeys(range(320), -1e9), "repetition_penalty": 1e3},
    {"repetition_penalty": 1e-3, "presence_penalty": -1e6, "frequency_penalty": 1e6},
    {"top_p": 5e-324, "min_p": 5e-324, "top_k": 2**63 - 1},
    {"seed": 2**64 - 1, "max_new_tokens": 2**63 - 1, "timeout_s": 4e6},
]


@pytest.fixture(scope="module")
def session(tiny_engine: Path) -> Session:
    return Session.open(tiny_engine, num_threads=1)


def prompt_ids(seed: int, length: int = 12) -> list[int]:
    return np.random.default_rng(seed).integers(4, 320, length).tolist()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", EXTREMES, ids=str)
@pytest.mark.parametrize("temperature", [0, 5e-324, 1e-5, 1e-3, 1.0, 1e30])
def test_extreme_values_of_all_options_give_tokens(
    session: Session, options: dict[str, Any], temperature: float
) -> None:
    """Sums and products of them fit in float32 without losing any option."""
    given = {"seed": 1, "logprobs": 1, "max_new_tokens": 40, **options}
    answer = session.generate(prompt_ids(3), temperature=temperature, ignore_eos=True, **given)
    assert len(answer.token_ids) >= 40
    assert all(math.isfinite(each.logprob) for each in answer.logprobs)
    if temperature <= 1e-5 and options.get("logit_bias", {}).get(5) == 1e9:
        assert set(answer.token_ids) == {5}


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {3: 1e9, 7: 1e9, 0: 1e9}},
        {"logit_bias": dict.fromkeys({*range(12)} - {0, 3, 7}, -1e9)},
        {"logit_bias": {1: 1e9, **dict.fromkeys({*range(12)} - {0, 1, 3, 7}, -1e9)}},
    ],
    ids=["three raised", "the others lowered", "one raised that a grammar forbids"],
)
def test_large_biases_preserve_differences_of_logits(options: dict[str, Any]) -> None:
    """Only tokens 0, 3 and 7 remain; in float32, 1e9 + 3 and 1e9 + 1.5 would be equal."""

    class ForbidsTokenOne:
        """A grammar that allows all tokens except token 1."""

        is_complete = False

        def allowed(self) -> np.ndarray:
            return np.array([0, *range(2, 12)])

        def take(self, token: int) -> None:
            pass

    grammar: Any = ForbidsTokenOne()
    chooser = Chooser(Options(temperature=1.0, **options), [1], [], 5, 0, grammar)
    drawn = Counter(chooser.choose(ROW.copy()) for _ in range(4000))
    weights = {token: math.exp(ROW[token]) for token in (0, 3, 7)}
    assert drawn.keys() == weights.keys()
    for token, weight in weights.items():
        share = weight / sum(weights.values())
        assert drawn[token] / 4000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 1e308}, r"temperature is 1e\+308; pass a finite number from 0 to 1e\+30"),
        ({"temperature": 10**400}, r"temperature is 10+\.\.\.; pass a finite"),
        ({"temperature": 10**5000}, "temperature is .int, with too many digits to be shown.; pass"),
        ({"top_p": 10**400}, "top_p is 10+"),
        ({"logit_bias": {7: 1e39}}, r"logit_bias of token 7 is 1e\+39; .* from -1e\+09 to 1e\+09"),
        (
            {"logit_bias": {10**5000: 1}},
            r"token id .int, with too many digits to be shown. is not in \[0, 320",
        ),
        (
            {"logit_bias": {-(10**5000): 1}},
            "int, with too many digits to be shown. is not a token id",
        ),
        ({"stop_token_ids": [10**5000]}, "stop_token_ids: token id .int, with too many digits"),
        ({"presence_penalty": 1e308}, r"presence_penalty is 1e\+308"),
        ({"frequency_penalty": -1e308}, r"frequency_penalty is -1e\+308"),
        ({"repetition_penalty": 1e-320}, "repetition_penalty is 1e-320; .* from 0.001 to 1000"),
        ({"timeout_s": 1e10}, r"timeout_s is 10000000000.0; .* above 0, up to 4e\+06"),
        ({"timeout_s": math.inf}, "timeout_s is inf"),
        ({"max_new_tokens": 10**30}, r"max_new_tokens is 10+; pass an integer from 1 on, at most"),
        ({"top_k": 10**30}, "top_k is 10+; pass an integer from 0 on"),
        ({"seed": 10**5000}, "seed is .int, with too many digits"),
        ({"stop": ["x"] * 10**6}, "stop: there are 1000000; give at most 16"),
        ({"stop": [10**5000]}, "number 0 is .int, with too many digits to be shown., not a string"),
        (
            {"logit_bias": {str(n): 1 for n in range(10**5)}},
            "(?s)3 faults:.*'2' is not a token id$",
        ),
        ({"x" * 10**5: 1}, "there is no option x{200}; use"),
    ],
)
def test_values_beyond_the_arithmetic_are_refused_by_name(
    session: Session, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        session.generate(prompt_ids(1), **{"max_new_tokens": 5, **options})
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("sign", [1, -1])
def test_a_prompt_of_huge_token_ids_is_refused(session: Session, sign: int) -> None:
    with pytest.raises(
        PromptError, match=r"token ids must be in \[0, 320\); the prompt has .int, with"
    ):
        session.generate([5, sign * 10**5000], 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, r"temperature is -1; pass a finite number from 0 to 1e\+30"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"top_p": 0}, "top_p is 0; pass a finite number above 0, up to 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": 1.5}, "min_p is 1.5; pass a finite number from 0 to 1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        (
            {"repetition_penalty": 0},
            "repetition_penalty is 0; pass a finite number from 0.001 to 1000",
        ),
        ({"presence_penalty": math.inf}, r"presence_penalty is inf; .* from -1e\+06 to 1e\+06$"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": True}, "seed is True"),
        ({"logprobs": 21}, "logprobs is 21; pass an integer from 0 to 20"),
        ({"logit_bias": {"5": 1.0}}, "'5' is not a token id"),
        ({"logit_bias": {5: math.inf}}, "logit_bias of token 5 is inf"),
        ({"logit_bias": [5]}, r"logit_bias is \[5\]; pass {token id: number}"),
        ({"logit_bias": {320: 1.0}}, r"logit_bias: token id 320 is not in \[0, 320\)"),
        ({"stop_token_ids": [320]}, r"stop_token_ids: token id 320 is not in \[0, 320\)"),
        ({"stop_token_ids": "5"}, "stop_token_ids is '5'; pass a list"),
        ({"timeout_s": 0}, "timeout_s is 0; pass a finite number above 0"),
        ({"grammar": "start: x"}, "grammar is 'start: x'; make one"),
        ({"temprature": 1}, "there is no option temprature; use max_new_tokens, stop,"),
        ({"temperature": -1, "top_p": 2}, "(?s)2 faults:.*temperature.*top_p"),
    ],
)
def test_invalid_options_are_refused(
    session: Session, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        session.generate(prompt_ids(1), 5, **options)
