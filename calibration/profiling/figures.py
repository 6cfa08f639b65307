"""The figures of `bita profile`, in the structure of its JSON file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bita.calibration.profiling.sensors import Range, Reading
from bita.runtime.decoding.memory import Memory

PERCENTILES = (50, 90, 99)
AR, TREES = WAYS = ("AR", "trees")  # ways to decode answers


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
    """Time until an engine answers."""

    open_ms: float  # time to load the engine
    first_token_ms: float  # time to the first token of a short prompt, including loading


@dataclass(frozen=True)
class StepLatency:
    """Times of single steps of n sizes at m lengths of the text."""

    rows: list[int]  # [n], of the steps
    cache_lengths: list[int]  # [m], tokens of text in the cache
    runs: int  # smallest number of runs of any size and length
    p50_ms: list[list[float]]  # [m][n]
    p90_ms: list[list[float]]  # [m][n]
    p99_ms: list[list[float]]  # [m][n]

    @property
    def by_percentile(self) -> dict[str, list[list[float]]]:
        return {"p50": self.p50_ms, "p90": self.p90_ms, "p99": self.p99_ms}


@dataclass(frozen=True)
class PrefillLatency:
    """Times from a prompt to its first token, for n lengths of the prompt."""

    tokens: list[int]  # [n], of the prompts
    runs: int  # of each length
    p50_ms: list[float]  # [n]
    p90_ms: list[float]  # [n]
    p99_ms: list[float]  # [n]
    tokens_per_second: list[float]  # [n], tokens of the prompt over the median time

    @property
    def by_percentile(self) -> dict[str, list[float]]:
        return {"p50": self.p50_ms, "p90": self.p90_ms, "p99": self.p99_ms}


@dataclass(frozen=True)
class Answer:
    """An answer; the prefill and the token it gives count only in `first_token_ms`."""

    category: str  # of its prompt
    seconds: float  # from the start of the profile to the start of the answer
    prompt_tokens: int  # tokens of the prompt
    tokens: int  # tokens that decode steps gave
    steps: int  # decode steps
    guarded_steps: int  # decode steps whose tree the guard made smaller
    from_masks: int  # tokens drafted by masks
    from_guesses: int  # tokens guessed from text and table, or forced by a grammar
    tokens_per_second: float  # of the decode steps; 0.0 if there are none
    first_token_ms: float  # time of the prefill


@dataclass(frozen=True)
class CategoryFigures:
    """Figures of all answers to the prompts of one category."""

    answers: int  # number of answers
    tokens_per_step: float  # 1.0 is plain decoding
    tokens_per_second: float  # of the decode steps


@dataclass(frozen=True)
class Decoding:
    """Figures of all answers that an engine decodes in one way, in total and individually."""

    tokens: int  # tokens that decode steps gave
    steps: int  # decode steps
    tokens_per_step: float  # 1.0 is plain decoding
    masks_per_step: float  # tokens per step drafted by masks
    guesses_per_step: float  # tokens per step guessed from text and table, or forced by a grammar
    guarded_share: float  # share of steps whose tree the guard made smaller
    tokens_per_second: float  # of the decode steps
    step_ms: Percentiles  # times of decode steps
    first_token_ms: Percentiles  # times of the prefills
    host_ms_per_step: float  # mean time of a step outside the backend
    backend_ms_per_step: float  # mean time of a step inside the backend
    drift: float  # median speed of the last quarter of the answers over that of the first
    by_category: dict[str, CategoryFigures]  # in order of appearance
    answers: list[Answer]  # in order of generation


@dataclass(frozen=True)
class OperatorTime:
    """Time of all operators of one kind in a step."""

    operator: str  # ONNX name of the kind
    ms: float  # mean time per step
    share: float  # of the time of all operators, 0 to 1
    calls: int  # operators of the kind in a step


@dataclass(frozen=True)
class StepOperators:
    """Time of a step by kind of operator."""

    rows: int  # of the step
    operators: list[OperatorTime]  # by decreasing time


@dataclass(frozen=True)
class MemoryUse:
    """Memory of a session in a separate process."""

    at_load: Memory | None  # peak in bytes after the engine is loaded; None: not measured
    decoding: Memory | None  # peak in bytes after a short answer; None: not measured
    engine_bytes: int  # size of the engine on disk


@dataclass(frozen=True)
class SensorFigures:
    """Values of the device's sensors during the profile."""

    samples: list[Reading]  # values by name, with the "seconds" since the start
    summary: dict[str, Range]  # by name, without "seconds"


@dataclass(frozen=True)
class EngineFacts:
    """Facts about an engine that are known once it is open."""

    engine: str  # path of its directory, as given
    model: str  # name of the model
    precision: str  # of the weights
    backend: str  # name of the backend that runs the steps
    mode: str  # "exact" or "tree"
    tree: str  # description of the tree or trees of drafts
    capacity: int  # slots of the cache
    device: dict[str, Any]  # result of `describe_device`
    start_up: StartUp  # time to open the engine


@dataclass(frozen=True)
class EngineReport:
    """Measurements of one engine."""

    facts: EngineFacts  # known without measuring
    latency: StepLatency  # single steps
    prefill: PrefillLatency  # prompts
    decode: dict[str, Decoding]  # answers by way to decode, AR and TREES
    operators: dict[str, StepOperators]  # by step; empty if operators cannot be timed
    memory: MemoryUse  # of a session
    sensors: SensorFigures  # of the device
    left_out: list[str]  # measurements for which there was no time

    def to_json(self) -> dict[str, Any]:
        """Return the report for JSON, with the facts at the same level as the measurements."""
        report = asdict(self)
        return {**report.pop("facts"), **report}
