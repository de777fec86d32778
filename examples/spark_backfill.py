"""Judges a folder of pictures with PySpark against one or several servers.

    pip install pyspark clients/python
    spark-submit --py-files examples/backfill_parts.py examples/spark_backfill.py PICTURES RESULTS "there is a square"

Pictures and results lie where every executor can reach them. Start it again after whatever ended it: what is done is
not done again, and an attempt that Spark speculates or repeats writes the same file.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from backfill_parts import Counts, Part, make_parts, run_part
from pyspark.sql import SparkSession

from hotslot_client import Client


def main() -> int:
    """Run all parts, print the counts; 1 if a picture has no answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("statements", nargs="+")
    parser.add_argument("--address", default="127.0.0.1:50051")
    parser.add_argument("--workers", type=int, default=4, help="streams at a time, over all servers")
    options = parser.parse_args()
    address, statements = options.address, options.statements
    parts = make_parts(options.pictures, options.results)

    def run_parts(some: Iterator[Part]) -> Iterator[Counts]:
        """In an executor, which makes a client of its own."""
        with Client(address) as client:
            for part in some:
                yield run_part(client, part, statements)

    session = SparkSession.builder.appName("hotslot-backfill").getOrCreate()
    try:
        session.sparkContext.setLogLevel("ERROR")
        done = session.sparkContext.parallelize(parts, options.workers).mapPartitions(run_parts).collect()
    finally:
        session.stop()
    rows, failed = sum(one.rows for one in done), sum(one.failed for one in done)
    print(f"{rows} rows, {failed} without an answer, {sum(one.is_new for one in done)} of {len(parts)} parts new")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
