"""The verdict of the gate on a candidate's golden answers, and what is measured for it. Pure."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from common import reasons
from common.answers import TASK_ANSWERS, TaskAnswers, count_directions, count_label_pairs, sum_parts
from common.engine_files import Task
from updater.core.changes import at_least
from updater.core.comparison import AnswerPair, ExpectedChanges, ExpectedDirection, GoldenAnswer, LabelPair
from updater.core.effects import LATE_PROBE_REASONS
from updater.core.golden import GateAnswers, GoldenQuestion
from updater.core.record import Differing, Evidence, HeldFor, Measured
from updater.core.rules import GateRules


class GateVerdict(StrEnum):
    """Whether a candidate may go on trial."""

    PASS = "PASS"  # noqa: S105  a verdict, no password
    REFUSE = "REFUSE"  # its source digest goes into quarantine
    HOLD = "HOLD"  # a person decides


@dataclass(frozen=True, slots=True)
class GateJudgement:
    """The verdict of one rule or of the whole gate, with its reason."""

    verdict: GateVerdict
    reason: str  # for machines
    message: str  # for people, with the numbers
    held_for: HeldFor | None = None  # with HOLD
    evidence: Evidence = field(default_factory=Evidence)  # of the whole gate


LATE_ANSWERS = "LATE_ANSWERS"  # reason of a HOLD: questions have no answer, for which the machine may be to blame
MAX_LABEL_PAIRS = 400  # kept as evidence; addresses have some twenty kinds of parts
MAX_DIRECTIONS = 40  # kept of an expectation; answers of addresses have hundreds
_LEAST_SHARE = 0.001  # smaller ones are said to be below it
_NO_ANSWER = LATE_PROBE_REASONS | {reasons.OUT_OF_MEMORY}
# Of the active model also the end of its process: a caller's request may have ended it.
_NOT_COMPARED = _NO_ANSWER | {reasons.RUNNER_DIED}
_Check = tuple[list[Measured], list[GateJudgement]]


def judge(answers: GateAnswers, rules: GateRules) -> GateJudgement:
    """Judge a gate's answers by the rules; the worst verdict of a rule is the result."""
    asked = [row for row in answers.questions if not _is_void(row)]
    # A question that failed for want of memory or time is not a wrong answer.
    fitting = [row for row in asked if row.candidate.failure not in _NO_ANSWER]
    expected = [row for row in fitting if row.expected]
    measured: list[Measured] = []
    findings: list[GateJudgement] = []
    checks: tuple[Callable[[], _Check], ...] = (
        lambda: _check_failures(asked, answers.device),
        lambda: _check_memory(answers),
        lambda: _check_accuracy(expected, answers.min_accuracy, rules),
        lambda: _measure_parts([row for row in expected if _is_compared(row)], TASK_ANSWERS[answers.task]),
        lambda: _check_agreement(
            [row for row in fitting if not row.expected and row.active is not None], rules, TASK_ANSWERS[answers.task]
        ),
        lambda: _check_cost(answers, rules),
    )
    for check in checks:
        rows, found = check()
        measured += rows
        findings += found
    if not asked:
        findings.append(
            GateJudgement(GateVerdict.HOLD, "NO_DATA", "no question was answered by both models", HeldFor.INCONCLUSIVE)
        )
    evidence = Evidence(
        tuple(measured),
        list_differing(asked, rules.max_differing),
        on_probes=not answers.golden_digest,
        label_pairs=list_label_pairs(asked, TASK_ANSWERS[answers.task]),
    )
    for verdict in (GateVerdict.REFUSE, GateVerdict.HOLD):
        first = next((finding for finding in findings if finding.verdict is verdict), None)
        if first is not None:
            return replace(first, evidence=evidence)
    return GateJudgement(GateVerdict.PASS, "PASSED", _summarize(measured, len(asked)), evidence=evidence)


def _is_void(row: GoldenQuestion) -> bool:
    """Whether both models failed the question, so that the item is at fault."""
    return bool(row.candidate.failure) and row.active is not None and bool(row.active.failure)


