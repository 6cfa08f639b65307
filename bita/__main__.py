"""`python -m bita` is the command `bita`.

Python puts the working directory in front of all places that modules are found in. It may be an
engine of anybody's with a numpy.py in it, so it is taken away before anything else is imported.
"""

import os
import sys


def forget_working_directory() -> None:
    """Take the working directory from the front of `sys.path`, unless `bita` is found there.

    It is so in a checkout of the source. With the option -P, Python has not put it there.
    """
    if getattr(sys.flags, "safe_path", False) or sys.flags.isolated:
        return
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        here = ""
    if sys.path[:1] in ([""], [here]) and here != root:
        del sys.path[0]


if __name__ == "__main__":
    forget_working_directory()
    from bita.cli.main import main

    sys.exit(main())
