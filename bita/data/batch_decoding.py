"""Decoding of many prompts at once with a transformers model, by any rule for picking tokens.

`model.generate` is unsuitable: it follows the model's generation config (a repetition penalty
changes even greedy text), and it draws all rows from one random stream, so that a row would depend
on its batch.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

from bita.errors import MissingExtraError

# (logits [rows, V], the numbers of these rows in the batch, step) -> token ids [rows]
Pick = Callable[[Any, list[int], int], Any]


def decode_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pick: Pick,
    max_new_tokens: int,
    stop_ids: Collection[int],
) -> list[list[int]]:
    """Return the new tokens of each prompt, up to and including the first of `stop_ids`.

    Prompts are padded on the left; the padding is masked and has no position. Finished rows are
    dropped from the batch once they are half of it. The model's cache takes memory for all rows.
    """
    torch = import_torch()
    with torch.no_grad():  # not inference mode: a sharded model keeps buffers for training
        return _decode(torch, model, prompts, pick, max_new_tokens, frozenset(stop_ids))


def _decode(
    torch: Any,
    model: Any,
    prompts: Sequence[Sequence[int]],
    pick: Pick,
    max_new_tokens: int,
    stop_ids: frozenset[int],
) -> list[list[int]]:
    from transformers import DynamicCache

    answers: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    live = set(rows)
    tokens, mask = _pad_left(torch, prompts, model.get_input_embeddings().weight.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    for step in range(max_new_tokens):
        output = model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,  # all logits of a batch of prompts would be gigabytes
        )
        tokens = pick(output.logits[:, -1], rows, step)[:, None]
        live -= _take(answers, rows, tokens[:, 0].tolist(), live, stop_ids)
        if not live:
            break
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1)
        positions = positions[:, -1:] + 1
        if 2 * len(live) <= len(rows):
            kept = [place for place, row in enumerate(rows) if row in live]
            rows = [rows[place] for place in kept]
            index = torch.tensor(kept, device=mask.device)
            cache.batch_select_indices(index)
            tokens, mask, positions = tokens[index], mask[index], positions[index]
    return answers


def _take(
    answers: list[list[int]],
    rows: Sequence[int],
    tokens: Sequence[int],
    live: Collection[int],
    stop_ids: Collection[int],
) -> set[int]:
    """Append a token to every live answer; return the rows that end with it."""
    ended = set()
    for row, token in zip(rows, tokens, strict=True):
        if row in live:
            answers[row].append(token)
            if token in stop_ids:
                ended.add(row)
    return ended


def _pad_left(torch: Any, prompts: Sequence[Sequence[int]], device: Any) -> tuple[Any, Any]:
    """Return token ids and mask, [rows, longest]; the padding has the id 0, which is masked."""
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, longest - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def import_torch() -> Any:
    """Return torch. Raises MissingExtraError unless torch and transformers are installed."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("generating text with transformers", "tune") from error
    return torch