def _check_failures(asked: Sequence[GoldenQuestion], device: str) -> _Check:
    """Refuse if the candidate fails a question that the active model answers."""
    failed = [row for row in asked if row.candidate.failure]
    not_finite = sum(row.candidate.failure == reasons.NOT_FINITE for row in failed)
    measured = [
        Measured("not_finite", not_finite, None, 0, not_finite == 0),
        Measured("failed_answers", len(failed), None, 0, not failed),
    ]
    if not failed:
        return measured, []
    out_of_memory = sum(row.candidate.failure == reasons.OUT_OF_MEMORY for row in failed)
    first = failed[0]
    message = f"{len(failed)} of {len(asked)} questions failed, first {first.item}: {first.candidate.failure}"
    if not_finite:
        return measured, [GateJudgement(GateVerdict.REFUSE, reasons.NOT_FINITE, message)]
    if out_of_memory:
        message = f"it ran out of memory on {device}: {message}"
        return measured, [GateJudgement(GateVerdict.HOLD, reasons.OUT_OF_MEMORY, message, HeldFor.DOES_NOT_FIT)]
    if all(row.candidate.failure in LATE_PROBE_REASONS for row in failed):  # the machine may have paused
        return measured, [GateJudgement(GateVerdict.HOLD, LATE_ANSWERS, message, HeldFor.INCONCLUSIVE)]
    return measured, [GateJudgement(GateVerdict.REFUSE, "ANSWERS_FAILED", message)]


def _is_compared(row: GoldenQuestion) -> bool:
    """Whether the active model, if there is one, has answered, or has failed for a reason of its own."""
    return row.active is None or row.active.failure not in _NOT_COMPARED


def is_one_sided(answers: GateAnswers) -> bool:
    """Whether the active model has no answer to most of the questions, so that too little is compared."""
    asked = [row for row in answers.questions if not _is_void(row)]
    return all(row.active is not None for row in asked) and are_missing([row.active for row in asked if row.active])


def are_missing(found: Sequence[GoldenAnswer]) -> bool:
    """Whether most of the active model's answers are missing for a reason that need not be its own."""
    return 2 * sum(answer.failure in _NOT_COMPARED for answer in found) > len(found)


def _check_memory(answers: GateAnswers) -> _Check:
    if not answers.planned_bytes or not answers.candidate_bytes:
        return [], []
    fits = answers.candidate_bytes <= answers.planned_bytes
    measured = Measured("memory_bytes", answers.candidate_bytes, None, answers.planned_bytes, fits)
    message = f"it takes {answers.candidate_bytes} bytes, {answers.planned_bytes} were planned"
    return [measured], [] if fits else [GateJudgement(GateVerdict.HOLD, "MEMORY", message, HeldFor.DOES_NOT_FIT)]


def _check_accuracy(asked: Sequence[GoldenQuestion], min_accuracy: float, rules: GateRules) -> _Check:
    if not asked:
        return [], []
    right = [row.candidate.text == row.expected for row in asked]
    has_active = any(row.active is not None for row in asked)
    share = accuracy(right)
    measured: list[Measured] = []
    findings: list[GateJudgement] = []
    if min_accuracy > 0:
        measured.append(Measured("min_accuracy", share, None, min_accuracy, share >= min_accuracy))
        if share < min_accuracy:
            by_chance = under_by_chance(sum(right), len(right), min_accuracy)
            findings.append(
                _judge_worse(
                    "BELOW_MIN_ACCURACY",
                    f"accuracy {share:.3f}, at least {min_accuracy:.3f} is required",
                    by_chance,
                    rules,
                )
            )
    if has_active:
        rows, found = _compare_with_active([row for row in asked if _is_compared(row)], rules)
        measured += rows
        findings += found
    elif min_accuracy == 0:
        measured.append(Measured("accuracy", share, None, 0.0, passed=True))
    return measured, findings


def _measure_parts(asked: Sequence[GoldenQuestion], task: TaskAnswers) -> _Check:
    """Micro-F1 of answers that have parts, for people: a verdict needs the paired test of whole answers."""
    if not asked or not task.has_parts:
        return [], []
    return [Measured("micro_f1", *micro_f1(asked, task), 0.0, passed=True)], []


