"""Fuzz targets: Hugging Face directories and GGUF files, their tokenizers and templates."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
from engine_targets import safetensors_bytes
from gguf_bytes import gguf_bytes
from make_tiny_engine import CONFIG, TINY_ENGINE, write_plain_model
from mutation import Mutator
from running import Execute, Target
from tiny_gguf import base_metadata, converted, llama_tensors

from bita.errors import BitaError
from bita.export.architecture import FAMILIES, read_architecture
from bita.export.dialects.decoder import expected_shapes
from bita.export.gguf.checkpoint import GgufCheckpoint
from bita.export.huggingface.checkpoint import SafetensorsCheckpoint
from bita.identity import identify
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.codec import TextCodec

CAPACITY = 64
CONFIG_WORDS = (
    *CONFIG,
    *FAMILIES,
    *("rope_scaling", "rope_parameters", "rope_type", "type", "factor", "layer_types"),
    *("sliding_window", "sliding_attention", "full_attention", "yarn", "llama3", "longrope"),
    *("no_rope_layers", "no_rope_layer_interval", "use_sliding_window", "max_window_layers"),
    *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"),
    *("partial_rotary_factor", "original_max_position_embeddings", "low_freq_factor"),
    *("high_freq_factor", "short_factor", "long_factor", "attention_factor", "rope_theta"),
    *("attention_multiplier", "residual_multiplier", "logits_scaling", "hidden_activation"),
)
ROPES = (
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8},
)
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<|end|>",
    "pad_token": {"content": "<|pad|>", "special": True},
    "added_tokens_decoder": {"2": {"content": "<|user|>", "special": True}},
    "additional_special_tokens": ["<|assistant|>"],
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    "add_bos_token": False,
}
TOKEN_WORDS = (
    *TOKENIZER_CONFIG,
    *("content", "lstrip", "rstrip", "normalized", "single_word", "special", "id", "name"),
    *("vocab", "merges", "model", "decoder", "pre_tokenizer", "normalizer", "post_processor"),
    *("BPE", "Unigram", "WordPiece", "ByteLevel", "Metaspace", "Replace", "Regex", "Sequence"),
    *("pattern", "behavior", "invert", "Split", "type", "template", "prepend_scheme"),
)
TEMPLATE_PARTS = (
    *("{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] }}", "<|end|>"),
    *("{% if m.role == 'user' %}", "{% elif true %}", "{% else %}", "{% endif %}", "{{ 1/0 }}"),
    *("{% set x = [1, 2] %}", "{% set ns = namespace(x=(1,)) %}", "{% set ns.x = (ns.x, ns.x) %}"),
    *("{{ messages | tojson }}", "{{ x | join(',') }}", "{{ 'a' * 99999 }}", "{{ x * 99999 }}"),
    *("{% macro f(a) %}{{ f(a) }}{% endmacro %}", "{{ f(1) }}", "{{ range(10**9) | list }}"),
    *("{{ 2 ** 99999 }}", "{{ '%s' % x }}", "{{ ns.x | string | length }}", "{{ x | sort }}"),
    *("{{ raise_exception('no') }}", "{{ messages[0].content.__class__ }}", "{{ x[5] }}", "{{"),
    *("{{ 'é' | upper | indent(9999) }}", "{{ strftime_now('%Y') }}", "{% include 'a' %}", "}}"),
    *("{{ x | batch(2) | list }}", "{{ bos_token }}", "{{ none.a }}", "{%- generation %}"),
    *("{{ m.content | trim | replace('a', 'b' * 999) }}", "{{ x | map('upper') | list }}", "\x00"),
)
MESSAGES: list[dict[str, Any]] = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
    {"role": "user", "content": [{"type": "text", "text": "bye"}]},
]
SYSTEM = [{"role": "system", "content": "Answer."}]  # a template may ignore a system message


def model_targets() -> list[Target]:
    return [
        Target("hf-config", _hf_config, (BitaError,)),
        Target("hf-weights", _hf_weights, (BitaError,)),
        Target("hf-texts", _hf_texts, (BitaError,)),
        Target("tokenizer", _tokenizer, (BitaError,)),
        Target("gguf", _gguf, (BitaError,)),
        Target("template", _template, (BitaError,)),
    ]


def _model(directory: Path) -> Path:
    path = write_plain_model(directory / "model")
    (path / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return path


def _hf_config(directory: Path) -> Execute:
    path = _model(directory)

    def execute(rng: random.Random) -> None:
        seed = {**CONFIG, "model_type": rng.choice(list(FAMILIES))}
        if rng.random() < 0.5:
            seed["rope_parameters"] = rng.choice(ROPES)
        (path / "config.json").write_bytes(Mutator(rng, CONFIG_WORDS).json_bytes(seed))
        checkpoint = SafetensorsCheckpoint(path)
        expected_shapes(read_architecture(checkpoint.config, CAPACITY))
        identify(checkpoint)

    return execute


def _hf_weights(directory: Path) -> Execute:
    path = _model(directory)
    seed = (path / "model.safetensors").read_bytes()
    header = json.loads(seed[8 : 8 + struct.unpack("<Q", seed[:8])[0]])
    names = [name for name in header if name != "__metadata__"]
    index = {"weight_map": dict.fromkeys(names, "model.safetensors"), "metadata": {"total_size": 1}}
    index_path = path / "model.safetensors.index.json"

    def execute(rng: random.Random) -> None:
        index_path.unlink(missing_ok=True)
        (path / "model.safetensors").write_bytes(safetensors_bytes(rng, seed))
        if rng.random() < 0.5:
            index_path.write_bytes(Mutator(rng, names).json_bytes(index))
        checkpoint = SafetensorsCheckpoint(path)
        for name in sorted(checkpoint.names())[:3]:
            checkpoint.read(name)
        identify(checkpoint)

    return execute


def _hf_texts(directory: Path) -> Execute:
    path = _model(directory)
    seeds = {
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "special_tokens_map.json": {"eos_token": "<|end|>", "additional_special_tokens": ["<a>"]},
        "added_tokens.json": {"<|user|>": 2, "<a>": 300},
        "generation_config.json": {"eos_token_id": [1], "do_sample": True, "temperature": 0.5},
        "chat_template.json": {"chat_template": "{{ messages[0].content }}"},
    }

    def execute(rng: random.Random) -> None:
        for name in seeds:
            (path / name).unlink(missing_ok=True)
        for name, seed in seeds.items():
            if rng.random() < 0.5:
                (path / name).write_bytes(Mutator(rng, TOKEN_WORDS).json_bytes(seed))
        SafetensorsCheckpoint(path).text_assets()

    return execute


def _tokenizer(directory: Path) -> Execute:
    path = directory / "tokenizer.json"
    seed = json.loads((TINY_ENGINE / "tokenizer.json").read_text())

    def execute(rng: random.Random) -> None:
        path.write_bytes(Mutator(rng, TOKEN_WORDS).json_bytes(seed))
        codec = TextCodec.open(directory)
        ids = codec.encode("hello <|user|> a b\nc", True)
        codec.decode([*ids[:20], 0, 5, 319])

    return execute


def _gguf(directory: Path) -> Execute:
    path = directory / "model.gguf"
    architectures = ("llama", "qwen2", "gemma2", "gemma3", "phi3", "granite", "smollm3")
    metadata = {
        name: {"general.architecture": name, **base_metadata(name)} for name in architectures
    }
    small = {name: np.zeros_like(a) for name, a in converted("llama", llama_tensors()).items()}
    extra = (
        *("rope.scaling.type", "rope.scaling.factor", "rope.dimension_count", "attention.scale"),
        *("attention.sliding_window", "attn_logit_softcapping", "rope.freq_base_swa"),
    )

    def execute(rng: random.Random) -> None:
        architecture = rng.choice(architectures)
        words = (*metadata[architecture], *(f"{architecture}.{key}" for key in extra))
        mutator = Mutator(rng, (*words, "general.alignment", "tokenizer.ggml.token_type", "yarn"))
        changed = mutator.mutate(metadata[architecture])
        data = gguf_bytes(changed if isinstance(changed, dict) else {}, small, rng)
        path.write_bytes(mutator.mutate_bytes(data) if rng.random() < 0.3 else data)
        checkpoint = GgufCheckpoint(path)
        expected_shapes(read_architecture(checkpoint.config, CAPACITY))
        checkpoint.text_assets()

    return execute


def _template(_: Path) -> Execute:
    def execute(rng: random.Random) -> None:
        mutator = Mutator(rng)
        source = mutator.text(TEMPLATE_PARTS)
        if rng.random() < 0.2:
            source = mutator.mutate_bytes(source.encode()).decode("utf-8", "replace")
        ChatTemplate(source).render(rng.choice((MESSAGES, SYSTEM)))

    return execute
