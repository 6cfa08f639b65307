"""Tokenizer and chat template of a Hugging Face model directory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bita.errors import EngineError, ModelError, raise_faults
from bita.export.checkpoint import TextAssets
from bita.export.huggingface.answer_ends import AnswerEnds
from bita.export.huggingface.chat_templates import read_chat_template
from bita.export.huggingface.special_tokens import (
    FIX,
    SpecialTokens,
    optional_json,
    read_special_tokens,
)
from bita.generation import sampling_numbers
from bita.json_values import MAX_JSON_BYTES, Fields, parse_json, read_regular_file
from bita.runtime.text.codec import TextCodec
from bita.runtime.text.tokenizer_file import checked_call, read_tokenizer

SMALLEST = 1e-9  # minimum of numbers that must be above 0
MISTRAL_TOKENS = 100_000  # `fix_mistral_regex` has an effect for larger vocabularies


def read_text_assets(directory: Path, config: Mapping[str, Any]) -> TextAssets:
    """Read the TextAssets of a model directory.

    Raises:
        ModelError: if the directory has no fast tokenizer, or a file is malformed.
    """
    path = directory / "tokenizer.json"
    source = _read_source(path)
    tokenizer = read_tokenizer(source, ModelError, f"{path} cannot be read: it", FIX)
    tokenizer_config = optional_json(directory / "tokenizer_config.json")
    _check_settings(directory / "tokenizer_config.json", tokenizer_config, config, tokenizer)
    own = parse_json(source).get("added_tokens")
    tokens = read_special_tokens(directory, tokenizer_config, config, own)
    special_tokens = tokens.texts(tokenizer)
    source = _add_tokens(source, tokenizer, tokens, path)
    template = read_chat_template(directory, tokenizer_config)
    generation = optional_json(directory / "generation_config.json")
    codec = _codec(tokenizer, path, config)
    ends = AnswerEnds.read(directory, config, generation, template, special_tokens, codec)
    return TextAssets(
        tokenizer_json=source,
        chat_template=template,
        eos_ids=ends.eos_ids,
        special_tokens=special_tokens,
        sampling=_sampling(directory, generation),
        turn_end_ids=ends.turn_end_ids,
    )


def _read_source(path: Path) -> str:
    if not path.exists():
        raise ModelError(
            f"{path} is missing. Download it, or write it from the slow tokenizer: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    try:
        return read_regular_file(path, MAX_JSON_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}); {FIX}") from error


def _add_tokens(source: str, tokenizer: Tokenizer, tokens: SpecialTokens, path: Path) -> str:
    """Return tokenizer.json with the tokens that other files name; unchanged if there are none."""
    what = f"{path} does not accept the tokens of tokenizer_config.json and related files"
    changed = checked_call(lambda: tokens.add_to(tokenizer), ModelError, what, FIX)
    return tokenizer.to_str() if changed else source


def _codec(tokenizer: Tokenizer, path: Path, config: Mapping[str, Any]) -> TextCodec:
    """Return the runtime's codec, which refuses tokenizers that an engine cannot use."""
    size = config.get("vocab_size")
    try:
        return TextCodec(tokenizer, size if type(size) is int else None)
    except EngineError as error:
        raise ModelError(f"{path}: {error}") from error


def _check_settings(
    path: Path, values: Mapping[str, Any], config: Mapping[str, Any], tokenizer: Tokenizer
) -> None:
    """Refuse settings that change ids or text and are not part of tokenizer.json.

    A setting is accepted if transformers ignores it for the model: it cleans up spaces after BPE
    only if a second setting demands it, and it fixes the regex only of large Mistral vocabularies.
    """
    cleans_up = values.get("clean_up_tokenization_spaces") and (
        type(tokenizer.model).__name__ != "BPE"
        or values.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
    )
    mends = config.get("model_type") == "mistral" and tokenizer.get_vocab_size() > MISTRAL_TOKENS
    faults = [
        f"{name} changes the results of tokenizer.json, which is not supported; save a "
        "tokenizer without it"
        for name, counts in (
            ("clean_up_tokenization_spaces", cleans_up),
            ("split_special_tokens", values.get("split_special_tokens")),
            ("fix_mistral_regex", mends and values.get("fix_mistral_regex")),
        )
        if counts
    ]
    raise_faults(ModelError, str(path), faults)


def _sampling(directory: Path, generation: Mapping[str, Any]) -> dict[str, float]:
    """Return the sampling settings of generation_config.json, {} if it does not sample.

    Raises ModelError for unusable values.
    """
    fields = Fields(generation)
    samples = fields.flag_or_null("do_sample")
    values: dict[str, Any] = {}
    if samples:
        values = {
            "temperature": fields.number_or_null("temperature", 1.0, least=0),
            "top_k": fields.whole_or_null("top_k", most=2**31),
            "top_p": fields.number_or_null("top_p", least=SMALLEST, most=1),
            "min_p": fields.number_or_null("min_p", least=0, most=1),
            "repetition_penalty": fields.number_or_null("repetition_penalty", least=SMALLEST),
        }
    fields.check(ModelError, f"{directory}/generation_config.json")
    return sampling_numbers(values)
