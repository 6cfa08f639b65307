"""The processes of one tuning run: one alone, or those that `accelerate launch` started.

Every process draws the same batches and works on its share of their texts. Sums over all processes
make their losses and gradients those of one process. Files are the main process's to write.
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
_DONE, _FORWARD, _FAILED = 0, 1, 2  # what the main process says to those that wait for it


class Processes:
    """A process that works alone, and what it has in common with one of several.

    rank: 0 is the main process, of `count`. device: where this process runs the base.
    shards_base: whether each process holds only a part of the base (FSDP); then all of them must
    run it equally often.
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
        """This process's part of what all have; it may be empty."""
        return list(items[self.rank :: self.count])

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put into each tensor its sum over all processes; they have one dtype and device."""

    def from_main(self, value: float) -> float:
        """The main process's value, for all."""
        return value

    def copy_from_main(self, tensors: Iterable[Tensor]) -> None:
        """Put the main process's values into the tensors of all."""

    def main_first(self, work: Callable[[], object], base: Any) -> None:
        """Let the main process work, however long it takes; the others continue when it is done.

        base: what `work` may run, None for nothing; if it is sharded, the others run it as often.
        Raises TuningError in the others if the work failed.
        """
        work()


class LaunchedProcesses(Processes):
    """One of several processes, in torch's process group."""

    def __init__(self, state: Any, shards_base: bool) -> None:
        """state: accelerate's PartialState."""
        super().__init__(str(state.device), state.process_index, state.num_processes, shards_base)
        # Not of the default group: NCCL gives up a wait after ten minutes.
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

        # before the hook of the shards, which waits for all processes
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
            raise TuningError("the main process failed; it tells why")


@contextmanager
def join_processes(device: str | None = None) -> Iterator[Processes]:
    """The processes of this run; where a launcher started several, this one joins them.

    device: None for the best there is; several processes take an accelerator each. Raises
    TuningError for what the launcher asks of this run in vain, MissingExtraError without
    accelerate.
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
    state.destroy_process_group()  # not after an error: others may never come


@contextmanager
def _name_lost_process() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch has no kind of its own for all backends
        raise TuningError(f"another process has ended, or cannot be reached: {error}") from error


def best_device() -> str:
    """The accelerator of this machine, or the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
