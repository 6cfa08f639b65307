"""What was measured of an engine, as its calibration.json keeps it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from bita.engine import CALIBRATION_FILE, Engine, read_calibration
from bita.errors import EngineError, raise_faults

QUALITY = "quality"
KINDS: dict[Any, Any] = {float: (float, int), int: int, str: str}


@dataclass(frozen=True)
class Quality:
    """What a precision costs against float32, on texts that nothing was calibrated on.

    kl: nats per token, of the float32 engine's distribution to this one's. same_greedy: share of
    tokens with the same argmax. worst_layer: the linear layer whose output differs most,
    worst_layer_error: the norm of the difference relative to that of the output, both with the
    inputs that each engine gives it. num_tokens: how many the means are over. quantizer: of int4
    weights, else "none". prompts: files whose answers were read.
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

    def __str__(self) -> str:
        return (
            f"KL to float32 {self.kl:.3g} nats a token, {100 * self.same_greedy:.1f} % the same "
            f"greedy token, perplexity {self.perplexity:.3f} (float32: "
            f"{self.reference_perplexity:.3f})"
        )


def read_quality(engine: Engine) -> Quality | None:
    """The quality in an engine's calibration.json, if it was measured.

    Raises EngineError that lists every fault.
    """
    data = read_calibration(engine).get(QUALITY)
    if data is None:
        return None
    where = f"{engine.file(CALIBRATION_FILE)}: {QUALITY}"
    if not isinstance(data, Mapping):
        raise EngineError(f"{where} is {data!r:.60}, not a table; rebuild the engine")
    faults = [
        f"{field.name} is {data.get(field.name)!r}, not {field.type}"
        for field in fields(Quality)
        if not isinstance(data.get(field.name), KINDS[field.type])
    ]
    raise_faults(EngineError, where, faults)
    return Quality(**{field.name: data[field.name] for field in fields(Quality)})


def with_quality(calibration: Mapping[str, Any], quality: Quality) -> str:
    """The text of a calibration.json with this quality in it."""
    return json.dumps({**calibration, QUALITY: asdict(quality)}, indent=1) + "\n"
