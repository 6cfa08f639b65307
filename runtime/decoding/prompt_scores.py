"""How probable a model finds the tokens of a prompt, which decoding has no need to know."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bita.adapter import Adapter
from bita.runtime.backends.backend import Backend
from bita.runtime.backends.layout import prefill_layout
from bita.runtime.decoding.chooser import TokenLogprob
from bita.runtime.decoding.prefill import run_piece
from bita.runtime.decoding.sampling import best_tokens, log_partition
from bita.runtime.decoding.soundness import check_logits
from bita.tensors import Float32Array

MAX_LOGIT_BYTES = 16 << 20  # of a step: its rows times the vocabulary


def score_prompt(
    backend: Backend, adapter: Adapter, token_ids: Sequence[int], num_best: int
) -> list[TokenLogprob]:
    """The log-probabilities of all tokens but the first, and the best tokens at their places.

    token_ids: as many as the cache holds at most. The text in the cache ends. Cost: that of reading
    the prompt, and of the logits of each of its rows. The caller holds the engine's lock. Raises
    EngineError if the model does not give numbers.
    """
    backend.cache.start(adapter)
    fitting = MAX_LOGIT_BYTES // (4 * backend.vocab_size)
    most = max(min(backend.prefill_rows, fitting), 1)
    scores: list[TokenLogprob] = []
    for start in range(0, len(token_ids) - 1, most):
        piece = token_ids[start : min(start + most, len(token_ids) - 1)]
        layout = replace(prefill_layout(len(piece), 0, 1), output_rows=np.arange(len(piece)))
        step = backend.bind(layout, adapter, with_logits=True)
        run_piece(step, backend.cache, piece)
        assert step.logits is not None
        following = token_ids[start + 1 : start + 1 + len(piece)]
        scores += [
            _score(row, token, num_best) for row, token in zip(step.logits, following, strict=False)
        ]
    return scores


def _score(logits: Float32Array, token: int, num_best: int) -> TokenLogprob:
    check_logits(logits)
    total = log_partition(logits)
    best = tuple((each, float(logits[each]) - total) for each in best_tokens(logits, num_best))
    return TokenLogprob(token, float(logits[token]) - total, best)
