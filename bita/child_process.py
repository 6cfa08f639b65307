"""Python child processes that import modules only from the paths of this process.

`python -m` searches the working directory before all other paths. It may be an untrusted engine
directory that contains a numpy.py.
"""

import sys

# `sys` is built in, so no path is searched before the entries are set. (Since Python 3.11 the
# option -P leaves out the working directory too.)
_RUN = (
    "import sys; sys.path[:] = {entries!r}; import runpy; "
    "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str) -> list[str]:
    """Return a command like `python -m MODULE` that does not search the working directory."""
    entries = [entry for entry in sys.path if entry]  # "" is the working directory
    return [sys.executable, "-c", _RUN.format(entries=entries, module=module), *arguments]
