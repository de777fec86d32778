"""Our engine on a published folder, without processes: converted into a temporary place and loaded from there."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from dev.parity.items import Question
from dev.parity.pictures import FOLDER
from inference.runner.conversion.ofa import convert_ofa
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange
from inference.runner.engines.ofa.engine import OfaEngine
from inference.runner.engines.ofa.load import load_ofa
from inference.runner.pictures.options import PictureOptions, Rendering
from inference.wire import EntailmentScores

STOCK = PictureOptions(rendering=Rendering.AS_STOCK)
Scores = dict[str, float]  # label to probability


def load_source(source: Path, precision: str = "float32", threads: int = 1) -> OfaEngine:
    """Convert a published folder and load it on the CPU."""
    with tempfile.TemporaryDirectory() as name:
        bundle = convert_ofa(source, Path(name), "test", precision)
        # The weights stay mapped when the files are gone.
        return load_ofa(Path(name), bundle, LoadOptions("cpu", precision, threads, STOCK), lambda _phase, _share: None)


def ask(engine: OfaEngine, questions: Sequence[Question], together: int = 1) -> list[Scores]:
    """Answer questions, `together` in one device call."""
    answers: list[Scores] = []
    for start in range(0, len(questions), together):
        chunks = [RowRange(engine.prepare(item_of(one)), 0, 1) for one in questions[start : start + together]]
        answers += [scores_of(result[0]) for result in engine.compute(chunks)]
    return answers


def item_of(question: Question) -> EntailmentItem:
    """A question as a request's item."""
    return EntailmentItem((FOLDER / question.picture).read_bytes(), (question.statement,), question.premise)


def scores_of(result: object) -> Scores:
    """A unit's result by label."""
    if not isinstance(result, EntailmentScores):
        raise RuntimeError("no visual entailment")
    return {"yes": result.yes, "no": result.no, "maybe": result.maybe}
