"""The figures of `bita profile`, as its JSON file has them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bita.calibration.profiling.sensors import Range, Reading
from bita.runtime.decoding.memory import Memory

PERCENTILES = (50, 90, 99)
AR, TREES = WAYS = ("AR", "trees")  # what answers are decoded by


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of a list of times."""

    p50: float  # ms
    p90: float  # ms
    p99: float  # ms

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> "Percentiles":
        return cls(*(round(float(ms), 4) for ms in np.percentile(milliseconds, PERCENTILES)))


@dataclass(frozen=True)
class StartUp:
    """How long an engine takes until it answers."""

    open_ms: float  # time to load it
    first_token_ms: float  # time to the first token of a short prompt, loading included


@dataclass(frozen=True)
class StepLatency:
    """Times of single steps of n sizes at m lengths of the text."""

    rows: list[int]  # of the steps [n]
    cache_lengths: list[int]  # tokens of text in the cache [m]
    runs: int  # of each size at each length, at least
    p50_ms: list[list[float]]  # [m][n]
    p90_ms: list[list[float]]  # [m][n]
    p99_ms: list[list[float]]  # [m][n]

    @property
    def by_percentile(self) -> dict[str, list[list[float]]]:
        return {"p50": self.p50_ms, "p90": self.p90_ms, "p99": self.p99_ms}


@dataclass(frozen=True)
class PrefillLatency:
    """Times from a prompt to its first token, for n lengths of the prompt."""

    tokens: list[int]  # of the prompts [n]
    runs: int  # of each length
    p50_ms: list[float]  # [n]
    p90_ms: list[float]  # [n]
    p99_ms: list[float]  # [n]
    tokens_per_second: list[float]  # tokens of the prompt over the median time [n]

    @property
    def by_percentile(self) -> dict[str, list[float]]:
        return {"p50": self.p50_ms, "p90": self.p90_ms, "p99": self.p99_ms}


@dataclass(frozen=True)
class Answer:
    """One answer; the prefill and its token count only for `first_token_ms`."""

    category: str  # of its prompt
    seconds: float  # from the start of the profile to the answer's
    prompt_tokens: int  # tokens of the prompt
    tokens: int  # tokens that decode steps gave
    steps: int  # decode steps
    guarded_steps: int  # those whose tree the text's guard made smaller
    from_masks: int  # tokens that masks drafted
    from_guesses: int  # tokens that text and table guessed, or a grammar forced
    tokens_per_second: float  # of the decode steps; 0.0 without any
    first_token_ms: float  # time of the prefill


@dataclass(frozen=True)
class CategoryFigures:
    """The answers to the prompts of one category together."""

    answers: int  # how many
    tokens_per_step: float  # 1.0 is plain decoding
    tokens_per_second: float  # of the decode steps


@dataclass(frozen=True)
class Decoding:
    """All answers of an engine that are decoded one way, together and each."""

    tokens: int  # tokens that decode steps gave
    steps: int  # decode steps
    tokens_per_step: float  # 1.0 is plain decoding
    masks_per_step: float  # of the tokens per step, what masks drafted
    guesses_per_step: float  # what text and table guessed, or a grammar forced
    guarded_share: float  # of the steps: those whose tree a guard made smaller
    tokens_per_second: float  # of the decode steps
    step_ms: Percentiles  # times of single decode steps
    first_token_ms: Percentiles  # times of the prefills
    host_ms_per_step: float  # mean time of a step outside the backend
    backend_ms_per_step: float  # mean time of a step inside the backend
    drift: float  # median speed of the last quarter of the answers over that of the first
    by_category: dict[str, CategoryFigures]  # in the order in which the categories came
    answers: list[Answer]  # in the order in which they were written


@dataclass(frozen=True)
class OperatorTime:
    """All operators of one kind in a step."""

    operator: str  # the kind, as ONNX names it
    ms: float  # mean time in a step
    share: float  # of the time of all operators, 0 to 1
    calls: int  # operators of the kind in a step


@dataclass(frozen=True)
class StepOperators:
    """Where the time of a step goes, by kind of operator."""

    rows: int  # of the step
    operators: list[OperatorTime]  # those with the most time first


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a session in a process of its own."""

    at_load: Memory  # peak in bytes when the engine is loaded
    decoding: Memory  # peak in bytes after a short answer
    engine_bytes: int  # size of the engine on disk


@dataclass(frozen=True)
class SensorFigures:
    """What the device's sensors said while everything was measured."""

    samples: list[Reading]  # values by name, at "seconds" from the start
    summary: dict[str, Range]  # by name, "seconds" left out


@dataclass(frozen=True)
class EngineFacts:
    """What is known of an engine as soon as it is open."""

    engine: str  # path of its directory, as given
    model: str  # name of the model
    precision: str  # of the weights
    backend: str  # what executes the steps
    mode: str  # "exact" or "tree"
    tree: str  # the tree or trees of drafts, described
    capacity: int  # slots of the cache
    device: dict[str, Any]  # what `describe_device` says
    start_up: StartUp  # how long it took to open


@dataclass(frozen=True)
class EngineReport:
    """Everything that was measured of one engine."""

    facts: EngineFacts  # what is known without measuring
    latency: StepLatency  # single steps
    prefill: PrefillLatency  # prompts
    decode: dict[str, Decoding]  # answers by way, AR and TREES
    operators: dict[str, StepOperators]  # by step; empty where operators cannot be timed
    memory: MemoryUse  # of a session
    sensors: SensorFigures  # of the device

    def to_json(self) -> dict[str, Any]:
        """The report as JSON holds it, with the facts beside the measurements."""
        report = asdict(self)
        return {**report.pop("facts"), **report}
