"""What was measured of an engine, as its calibration.json keeps it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bita.engine import CALIBRATION_FILE, Engine, read_calibration
from bita.errors import EngineError
from bita.json_values import Fields, shown

QUALITY = "quality"
FLOAT32, ENGINE = "float32", "engine"  # who wrote the answers that an engine is judged by
MIN_PERPLEXITY = 0.999  # that of a model which is always right is 1, but for rounding


@dataclass(frozen=True)
class Quality:
    """What a precision costs against float32, on texts that nothing was calibrated on.

    kl: nats per token, of the float32 engine's distribution to this one's. same_greedy: share of
    tokens with the same argmax. worst_layer: the linear layer whose output differs most, or the
    sublayer whose residual sum does, worst_layer_error: the norm of the difference relative to that
    of the output, both with the inputs that each engine gives it. num_tokens: how many the means
    are over. quantizer: of int4 weights, "file" for blocks that the file had, else "none". prompts:
    files whose answers were read. answers: who wrote them greedily, "float32" or the "engine".
    """

    perplexity: float
    reference_perplexity: float
    kl: float
    same_greedy: float
    worst_layer: str
    worst_layer_error: float
    num_texts: int
    num_tokens: int
    quantizer: str = "none"
    prompts: str = ""
    answers: str = FLOAT32

    def __str__(self) -> str:
        if not self.num_tokens:
            return "not measured: no text to judge by fits the cache"
        return (
            f"KL to float32 {self.kl:.3g} nats a token, {100 * self.same_greedy:.1f} % the same "
            f"greedy token, perplexity {self.perplexity:.3f} (float32: "
            f"{self.reference_perplexity:.3f}), on answers of {self._author}"
        )

    @property
    def _author(self) -> str:
        return "the engine" if self.answers == ENGINE else "float32"


def checked_quality(data: Mapping[str, Any], subject: str) -> Quality:
    """The quality that `asdict` gave. Raises EngineError that names `subject` and every number
    that is none, or is out of its range.
    """
    fields = Fields({QUALITY: data}).inner(QUALITY)
    quality = Quality(
        perplexity=fields.number("perplexity", least=MIN_PERPLEXITY),
        reference_perplexity=fields.number("reference_perplexity", least=MIN_PERPLEXITY),
        kl=fields.number("kl", least=0),
        same_greedy=fields.number("same_greedy", least=0, most=1),
        worst_layer=fields.text("worst_layer"),
        worst_layer_error=fields.number("worst_layer_error", least=0),
        num_texts=fields.whole("num_texts"),
        num_tokens=fields.whole("num_tokens"),
        quantizer=fields.text("quantizer"),
        prompts=fields.text("prompts"),
        answers=fields.text("answers", FLOAT32),
    )
    fields.check(EngineError, subject)
    return quality


def read_quality(engine: Engine) -> Quality | None:
    """The quality in an engine's calibration.json, if it was measured.

    Raises EngineError that lists every fault.
    """
    data = read_calibration(engine).get(QUALITY)
    if data is None:
        return None
    where = f"{engine.file(CALIBRATION_FILE)} (rebuild the engine to measure it again)"
    if not isinstance(data, Mapping):
        raise EngineError(f"{where}: {QUALITY} is {shown(data)}, not a table")
    return checked_quality(data, where)


def with_quality(calibration: Mapping[str, Any], quality: Quality) -> str:
    """The text of a calibration.json with this quality in it."""
    return json.dumps({**calibration, QUALITY: asdict(quality)}, indent=1) + "\n"
