"""`python -m bita` is the command `bita`."""

import sys

from bita.cli import main

sys.exit(main())
