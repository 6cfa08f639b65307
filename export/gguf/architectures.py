"""The architectures of llama.cpp that are read, and what llama.cpp takes where a key is absent.

Numbers that llama.cpp keeps in its program and not in the file (Gemma's layer pattern and query
scale, SmolLM3's layers without rotary embedding) are given here with the same values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bita.errors import ModelError
from bita.json_values import shown


@dataclass(frozen=True)
class GgufArchitecture:
    """How files of one `general.architecture` differ.

    permuted: llama.cpp stores the rows of Q and K so that rotary pairs are neighbours.
    norm_offset: what llama.cpp added to each norm weight.
    rope_tables: tensors of rotary factors that it may have.
    partial_rotary: whether the rotary embedding may turn a part of each head only.
    window_period: of how many layers the last one sees all of the text, the others a window; None
    where no layer has one, 0 where all have.
    sliding_window, attention_softcap, logit_softcap: where the file does not say; 0 for none.
    layers_of_27b: layers by which llama.cpp knows a Gemma 27B, whose queries are scaled by
    hidden_size / heads and not by the head size.
    """

    model_type: str
    class_name: str
    activation: str = "silu"
    permuted: bool = False
    norm_offset: float = 0.0
    rope_tables: tuple[str, ...] = ()
    partial_rotary: bool = False
    window_period: int | None = None
    sliding_window: int = 0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    layers_of_27b: int | None = None

    @property
    def is_gemma(self) -> bool:
        return self.norm_offset != 0


FREQUENCIES, LONG, SHORT = "rope_freqs", "rope_factors_long", "rope_factors_short"
ARCHITECTURES = {
    "llama": GgufArchitecture(
        "llama", "LlamaForCausalLM", permuted=True, rope_tables=(FREQUENCIES, LONG, SHORT)
    ),
    "qwen2": GgufArchitecture("qwen2", "Qwen2ForCausalLM"),
    "qwen3": GgufArchitecture("qwen3", "Qwen3ForCausalLM"),
    "gemma2": GgufArchitecture(
        "gemma2",
        "Gemma2ForCausalLM",
        "gelu_pytorch_tanh",
        norm_offset=1.0,
        window_period=2,
        sliding_window=4096,
        attention_softcap=50.0,
        logit_softcap=30.0,
        layers_of_27b=46,
    ),
    "gemma3": GgufArchitecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        "gelu_pytorch_tanh",
        norm_offset=1.0,
        window_period=6,
        layers_of_27b=62,
    ),
    "phi3": GgufArchitecture(
        "phi3",
        "Phi3ForCausalLM",
        rope_tables=(LONG, SHORT),
        partial_rotary=True,
        window_period=0,
    ),
    "granite": GgufArchitecture(
        "granite", "GraniteForCausalLM", permuted=True, rope_tables=(FREQUENCIES, LONG, SHORT)
    ),
    "smollm3": GgufArchitecture("smollm3", "SmolLM3ForCausalLM", permuted=True),
}
SMOLLM3_ROPE_PERIOD = 4  # of so many layers the last has no rotary embedding
# Phi-3 with 4096 positions: its files were once written without the window.
PHI3_4K_LAYERS, PHI3_4K_POSITIONS, PHI3_4K_WINDOW = (32, 40), 4096, 2047


def architecture_of(owner: str, metadata: Mapping[str, Any]) -> GgufArchitecture:
    """Raises ModelError with what is there and what is supported."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ModelError(
            f"{owner}: general.architecture is {shown(name)}; supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def default_window(architecture: GgufArchitecture, num_layers: int, num_positions: int) -> int:
    """The sliding window where the file does not say; 0 for none."""
    is_phi3_4k = num_layers in PHI3_4K_LAYERS and num_positions == PHI3_4K_POSITIONS
    if architecture.model_type == "phi3" and is_phi3_4k:
        return PHI3_4K_WINDOW
    return architecture.sliding_window
