"""LoRA on mask rows: low-rank products added to the linear layers, for rows that only draft.

A site is one or several linear layers of a decoder layer with the same input. LoRA adds
x @ down @ up to it, where the outputs of the site's layers are concatenated. Node rows do not get
it, so the text does not depend on it. Source of this gating: arXiv 2507.11851 (Apple's multi-token
prediction).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from bita.tensors import Float32Array, TensorSource

SITES = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
LORA_TENSORS = tuple(f"lora_{site}_{side}" for site in SITES for side in ("down", "up"))

Lora = Mapping[str, Float32Array]  # by LORA_TENSORS: down [L, in, r], up [L, r, out]; may be empty
Sizes = Mapping[str, tuple[int, int]]  # inputs and outputs of each site


def site_sizes(checkpoint: TensorSource) -> dict[str, tuple[int, int]]:
    """Return the numbers of inputs and outputs of each site of a model."""
    sizes = {}
    for site, layers in SITES.items():
        shapes = [checkpoint.shape(f"model.layers.0.{layer}.weight") for layer in layers]
        sizes[site] = (shapes[0][1], sum(shape[0] for shape in shapes))
    return sizes


def starting_lora(sizes: Sizes, num_layers: int, rank: int, seed: int) -> Lora:
    """Create LoRA that adds nothing yet; empty for rank 0.

    `down` has a standard deviation of 1/sqrt(in), `up` is zero.
    """
    return _lora(sizes, num_layers, rank, seed, scale=0.0)


def random_lora(sizes: Sizes, num_layers: int, rank: int, scale: float, seed: int) -> Lora:
    """Create garbage LoRA; what a site adds is `scale` times as large as its input."""
    return _lora(sizes, num_layers, rank, seed, scale)


def lora_rank(lora: Lora) -> int:
    """Return the rank r; 0 without LoRA."""
    return int(lora[LORA_TENSORS[0]].shape[2]) if lora else 0


def sizes_of(lora: Lora) -> dict[str, tuple[int, int]]:
    """Return the numbers of inputs and outputs of each site that LoRA was made for."""
    return {
        site: (lora[f"lora_{site}_down"].shape[1], lora[f"lora_{site}_up"].shape[2])
        for site in SITES
        if lora
    }


def lora_faults(
    shapes: Mapping[str, Sequence[int]], num_layers: int | None, hidden_size: int | None
) -> list[str]:
    """Describe the LoRA tensors whose shapes do not fit each other or the model.

    Numbers of the model that are None are unknown, and not compared.
    """
    present = {name: tuple(shapes[name]) for name in LORA_TENSORS if name in shapes}
    if not present:
        return []
    faults = [f"tensor {name!r} is missing" for name in LORA_TENSORS if name not in present]
    faults += [
        f"{name} is {list(shape)}, not of three dimensions above 0"
        for name, shape in present.items()
        if len(shape) != 3 or 0 in shape
    ]
    return faults or _size_faults(present, num_layers, hidden_size)


def _size_faults(
    shapes: Mapping[str, tuple[int, ...]], num_layers: int | None, hidden_size: int | None
) -> list[str]:
    rank = shapes["lora_qkv_down"][2]
    layers = shapes["lora_qkv_down"][0] if num_layers is None else num_layers
    hidden = shapes["lora_qkv_down"][1] if hidden_size is None else hidden_size
    queries, inner = shapes["lora_o_down"][1], shapes["lora_down_down"][1]
    wanted = {
        "lora_qkv_down": (layers, hidden, rank),
        "lora_qkv_up": (layers, rank, shapes["lora_qkv_up"][2]),
        "lora_o_down": (layers, queries, rank),
        "lora_o_up": (layers, rank, hidden),
        "lora_gate_up_down": (layers, hidden, rank),
        "lora_gate_up_up": (layers, rank, 2 * inner),
        "lora_down_down": (layers, inner, rank),
        "lora_down_up": (layers, rank, hidden),
    }
    return [
        f"{name} is {list(shapes[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if shapes[name] != shape
    ]


def _lora(sizes: Sizes, num_layers: int, rank: int, seed: int, scale: float) -> Lora:
    if rank == 0:
        return {}
    rng = np.random.default_rng(seed)
    lora = {}
    for site, (num_in, num_out) in sizes.items():
        down = rng.normal(0, num_in**-0.5, (num_layers, num_in, rank))
        up = rng.normal(0, scale * rank**-0.5, (num_layers, rank, num_out))
        lora[f"lora_{site}_down"] = down.astype(np.float32)
        lora[f"lora_{site}_up"] = up.astype(np.float32)
    return lora
