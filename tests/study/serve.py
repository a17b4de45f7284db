"""A study's page in a process of its own: python -m tests.study.serve STUDY PORT."""

import sys
from pathlib import Path

from studies.server import rate

if __name__ == "__main__":
    rate(Path(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), code=None)
