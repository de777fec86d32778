"""The stock pipeline's seconds per item, in the parity environment. Prints the median."""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

from dev.parity.oracle import Oracle

PICTURE = Path("tests/ofa/pictures/colour.png")
STATEMENT = "there are two birds."


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--items", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    oracle = Oracle(options.folder)
    oracle.ask(PICTURE, STATEMENT, "")  # the first one warms up
    times = []
    for _ in range(options.items):
        begun = time.perf_counter()
        oracle.ask(PICTURE, STATEMENT, "")
        times.append(time.perf_counter() - begun)
    sys.stdout.write(f"\n{statistics.median(times)}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
