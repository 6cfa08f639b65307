"""The two forwards of a training step: the frozen base without gradient, then the mask rows.

Base rows do not depend on trained parameters. Their keys and values are therefore computed once and
serve as the context of the mask rows, and their logits as the teacher. Only the mask rows, a few
dozen per text, are run with gradient. The result equals one joint forward (BiTA's own) up to
rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from bita.adapter import Adapter
from bita.identity import ModelIdentity
from bita.pairs import Pairs, PairTables, tables_of
from bita.torch.base_model import masks_by_layer
from bita.torch.lora_hooks import lora_on_rows
from bita.tuning.joint_pairs import JointPairs
from bita.tuning.mask_rows import MaskRows, visibility


class AdapterParameters(torch.nn.Module):
    """Trained parameters in float32: mask_embeddings [M, hidden], prefix_* [L, H, P, D], lora."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self._identity = adapter.identity
        self.mask_embeddings = _parameter(adapter.mask_embeddings)
        self.prefix_keys = _parameter(adapter.prefix_keys)
        self.prefix_values = _parameter(adapter.prefix_values)
        self.lora = torch.nn.ParameterDict({n: _parameter(a) for n, a in adapter.lora.items()})
        self.pairs = adapter.pairs  # tuned separately (`pair_training`), unless by `joint_pairs`
        self.joint_pairs: JointPairs | None = None

    def to_adapter(self, tuned_on: str) -> Adapter:
        """Return the adapter with the current values."""
        arrays = (self.mask_embeddings, self.prefix_keys, self.prefix_values)
        masks, keys, values = map(_array, arrays)
        lora = {name: _array(value) for name, value in self.lora.items()}
        return Adapter(masks, keys, values, self._identity, tuned_on, lora, self._own_pairs())

    def _own_pairs(self) -> Pairs:
        return self.joint_pairs.to_pairs() if self.joint_pairs else self.pairs

    def pair_tables(self, model: "MaskModel") -> PairTables | None:
        """Return the pair scores' tables for the model's embeddings; None without scores."""
        pairs = self._own_pairs()
        # cloned: a sharded base cannot free memory that numpy has a view of
        return tables_of([model.embedding_table().cpu().clone().numpy()], pairs) if pairs else None

    @property
    def identity(self) -> ModelIdentity:
        return self._identity


@dataclass(frozen=True)
class BaseContext:
    """The base's results for a batch of texts, padded at the end to T tokens."""

    layers: list[tuple[Tensor, Tensor]]  # keys and values [B, H, T, D] per layer
    states: Tensor  # [B, T - first, hidden]: inputs of the output layer, from row `first` on
    first: int

    @property
    def num_tokens(self) -> int:
        return int(self.layers[0][0].shape[2])


