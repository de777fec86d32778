"""The engine behind every other server: hotslot's own on the demo model, or one that does nothing."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from common.bundle import read_bundle
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange
from inference.runner.process import keep_freed_memory
from inference.wire import EntailmentScores

BUNDLE, CORE, BATCH_ROWS, BATCH_SECONDS = "PEER_BUNDLE", "PEER_CORE", "PEER_BATCH_ROWS", "PEER_BATCH_SECONDS"
NOTHING = [0.5, 0.25, 0.25]

Scores = list[float]  # yes, no, maybe
Answer = Callable[[Sequence[tuple[bytes, str]]], list[Scores]]  # of pictures, each with a statement


def open_engine() -> Answer:
    """The engine that the environment names; the calling thread is the one that computes."""
    core = os.environ.get(CORE, "")
    if core:
        os.sched_setaffinity(0, {int(core)})
    bundle = os.environ.get(BUNDLE, "")
    return _open_demo(Path(bundle)) if bundle else _answer_nothing


def batch_limits() -> tuple[int, float]:
    """Most rows of a batch, and seconds that a batch waits for them; 0 rows without batches."""
    return int(os.environ.get(BATCH_ROWS, "0")), float(os.environ.get(BATCH_SECONDS, "0"))


def _answer_nothing(asked: Sequence[tuple[bytes, str]]) -> list[Scores]:
    return [NOTHING] * len(asked)


def _open_demo(folder: Path) -> Answer:
    from inference.runner.engines.ofa.load import load_ofa  # noqa: PLC0415  imports torch

    keep_freed_memory()
    engine = load_ofa(folder, read_bundle(folder), LoadOptions("cpu", "float32", 1), _ignore)
    engine.warm_up(_ignore)

    def answer(asked: Sequence[tuple[bytes, str]]) -> list[Scores]:
        prepared = [engine.prepare(EntailmentItem(picture, (statement,), "")) for picture, statement in asked]
        results = engine.compute([RowRange(item, 0, item.rows) for item in prepared])
        rows = [row for [row] in results if isinstance(row, EntailmentScores)]
        return [[row.yes, row.no, row.maybe] for row in rows]

    return answer


def _ignore(_phase: str, _share: float) -> None:
    """Progress that nobody watches."""
