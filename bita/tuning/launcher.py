"""Settings that `accelerate launch` passes to its processes in the environment.

This module does not import torch, because the entry point of every command reports errors with it.
"""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from bita.errors import TuningError

WAIT_S = 10.0  # time in which the launcher ends the other processes after one has failed


def starts_several() -> bool:
    """Return whether this process must join a group; a sharded base needs one even for itself."""
    if "LOCAL_RANK" not in os.environ:
        return False
    return os.environ.get("WORLD_SIZE", "1") != "1" or wants_shards()


def wants_shards() -> bool:
    """Return whether each process should hold only a part of the base (FSDP)."""
    return _flag("ACCELERATE_USE_FSDP")


def refuse_unsupported(device: str | None) -> None:
    """Raise TuningError if the launcher, or the user's `device`, requests what is not supported."""
    for flag in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM", "FSDP_OFFLOAD_PARAMS"):
        if _flag(flag):
            raise TuningError(
                f"the launcher sets {flag}, which tuning does not support; launch with "
                "--multi_gpu, or with --use_fsdp and no offloading"
            )
    if device and ":" in device:
        raise TuningError(
            f"device {device} would be used by every process; leave it out, and choose devices "
            "with the launcher's --gpu_ids"
        )


@contextmanager
def report_once() -> Iterator[None]:
    """Let only one of the launched processes print an error that occurs in all of them.

    The main process prints immediately. Other processes hold their output back until the launcher
    ends them because the main process has failed. A process that is still running after that time
    has an error of its own, which is printed.
    """
    if "LOCAL_RANK" not in os.environ or os.environ.get("RANK", "0") == "0":
        yield
        return
    kept = io.StringIO()
    try:
        with redirect_stderr(kept):
            yield
    finally:
        if kept.getvalue():
            time.sleep(WAIT_S)
            sys.stderr.write(kept.getvalue())


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true")
