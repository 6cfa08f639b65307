"""A model's text processing, for tuning: token ids, chat template, and the model's identity."""

import hashlib
import json
from dataclasses import dataclass

from tokenizers import Tokenizer

from bita.data.prompts import Messages
from bita.errors import PromptError
from bita.export.checkpoint import Checkpoint, TextAssets
from bita.identity import ModelIdentity, identify
from bita.runtime.text.chat_template import ChatTemplate
from bita.runtime.text.codec import TextCodec
from bita.runtime.text.prompt_encoder import PromptEncoder


@dataclass(frozen=True)
class ModelTexts:
    """Encoder of a model's prompts, the ids that begin and end its texts, and its identity."""

    identity: ModelIdentity
    encoder: PromptEncoder
    special_ids: frozenset[int]  # ids that do not represent text
    bos_ids: tuple[int, ...]  # start of texts without a template
    tokenizer_sha256: str  # hash of the vocabulary, equal for one tokenizer in different files

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "ModelTexts":
        """Return the texts of a checkpoint.

        Raises ModelError if it has no tokenizer or cannot be identified.
        """
        return cls.from_assets(checkpoint.text_assets(), identify(checkpoint))

    @classmethod
    def from_assets(cls, assets: TextAssets, identity: ModelIdentity) -> "ModelTexts":
        source, template = assets.tokenizer_json, assets.chat_template
        encoder = PromptEncoder.of_sources(source, template, assets.defaults)
        added = encoder.codec.tokenizer.get_added_tokens_decoder()
        special_ids = {token_id for token_id, token in added.items() if token.special}
        return cls(
            identity=identity,
            encoder=encoder,
            special_ids=frozenset(special_ids) | frozenset(assets.defaults.chat_eos_ids),
            bos_ids=_bos_ids(encoder.codec, assets),
            tokenizer_sha256=_vocabulary_sha256(encoder.codec.tokenizer),
        )

    @property
    def codec(self) -> TextCodec:
        """Conversion between token ids and text."""
        return self.encoder.codec

    @property
    def template(self) -> ChatTemplate | None:
        """Chat template; None for a model without one."""
        return self.encoder.template

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer, most common first."""
        defaults = self.encoder.defaults
        return defaults.eos_ids if self.template is None else defaults.chat_eos_ids

    def encode(self, messages: Messages) -> list[int]:
        """Return the prompt ids of a chat that ends with a user's turn.

        Without a chat template, a single message is continued as text. Raises PromptError.
        """
        if self.template is None and len(messages) != 1:
            raise PromptError(
                f"the model has no chat template, but a prompt has {len(messages)} messages; "
                "give prompts of one message"
            )
        return self.encoder.encode(self.encoder.as_prompt(messages))


def _bos_ids(codec: TextCodec, assets: TextAssets) -> tuple[int, ...]:
    """Return the ids that the tokenizer prepends, or the BOS token, or else an EOS, as in GPT-2."""
    own = codec.encode("", add_special_tokens=True)
    bos = codec.token_id(assets.special_tokens.get("bos_token", ""))
    return tuple(own) or ((bos,) if bos is not None else assets.eos_ids[:1])


def _vocabulary_sha256(tokenizer: Tokenizer) -> str:
    vocabulary = sorted((i, token) for token, i in tokenizer.get_vocab(True).items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
