"""The callers of a soak run, and the outcomes that each kind may see. Pure, but for random pictures."""

import hashlib
import random
from dataclasses import dataclass, field

from dev.harness.loadgen import Group, Outcome
from dev.harness.scripted_engine import expected_scores
from dev.harness.supervised import WORD
from hotslot.entailment.v1 import entailment_pb2 as pb

CALLER_KEY = "x-caller"
MIB = 1 << 20
OVERSIZED_BYTES = 33 * MIB  # above the transport's limit
OVERSIZED_REQUEST = 6  # its index among the invalid ones
POISON_EVERY_SECONDS = 40.0
_LABELS = (pb.LABEL_YES, pb.LABEL_NO, pb.LABEL_MAYBE)
_REFUSED = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
# For a moment after a fault more may be waiting than is served; then calls are refused, with a delay.
_PATIENT, MAX_REFUSED = ("OK", "RESOURCE_EXHAUSTED"), 0.01


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of callers."""

    group: Group
    codes: tuple[str, ...] = ("OK",)  # that they may see
    reasons: tuple[str, ...] = ()  # of each request in turn, where a request has only one right outcome


@dataclass(slots=True)
class Expected:
    """Digests of the right answers, by revision and request."""

    kinds: dict[str, Kind]
    _known: dict[tuple[str, str, int], str] = field(default_factory=dict)

    def problem_of(self, one: Outcome) -> str:
        """What is wrong with an outcome; empty if nothing is."""
        kind = self.kinds[one.group]
        what = f"{one.group} at {one.at:.3f} s: {one.code} {one.reason} after {one.took:.3f} s: {one.detail}"
        if one.is_answer and one.digest != self._digest(one):
            return f"{what}: not the answer of {one.revision}"
        if kind.reasons:
            return "" if one.reason == kind.reasons[one.request] else f"{what}: not {kind.reasons[one.request]}"
        return "" if one.code in kind.codes else what

    def _digest(self, one: Outcome) -> str:
        key = (one.revision, one.group, one.request)
        if key not in self._known:
            request = self.kinds[one.group].group.requests[one.request]
            self._known[key] = "" if isinstance(request, bytes) else digest_of(request, one.revision)
        return self._known[key]


def digest_of(request: pb.PredictRequest, revision: str) -> str:
    """The digest of the results that a revision must give."""
    whole = hashlib.sha256()
    for statement in request.statements:
        found = expected_scores(revision, request.image.content, statement, request.premise)
        scores = (found.yes, found.no, found.maybe)
        label = _LABELS[scores.index(max(scores))]
        row = pb.LabelScores(yes=found.yes, no=found.no, maybe=found.maybe)
        whole.update(pb.StatementResult(label=label, scores=row).SerializeToString())
    return whole.hexdigest()[:16]


def kinds_of(seed: int) -> dict[str, Kind]:
    """All callers, by name."""
    chance = random.Random(seed)
    small = [_request(chance, rows, 2000) for rows in (1, 2, 4, 1, 8)]
    large = [_request(chance, 1, size) for size in (200_000, 2_000_000, 8_000_000)]
    bulk = [_request(chance, rows, 5000) for rows in (1, 32, 4, 16)]
    slow = _request(chance, 1, 1000)
    slow.statements[0] = "!slow 0.02"
    kinds = [
        Kind(_group("interactive", small, clients=4, pause=0.05), _PATIENT),
        Kind(_group("large pictures", large, clients=2, pause=0.3), _PATIENT),
        Kind(_group("streams", bulk, mode="stream", clients=3, window=16, deadline=60.0)),
        Kind(_group("slow readers", bulk[:1], mode="stream", clients=2, window=32, deadline=60.0, read_pause=0.2)),
        Kind(_group("short deadlines", small, rate=8.0, deadline=1.0), ("OK", *_REFUSED)),
        Kind(_group("bursts", small[:1], rate=5.0, deadline=0.2), ("OK", *_REFUSED)),
        Kind(
            _group("leaving", [slow, *small], clients=2, pause=0.1, cancel_share=0.7, cancel_after=0.1),
            (*_PATIENT, "CANCELLED"),
        ),
        _invalid(chance),
        Kind(_group("poison", [_commanded(chance, "!crash")], pause=POISON_EVERY_SECONDS), reasons=("POISON_INPUT",)),
    ]
    return {kind.group.name: kind for kind in kinds}


def _invalid(chance: random.Random) -> Kind:
    good = _request(chance, 1, 1000)
    unreadable = pb.PredictRequest(image=pb.Image(content=b"!bad picture"), statements=["a"])
    requests: list[tuple[pb.PredictRequest | bytes, str]] = [
        (b"\xff\xff\xff", "MESSAGE_MALFORMED"),
        (pb.PredictRequest(statements=["a"]), "IMAGE_MISSING"),
        (pb.PredictRequest(image=good.image), "STATEMENTS_MISSING"),
        (pb.PredictRequest(image=good.image, statements=["a"] * 33), "STATEMENTS_TOO_MANY"),
        (pb.PredictRequest(model="other", image=good.image, statements=["a"]), "MODEL_UNKNOWN"),
        (unreadable, "IMAGE_UNREADABLE"),
        (pb.PredictRequest(image=pb.Image(content=bytes(OVERSIZED_BYTES)), statements=["a"]), ""),
    ]
    group = _group("invalid", [request for request, _ in requests], pause=0.5)
    return Kind(group, reasons=tuple(reason for _, reason in requests))


def _request(chance: random.Random, rows: int, size: int) -> pb.PredictRequest:
    statements = [f"there are {number} things" for number in range(rows)]
    if rows % 2 == 0:
        statements[-1] = f"there is a {WORD}"  # on which bad revisions fail
    return pb.PredictRequest(image=pb.Image(content=chance.randbytes(size)), statements=statements)


def _commanded(chance: random.Random, command: str) -> pb.PredictRequest:
    return pb.PredictRequest(image=pb.Image(content=chance.randbytes(100)), statements=[command])


def _group(name: str, requests: list[pb.PredictRequest] | list[pb.PredictRequest | bytes], **more: object) -> Group:
    return Group(name, requests, metadata={CALLER_KEY: name}, digest=True, **more)  # type: ignore[arg-type]
