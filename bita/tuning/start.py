"""Initial values of tuning: masks at the mean embedding, the prefix from a text's activations."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bita.adapter import Adapter, untuned_adapter
from bita.errors import TuningError, raise_faults
from bita.identity import identify
from bita.lora import site_sizes, starting_lora
from bita.tensors import TensorSource
from bita.tuning.joint_pairs import JointPairs
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.settings import TuneSettings
from bita.tuning.training_texts import TrainingText

MASK_SCALE = 0.02  # transformers' initializer_range, which the authors use for masks


def starting_adapter(
    checkpoint: TensorSource,
    model: MaskModel,
    texts: Sequence[TrainingText],
    settings: TuneSettings,
    tuned: Adapter | None = None,
) -> Adapter:
    """Create the adapter before the first step, by the settings' `mask_start` and `prefix_start`.

    "mean" sets every mask to the mean embedding. "activations" takes keys and values of the first P
    tokens of a training text, including their rotation.

    With `tuned`, tuning continues from that adapter instead. Surplus masks of it are dropped, and
    LoRA may be added.

    Raises:
        TuningError: if other sizes of `tuned` differ from the settings, or no text is long enough.
        AdapterError: if `tuned` belongs to another model.
    """
    if tuned is not None:
        return _continue(checkpoint, tuned, settings)
    adapter = untuned_adapter(
        checkpoint,
        settings.num_masks,
        settings.prefix_length,
        settings.seed,
        settings.lora_rank,
    )
    if settings.mask_start == "normal":
        rng = np.random.default_rng([settings.seed, 4])
        drawn = rng.normal(0, MASK_SCALE, adapter.mask_embeddings.shape)
        adapter = replace(adapter, mask_embeddings=drawn.astype(np.float32))
    if settings.prefix_length == 0 or settings.prefix_start == "normal":
        return adapter
    text = next((t for t in texts if len(t.token_ids) >= settings.prefix_length), None)
    if text is None:
        raise TuningError(
            f"no text has {settings.prefix_length} tokens to start the prefix from; give a smaller "
            "prefix_length, or prefix_start 'normal'"
        )
    context = model.read([text.token_ids[: settings.prefix_length]], settings.prefix_length - 1)
    sides = zip(*context.layers, strict=True)
    keys, values = (
        np.concatenate([layer.float().cpu().numpy() for layer in side]) for side in sides
    )
    return replace(adapter, prefix_keys=keys, prefix_values=values)


def starting_parameters(
    model: MaskModel, adapter: Adapter, settings: TuneSettings
) -> AdapterParameters:
    """Return the parameters to train, with pair scores if the settings train them jointly.

    Otherwise the adapter's pair scores are dropped, since they are learned afterwards.
    """
    is_joint = settings.pair_rank > 0 and settings.pairs == "joint"
    if not adapter.pairs and not settings.trains:  # nothing would teach them
        is_joint = False
    parameters = AdapterParameters(adapter if is_joint else replace(adapter, pairs={}))
    if is_joint:
        parameters.joint_pairs = JointPairs(
            model.embedding_table(), settings.pair_rank, adapter.pairs, settings.seed
        )
    return parameters


def _continue(checkpoint: TensorSource, tuned: Adapter, settings: TuneSettings) -> Adapter:
    identity = identify(checkpoint)
    tuned.check_fits(identity)
    if tuned.num_masks > settings.num_masks:
        tuned = replace(tuned, mask_embeddings=tuned.mask_embeddings[: settings.num_masks])
    sizes = {
        "num_masks": (tuned.num_masks, settings.num_masks),
        "prefix_length": (tuned.prefix_length, settings.prefix_length),
    }
    if tuned.lora_rank:
        sizes["lora_rank"] = (tuned.lora_rank, settings.lora_rank)
    if tuned.pair_rank and settings.pair_rank and settings.pairs == "joint":
        sizes["pair_rank"] = (tuned.pair_rank, settings.pair_rank)
    faults = [
        f"its {name} is {its}, not {ours}" for name, (its, ours) in sizes.items() if its != ours
    ]
    raise_faults(TuningError, "cannot continue from this adapter (give the same sizes)", faults)
    if tuned.lora_rank == settings.lora_rank:
        return tuned
    lora = starting_lora(
        site_sizes(checkpoint), identity.num_layers, settings.lora_rank, settings.seed
    )
    return replace(tuned, lora=lora)
