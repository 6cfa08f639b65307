"""Reads what `accelerate launch` writes into the environment of the processes that it starts.

This module imports no torch: the entry of every command reports its errors through it.
"""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

from bita.errors import TuningError

WAIT_S = 10.0  # by then the launcher has ended the processes beside one that failed


def starts_several() -> bool:
    """Whether this process has to join others. A sharded base needs a group even for one."""
    if "LOCAL_RANK" not in os.environ:
        return False
    return os.environ.get("WORLD_SIZE", "1") != "1" or wants_shards()


def wants_shards() -> bool:
    """Whether each process is to hold only a part of the base (FSDP)."""
    return _flag("ACCELERATE_USE_FSDP")


def refuse_unsupported(device: str | None) -> None:
    """Raise TuningError if the launcher asks for what tuning cannot do. device: the user's."""
    for flag in ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM", "FSDP_OFFLOAD_PARAMS"):
        if _flag(flag):
            raise TuningError(
                f"the launcher sets {flag}, which tuning knows nothing of; launch with "
                "--multi_gpu, or with --use_fsdp and no offloading"
            )
    if device and ":" in device:
        raise TuningError(
            f"device {device} would be that of every process; name none, and choose devices with "
            "the launcher's --gpu_ids"
        )


@contextmanager
def report_once() -> Iterator[None]:
    """Let only one of the launched processes print an error that all of them meet.

    The main process prints at once. Another keeps its text until the launcher, which has seen the
    main process fail, ends it; if the process still runs then, the error is its own, and printed.
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
