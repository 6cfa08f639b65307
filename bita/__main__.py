"""Entry point of `python -m bita`, which is the command `bita`.

Python searches the working directory before all other places for modules. It may be an untrusted
engine directory that contains a numpy.py, so it is removed before anything else is imported.
"""

import os
import sys


def forget_working_directory() -> None:
    """Remove the working directory from the front of `sys.path`, unless `bita` is found there.

    `bita` is found there in a checkout of the source. With the option -P, Python does not add the
    directory in the first place.
    """
    if getattr(sys.flags, "safe_path", False) or sys.flags.isolated:
        return
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        here = os.getcwd()
    except OSError:  # the directory was removed
        here = ""
    if sys.path[:1] in ([""], [here]) and here != root:
        del sys.path[0]


if __name__ == "__main__":
    forget_working_directory()
    from bita.cli.main import main

    sys.exit(main())
