"""Tiny random models of every supported family as saved by transformers, with a tokenizer.

Logits are far apart and greedy text varies, so that a wrong mask, position or scale changes the
text. All tensors are random, including norm weights and biases, so that a missing one is noticed.
No network is needed. `python tests/support/tiny_models.py FAMILY DIRECTORY [SEED]` writes a model.
"""

import json
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

EOS_ID, PAD_ID, VOCAB_SIZE = 1, 0, 320  # like many models, more rows than tokenizer ids
SPECIAL_TOKENS = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOKENIZER_TEXT = (
    "The quick brown fox jumps over the lazy dog, and the tree of drafts grows with every step. "
    "A mask token asks the model what comes after the next word; the model answers, and is checked."
)
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_TIED = {"tie_word_embeddings": True}
_GEMMA = {**_TIED, "head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 24}
# model_type, and options that differ from the common shape
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _TIED),
    "llama3": ("llama", {**_TIED, "rope_parameters": _LLAMA3_ROPE}),
    "mistral": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {**_TIED, "head_dim": 16}),
    "smollm3": ("smollm3", {**_TIED, "no_rope_layer_interval": 2}),
    "phi3": ("phi3", {"sliding_window": None}),
    "gemma2": (
        "gemma2",
        {**_GEMMA, "attn_logit_softcapping": 4.0, "final_logit_softcapping": 8.0},
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            **_GEMMA,
            "num_hidden_layers": 6,  # the sixth layer is the first with global attention
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        },
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.15,
            "residual_multiplier": 0.6,
            "logits_scaling": 0.7,
        },
    ),
}
FAMILIES: tuple[str, ...] = tuple(_CONFIGS)


def tiny_config(family: str) -> dict[str, Any]:
    """Return the config of one of FAMILIES as it would be in a file."""
    model_type, options = _CONFIGS[family]
    config = {"model_type": model_type, **_common(), **options}
    copied: dict[str, Any] = json.loads(json.dumps(config))
    return copied


def write_tiny_model(family: str, directory: Path, seed: int = 0) -> Path:
    """Write config, fp32 safetensors and tokenizer of one of FAMILIES; return `directory`.

    Sizes: hidden 64, 4 layers (gemma3_text 6), 4 heads, 2 KV heads, head_dim 16 (gemma 32), V 320.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, options = _CONFIGS[family]
    # a copy, because transformers modifies its arguments
    config = AutoConfig.for_model(model_type, **deepcopy({**_common(), **options}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _randomize(model, is_gemma=family.startswith("gemma"))
    model.generation_config.eos_token_id = EOS_ID
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return directory


def write_tokenizer(directory: Path) -> None:
    """Write a byte-level BPE tokenizer of 300 ids, always the same, with its chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TOKENIZER_TEXT] * 4, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL_TOKENS[PAD_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _common() -> dict[str, Any]:
    return {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "rope_parameters": _PLAIN_ROPE,
        "tie_word_embeddings": False,
        "pad_token_id": PAD_ID,
        "bos_token_id": None,
        "eos_token_id": EOS_ID,
    }


def _randomize(model: Any, is_gemma: bool) -> None:
    """Set norm weights around 1 (Gemma stores them minus 1), and biases around 0.

    Gemma multiplies embeddings by 8 and ties them to the head; small embeddings and a large last
    norm prevent the head from repeating the last token.
    """
    import torch

    with torch.no_grad():
        model.get_input_embeddings().weight[PAD_ID].normal_(0, 0.3)  # transformers sets it to zero
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.5)
            elif weight.dim() == 1:
                weight.uniform_(0.5, 1.5).sub_(1 if is_gemma else 0)
        if is_gemma:
            model.get_input_embeddings().weight.mul_(0.08)
            model.model.norm.weight.add_(1).mul_(12).sub_(1)


class ArrayCheckpoint:
    """The weights part of a Checkpoint, for arrays in memory."""

    def __init__(
        self, config: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[np.float32]]
    ) -> None:
        self.config = dict(config)
        self.tensors = dict(tensors)

    def names(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def read(self, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        return np.ascontiguousarray(self.tensors[name][start:stop], dtype=np.float32)


def random_checkpoint(seed: int = 0, **config: Any) -> ArrayCheckpoint:
    """Return the tensors and config that an identity needs, of a 4-layer model, without torch."""
    rng = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": (VOCAB_SIZE, 64),
        "model.layers.0.self_attn.q_proj.weight": (64, 64),
        "model.layers.3.mlp.down_proj.weight": (64, 128),
    }
    tensors = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
    common = {**_common(), "model_type": "llama", **config}
    return ArrayCheckpoint(common, {name: a.astype(np.float32) for name, a in tensors.items()})


if __name__ == "__main__":
    print(write_tiny_model(sys.argv[1], Path(sys.argv[2]), int((*sys.argv, "0")[3])))
