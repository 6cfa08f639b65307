"""The stand-in for libcudart of host_cuda.c, compiled for the tests."""

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from bita.runtime.backends.cuda import Cuda

SOURCE = Path(__file__).parent / "host_cuda.c"


@functools.cache
def host_cuda_library() -> str:
    """Path of the library; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # it stays loaded
    out = Path(folder) / "libcudart.so.13"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(out)], check=True)
    return str(out)


def load_host_cuda() -> Cuda:
    """A device of its own settings, with the others' memory."""
    host_cuda().host_cuda_reset()
    return Cuda.load(library=host_cuda_library())


def host_cuda() -> ctypes.CDLL:
    """The library's own switches and counts."""
    library = ctypes.CDLL(host_cuda_library())
    library.host_cuda_set_limit.argtypes = [ctypes.c_size_t]
    return library
