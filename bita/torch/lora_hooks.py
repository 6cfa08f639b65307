"""LoRA of mask rows in transformers models: hooks that add to the outputs of linear layers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bita.lora import SITES

_LAYER = re.compile(r"layers\.(\d+)\.((?:self_attn|mlp)\.\w+_proj)$")
# Projections that transformers joins in one module for some model families.
_FUSED = {"self_attn.qkv_proj": "qkv", "mlp.gate_up_proj": "gate_up"}


@contextmanager
def lora_on_rows(model: Any, lora: Mapping[str, Tensor], first_row: int = 0) -> Iterator[None]:
    """Apply `lora` to the model's rows from `first_row` on while the block runs.

    `lora` has the names of `bita.lora`: down [L, in, r] and up [L, r, out]; if it is empty, nothing
    changes. Rows before `first_row` stay bit-identical. Gradients are supported.
    """
    # Unbound once: the gradient of `stacked[layer]` would be as large as the whole stack.
    layers = {name: stacked.unbind() for name, stacked in lora.items()}
    with ExitStack() as hooks:
        for name, module in model.named_modules() if lora else ():
            if found := _LAYER.search(name):
                hook = _hook(layers, int(found[1]), found[2], first_row)
                hooks.enter_context(_Hooked(module, hook))
        yield


class _Hooked:
    """A forward hook that is removed at the end of a `with` block."""

    def __init__(self, module: Any, hook: Any) -> None:
        self._handle = module.register_forward_hook(hook)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def _hook(
    lora: Mapping[str, Sequence[Tensor]], layer: int, module_name: str, first_row: int
) -> Any:
    site, place = _place(module_name)
    down, up = lora[f"lora_{site}_down"][layer], lora[f"lora_{site}_up"][layer]
    return partial(_add, down=down, up=up, site=site, place=place, first_row=first_row)


def _place(module_name: str) -> tuple[str, int | None]:
    """Return the site of a module, and its index among the site's layers; None for all of them."""
    if module_name in _FUSED:
        return _FUSED[module_name], None
    return next(
        (site, layers.index(module_name)) for site, layers in SITES.items() if module_name in layers
    )


def _add(
    module: Any,
    inputs: tuple[Tensor],
    output: Tensor,
    *,
    down: Tensor,
    up: Tensor,
    site: str,
    place: int | None,
    first_row: int,
) -> Tensor:
    if place is not None:
        up = up[:, _columns(site, place, output.shape[-1], up.shape[-1])]
    rows = inputs[0][:, first_row:]
    added = rows @ down.to(rows.dtype) @ up.to(rows.dtype)
    if first_row == 0:
        return output + added
    return torch.cat([output[:, :first_row], output[:, first_row:] + added], dim=1)


def _columns(site: str, place: int, width: int, total: int) -> slice:
    """Return which of a site's `total` outputs are the `width` outputs of its layer `place`."""
    if site == "qkv" and place > 0:  # K and V have equal widths, Q has the rest
        start = total - (3 - place) * width
        return slice(start, start + width)
    return slice(place * width, place * width + width)