class MaskModel:
    """The base model, with the forward of mask rows on it."""

    def __init__(self, base: Any) -> None:
        self.base = base
        embedding = base.get_input_embeddings()
        self.dtype, self.device = embedding.weight.dtype, embedding.weight.device
        self.vocab_size = int(base.config.vocab_size)
        # Gemma scales embeddings after the lookup; mask embeddings are like rows of the table.
        self._embedding_scale = float(getattr(embedding, "embed_scale", 1.0))
        self._scores_as_output = _is_plain_output(base)

    def embeddings(self, token_ids: Tensor) -> Tensor:
        """Return rows of the embedding table, [n, hidden], float32."""
        return torch.nn.functional.embedding(token_ids, self.embedding_table())

    def draft_logits(self, states: Tensor, directions: Tensor | None) -> Tensor:
        """Return the logits [n, V] of last states [n, hidden] of mask rows.

        Pair scores with `directions` [n, hidden] are added; None adds nothing.
        """
        if directions is None:
            return self.output_logits(states[None])[0]
        if self._scores_as_output:
            return self.output_logits((states + directions.to(states.dtype))[None])[0]
        logits = self.output_logits(states[None])[0]
        return logits.float() + directions @ self.embedding_table().T

    def embedding_table(self) -> Tensor:
        """Return the embedding table [V, hidden] in float32, joined if the base is sharded."""
        weight = self.base.get_input_embeddings().weight.detach()
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        return whole.float()

    @torch.no_grad()
    def read(self, texts: Sequence[Sequence[int]], first: int) -> BaseContext:
        """Run the base over whole texts; `first` is the first row needed as a teacher."""
        longest = max(len(text) for text in texts)
        ids = torch.zeros((len(texts), longest), dtype=torch.long)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = torch.tensor(text)
        cache: Any = DynamicCache()
        states = self._decode(input_ids=ids.to(self.device), past_key_values=cache)
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return BaseContext(layers, states[:, first:], first)

    def mask_states(
        self,
        parameters: AdapterParameters,
        context: BaseContext,
        rows: Sequence[MaskRows],
        dropout: float = 0.0,
    ) -> Tensor:
        """Return last states [B, R, hidden] of each text's mask rows, padded at the end to R rows.

        `dropout` is the share of the prefix's elements set to zero, while the others are scaled up.
        """
        num_rows = max(len(text.anchors) for text in rows)
        masks = _pad([text.masks for text in rows], num_rows).to(self.device)
        positions = _pad([text.positions for text in rows], num_rows).to(self.device)
        embeddings = parameters.mask_embeddings[masks].to(self.dtype) * self._embedding_scale
        prefix_length = parameters.prefix_keys.shape[2]

        def additive(window: int | None) -> Tensor:
            sees = visibility(rows, num_rows, context.num_tokens, prefix_length, window)
            hidden = torch.from_numpy(~sees)[:, None].to(self.device)
            mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
            return mask.masked_fill(hidden, torch.finfo(self.dtype).min)

        with lora_on_rows(self.base, dict(parameters.lora.items())):
            return self._decode(
                inputs_embeds=embeddings,
                position_ids=positions,
                attention_mask=masks_by_layer(self.base.config, additive),
                past_key_values=self._cache(parameters, context, len(rows), dropout),
            )

    def mask_logits(
        self, parameters: AdapterParameters, context: BaseContext, rows: Sequence[MaskRows]
    ) -> Tensor:
        """Return the logits [B, R, V] of each text's mask rows, padded at the end to R rows."""
        return self.output_logits(self.mask_states(parameters, context, rows))

    def output_logits(self, states: Tensor) -> Tensor:
        """Return logits [B, T, V] of last states [B, T, hidden], scaled and capped by the base."""
        decoder = self.base.base_model
        decoder.forward = lambda *_, **__: BaseModelOutputWithPast(last_hidden_state=states)
        try:
            ids = torch.zeros(states.shape[:2], dtype=torch.long, device=self.device)
            logits: Tensor = self.base(input_ids=ids, use_cache=False).logits
        finally:
            del decoder.forward
        return logits

    def _decode(self, **inputs: Any) -> Tensor:
        """Return the decoder's last states [B, T, hidden], captured while the whole base runs.

        The weights of a sharded base are gathered in the hooks of the base, not of its decoder.
        """
        states = []
        hook = self.base.base_model.register_forward_hook(
            lambda _module, _args, output: states.append(output.last_hidden_state)
        )
        try:
            self.base(use_cache=True, logits_to_keep=1, **inputs)
        finally:
            hook.remove()
        return states[0]

    def _cache(
        self, parameters: AdapterParameters, context: BaseContext, batch_size: int, dropout: float
    ) -> Any:
        """Return a cache with prefix and text as every layer's past, including windowed layers."""
        cache: Any = DynamicCache()
        for index, (keys, values) in enumerate(context.layers):
            joined = []
            for prefix, text in (
                (parameters.prefix_keys[index], keys),
                (parameters.prefix_values[index], values),
            ):
                kept = torch.nn.functional.dropout(prefix, dropout, training=dropout > 0)
                shared = kept.to(self.dtype)[None].expand(batch_size, -1, -1, -1)
                joined.append(torch.cat([shared, text], dim=2))
            cache.update(*joined, index)
        return cache


def _is_plain_output(base: Any) -> bool:
    """Return whether logits are plain products of states and embeddings."""
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    names = ("final_logit_softcapping", "logits_scaling", "logit_scale")
    is_changed = any(getattr(base.config, name, None) not in (None, 1) for name in names)
    is_tied = head is not None and head.weight is embedding.weight
    return is_tied and not is_changed and getattr(head, "bias", None) is None


def _parameter(array: np.ndarray) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.from_numpy(array.copy()))


def _array(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy().copy()


def _pad(arrays: Sequence[np.ndarray], length: int) -> Tensor:
    """Pad arrays with zeros at the end to [B, length]."""
    padded = np.zeros((len(arrays), length), np.int64)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded)
