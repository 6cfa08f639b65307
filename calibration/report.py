"""The quality report of an engine, as stored in its calibration.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bita.engine import CALIBRATION_FILE, Engine, read_calibration
from bita.errors import EngineError
from bita.json_values import Fields, shown

QUALITY = "quality"
FLOAT32, ENGINE = "float32", "engine"  # author of the answers that an engine is judged by
MIN_PERPLEXITY = 0.999  # a model that is always right has 1, except for rounding


@dataclass(frozen=True)
class Quality:
    """Error of an engine against float32, on texts that were not used for calibration."""

    perplexity: float  # of the engine
    reference_perplexity: float  # of the float32 engine
    kl: float  # nats per token, from the float32 engine's distribution to this engine's
    same_greedy: float  # share of tokens with the same argmax
    worst_layer: str  # linear layer whose output, or sublayer whose residual sum, differs most
    # norm of its difference relative to that of the output; each engine feeds it its own inputs
    worst_layer_error: float
    num_texts: int
    num_tokens: int  # tokens that the means are taken over
    quantizer: str = "none"  # name of the rounding; "file" for blocks stored in the checkpoint
    prompts: str = ""  # names of the prompt files whose answers were read
    answers: str = FLOAT32  # author of the greedy answers: "float32" or "engine"

    def __str__(self) -> str:
        if not self.num_tokens:
            return "not measured: no text to judge by fits the cache"
        return (
            f"KL to float32 {self.kl:.3g} nats per token, {100 * self.same_greedy:.1f} % of greedy "
            f"tokens the same, perplexity {self.perplexity:.3f} (float32: "
            f"{self.reference_perplexity:.3f}), on answers by {self._author}"
        )

    @property
    def _author(self) -> str:
        return "the engine" if self.answers == ENGINE else "float32"


def parse_quality(data: Mapping[str, Any], subject: str) -> Quality:
    """Read the quality that `asdict` wrote.

    Raises:
        EngineError: if a number is missing, not finite, or out of range; names `subject` and every
            such number.
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
    """Read the quality from an engine's calibration.json; None if it was not measured.

    Raises EngineError that lists every fault.
    """
    data = read_calibration(engine).get(QUALITY)
    if data is None:
        return None
    where = f"{engine.file(CALIBRATION_FILE)} (rebuild the engine to measure it again)"
    if not isinstance(data, Mapping):
        raise EngineError(f"{where}: {QUALITY} is {shown(data)}, not a table")
    return parse_quality(data, where)


def add_quality(calibration: Mapping[str, Any], quality: Quality) -> str:
    """Return the text of a calibration.json with this quality added."""
    return json.dumps({**calibration, QUALITY: asdict(quality)}, indent=1) + "\n"