def _compare_with_active(compared: Sequence[GoldenQuestion], rules: GateRules) -> _Check:
    """Compare accuracy and negative flips with the active model's, by the exact paired test."""
    if not compared:
        return [], []
    right = [row.candidate.text == row.expected for row in compared]
    active = [row.active is not None and row.active.text == row.expected for row in compared]
    negative, positive = negative_flips(active, right), positive_flips(active, right)
    by_chance = worse_by_chance(negative, positive)
    share, before, flips = accuracy(right), accuracy(active), negative / len(right)
    least = before - rules.max_accuracy_loss
    measured = [
        Measured("accuracy", share, before, least, share >= least),
        Measured("negative_flips", flips, None, rules.max_negative_flips, flips <= rules.max_negative_flips),
        Measured("worse_by_chance", by_chance, None, rules.significance, by_chance > rules.significance),
    ]
    numbers = f"{negative} questions lost and {positive} won of {len(right)}"
    if share < least:
        text = f"accuracy {share:.3f}, the active model's {before:.3f} ({numbers})"
        return measured, [_judge_worse("ACCURACY", text, by_chance, rules)]
    if flips > rules.max_negative_flips:
        return measured, [
            _judge_worse("NEGATIVE_FLIPS", f"{numbers}: too many that were right before", by_chance, rules)
        ]
    return measured, []


def _judge_worse(reason: str, text: str, by_chance: float, rules: GateRules) -> GateJudgement:
    if by_chance <= rules.significance:
        share = f"{by_chance:.1%}" if by_chance >= _LEAST_SHARE else f"less than {_LEAST_SHARE:.1%}"
        return GateJudgement(GateVerdict.REFUSE, reason, f"{text}; by chance in {share} of cases")
    text += f"; it may be chance ({by_chance:.0%}): a larger golden set can show it"
    return GateJudgement(GateVerdict.HOLD, reason, text, HeldFor.NOISE)


def _check_agreement(asked: Sequence[GoldenQuestion], rules: GateRules, task: TaskAnswers) -> _Check:
    pairs = [
        (row.candidate.text, row.active.text) for row in asked if row.active is not None and not row.active.failure
    ]
    if not pairs:
        return [], []
    share = agreement(pairs)
    measured = Measured("agreement", share, None, rules.min_agreement, share >= rules.min_agreement)
    message = (
        f"it agrees with the active model on {share:.1%} of {len(pairs)} questions, {rules.min_agreement:.0%} are asked"
    )
    if share >= rules.min_agreement:
        return [measured], []
    ways = count_directions(task, [(active, candidate) for candidate, active in pairs])
    message += "; most often " + ", ".join(f"{way} ({count})" for way, count in ways) if ways else ""
    return [measured], [GateJudgement(GateVerdict.HOLD, "AGREEMENT", message, HeldFor.AGREEMENT)]


def _check_cost(answers: GateAnswers, rules: GateRules) -> _Check:
    """Compare device seconds; wall-clock time would include the live load beside the candidate.

    Device seconds vary with the load of the machine, and a slower model may be acceptable, so a person decides.
    """
    cost, before = answers.candidate_seconds, answers.active_seconds
    if min(cost, before) < rules.min_cost_seconds and not before >= rules.min_cost_seconds:
        return [], []
    most = before * rules.max_cost_factor
    measured = Measured("cost_seconds", cost, before, most, cost <= most)
    message = f"it computes {cost:.2f} s where the active model needs {before:.2f} s, {most:.2f} s are allowed"
    return [measured], [] if cost <= most else [GateJudgement(GateVerdict.HOLD, "COST", message, HeldFor.SLOWER)]


def _summarize(measured: Sequence[Measured], questions: int) -> str:
    named = {row.name: row for row in measured}
    if "accuracy" in named:
        row = named["accuracy"]
        before = "" if row.active is None else f", the active model {row.active:.3f}"
        return f"accuracy {row.candidate:.3f}{before}, {questions} questions"
    if "agreement" in named:
        return f"agreement {named['agreement'].candidate:.1%}, {questions} questions"
    return f"{questions} probes answered"


def expect_trial(answers: GateAnswers) -> ExpectedChanges:
    """The changes of answers that a trial has to expect: those between both models' golden answers."""
    pairs = [
        AnswerPair(row.expected, row.active.text, row.candidate.text, row.active.is_sure)
        for row in answers.questions
        if row.active is not None and not row.active.failure and not row.candidate.failure
    ]
    return expect_changes(pairs, answers.task)


