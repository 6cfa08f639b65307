"""What an engine knows about ending and templating answers: the file generation.json."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bita.errors import EngineError


@dataclass(frozen=True)
class GenerationDefaults:
    """eos_ids: token ids that end an answer. special_tokens: by name, for chat templates."""

    eos_ids: tuple[int, ...]
    special_tokens: dict[str, str]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "GenerationDefaults":
        """Raises EngineError if the file is not what `save` writes."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            eos_ids = tuple(int(token_id) for token_id in data["eos_ids"])
            special_tokens = {str(key): str(text) for key, text in data["special_tokens"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"{path} is broken ({error!r}); rebuild the engine") from error
        return cls(eos_ids, special_tokens)
