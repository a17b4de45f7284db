"""`hfsae` and `python -m hfsae`: the command line."""

import sys

from .cli import main as main

if __name__ == "__main__":
    sys.exit(main())
