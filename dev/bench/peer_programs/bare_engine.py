"""The demo model's engine alone: for each line on its input, seconds of full calls; prints what it has measured."""

import json
import sys
import time
from itertools import cycle, islice
from pathlib import Path

from common.bundle import read_bundle
from dev.harness.demo_model import golden_items
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange
from inference.runner.engines.ofa.load import load_ofa
from inference.runner.process import keep_freed_memory

ITEMS = 200  # of the demo model's golden set: in a call that has a picture twice it would be encoded once


def main() -> int:
    """Measure as often as it is asked."""
    keep_freed_memory()
    folder = Path(sys.argv[1])
    engine = load_ofa(folder, read_bundle(folder), LoadOptions("cpu", "float32", 1), _ignore)
    engine.warm_up(_ignore)
    items = cycle([EntailmentItem(one.image, one.statements, "") for _, one in golden_items(ITEMS)])
    print(json.dumps({"call_rows": engine.max_call_rows}), flush=True)
    for line in sys.stdin:
        rows, computed, prepared = 0, 0.0, 0.0
        while computed < float(line):
            began = time.monotonic()
            call = [engine.prepare(item) for item in islice(items, engine.max_call_rows)]
            middle = time.monotonic()
            engine.compute([RowRange(one, 0, one.rows) for one in call])
            computed += time.monotonic() - middle
            prepared += middle - began
            rows += sum(one.rows for one in call)
        print(json.dumps({"rows": rows, "computed": computed, "prepared": prepared}), flush=True)
    return 0


def _ignore(_phase: str, _share: float) -> None:
    """Progress that nobody watches."""


if __name__ == "__main__":
    raise SystemExit(main())
