"""What a soak run finds wrong: outcomes that a kind of callers must not see, and metrics that cannot be right."""

from collections import Counter
from dataclasses import dataclass, field, replace

from dev.harness.loadgen import Outcome
from dev.soak.counts import Key, MetricCounts, OwnCounts
from dev.soak.faults import DEAF_REASON
from dev.soak.traffic import OVERSIZED_REQUEST, Expected, digest_of, kinds_of
from hotslot.entailment.v1 import entailment_pb2 as pb

KINDS = kinds_of(1)
EXPECTED = Expected(KINDS)


@dataclass(slots=True)
class Told(MetricCounts):
    """Metrics that say what a test says."""

    told: Counter[Key] = field(default_factory=Counter)
    answered: int = 0

    def items(self) -> Counter[Key]:
        return self.told

    def rows(self) -> int:
        return self.answered


def outcome(group: str, code: str, reason: str = "", request: int = 0) -> Outcome:
    """An outcome of a group's request."""
    return Outcome(group, request, 2, 0, 1.0, 0.1, code, reason)


def answer(revision: str, request: int = 1) -> Outcome:
    """The right answer of a revision."""
    asked = KINDS["interactive"].group.requests[request]
    assert isinstance(asked, pb.PredictRequest)
    right = outcome("interactive", "OK", request=request)
    return replace(right, revision=revision, digest=digest_of(asked, revision))


def test_an_answer_must_be_that_of_the_revision_it_names() -> None:
    """Answers of two revisions are told apart."""
    assert EXPECTED.problem_of(answer("r1")) == ""
    assert EXPECTED.problem_of(replace(answer("r1"), revision="r2")).endswith("not the answer of r2")


def test_each_kind_of_callers_has_its_right_outcomes() -> None:
    """Only those with short deadlines may be refused, and an invalid request has one reason."""
    refused = ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert EXPECTED.problem_of(outcome("short deadlines", *refused)) == ""
    assert EXPECTED.problem_of(outcome("streams", *refused)) != ""
    assert EXPECTED.problem_of(outcome("invalid", "INVALID_ARGUMENT", "IMAGE_MISSING", 1)) == ""
    assert EXPECTED.problem_of(outcome("invalid", "INVALID_ARGUMENT", "IMAGE_MISSING", 2)) != ""


def test_metrics_are_compared_with_what_callers_saw() -> None:
    """A call whose caller left may have had any outcome, or have never come; the others are exact."""
    own = OwnCounts()
    own.add([answer("r1")] * 5)
    own.add([outcome("leaving", "CANCELLED")] * 2)
    own.add([outcome("invalid", "INVALID_ARGUMENT", "IMAGE_MISSING"), outcome("poison", "INTERNAL", "POISON_INPUT")])
    own.add([outcome("invalid", "RESOURCE_EXHAUSTED", request=OVERSIZED_REQUEST)])
    right = Counter[Key](
        {
            ("answered", ""): 6,
            ("cancelled", "CANCELLED"): 1,
            ("invalid", "IMAGE_MISSING"): 1,
            ("failed", "POISON_INPUT"): 1,
            ("invalid", DEAF_REASON): 1000,
        }
    )

    assert list(own.differences(Told(0, told=right, answered=12))) == []
    lost = right - Counter({("invalid", "IMAGE_MISSING"): 1, ("answered", ""): 2})
    assert list(own.differences(Told(0, told=lost, answered=9))) == [
        "answered : 5 seen by callers, 4 in the metrics, 3 of unknown outcome",
        "invalid IMAGE_MISSING: 1 seen by callers, 0 in the metrics, 0 of unknown outcome",
        "6 items in the metrics, 10 sent, 3 of them of unknown outcome",
        "9 rows answered in the metrics, 10 received",
    ]
