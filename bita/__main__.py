"""`python -m bita` is the command `bita`."""

import sys

from bita.cli.main import main

sys.exit(main())
