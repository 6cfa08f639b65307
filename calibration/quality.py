"""Measure the error of an engine against the float32 engine of its model, on given texts."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from bita.calibration.probe import Probe, value_names
from bita.calibration.report import Quality, parse_quality
from bita.engine import Engine
from bita.progress import OnCount, ignore_count
from bita.tensors import Float32Array

OUTPUT, SUM = ".output", ".sum"  # product of a linear layer; residual sum after a sublayer


@dataclass(frozen=True)
class Scored:
    """A text to judge by; tokens before `num_prompt` do not count."""

    token_ids: tuple[int, ...]
    num_prompt: int


def measure_quality(
    reference: Engine,
    engine: Engine,
    texts: Sequence[Scored],
    on_progress: OnCount = ignore_count,
) -> Quality:
    """Read the texts with both engines and compare their values.

    These are the layer outputs that both graphs name, and residual sums, since native operators do
    not expose the outputs.

    Args:
        reference: Float32 engine.
        engine: Engine to judge.
        texts: Texts to read.
        on_progress: Called with (done, total) after each text.

    Raises:
        EngineError: if a value inside an engine, or a result, is not a finite number.
    """
    known = {*value_names(engine, OUTPUT, SUM)}
    names = [name for name in value_names(reference, OUTPUT, SUM) if name in known]
    probes = Probe(reference, names), Probe(engine, names)
    longest = min(probe.max_tokens for probe in probes)
    sums = _Sums(len(names))
    for count, text in enumerate(texts, 1):
        place, token_ids = 0, text.token_ids[:longest]
        for expected, found in zip(*(p.read(token_ids) for p in probes), strict=True):
            sums.add_layers([expected[name] for name in names], [found[name] for name in names])
            num_rows = len(expected["logits"])
            # row i of the text predicts token i + 1
            targets = np.array(token_ids[place + 1 : place + num_rows + 1], np.int64)
            first = max(text.num_prompt - 1 - place, 0)
            rows = slice(first, len(targets))
            sums.add_tokens(expected["logits"][rows], found["logits"][rows], targets[first:])
            place += num_rows
        on_progress(count, len(texts))
    found = sums.quality(names, len(texts))
    return parse_quality(asdict(found), f"the error of {engine.path} cannot be measured")


class _Sums:
    def __init__(self, num_layers: int) -> None:
        self.num_tokens = 0
        self.kl = self.same = self.loss = self.reference_loss = 0.0
        self.errors, self.norms = np.zeros(num_layers), np.zeros(num_layers)

    def add_layers(self, expected: list[Float32Array], found: list[Float32Array]) -> None:
        for index, (left, right) in enumerate(zip(expected, found, strict=True)):
            self.errors[index] += np.square(left - right).sum(dtype=np.float64)
            self.norms[index] += np.square(left).sum(dtype=np.float64)

    def add_tokens(self, expected: Float32Array, found: Float32Array, targets: np.ndarray) -> None:
        if not len(targets):
            return
        left, right = _log_softmax(expected), _log_softmax(found)
        self.kl += float((np.exp(left) * (left - right)).sum())
        self.same += float((left.argmax(-1) == right.argmax(-1)).sum())
        rows = np.arange(len(targets))
        self.reference_loss -= float(left[rows, targets].sum())
        self.loss -= float(right[rows, targets].sum())
        self.num_tokens += len(targets)

    def quality(self, names: Sequence[str], num_texts: int) -> Quality:
        num = max(self.num_tokens, 1)
        relative = np.sqrt(self.errors / np.maximum(self.norms, np.finfo(float).tiny))
        worst = int(relative.argmax()) if names else None
        layer = "" if worst is None else names[worst].removesuffix(OUTPUT).removesuffix(SUM)
        return Quality(
            perplexity=_exp(self.loss / num),
            reference_perplexity=_exp(self.reference_loss / num),
            kl=max(self.kl / num, 0.0),
            same_greedy=self.same / num,
            worst_layer=layer,
            worst_layer_error=0.0 if worst is None else float(relative[worst]),
            num_texts=num_texts,
            num_tokens=self.num_tokens,
        )


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):  # an infinite perplexity is reported by `parse_quality`
        return float(np.exp(value))


def _log_softmax(logits: Float32Array) -> np.ndarray:
    """Return the log-softmax of each row in float64."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
