"""A base that does not fit as it is: split over processes (FSDP), or its layers in 4 bit.

The model is built without memory for its weights, then filled and finished a decoder layer at a
time. So no process ever holds more than one layer that is still whole.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from bita.errors import MissingExtraError, TuningError
from bita.tensors import TensorSource
from bita.torch.base_model import load_base_model, new_base_model, read_weight
from bita.tuning.processes import Processes

QUANTIZATION = "nf4"  # the type of 4-bit numbers, QLoRA's (arXiv 2305.14314)


def load_tuning_base(
    checkpoint: TensorSource, dtype: str, processes: Processes, in_4bit: bool
) -> Any:
    """The base as a run wants it: whole, sharded over its processes, or in 4 bit.

    Raises what `load_base_model` and `load_4bit_base` raise, TuningError for two at once.
    """
    if in_4bit and processes.shards_base:
        raise TuningError("a base in 4 bit cannot be sharded; launch without --use_fsdp")
    if in_4bit:
        return load_4bit_base(checkpoint, dtype, processes.device)
    if processes.shards_base:
        return load_sharded_base(checkpoint, dtype, processes.device)
    return load_base_model(checkpoint, dtype, processes.device)


def load_sharded_base(checkpoint: TensorSource, dtype: str, device: str) -> Any:
    """Like `load_base_model`, with a part of every weight in each process of the process group.

    Weights come together for the layer that runs. All processes read the whole checkpoint, and
    must run the model equally often.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (torch.distributed.get_world_size(),))
    model = _load_by_layers(checkpoint, dtype, device, lambda layer: fully_shard(layer, mesh=mesh))
    fully_shard(model, mesh=mesh)
    return model


def load_4bit_base(checkpoint: TensorSource, dtype: str, device: str) -> Any:
    """Like `load_base_model`, with the linear layers of the decoder in 4 bit (NF4).

    dtype: of what is computed, and of embeddings, norms and output layer. Raises MissingExtraError
    without bitsandbytes, TuningError if that cannot use the device.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError("a base in 4 bit", "bnb") from error
    try:
        bitsandbytes.functional.quantize_4bit(torch.ones(64, device=device))
    except Exception as error:  # torch and bitsandbytes raise many kinds
        raise TuningError(f"bitsandbytes cannot quantize on {device}: {error}") from error
    model = _load_by_layers(checkpoint, dtype, device, lambda layer: _quantize(layer, device))
    model.is_loaded_in_4bit = True  # transformers' word for it
    return model


def _load_by_layers(
    checkpoint: TensorSource, dtype: str, device: str, finish: Callable[[nn.Module], object]
) -> Any:
    """The frozen base; `finish` gets each decoder layer as soon as it has its weights."""
    try:
        from accelerate import init_empty_weights
    except ImportError as error:
        raise MissingExtraError("a base that is split or in 4 bit", "tune") from error
    with init_empty_weights(include_buffers=False):
        model = new_base_model(checkpoint, dtype)
    model.requires_grad_(False).eval()
    for index, layer in enumerate(model.model.layers):
        names = [f"model.layers.{index}.{name}" for name, _ in layer.named_parameters()]
        _fill(model, names, checkpoint, dtype)
        finish(layer)
    _fill(model, [n for n, weight in model.named_parameters() if weight.is_meta], checkpoint, dtype)
    model.tie_weights()
    return model.to(device)


def _fill(model: Any, names: Iterable[str], checkpoint: TensorSource, dtype: str) -> None:
    for name in names:
        weight = torch.from_numpy(read_weight(checkpoint, name)).to(getattr(torch, dtype))
        owner, _, own_name = name.rpartition(".")
        parameter = nn.Parameter(weight, requires_grad=False)
        setattr(model.get_submodule(owner), own_name, parameter)


def _quantize(layer: nn.Module, device: str) -> None:
    """Put 4-bit layers in the place of the linear ones of a decoder layer."""
    linears = [(n, module) for n, module in layer.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        owner, _, own_name = name.rpartition(".")
        setattr(layer.get_submodule(owner), own_name, _in_4bit(linear, device))


def _in_4bit(linear: nn.Linear, device: str) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    quantized = Linear4bit(
        linear.in_features,
        linear.out_features,
        linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        quant_type=QUANTIZATION,
        device="meta",
    )
    quantized.weight = Params4bit(
        linear.weight.data, requires_grad=False, quant_type=QUANTIZATION, module=quantized
    )
    quantized.bias = linear.bias
    # CPUs with AVX512-BF16 would repack the weights for inference, and lose the gradient
    quantized.support_avx512bf16_for_cpu = False
    return quantized.eval().to(device)  # `to` is what quantizes
