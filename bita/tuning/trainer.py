"""The training loop, whose steps depend only on settings, texts and seed, and can be resumed."""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bita.errors import TuningError
from bita.tensors import BoolArray
from bita.tuning.contexts import Contexts
from bita.tuning.losses import decayed_mean, reach_weights, sums_by_mask
from bita.tuning.mask_model import AdapterParameters, MaskModel
from bita.tuning.mask_rows import MaskRows, choose_rows
from bita.tuning.processes import Processes
from bita.tuning.row_losses import FlatRows, flatten, row_losses
from bita.tuning.run_files import RunFiles
from bita.tuning.settings import TuneSettings
from bita.tuning.training_texts import TrainingText, batch_of


@dataclass(frozen=True)
class StepReport:
    """A step's line in the log."""

    step: int
    loss: float
    mask_losses: list[float]  # mean loss of each mask; NaN for a mask without rows
    gradient_norm: float
    rate: float  # factor of the initial learning rates
    num_rows: int
    seconds: float


class Trainer:
    """Tunes an adapter on texts; `run` continues from the last checkpoint in its files.

    Several `processes` share the texts of each step; None is this process alone. `contexts` may be
    shared with other runs on the same model and texts; None creates new ones. Raises TuningError.
    """

    def __init__(
        self,
        model: MaskModel,
        parameters: AdapterParameters,
        texts: Sequence[TrainingText],
        settings: TuneSettings,
        files: RunFiles,
        processes: Processes | None = None,
        contexts: Contexts | None = None,
    ) -> None:
        self.model = model
        self.parameters = parameters.to(model.device)
        self.settings = settings
        self.step = 0
        self._texts = texts
        self._files = files
        self._elapsed = 0.0
        self._processes = processes or Processes(str(model.device))
        # Kept texts would break the rule that all processes run a sharded base equally often.
        kept_gb = 0 if self._processes.shards_base else settings.context_gb
        self._contexts = contexts or Contexts(model, int(kept_gb * 2**30))
        self._optimizer = torch.optim.AdamW(_groups(parameters, settings), weight_decay=0.0)
        files.directory.mkdir(parents=True, exist_ok=True)
        self._resume()
        if self._processes.from_main(self.step) != self.step:
            raise TuningError(
                f"the processes find different checkpoints in {files.directory}; give a directory "
                "that all of them share"
            )
        # The initial values may be activations, which GPUs of different types round differently.
        self._processes.copy_from_main(self.parameters.parameters())

    def run(
        self,
        on_step: Callable[[StepReport], None] = lambda _: None,
        checkpoint_every: int = 100,
        evaluate: Callable[[], dict[str, Any]] | None = None,
        evaluate_every: int = 0,
    ) -> None:
        """Train to the end of the schedule; write the adapter with every checkpoint.

        `evaluate` is called every `evaluate_every` steps (0: never) and at the end; its result is
        logged.
        """
        path = self._files.log if self._processes.is_main else Path(os.devnull)
        with path.open("a", encoding="utf-8") as log:
            while self.progress < 1:
                report = self.train_step()
                self._log(log, asdict(report))
                on_step(report)
                ended = self.progress >= 1
                if evaluate and (ended or (evaluate_every and self.step % evaluate_every == 0)):
                    self._log(log, {"step": self.step - 1, "evaluation": evaluate()})
                if ended or self.step % checkpoint_every == 0:
                    self.save()

    @property
    def progress(self) -> float:
        """Completed share of the schedule, 0 to 1, by steps or by the clock."""
        if self.settings.max_minutes > 0:
            return min(1.0, self._elapsed / (60 * self.settings.max_minutes))
        return min(1.0, self.step / self.settings.num_steps) if self.settings.num_steps else 1.0

    def train_step(self) -> StepReport:
        """Train on one batch. Raises TuningError, before any change, if its loss is not finite."""
        began = time.monotonic()
        warm = min(1.0, (self.step + 1) / max(self.settings.warmup_steps, 1))
        rate = warm * 0.5 * (1 + math.cos(math.pi * self.progress))
        for group in self._optimizer.param_groups:
            group["lr"] = group["start"] * rate
        torch.manual_seed(self._step_seed())  # dropout
        batch, rows, scored = self._batch()
        counts = _counts_by_mask(rows, self.settings.num_masks).to(self.model.device)
        weighted, plain = self._own_sums(batch, rows, scored)
        sums = torch.stack([weighted.detach(), plain])
        self._processes.add_up([sums])
        loss = decayed_mean(sums[0], counts, self.settings.decay).item()
        norm = self._update(loss, decayed_mean(weighted, counts, self.settings.decay))
        seconds = self._processes.from_main(time.monotonic() - began)
        self._elapsed += seconds
        self.step += 1
        means, num_rows = (sums[1] / counts).tolist(), int(counts.sum())
        return StepReport(self.step - 1, loss, means, norm, rate, num_rows, seconds)

    def save(self) -> None:
        """Write checkpoint and adapter, each atomically, in the main process only."""
        if not self._processes.is_main:
            return
        state = {
            "step": self.step,
            "elapsed": self._elapsed,
            "parameters": self.parameters.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        self._files.save(self.settings, state, self.parameters.to_adapter(self._files.tuned_on))

    def _own_sums(
        self, batch: list[TrainingText], rows: list[MaskRows], scored: list[BoolArray]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two sums [M] by mask of the losses of this process's texts.

        The first is weighted by how likely drafts are to be reached; the second is unweighted and
        has no gradient. A process without a text runs one of another with weight 0, because all
        processes must run a sharded base.
        """
        own = self._processes.share(range(len(batch)))
        chosen = own or [0]
        batch, rows = [batch[i] for i in chosen], [rows[i] for i in chosen]
        scored = [scored[i] for i in chosen]
        context, settings = self._contexts.read(batch), self.settings
        states = self.model.mask_states(self.parameters, context, rows, settings.dropout)
        flat = flatten(batch, rows, context, states)
        flat = replace(flat, directions=self._directions(flat, np.concatenate(scored)))
        # All rows at once: processes have different numbers of rows, but must run a sharded base
        # equally often.
        whole = self._processes.shards_base
        found = row_losses(self.model, flat, settings.loss, len(flat.tokens) if whole else 0)
        losses, masks = found.losses, flat.masks
        weighted = losses
        if settings.weights != "decay":
            by_confidence = settings.weights == "confidence"
            rights = found.probabilities if by_confidence else found.is_right.float()
            weighted = losses * reach_weights(rights, masks)
        share = 1 if own else 0
        return (
            share * sums_by_mask(weighted, masks, settings.num_masks),
            share * sums_by_mask(losses.detach(), masks, settings.num_masks),
        )

    def _directions(self, flat: FlatRows, scored: BoolArray) -> torch.Tensor | None:
        """Return the directions [n, hidden] of joint pair scores; None without joint pair scores.

        `scored` [n] marks the rows that are trained with pair scores; other rows are zero.
        """
        pairs = self.parameters.joint_pairs
        if pairs is None:
            return None
        kept = torch.from_numpy(scored).to(self.model.device)
        return pairs.directions(self.model.embeddings(flat.before)) * kept[:, None]

    def _update(self, loss: float, own_part: torch.Tensor) -> float:
        """Update the parameters; `own_part` is this process's part of the batch's `loss`."""
        if not math.isfinite(loss):
            raise TuningError(
                f"the loss of step {self.step} is {loss}; lower the learning rates, "
                f"and continue from the last checkpoint in {self._files.directory}"
            )
        self._optimizer.zero_grad(set_to_none=True)
        own_part.backward()
        gradients = [p.grad for p in self.parameters.parameters() if p.grad is not None]
        self._processes.add_up(gradients)
        clip = self.settings.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.parameters(), clip)
        self._optimizer.step()
        return float(norm)

    def _batch(self) -> tuple[list[TrainingText], list[MaskRows], list[BoolArray]]:
        """Return the texts of the step, the rows of each, and which rows have pair scores."""
        settings = self.settings
        batch = batch_of(self._texts, self.step, settings.batch_size, settings.seed)
        rng = np.random.default_rng([settings.seed, 0, self.step])
        rows = [choose_rows(text.num_prompt, len(text.token_ids), settings, rng) for text in batch]
        scored = [rng.random(len(each.anchors)) >= settings.pair_dropout for each in rows]
        return batch, rows, scored

    def _step_seed(self) -> int:
        return int(np.random.SeedSequence([self.settings.seed, 3, self.step]).generate_state(1)[0])

    def _resume(self) -> None:
        state = self._files.load_checkpoint(self.settings)
        if state is not None:
            self.parameters.load_state_dict(state["parameters"])
            self._optimizer.load_state_dict(state["optimizer"])
            self.step, self._elapsed = state["step"], state["elapsed"]
        if self._processes.is_main:
            self._files.cut_log(self.step)

    @staticmethod
    def _log(log: Any, entry: dict[str, Any]) -> None:
        log.write(json.dumps(entry) + "\n")
        log.flush()


def _groups(parameters: AdapterParameters, settings: TuneSettings) -> list[dict[str, Any]]:
    """Return groups of parameters with their learning rates; `start` is the initial rate."""
    prefix = [parameters.prefix_keys, parameters.prefix_values]
    groups: list[dict[str, Any]] = [
        {"params": [parameters.mask_embeddings], "start": settings.mask_rate}
    ]
    if settings.prefix_length:
        groups.append({"params": prefix, "start": settings.prefix_rate})
    if lora := list(parameters.lora.values()):
        groups.append({"params": lora, "start": settings.lora_rate})
    if parameters.joint_pairs is not None:
        pairs = list(parameters.joint_pairs.parameters())
        groups.append({"params": pairs, "start": settings.pair_rate})
    return [{**group, "lr": group["start"]} for group in groups]


def _counts_by_mask(rows: Sequence[MaskRows], num_masks: int) -> torch.Tensor:
    """Return the number of rows of each mask in a batch, [M]."""
    return torch.from_numpy(np.bincount(np.concatenate([r.masks for r in rows]), None, num_masks))
