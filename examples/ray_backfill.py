"""Judges a folder of pictures with Ray Data against one or several servers.

    pip install "ray[data]" clients/python
    python examples/ray_backfill.py PICTURES RESULTS "there is a square" --address dns:///hotslot.example:50051

Start it again after whatever ended it: what is done is not done again.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import ray
from backfill_parts import Part, make_parts, run_part

from hotslot_client import Client


class Judge:
    """A worker of Ray, with a client for its whole life."""

    def __init__(self, address: str, statements: list[str]) -> None:
        self._client = Client(address)
        self._statements = statements

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Run a part."""
        part = Part(tuple(row["paths"]), row["result"])
        counts = run_part(self._client, part, self._statements)
        return {"rows": counts.rows, "failed": counts.failed, "new": counts.is_new}


def main() -> int:
    """Run all parts, print the counts; 1 if a picture has no answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("statements", nargs="+")
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--workers", type=int, default=4, help="streams at a time, over all servers")
    options = parser.parse_args()
    parts = make_parts(options.pictures, options.results)
    here = str(Path(__file__).parent)
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": here}}, include_dashboard=False, log_to_driver=False)
    done = (
        ray.data.from_items([{"paths": list(part.paths), "result": part.result} for part in parts])
        .repartition(len(parts))
        .map(
            Judge,
            fn_constructor_args=(options.address, options.statements),
            concurrency=options.workers,
            num_cpus=0.1,  # a worker waits for servers
            max_task_retries=3,
        )
        .take_all()
    )
    rows, failed = sum(row["rows"] for row in done), sum(row["failed"] for row in done)
    print(f"{rows} rows, {failed} without an answer, {sum(row['new'] for row in done)} of {len(parts)} parts new")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
