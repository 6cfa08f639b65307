"""bita-edge: compile and run BiTA-accelerated language models on edge devices.

The names below are imported on first use, so that `import bita` itself is cheap.
"""

from importlib import import_module

TYPE_CHECKING = False  # as in `typing`, whose import would account for most of the cost
if TYPE_CHECKING:
    from bita.adapter import Adapter
    from bita.errors import (
        AdapterError,
        BitaError,
        EngineError,
        MissingExtraError,
        ModelError,
        PromptError,
        PromptTooLongError,
        TreeError,
        TuningError,
    )
    from bita.runtime.conversation import Conversation
    from bita.runtime.decoding.chooser import TokenLogprob
    from bita.runtime.decoding.stats import Stats
    from bita.runtime.generation import Generation
    from bita.runtime.options import Options
    from bita.runtime.session import Session
    from bita.runtime.text.grammar import Grammar
    from bita.tree import Tree
    from bita.tree_table import TreeTable

__version__ = "0.2.0"
__all__ = [
    "Adapter",
    "AdapterError",
    "BitaError",
    "Conversation",
    "EngineError",
    "Generation",
    "Grammar",
    "MissingExtraError",
    "ModelError",
    "Options",
    "PromptError",
    "PromptTooLongError",
    "Session",
    "Stats",
    "TokenLogprob",
    "Tree",
    "TreeError",
    "TreeTable",
    "TuningError",
]
_HOMES = {
    "Adapter": "bita.adapter",
    "Conversation": "bita.runtime.conversation",
    "Generation": "bita.runtime.generation",
    "Grammar": "bita.runtime.text.grammar",
    "Options": "bita.runtime.options",
    "Session": "bita.runtime.session",
    "Stats": "bita.runtime.decoding.stats",
    "TokenLogprob": "bita.runtime.decoding.chooser",
    "Tree": "bita.tree",
    "TreeTable": "bita.tree_table",
}


def __getattr__(name: str) -> object:
    """Import a name of `__all__` on first use; errors come from `bita.errors`."""
    if name not in __all__:
        raise AttributeError(f"module 'bita' has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES.get(name, "bita.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