def expect_changes(pairs: Sequence[AnswerPair], task: Task) -> ExpectedChanges:
    """Count the changes between both models' golden answers, by direction."""
    counts, better, worse = Counter[str](), Counter[str](), Counter[str]()
    changed = [pair for pair in pairs if pair.active != pair.candidate]
    for pair in changed:
        found = TASK_ANSWERS[task].find_directions(pair.active, pair.candidate)
        counts.update(found)
        better.update(set(found) if pair.candidate == pair.expected else ())
        worse.update(set(found) if pair.active == pair.expected else ())
    rows = tuple(ExpectedDirection(name, count, better[name], worse[name]) for name, count in counts.most_common())
    return ExpectedChanges(
        questions=len(pairs),
        changed=len(changed),
        better=sum(pair.candidate == pair.expected for pair in changed),
        worse=sum(pair.active == pair.expected for pair in changed),
        directions=rows[:MAX_DIRECTIONS],
        singles=sum(row.count == 1 for row in rows),
        sure_questions=sum(pair.is_sure for pair in pairs),
        sure_changed=sum(pair.is_sure for pair in changed),
    )


# What the checks measure.


def accuracy(right: Sequence[bool]) -> float:
    """Share of right answers, 0 to 1; 0 for none."""
    return sum(right) / len(right) if right else 0.0


def negative_flips(active_right: Sequence[bool], candidate_right: Sequence[bool]) -> int:
    """How many questions the active model has right and the candidate wrong."""
    return sum(a and not c for a, c in zip(active_right, candidate_right, strict=True))


def positive_flips(active_right: Sequence[bool], candidate_right: Sequence[bool]) -> int:
    """How many questions the active model has wrong and the candidate right."""
    return sum(c and not a for a, c in zip(active_right, candidate_right, strict=True))


def agreement(pairs: Sequence[tuple[str, str]]) -> float:
    """Share of questions that both answered alike, 0 to 1; 1 for none."""
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 1.0


def micro_f1(asked: Sequence[GoldenQuestion], task: TaskAnswers) -> tuple[float, float | None]:
    """F1 over the parts of all answers, of the candidate and of the active model; None if nothing serves."""
    candidate = sum_parts(task, [(row.expected, row.candidate.text) for row in asked])
    active = [(row.expected, row.active.text) for row in asked if row.active is not None]
    return candidate.f1, sum_parts(task, active).f1 if active else None


def list_differing(asked: Sequence[GoldenQuestion], most: int) -> tuple[Differing, ...]:
    """The first questions on which the two differ, or the candidate is wrong."""
    rows: list[Differing] = []
    for row in asked:
        active = "" if row.active is None else row.active.text or row.active.failure
        candidate = row.candidate.text or row.candidate.failure
        is_wrong = bool(row.expected) and candidate != row.expected
        if is_wrong or (row.active is not None and active != candidate):
            rows.append(Differing(row.item, row.text, row.expected, active, candidate))
    return tuple(rows[:most])


def list_label_pairs(asked: Sequence[GoldenQuestion], task: TaskAnswers) -> tuple[LabelPair, ...]:
    """Which labels both models gave to the questions that both answered, with how often; the most frequent first."""
    pairs = [
        (row.active.text, row.candidate.text)
        for row in asked
        if row.active is not None and not row.active.failure and not row.candidate.failure
    ]
    return tuple(LabelPair(*row) for row in count_label_pairs(task, pairs)[:MAX_LABEL_PAIRS])


def worse_by_chance(negative: int, positive: int) -> float:
    """Probability that an equally good candidate has at least this many negative flips: exact McNemar test, one-sided.

    Args:
        negative: questions that only the active model has right.
        positive: questions that only the candidate has right.
    """
    return at_least(negative, negative + positive, 0.5)


def under_by_chance(right: int, questions: int, min_accuracy: float) -> float:
    """Probability that a candidate of accuracy `min_accuracy` has at most `right` right answers: exact binomial."""
    return at_least(questions - right, questions, 1.0 - min_accuracy)
