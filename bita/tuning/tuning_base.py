"""Bases that are too large for one device: split over processes (FSDP), or with layers in 4 bit.

The model is built without memory for its weights, then filled and finished one decoder layer at a
time. So no process ever holds more than one complete layer.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from bita.errors import MissingExtraError, TuningError
from bita.tensors import TensorSource
from bita.torch.base_model import load_base_model, new_base_model, read_weight
from bita.tuning.processes import Processes

QUANTIZATION = "nf4"  # type of 4-bit numbers, that of QLoRA (arXiv 2305.14314)


def load_tuning_base(
    checkpoint: TensorSource, dtype: str, processes: Processes, in_4bit: bool
) -> Any:
    """Load the base of a run: whole, sharded over its processes, or in 4 bit.

    Raises the errors of `load_base_model` and `load_4bit_base`, and TuningError for a base that
    should be both sharded and in 4 bit.
    """
    if in_4bit and processes.shards_base:
        raise TuningError("a base in 4 bit cannot be sharded; launch without --use_fsdp")
    if in_4bit:
        return load_4bit_base(checkpoint, dtype, processes.device)
    if processes.shards_base:
        return load_sharded_base(checkpoint, dtype, processes.device)
    return load_base_model(checkpoint, dtype, processes.device)


def load_sharded_base(checkpoint: TensorSource, dtype: str, device: str) -> Any:
    """Load the base with a part of every weight in each process of the process group.

    Weights are gathered for the layer that runs. All processes read the whole checkpoint, and must
    run the model equally often. Raises the errors of `load_base_model`.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (torch.distributed.get_world_size(),))
    model = _load_by_layers(checkpoint, dtype, device, lambda layer: fully_shard(layer, mesh=mesh))
    fully_shard(model, mesh=mesh)
    return model


def load_4bit_base(checkpoint: TensorSource, dtype: str, device: str) -> Any:
    """Load the base with the decoder's linear layers in 4 bit (NF4).

    Computation, embeddings, norms and the output layer are in `dtype`. Raises the errors of
    `load_base_model`, MissingExtraError without bitsandbytes, and TuningError if that cannot use
    the device.
    """
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError("a base in 4 bit", "bnb") from error
    try:
        bitsandbytes.functional.quantize_4bit(torch.ones(64, device=device))
    except Exception as error:  # torch and bitsandbytes raise many types
        raise TuningError(f"bitsandbytes cannot quantize on {device}: {error}") from error
    model = _load_by_layers(checkpoint, dtype, device, lambda layer: _quantize(layer, device))
    model.is_loaded_in_4bit = True  # the attribute that transformers sets
    return model


def _load_by_layers(
    checkpoint: TensorSource, dtype: str, device: str, finish: Callable[[nn.Module], object]
) -> Any:
    """Load the frozen base; call `finish` for each decoder layer as soon as it has its weights."""
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
    """Replace the linear layers of a decoder layer by 4-bit ones."""
    linears = [(n, module) for n, module in layer.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        owner, _, own_name = name.rpartition(".")
        setattr(layer.get_submodule(owner), own_name, _quantize_linear(linear, device))


def _quantize_linear(linear: nn.Linear, device: str) -> nn.Module:
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
    # CPUs with AVX512-BF16 would repack the weights for inference, and lose the gradient.
    quantized.support_avx512bf16_for_cpu = False
    return quantized.eval().to(device)  # `to` quantizes
