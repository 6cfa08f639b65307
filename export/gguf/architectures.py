"""The supported architectures of llama.cpp, with llama.cpp's defaults for missing keys.

Numbers that llama.cpp has in its code and not in the file (Gemma's layer pattern and query scale,
SmolLM3's layers without rotary embedding) are given here with the same values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bita.errors import ModelError
from bita.json_values import shown


@dataclass(frozen=True)
class GgufArchitecture:
    """The properties of files of one `general.architecture`."""

    model_type: str
    class_name: str
    activation: str = "silu"
    permuted: bool = False  # whether rows of Q and K are stored with rotary pairs as neighbours
    norm_offset: float = 0.0  # that llama.cpp added to each norm weight
    rope_tables: tuple[str, ...] = ()  # tensors of rotary factors that files may have
    partial_rotary: bool = False  # whether only part of each head may be rotated
    # In each period of layers the last one sees all of the text, the others a window. None: no
    # layer has a window, 0: all have one.
    window_period: int | None = None
    sliding_window: int = 0  # default for a missing key; 0 for none
    attention_softcap: float = 0.0  # default for a missing key; 0 for none
    logit_softcap: float = 0.0  # default for a missing key; 0 for none
    # number of layers by which llama.cpp recognizes a Gemma 27B, whose queries are scaled by
    # hidden_size / heads instead of the head size
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
SMOLLM3_ROPE_PERIOD = 4  # the last layer of each period has no rotary embedding
# Older files of Phi-3 with 4096 positions lack the window.
PHI3_4K_LAYERS, PHI3_4K_POSITIONS, PHI3_4K_WINDOW = (32, 40), 4096, 2047


def architecture_of(owner: str, metadata: Mapping[str, Any]) -> GgufArchitecture:
    """Return the architecture of a file. Raises ModelError if it is not supported."""
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ModelError(
            f"{owner}: general.architecture is {shown(name)}; supported: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def default_window(architecture: GgufArchitecture, num_layers: int, num_positions: int) -> int:
    """Return the default sliding window for a missing key; 0 for none."""
    is_phi3_4k = num_layers in PHI3_4K_LAYERS and num_positions == PHI3_4K_POSITIONS
    if architecture.model_type == "phi3" and is_phi3_4k:
        return PHI3_4K_WINDOW
    return architecture.sliding_window
