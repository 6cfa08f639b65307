"""What tuning knows of a model's text: its ids, its chat template, and whose they are."""

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


@dataclass(frozen=True)
class ModelTexts:
    """eos_ids: token ids that end an answer, most usual first. template: None without chat.

    special_ids: ids that stand for no text. bos_ids: what a text without template begins with.
    tokenizer_sha256: of the vocabulary, so that copies of one tokenizer in other files are equal.
    """

    identity: ModelIdentity
    codec: TextCodec
    template: ChatTemplate | None
    eos_ids: tuple[int, ...]
    special_ids: frozenset[int]
    bos_ids: tuple[int, ...]
    tokenizer_sha256: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "ModelTexts":
        """Raises ModelError if the checkpoint has no tokenizer or cannot be identified."""
        return cls.from_assets(checkpoint.text_assets(), identify(checkpoint))

    @classmethod
    def from_assets(cls, assets: TextAssets, identity: ModelIdentity) -> "ModelTexts":
        codec = TextCodec(Tokenizer.from_str(assets.tokenizer_json))
        added = codec.tokenizer.get_added_tokens_decoder()
        special_ids = {token_id for token_id, token in added.items() if token.special}
        template = None
        if assets.chat_template is not None:
            template = ChatTemplate(assets.chat_template, assets.special_tokens)
        return cls(
            identity=identity,
            codec=codec,
            template=template,
            eos_ids=assets.eos_ids,
            special_ids=frozenset(special_ids) | frozenset(assets.eos_ids),
            bos_ids=_bos_ids(codec, assets),
            tokenizer_sha256=_vocabulary_sha256(codec.tokenizer),
        )

    def encode(self, messages: Messages) -> list[int]:
        """The prompt ids of a chat that ends with a user's turn.

        Without a chat template, a single message is continued as it is. Raises PromptError.
        """
        if self.template is not None:
            return self.codec.encode(self.template.render(messages), add_special_tokens=False)
        if len(messages) != 1:
            raise PromptError(
                f"the model has no chat template, and a prompt has {len(messages)} messages; "
                "give prompts of one message"
            )
        return self.codec.encode(messages[0]["content"], add_special_tokens=True)


def _bos_ids(codec: TextCodec, assets: TextAssets) -> tuple[int, ...]:
    """What the tokenizer puts in front; else the BOS token, else an EOS, as GPT-2 does."""
    own = codec.encode("", add_special_tokens=True)
    bos = codec.token_id(assets.special_tokens.get("bos_token", ""))
    return tuple(own) or ((bos,) if bos is not None else assets.eos_ids[:1])


def _vocabulary_sha256(tokenizer: Tokenizer) -> str:
    vocabulary = sorted((i, token) for token, i in tokenizer.get_vocab(True).items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()
