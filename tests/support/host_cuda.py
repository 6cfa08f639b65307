"""The stand-in for libcudart in host_cuda.c, compiled for the tests."""

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
    """Return the path of the library; skip the test without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # the library stays loaded
    out = Path(folder) / "libcudart.so.13"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", str(SOURCE), "-o", str(out)], check=True)
    return str(out)


def load_host_cuda() -> Cuda:
    """Load the stand-in with default settings; all devices share one memory."""
    host_cuda().host_cuda_reset()
    return Cuda.load(library=host_cuda_library())


def host_cuda() -> ctypes.CDLL:
    """Return the library with its settings and counters."""
    library = ctypes.CDLL(host_cuda_library())
    library.host_cuda_set_limit.argtypes = [ctypes.c_size_t]
    return library
