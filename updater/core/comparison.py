"""Records of changed answers: how often, and in which directions, two models answer a question differently. Pure.

A direction is a text of `TaskAnswers.find_directions`, for example "yes → no".
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GateKey:
    """Everything that a gate's verdict depends on: with the same key the gate is not run again."""

    bundle_digest: str
    golden_digest: str  # empty: built-in probes
    device: str
    precision: str


@dataclass(frozen=True, slots=True)
class GoldenAnswer:
    """A slot's answer to one question, or why it failed."""

    text: str = ""  # in the form of `common.answers`; empty if it failed
    failure: str = ""  # reason, for example "NOT_FINITE"; empty if it answered
    is_sure: bool = False  # its probability is at least `common.answers.SURE`


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Both models' answers to one golden question."""

    expected: str  # empty if nothing was expected
    active: str
    candidate: str
    is_sure: bool = False  # the active model gave its answer a probability of at least `SURE`


@dataclass(frozen=True, slots=True)
class ExpectedDirection:
    """How often golden answers changed in one direction."""

    direction: str
    count: int
    better: int = 0  # of these, questions that only the candidate answers right
    worse: int = 0  # questions that only the active model answers right


@dataclass(frozen=True, slots=True)
class ExpectedChanges:
    """The candidate's changes of the active model's answers on the golden set: what the trial has to expect."""

    questions: int = 0  # that both answered
    changed: int = 0
    better: int = 0  # questions that only the candidate answers right
    worse: int = 0  # questions that only the active model answers right
    directions: tuple[ExpectedDirection, ...] = ()  # the most frequent first
    singles: int = 0  # directions that occurred once
    sure_questions: int = 0  # of whose answer the active model was sure
    sure_changed: int = 0  # of these


@dataclass(frozen=True, slots=True)
class ChangedDirection:
    """How often compared answers changed in one direction."""

    direction: str
    count: int


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """The answers of the trial and of the previous slot to the same requests, since the trial began."""

    requests: int = 0  # each has one or more answers, which are not independent
    compared: int = 0  # answers: to statements or addresses
    changed: int = 0
    directions: tuple[ChangedDirection, ...] = ()
    sure_compared: int = 0  # answers of which the previous slot was sure
    sure_changed: int = 0  # of these
    dropped: int = 0  # requests that were chosen for a copy and not compared


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """One kind of change as evidence: on the golden set, on live traffic, and the largest share that is allowed."""

    name: str  # a direction, or a class of `updater.core.changes`
    expected_count: int
    questions: int
    count: int
    compared: int
    bound: float
    passed: bool


@dataclass(frozen=True, slots=True)
class LabelPair:
    """How many golden questions, or parts of addresses, the two models gave these labels."""

    active: str
    candidate: str
    count: int
