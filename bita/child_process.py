"""Python processes of our own, which find modules only where this process finds them.

`python -m` puts the working directory in front of all other places. That may be an engine of
anybody's, with a numpy.py in it.
"""

import sys

# `sys` is built in, so nothing is looked for before the entries are set. (From Python 3.11 on the
# option -P keeps the working directory away too.)
_RUN = (
    "import sys; sys.path[:] = {entries!r}; import runpy; "
    "runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
)


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that runs a module as `python -m` does, but not from the working directory."""
    entries = [entry for entry in sys.path if entry]  # "" is the working directory
    return [sys.executable, "-c", _RUN.format(entries=entries, module=module), *arguments]
