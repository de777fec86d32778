"""Program that answers a golden set with a sealed bundle, on the CPU, without a server.

    python -m inference.runner.judge --bundle DIR --golden DIR --into DIR

Writes `answers.json` into the folder: labels by item; an item whose picture the engine refuses has none. Exit codes: 0
done, 2 wrong arguments, 3 refused with one JSON line {"reason", "message"} on stderr, 69 the parent process has ended.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from common.answers import AddressPart, format_parts
from common.bundle import BundleBroken, read_bundle
from common.durable import write_atomic
from common.errors import InputRefused
from common.exit_codes import ExitCode
from common.golden_set import GoldenBroken, GoldenFolder, GoldenItem, read_folder
from common.judging import ANSWERS_NAME
from inference.runner.engines.base import (
    AddressItem,
    BundleRefused,
    Engine,
    EntailmentItem,
    LoadOptions,
    PreparedItem,
    RowRange,
    RowResult,
    loader_for,
)
from inference.runner.items import is_finite
from inference.runner.process import bind_to_parent
from inference.wire import EntailmentScores

_Call = list[tuple[GoldenItem, RowRange[PreparedItem]]]


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
        answers = answer_set(engine, replace(golden, golden=golden.distinct))
    except (BundleBroken, BundleRefused, GoldenBroken, OSError) as error:
        sys.stderr.write(json.dumps({"reason": "NOT_JUDGED", "message": str(error)}) + "\n")
        return ExitCode.CONVERSION_REFUSED
    write_atomic(options.into / ANSWERS_NAME, json.dumps(answers, ensure_ascii=False).encode())
    return 0


def answer_set(engine: Engine, golden: GoldenFolder) -> dict[str, list[str]]:
    """The answers to each item's questions, in their order; items share the engine's calls."""
    answers: dict[str, list[str]] = {item.item: [] for item in golden.golden.items}
    for call in fill_calls(_prepare(engine, golden), max(1, engine.max_call_rows)):
        for (item, _), results in zip(call, engine.compute([part for _, part in call]), strict=True):
            given = answers[item.item]
            for result in results:
                if result is not None:  # one of several rows of a long address
                    given.append(_format_answer(result, item.texts[len(given)]))
    return answers


def fill_calls(items: Iterable[tuple[GoldenItem, PreparedItem]], max_rows: int) -> Iterator[_Call]:
    """Distribute items over calls of at most `max_rows` rows; only an item that is larger than a call is split."""
    call: _Call = []
    free = max_rows
    for item, prepared in items:
        if call and prepared.rows > free:
            yield call
            call, free = [], max_rows
        for start in range(0, prepared.rows, max_rows):
            stop = min(prepared.rows, start + max_rows)
            call.append((item, RowRange(prepared, start, stop)))
            free -= stop - start
            if free <= 0:
                yield call
                call, free = [], max_rows
    if call:
        yield call


def _prepare(engine: Engine, golden: GoldenFolder) -> Iterator[tuple[GoldenItem, PreparedItem]]:
    """The items that the engine accepts."""
    for item in golden.golden.items:
        try:
            if item.addresses:
                yield item, engine.prepare(AddressItem(item.addresses))
            else:
                yield item, engine.prepare(EntailmentItem(golden.picture(item), item.statements, item.premise))
        except InputRefused:
            continue


def _format_answer(result: RowResult, text: str) -> str:
    if result is None or not is_finite(result):
        return ""
    if isinstance(result, EntailmentScores):
        return result.label
    return format_parts(AddressPart(span.kind, text[span.start : span.end], span.start) for span in result)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all files are closed; releasing torch would take half a second
