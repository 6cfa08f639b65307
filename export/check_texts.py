"""Check before a build that the runtime can use the model's tokenizer and chat template."""

from bita.errors import EngineError, ModelError, PromptError
from bita.export.checkpoint import TextAssets
from bita.runtime.text.prompt_encoder import PromptEncoder

PROBE = "The quick brown fox."


def check_texts(texts: TextAssets, name: str, num_rows: int) -> None:
    """Check that an engine with these texts can be opened and prompted.

    Args:
        texts: The tokenizer and the chat template.
        name: The model's name, for messages.
        num_rows: Rows of the embedding table.

    Raises:
        ModelError: if the tokenizer or the chat template cannot be used.
    """
    source, template = texts.tokenizer_json, texts.chat_template
    try:
        encoder = PromptEncoder.of_sources(source, template, texts.defaults, num_rows)
        encoder.codec.decode(encoder.encode(PROBE))
    except EngineError as error:
        raise ModelError(f"{name}: {error}") from error
    except PromptError as error:
        raise ModelError(f"{name}: {error}") from error
    if encoder.template is None:
        return
    try:
        encoder.template.check()
    except PromptError as error:
        raise ModelError(
            f"{name}: {error}. Write a working template to chat_template.jinja in the model's "
            "directory; an empty file means no template"
        ) from error
