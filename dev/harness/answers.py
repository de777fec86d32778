"""The engine's answers, computed without a server: the reference for every answer."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.bundle import Bundle, bundle_folder
from dev.harness.scripted_engine import load_scripted
from hotslot.address.v1 import address_pb2
from hotslot.entailment.v1 import entailment_pb2 as pb
from inference.runner.engines.base import EntailmentItem, LoadOptions, RowRange

Spans = tuple[tuple[tuple[str, int, int], ...], ...]  # kind, first code point, code point after; one row an address
Scores = tuple[tuple[float, float, float], ...]  # yes, no, maybe; one row a statement

_FAULT = re.compile(r"!(?:crash|hang|exit|gil|garbage|half|lost|error|oom|nan|refuse)(?:@(\S+))?")
_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Question:
    """A picture and statements about it."""

    image: bytes
    statements: tuple[str, ...]
    premise: str = ""

    def request(self, model: str = "") -> pb.PredictRequest:
        """The question as a protobuf request."""
        return pb.PredictRequest(
            model=model, image=pb.Image(content=self.image), statements=self.statements, premise=self.premise
        )


@dataclass(frozen=True, slots=True)
class AddressQuestion:
    """Addresses to cut into their parts."""

    addresses: tuple[str, ...]

    def request(self, model: str = "") -> address_pb2.PredictRequest:
        """The question as a protobuf request."""
        return address_pb2.PredictRequest(model=model, addresses=self.addresses)


def question(*statements: str, image: bytes = b"", premise: str = "") -> Question:
    """A question; each has a picture of its own unless one is given."""
    picture = image or f"picture {next(_numbers)}".encode()
    return Question(picture, statements or ("there are two red circles",), premise)


class Answers:
    """Reference answers of bundles to questions, from engines without a server."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._bundles: dict[str, Bundle] = {}
        self._known: dict[tuple[str, Question], Scores] = {}

    def add(self, bundle: Bundle) -> None:
        """Add a bundle, by its revision."""
        self._bundles[bundle.revision] = bundle

    def compute(self, questions: Sequence[Question], revisions: Sequence[str]) -> Mapping[tuple[str, Question], Scores]:
        """Answer all questions as each revision does."""
        for revision in revisions:
            for asked in questions:
                self.of(revision, asked)
        return self._known

    def of(self, revision: str, asked: Question) -> Scores:
        """One revision's answer to one question."""
        key = (revision, asked)
        if key not in self._known:
            self._known[key] = self._compute(self._bundles[revision], asked)
        return self._known[key]

    def digest_of(self, revision: str) -> str:
        """The bundle digest of a revision."""
        return self._bundles[revision].bundle_digest

    def _compute(self, bundle: Bundle, asked: Question) -> Scores:
        """The reference answer; empty if the engine fails or would end the test process."""
        text = "\n".join(asked.statements)
        if any(scope in ("", bundle.revision) for scope in _FAULT.findall(text)):
            return ()
        folder = bundle_folder(self._state, bundle.bundle_digest)
        engine = load_scripted(folder, bundle, LoadOptions("cpu", "", 0), lambda _phase, _share: None)
        prepared = engine.prepare(EntailmentItem(asked.image, asked.statements, asked.premise))
        (rows,) = engine.compute([RowRange(prepared, 0, prepared.rows)])
        return tuple((row.yes, row.no, row.maybe) for row in rows)  # type: ignore[union-attr]


def spans_of(response: address_pb2.PredictResponse) -> Spans:
    """The parts in an answer."""
    return tuple(tuple((span.kind, span.start, span.end) for span in result.spans) for result in response.results)


def scores_of(response: pb.PredictResponse) -> Scores:
    """The scores of an answer."""
    return tuple((row.scores.yes, row.scores.no, row.scores.maybe) for row in response.results)
