"""`make test-docs`: runs every command of the pages that can run, against one demo stack; a line for each block."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from dev.documents.blocks import Block, read_all_blocks
from dev.documents.run import run_page
from dev.documents.sandbox import demo_stack


def choose_blocks(pages: Sequence[str], blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks to run, by page, without translations, whose blocks are their originals', and without repetitions."""
    seen: set[str] = set()
    chosen: list[list[Block]] = []
    for page, of_page in groupby(blocks, lambda block: block.page):
        if "zh" in page or (pages and not any(name in page for name in pages)):
            continue
        rows = [block for block in of_page if block.is_run]
        # The first commands of runbooks are few.
        new = [block for block in rows if "runbooks" not in page or block.text not in seen]
        seen.update(block.text for block in new)
        if new:
            chosen.append(new)
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 if a block did not do what its page says."""
    parser = argparse.ArgumentParser(prog="make test-docs", description=__doc__)
    parser.add_argument("pages", nargs="*", help="parts of names of pages (default: all)")
    parser.add_argument("--show", action="store_true", help="print what the commands print")
    asked = parser.parse_args(arguments)
    chosen = choose_blocks(asked.pages, read_all_blocks())
    problems: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hotslot-docs-") as folder, demo_stack(Path(folder) / "demo") as sandbox:
        for blocks in chosen:
            for outcome in run_page(blocks, sandbox):
                print(f"{'wrong' if outcome.problem else 'ok   '} {outcome.block.place}", flush=True)
                if asked.show:
                    print(outcome.output)
                problems.extend(filter(None, [outcome.problem]))
    print("\n".join(problems))
    print(f"{sum(map(len, chosen)) - len(problems)} passed, {len(problems)} failed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
