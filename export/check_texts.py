"""Whether the runtime can use a model's tokenizer and chat template, asked before a build."""

from bita.errors import EngineError, ModelError, PromptError
from bita.export.checkpoint import TextAssets
from bita.runtime.text.prompt_encoder import PromptEncoder

PROBE = "The quick brown fox."


def check_texts(texts: TextAssets, name: str, num_rows: int) -> None:
    """Raise ModelError if an engine with these texts could not be opened, or not be prompted.

    name: of the model, for messages. num_rows: of its embedding table.
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
            f"{name}: {error}. Write a template that works as chat_template.jinja into the model's "
            "directory; an empty file stands for none"
        ) from error
