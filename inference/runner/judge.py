"""Program that answers a golden set with a sealed bundle, on the CPU, without a server.

    python -m inference.runner.judge --bundle DIR --golden DIR --into DIR

Writes `answers.json` into the folder: labels by item; an item whose picture the engine refuses has none. Exit codes: 0
done, 2 wrong arguments, 3 refused with one JSON line {"reason", "message"} on stderr, 69 the parent process has ended.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from common.bundle import BundleBroken, read_bundle
from common.durable import write_atomic
from common.errors import InputRefused
from common.exit_codes import ExitCode
from common.golden_set import GoldenBroken, GoldenFolder, GoldenItem, read_folder
from common.judging import ANSWERS_NAME
from inference.runner.engines.base import BundleRefused, Engine, EntailmentItem, LoadOptions, RowRange, loader_for
from inference.runner.process import bind_to_parent
from inference.wire import EntailmentScores


def main(arguments: Sequence[str]) -> int:
    """Answer the set and return the exit code."""
    parser = argparse.ArgumentParser(prog="judge", description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--bundle", type=Path, required=True, help="folder of a sealed bundle")
    parser.add_argument("--golden", type=Path, required=True, help="folder of a golden set")
    parser.add_argument("--into", type=Path, required=True, help="existing folder for the answers")
    parser.add_argument("--parent", type=int, default=0, help="process id of the parent, with which to end; 0: none")
    options = parser.parse_args(arguments)
    if options.parent and not bind_to_parent(options.parent):
        return ExitCode.PARENT_GONE
    try:
        bundle = read_bundle(options.bundle)
        golden = read_folder(options.golden, bundle.task)
        engine = loader_for(bundle.engine)(
            options.bundle, bundle, LoadOptions("cpu", "", 0), lambda _phase, _share: None
        )
        answers = answer_set(engine, golden)
    except (BundleBroken, BundleRefused, GoldenBroken) as error:
        sys.stderr.write(json.dumps({"reason": "NOT_JUDGED", "message": str(error)}) + "\n")
        return ExitCode.CONVERSION_REFUSED
    write_atomic(options.into / ANSWERS_NAME, json.dumps(answers, ensure_ascii=False).encode())
    return 0


def answer_set(engine: Engine, golden: GoldenFolder) -> dict[str, list[str]]:
    """The labels of each item's statements, in their order."""
    return {item.item: _answer(engine, golden, item) for item in golden.golden.items}


def _answer(engine: Engine, golden: GoldenFolder, item: GoldenItem) -> list[str]:
    try:
        prepared = engine.prepare(EntailmentItem(golden.picture(item), item.statements, item.premise))
    except InputRefused:
        return []
    results = engine.compute([RowRange(prepared, 0, prepared.rows)])[0]
    return [_label(result) for result in results if isinstance(result, EntailmentScores)]


def _label(scores: EntailmentScores) -> str:
    by_label = {"yes": scores.yes, "no": scores.no, "maybe": scores.maybe}
    return max(by_label, key=by_label.__getitem__)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all files are closed; releasing torch would take half a second
