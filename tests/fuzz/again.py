"""Checks one input again: `python -m tests.fuzz.again TARGET FILE`."""

import sys
from pathlib import Path

from tests.fuzz.target import TARGETS

if __name__ == "__main__":
    TARGETS[sys.argv[1]].load_check()(Path(sys.argv[2]).read_bytes())
