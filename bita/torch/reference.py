"""The reference decoder: draft-verify decoding as simply as possible, which all others must equal.

Every step runs the transformers model over the whole text again, without a KV cache of the text.
Rules: BiTA (arXiv 2401.12522), section 3.3. Needs the extra `tune`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bita.adapter import Adapter
from bita.errors import AdapterError, MissingExtraError, TreeError, raise_faults
from bita.pairs import PAIR_TENSORS
from bita.torch.base_model import masks_by_layer
from bita.tree import Tree

try:
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    from bita.torch.lora_hooks import lora_on_rows
except ImportError as error:
    raise MissingExtraError("the reference decoder", "tune") from error

PAIR_CANDIDATES = 16  # drafts per mask that pair scores choose from, as many as an engine returns
NO_DRAFT = -1  # marks a node without a draft; no token equals it


@dataclass(frozen=True)
class Step:
    """Result of one forward."""

    path: tuple[int, ...]  # accepted nodes, root first
    emitted: tuple[int, ...]  # their drafts and the bonus token
    ranked: tuple[tuple[int, ...], ...]  # best next drafts of each mask of the last accepted node
    logits: tuple[tuple[float, ...], ...]  # logits of `ranked`


@dataclass(frozen=True)
class ReferenceResult:
    """Result of decoding a text."""

    token_ids: tuple[int, ...]  # new tokens, including EOS
    tokens_per_step: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        return len(self.tokens_per_step)


class ReferenceDecoder:
    """Greedy BiTA decoding of one model, which is switched to eager attention.

    Raises AdapterError if sizes of the adapter differ from those of the model.
    """

    def __init__(self, model: Any, adapter: Adapter) -> None:
        config = model.config
        layers, heads, _, head_dim = adapter.prefix_keys.shape
        model_head_dim = getattr(config, "head_dim", None)
        model_head_dim = model_head_dim or config.hidden_size // config.num_attention_heads
        sizes = {
            "hidden size": (adapter.mask_embeddings.shape[1], config.hidden_size),
            "layers": (layers, config.num_hidden_layers),
            "kv heads": (heads, config.num_key_value_heads),
            "head dim": (head_dim, model_head_dim),
        }
        faults = [f"{name} {ours}: {its}" for name, (ours, its) in sizes.items() if ours != its]
        raise_faults(AdapterError, "adapter does not fit (its number: the model's)", faults)
        model.set_attn_implementation("eager")  # other implementations ignore soft caps
        self.model = model
        self.adapter = adapter

    def generate(
        self, token_ids: Sequence[int], tree: Tree, max_new_tokens: int, eos_ids: Sequence[int] = ()
    ) -> ReferenceResult:
        """Return the tokens of `greedy`, decoded in fewer steps if drafts are right."""
        text = list(token_ids)
        counts: list[int] = []
        drafts = [NO_DRAFT] * (tree.num_nodes - 1)
        while sum(counts) < max_new_tokens and not (counts and text[-1] in eos_ids):
            step = self.step(text, tree, drafts)
            kept = cut(step.emitted, max_new_tokens - sum(counts), eos_ids)
            text += kept
            counts.append(len(kept))
            drafts = next_drafts(tree, text[-1], step, self._pair_score)
        return ReferenceResult(tuple(text[len(token_ids) :]), tuple(counts))

    def step(self, text_ids: Sequence[int], tree: Tree, draft_tokens: Sequence[int]) -> Step:
        """Verify drafts after a text whose last token is the root, and rank the next ones."""
        node_logits, mask_logits = self.step_outputs(text_ids, tree, draft_tokens)
        node_tokens = [text_ids[-1], *draft_tokens]
        path, bonus = walk(tree, node_tokens, node_logits.argmax(-1).tolist())
        group = tree.groups[path[-1]]
        group_logits = mask_logits[group.start - tree.num_nodes : group.stop - tree.num_nodes]
        num_ranks = PAIR_CANDIDATES if self.adapter.pairs else tree.max_rank
        best = group_logits.topk(num_ranks)
        emitted = (*(node_tokens[node] for node in path[1:]), bonus)
        ranked, logits = best.indices.tolist(), best.values.tolist()
        return Step(tuple(path), emitted, tuple(map(tuple, ranked)), tuple(map(tuple, logits)))

    def _pair_score(self, parent: int, child: int) -> float:
        """Return what the adapter's pair scores add to a draft after a token; 0 without them."""
        if not self.adapter.pairs:
            return 0.0
        table = self.model.get_input_embeddings().weight
        left, bias, right = (self.adapter.pairs[name] for name in PAIR_TENSORS)
        before, after = (table[token].float().cpu().numpy() for token in (parent, child))
        return float((before @ left + bias) @ (after @ right))

    @torch.no_grad()
    def step_outputs(
        self, text_ids: Sequence[int], tree: Tree, draft_tokens: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of nodes [N, V] and of mask rows [K, V], both in row order.

        `draft_tokens` are those of nodes 1 to N - 1; NO_DRAFT marks a missing one. Raises TreeError
        if the tree does not fit.
        """
        self._check(tree, draft_tokens)
        num_before = len(text_ids) - 1  # text before the root
        weight = self.model.get_input_embeddings().weight
        mask_ids = (len(weight) + tree.mask_index[tree.num_nodes :]).tolist()
        drafts = [max(token, 0) for token in draft_tokens]
        rows = torch.from_numpy(tree.offsets)
        positions = torch.cat([torch.arange(num_before), num_before + rows])
        bounded = self.adapter.bounded
        masks = torch.from_numpy(bounded["mask_embeddings"])
        lora = {name: torch.from_numpy(bounded[name]).to(weight) for name in self.adapter.lora}
        first_mask = len(text_ids) + len(drafts)
        with (
            extended_embedding(self.model, masks),
            lora_on_rows(self.model, lora, first_mask),
        ):
            outputs = self.model(
                input_ids=torch.tensor([[*text_ids, *drafts, *mask_ids]], device=weight.device),
                position_ids=positions[None].to(weight.device),
                attention_mask=self._attention_mask(tree, positions),
                past_key_values=self._prefix_cache(),
                use_cache=True,
            )
        logits = outputs.logits[0, num_before:]
        return logits[: tree.num_nodes], logits[tree.num_nodes :]

    def _check(self, tree: Tree, draft_tokens: Sequence[int]) -> None:
        faults = []
        if max(tree.num_masks) > self.adapter.num_masks:
            num_masks = self.adapter.num_masks
            faults.append(f"a node has {max(tree.num_masks)} masks, the adapter {num_masks}")
        if len(draft_tokens) != tree.num_nodes - 1:
            faults.append(f"{len(draft_tokens)} drafts for {tree.num_nodes - 1} nodes")
        raise_faults(TreeError, "tree does not fit", faults)

    def _attention_mask(self, tree: Tree, positions: torch.Tensor) -> Any:
        """Return the additive mask [1, 1, R, P + R] of `visibility`, or one per type of layer."""

        def additive(window: int | None) -> torch.Tensor:
            sees = visibility(tree, positions, self.adapter.prefix_length, window)
            weight = self.model.get_input_embeddings().weight
            mask = torch.zeros(sees.shape, dtype=weight.dtype, device=weight.device)
            hidden = ~sees.to(weight.device)
            return mask.masked_fill(hidden, torch.finfo(weight.dtype).min)[None, None]

        return masks_by_layer(self.model.config, additive)

    def _prefix_cache(self) -> DynamicCache:
        """Return a cache with the prefix as the past of every layer, including windowed ones."""
        weight = self.model.get_input_embeddings().weight
        cache = DynamicCache()
        keys, values = (
            torch.from_numpy(side).to(weight)
            for side in (self.adapter.bounded[name] for name in ("prefix_keys", "prefix_values"))
        )
        for layer in range(len(keys)):
            cache.update(keys[layer : layer + 1], values[layer : layer + 1], layer)
        return cache


def visibility(
    tree: Tree, positions: torch.Tensor, prefix_length: int, window: int | None
) -> torch.Tensor:
    """Return which row sees which key, [R, P + R], where R is the text before the root plus Q.

    A window hides text `window` or more positions back, but never the prefix.
    """
    num_rows = len(positions)
    num_before = num_rows - tree.num_rows
    sees = torch.ones(num_rows, num_rows, dtype=torch.bool).tril()
    sees[num_before:, num_before:] = torch.from_numpy(tree.sees)
    if window is not None:
        sees &= positions[:, None] - positions[None] < window
    sees_prefix = torch.zeros(num_rows, prefix_length, dtype=torch.bool)
    sees_prefix[num_before:] = torch.from_numpy(tree.sees_prefix)[:, None]
    return torch.cat([sees_prefix, sees], dim=1)


def walk(tree: Tree, tokens: Sequence[int], choices: Sequence[int]) -> tuple[list[int], int]:
    """Return the nodes whose drafts are right, root first, and the token chosen after the last.

    `tokens` [N] are those of the nodes, `choices` [N] those that the model chooses after each node.
    """
    path = [0]
    while True:
        choice = choices[path[-1]]
        right = [node for node in tree.children[path[-1]] if tokens[node] == choice]
        if not right:
            return path, choice
        path.append(right[0])


def next_drafts(
    tree: Tree, root: int, step: Step, score: Callable[[int, int], float] = lambda a, b: 0.0
) -> list[int]:
    """Return the drafts of nodes 1 to N - 1: depth d and rank r hold the r-th best of mask d - 1.

    `root` is the token of node 0. `score` of a node's token and a draft is added to the draft's
    logit among the node's children.
    """
    tokens = [root]
    for parent, depth, rank in zip(tree.parents[1:], tree.depths[1:], tree.ranks[1:], strict=True):
        if depth > len(step.ranked) or tokens[parent] == NO_DRAFT:
            tokens.append(NO_DRAFT)
            continue
        drafts = zip(step.ranked[depth - 1], step.logits[depth - 1], strict=True)
        scored = [(logit + score(tokens[parent], draft), draft) for draft, logit in drafts]
        scored.sort(key=lambda pair: -pair[0])
        tokens.append(scored[rank - 1][1])
    return tokens[1:]


def cut(tokens: Sequence[int], limit: int, eos_ids: Sequence[int]) -> list[int]:
    """Return the tokens up to and including the first EOS, but at most `limit`."""
    kept: list[int] = []
    for token in tokens[:limit]:
        kept.append(token)
        if token in eos_ids:
            break
    return kept


@torch.no_grad()
def greedy(
    model: Any, token_ids: Sequence[int], max_new_tokens: int, eos_ids: Sequence[int] = ()
) -> tuple[int, ...]:
    """Decode plainly (AR), without a cache; return the new tokens, including EOS."""
    text = list(token_ids)
    while len(text) - len(token_ids) < max_new_tokens:
        logits = model(input_ids=torch.tensor([text], device=model.device)).logits[0, -1]
        text.append(int(logits.argmax()))
        if text[-1] in eos_ids:
            break
    return tuple(text[len(token_ids) :])


def load_reference_model(path: Path | str) -> Any:
    """Load a transformers model in float32, with the attention that the decoder needs."""
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


@contextmanager
def extended_embedding(model: Any, mask_embeddings: torch.Tensor) -> Iterator[None]:
    """Append mask tokens to the input embedding as rows V, V + 1, ...; a tied head keeps V rows."""
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    rows = torch.cat([weight.detach(), mask_embeddings.to(weight)])
    embedding.weight = torch.nn.Parameter(rows, requires_grad=False)
    try:
        yield
    finally:
        embedding.weight = weight
