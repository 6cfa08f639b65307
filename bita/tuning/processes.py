"""The processes of a tuning run: a single one, or those that `accelerate launch` started.

Every process draws the same batches and works on its share of the texts. Losses and gradients are
summed over all processes, so they equal those of a single process. Only the main process writes
files.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from bita.errors import MissingExtraError, TuningError
from bita.tuning import launcher

Item = TypeVar("Item")
PATIENCE = timedelta(days=30)  # the main process may generate data for long
_DONE, _FORWARD, _FAILED = 0, 1, 2  # messages from the main process to those that wait for it


class Processes:
    """A process that works alone, and the base class of one among several.

    Args:
        device: Device on which this process runs the base.
        rank: Number of this process; 0 is the main process.
        count: Number of processes.
        shards_base: Whether each process holds only a part of the base (FSDP). Then all processes
            must run it equally often.
    """

    def __init__(self, device: str, rank: int = 0, count: int = 1, shards_base: bool = False):
        self.device = device
        self.rank = rank
        self.count = count
        self.shards_base = shards_base

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part of items that all processes have; it may be empty."""
        return list(items[self.rank :: self.count])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes; all have one dtype and device."""

    def from_main(self, value: float) -> float:
        """Return the main process's value in all processes."""
        return value

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Copy the main process's values into the tensors of all processes."""

    def main_first(self, work: Callable[[], object], base: Any) -> None:
        """Do work in the main process, however long it takes, while the others wait.

        `base` is the model that `work` may run, or None; if it is sharded, the others run it as
        often. Raises TuningError in the others if the work failed.
        """
        work()


class LaunchedProcesses(Processes):
    """One of several processes, in torch's process group."""

    def __init__(self, state: Any, shards_base: bool) -> None:
        """Join the process group that `state`, accelerate's PartialState, describes."""
        super().__init__(str(state.device), state.process_index, state.num_processes, shards_base)
        # A group of its own, because NCCL stops waiting after ten minutes.
        self._patient = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        joined = torch.cat([tensor.flatten() for tensor in tensors])
        with _name_lost_process():
            torch.distributed.all_reduce(joined)
        parts = joined.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def from_main(self, value: float) -> float:
        sent = torch.tensor(value, dtype=torch.float64)
        with _name_lost_process():
            torch.distributed.broadcast(sent, src=0, group=self._patient)
        return float(sent)

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            with _name_lost_process():
                torch.distributed.broadcast(tensor.detach(), src=0)

    def main_first(self, work: Callable[[], object], base: Any) -> None:
        if self.is_main:
            self._lead(work, base)
        else:
            self._follow(base)

    def _lead(self, work: Callable[[], object], base: Any) -> None:
        def announce(*_: object) -> None:
            self.from_main(_FORWARD)

        # prepended: the hook of the shards waits for all processes
        is_shared = self.shards_base and base is not None
        hook = base.register_forward_pre_hook(announce, prepend=True) if is_shared else None
        ended = _FAILED
        try:
            work()
            ended = _DONE
        finally:
            if hook is not None:
                hook.remove()
            self.from_main(ended)

    @torch.no_grad()
    def _follow(self, base: Any) -> None:
        token = torch.zeros((1, 1), dtype=torch.long, device=self.device)
        while (state := self.from_main(_DONE)) == _FORWARD:
            base(input_ids=token, use_cache=False)
        if state == _FAILED:
            raise TuningError("the main process failed; its own error gives the reason")


@contextmanager
def join_processes(device: str | None = None) -> Iterator[Processes]:
    """Yield the processes of this run; join them if a launcher started several.

    Args:
        device: Device of the base. None uses the best one; each of several processes takes an
            accelerator of its own.

    Raises:
        TuningError: if the launcher requests what tuning does not support.
        MissingExtraError: without accelerate, for several processes.
    """
    if not launcher.starts_several():
        yield Processes(device or best_device())
        return
    launcher.refuse_unsupported(device)
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtraError("tuning in several processes", "tune") from error
    state = PartialState(cpu=(device or best_device()) == "cpu")
    yield LaunchedProcesses(state, launcher.wants_shards())
    state.destroy_process_group()  # not after an error, when other processes may never arrive


@contextmanager
def _name_lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch has no specific type for all backends
        raise TuningError(f"another process has ended, or cannot be reached: {error}") from error


def best_device() -> str:
    """Return the accelerator of this machine, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
