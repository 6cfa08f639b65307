"""Measure seconds per 1,000 mask rows: our two forwards, and BiTA's joint forward and backward.

    python benchmarks/tuning_cost.py smollm2-135m-instruct \
        --data tuning/smollm2-135m-instruct/data --out benchmarks/results/tuning_cost.json

The authors' code concatenates the embedding table with the mask embeddings and looks up all rows in
the result, so the rows of the text need gradients too, and the backward runs through them. Here
both methods train the same rows. Before anything is timed, their logits, losses and gradients are
compared in float32. In the joint forward the text ends with the last anchor, and the output layer
runs on mask rows only, which is more favourable than the authors' code. A step is forward, loss and
backward; the optimizer, the same for both, is left out. The methods run on each batch in an order
that rotates, and ratios are taken within a batch.

- two phases, kl: `bita tune` on a text for the first time. The output layer runs on the teacher's
  rows as well, and on some rows at a time.
- two phases, kept texts, kl: the same in later epochs, when the base model's result is cached
- two phases, ce: the first one with the authors' loss
- joint, ce: the authors' method
- checkpointed, ce: the authors' method with gradient checkpointing of every layer, as they run it
  to fit their memory
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_report import describe_machine
from torch import Tensor
from training_methods import METHODS, Batch, Method, checkpointed, joint, two_phases

from bita.data.dataset import Dataset
from bita.data.model_texts import ModelTexts
from bita.errors import BitaError, TuningError
from bita.export.checkpoint import Checkpoint
from bita.export.sources import open_checkpoint
from bita.torch.base_model import load_base_model
from bita.tuning.contexts import Contexts
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.mask_rows import choose_rows
from bita.tuning.processes import best_device
from bita.tuning.settings import TuneSettings
from bita.tuning.start import starting_adapter
from bita.tuning.training_texts import TrainingText, batch_of, cut_text, usable

KEPT_BYTES = 4 << 30
TOLERANCE = 1e-4  # of the largest value, in float32
SYNTHETIC = (64, 128)  # tokens of prompt and response, without --data


def check_agreement(
    model: MaskModel, parameters: AdapterParameters, batch: Batch, decay: float
) -> dict[str, float]:
    """Return the largest differences between our method and the others, for each kind of value.

    They are relative to the largest value. Raises TuningError if one is above TOLERANCE.
    """
    ours, *others = (
        values_of(method, model, parameters, batch, decay)
        for method in (two_phases, partial(two_phases, kept=True), joint, checkpointed)
    )
    differences = {
        name: max(
            float((value - other[name]).abs().max() / other[name].abs().max()) for other in others
        )
        for name, value in ours.items()
    }
    if far := {name: value for name, value in differences.items() if not value <= TOLERANCE}:
        raise TuningError(f"the methods differ, relative to the largest value: {far}")
    return differences


def values_of(
    method: Method, model: MaskModel, parameters: AdapterParameters, batch: Batch, decay: float
) -> dict[str, Tensor]:
    """Compute logits, loss, and the gradient of every parameter."""
    parameters.zero_grad(set_to_none=True)
    forward = method(model, parameters, batch, decay)
    forward.loss.backward()
    gradients = {f"gradient of {n}": p.grad for n, p in parameters.named_parameters()}
    values = {"logits": forward.drafts(), "loss": forward.loss, **gradients}
    return {n: value.detach() for n, value in values.items() if value is not None and value.numel()}


def saved_mb(
    method: Method, model: MaskModel, parameters: AdapterParameters, batch: Batch, decay: float
) -> float:
    """Return the MB that the forward keeps for the backward, without weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.base.parameters()}
    sizes: dict[int, int] = {}
    kept = []  # keeps tensors alive, so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        method(model, parameters, batch, decay)
    return sum(sizes.values()) / 1e6


def step_seconds(
    method: Method, model: MaskModel, parameters: AdapterParameters, batch: Batch, decay: float
) -> float:
    """Time one forward and backward."""
    parameters.zero_grad(set_to_none=True)
    wait(model.device)
    began = time.perf_counter()
    method(model, parameters, batch, decay).loss.backward()
    wait(model.device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_layout(
    model: MaskModel, parameters: AdapterParameters, batches: Sequence[Batch], decay: float
) -> dict[str, Any]:
    """Run all methods on all batches; the first batch is a warm-up and does not count."""
    names = list(METHODS)
    memory = {n: saved_mb(METHODS[n], model, parameters, batches[0], decay) for n in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for batch in batches:
        batch.kept.read(batch.texts)
    for number, batch in enumerate(batches):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(step_seconds(METHODS[name], model, parameters, batch, decay))
    num_rows = np.array([batch.num_rows for batch in batches[1:]])
    per_1000 = {n: 1000 * np.array(times[1:]) / num_rows for n, times in seconds.items()}
    ours = per_1000["two phases, kl"]
    return {
        "mask_rows_per_step": float(num_rows.mean()),
        "text_tokens_per_step": float(np.mean([num_text_tokens(b) for b in batches[1:]])),
        "n": len(num_rows),
        "methods": {
            name: {
                "seconds_per_1000_rows": quartiles(per_1000[name]),
                "times_ours": quartiles(per_1000[name] / ours),
                "saved_for_backward_mb": round(memory[name], 1),
            }
            for name in names
        },
    }


def num_text_tokens(batch: Batch) -> int:
    return sum(len(text.token_ids) for text in batch.texts)


def quartiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 4) for p in (25, 50, 75)}


