"""Log-probabilities of the tokens of a prompt, which decoding does not compute."""

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

MAX_LOGIT_BYTES = 16 << 20  # logits of one step: rows times vocabulary


def score_prompt(
    backend: Backend, adapter: Adapter, token_ids: Sequence[int], num_best: int
) -> list[TokenLogprob]:
    """Return the log-probability of each token except the first, with the best alternatives.

    The cache must have room for all tokens; the text that it holds is discarded. The cost is that
    of a prefill plus the logits of every row. The caller holds the engine lock. Raises EngineError
    if the model's logits are not finite.
    """
    backend.cache.start(adapter)
    fitting = MAX_LOGIT_BYTES // (4 * backend.vocab_size)
    max_rows = max(min(backend.prefill_rows, fitting), 1)
    scores: list[TokenLogprob] = []
    for start in range(0, len(token_ids) - 1, max_rows):
        piece = token_ids[start : min(start + max_rows, len(token_ids) - 1)]
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