def read_texts(
    checkpoint: Checkpoint, settings: TuneSettings, data: Path | None
) -> list[TrainingText]:
    """Read the conversations of a data directory, or return random ids, which cost the same."""
    about = ModelTexts.of(checkpoint)
    if data is None:
        rng = np.random.default_rng(settings.seed)
        ids = rng.integers(0, about.identity.vocab_size, (4 * settings.batch_size, sum(SYNTHETIC)))
        return [TrainingText(tuple(text.tolist()), SYNTHETIC[0]) for text in ids]
    found = Dataset.load(data, about.identity, about.tokenizer_sha256)
    return usable([cut_text(c.prompt_ids, c.response_ids, settings.max_tokens) for c in found])


def make_batches(
    model: MaskModel, texts: list[TrainingText], settings: TuneSettings, count: int
) -> list[Batch]:
    """Draw batches as a trainer does."""
    kept = Contexts(model, KEPT_BYTES)
    batches = []
    for step in range(count):
        batch = batch_of(texts, step, settings.batch_size, settings.seed)
        rng = np.random.default_rng([settings.seed, 0, step])
        rows = [choose_rows(t.num_prompt, len(t.token_ids), settings, rng) for t in batch]
        batches.append(Batch(batch, rows, kept))
    return batches


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Check that the methods agree, then time them on our rows and on the authors'."""
    settings = TuneSettings(
        num_masks=args.num_masks,
        prefix_length=args.prefix_length,
        num_anchors=args.num_anchors,
        batch_size=args.batch_size,
        max_tokens=args.max_tokens,
    )
    layouts = {
        f"{args.num_anchors} anchors anywhere": settings,
        "64 consecutive anchors": replace(settings, anchors="consecutive", num_anchors=64),
    }
    machine = describe_machine(torch.get_num_threads())
    if args.device != "cpu":
        machine["accelerator"] = torch.cuda.get_device_name(args.device)
    checkpoint = open_checkpoint(args.model)
    texts = read_texts(checkpoint, settings, args.data)
    model = MaskModel(load_base_model(checkpoint, "float32", args.device))
    adapter = starting_adapter(checkpoint, model, texts, settings)
    parameters = AdapterParameters(adapter).to(model.device)
    agreement = {
        name: check_agreement(
            model, parameters, make_batches(model, texts, layout, 1)[0], layout.decay
        )
        for name, layout in layouts.items()
    }
    if args.dtype != "float32":
        model = MaskModel(load_base_model(checkpoint, args.dtype, args.device))
    results = {}
    for name, layout in layouts.items():
        batches = make_batches(model, texts, layout, 1 + args.repeats)
        results[name] = measure_layout(model, parameters, batches, layout.decay)
        print_layout(name, results[name])
    return {
        **machine,
        "model": args.model,
        "dtype": args.dtype,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "texts": args.data.name if args.data else f"random ids, {SYNTHETIC} tokens",
        "batch_size": settings.batch_size,
        "num_masks": settings.num_masks,
        "prefix_length": settings.prefix_length,
        "largest_differences": agreement,
        "layouts": results,
    }


def print_layout(name: str, result: dict[str, Any]) -> None:
    """Print one line per method."""
    tokens, rows = result["text_tokens_per_step"], result["mask_rows_per_step"]
    print(f"\n{name}: {rows:.0f} mask rows on {tokens:.0f} text tokens per step, n = {result['n']}")
    print("method                     s / 1000 rows  p25-p75       times ours  p25-p75    MB kept")
    for method, figures in result["methods"].items():
        per_1000, times = figures["seconds_per_1000_rows"], figures["times_ours"]
        print(
            f"{method:26} {per_1000['p50']:13.2f}  {per_1000['p25']:.2f}-{per_1000['p75']:.2f}"
            f"  {times['p50']:10.2f}x  {times['p25']:.2f}-{times['p75']:.2f}"
            f"  {figures['saved_for_backward_mb']:9.0f}"
        )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", help="as for `bita engine`")
    parser.add_argument("--data", type=Path, help="conversations; default: random ids")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--num-anchors", type=int, default=40, help="per text, in our layout")
    parser.add_argument("--num-masks", type=int, default=3)
    parser.add_argument("--prefix-length", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=1024, help="longer texts are cut")
    parser.add_argument("--repeats", type=int, default=9, help="batches, after one to warm up")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print tables, and write the JSON."""
    args = parse_arguments(argv)
    try:
        report = measure(args)
    except BitaError as error:
        print(f"tuning_cost: {error}", file=sys.stderr)
        return 1
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written to {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
