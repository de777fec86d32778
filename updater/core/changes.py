"""Tests whether a revision on trial changes more answers than the golden set predicts. Pure.

A better model changes answers too, so that changes alone prove nothing. The golden set shows how many to expect, and in
which directions; what is tested is whether live traffic has more. docs/explanation/decisions/changed-answers.md has the
options and the prices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, inf, lgamma, log, log1p

from updater.core.comparison import AnswerComparison, ChangeRow, ExpectedChanges
from updater.core.rules import CompareRules

ALL_CHANGES, SURE_CHANGES, NEW_DIRECTIONS = "all changes", "changes of sure answers", "directions new to the golden set"
_GOLDEN_PART = 0.9  # of the probability of a false alarm, spent on the golden set's uncertainty; the rest on the looks
_BETTER_BY_CHANCE = 0.05  # significance of the sign test that calls a direction better
# How the probability of a false alarm is divided.
_WEIGHT_OF_SURE, _WEIGHT_OF_ALL, _WEIGHT_OF_DIRECTIONS = 0.5, 0.25, 0.25
_MAX_NAMED = 3  # directions named in a sentence
_MAX_TERMS = 500  # of the continued fraction; it needs about sqrt(questions)
_TINY = 1e-300
_BISECTIONS = 50
# Alternatives that the evidence is averaged over: odds from 1.15 to 90 times those of the bound, evenly by logarithm.
_ODDS_RATIOS = tuple(exp(0.15 * step) for step in range(1, 31))


@dataclass(frozen=True, slots=True)
class ChangeTest:
    """One kind of change, on the golden set and on live traffic."""

    name: str  # a direction, `ALL_CHANGES` or `NEW_DIRECTIONS`
    expected_count: int  # on the golden set
    questions: int  # all, or the sure ones
    count: int  # on live traffic
    compared: int  # all answers, or the sure ones
    bound: float  # largest share that the golden set allows
    evidence: float  # that the true share is larger: 1 is none
    needed: float  # evidence that is enough

    @property
    def share(self) -> float:
        """The share of live answers."""
        return self.count / self.compared if self.compared else 0.0

    @property
    def expected_share(self) -> float:
        """The share of golden answers."""
        return self.expected_count / self.questions if self.questions else 0.0

    @property
    def is_beyond(self) -> bool:
        """Whether there is enough evidence that live traffic changes more than the golden set allows."""
        return self.evidence >= self.needed

    @property
    def is_doubtful(self) -> bool:
        """Whether live traffic has changed more than the golden set allows, with or without enough evidence."""
        return self.share > self.bound

    @property
    def row(self) -> ChangeRow:
        """The numbers as evidence."""
        counts = (self.expected_count, self.questions, self.count, self.compared)
        return ChangeRow(self.name, *counts, self.bound, not self.is_beyond)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of change before it is tested."""

    name: str
    weight: float  # share of the probability of a false alarm
    expected_count: int
    questions: int
    count: int
    compared: int


def evaluate_changes(expected: ExpectedChanges, live: AnswerComparison, rules: CompareRules) -> tuple[ChangeTest, ...]:
    """Test all changes together, those of sure answers, each direction of the golden set, and all other directions.

    The probability of a false alarm is at most about `rules.false_alarms` for a whole trial, however often this is
    called: a part of it is the probability that the golden set shows too few changes by chance, the other is that of
    the looks at live traffic, and both are divided among the kinds of change.
    """
    scale = live.requests / live.compared if live.compared else 1.0
    return tuple(_test(kind, min(1.0, scale), rules) for kind in _list_kinds(expected, live))


def find_beyond(tests: tuple[ChangeTest, ...]) -> ChangeTest | None:
    """The kind of change with the most evidence beyond its bound; None if there is none."""
    beyond = [test for test in tests if test.is_beyond]
    return max(beyond, key=lambda test: test.evidence / test.needed, default=None)


def is_called_better(better: int, worse: int) -> bool:
    """Whether the golden set calls changes better: exact sign test, one-sided."""
    return at_least(better, better + worse, 0.5) <= _BETTER_BY_CHANCE


def describe_beyond(test: ChangeTest, expected: ExpectedChanges, live: AnswerComparison) -> str:
    """Why changed answers are too many, for people: direction, counts, what was expected, and the bound."""
    whole = "compared answers of which the active model is sure" if test.name == SURE_CHANGES else "compared answers"
    what = {ALL_CHANGES: "changes", SURE_CHANGES: "changes"}.get(test.name, test.name)
    sentence = (
        f"{what} in {test.count} of {test.compared} {whole} ({test.share:.1%}), where the golden set predicts "
        f"{test.expected_share:.1%} and at most {test.bound:.1%} ({test.expected_count} of {test.questions} questions)"
    )
    rows = sorted(live.directions, key=lambda row: -row.count)[:_MAX_NAMED]
    ways = "; most often " + ", ".join(f"{row.direction} ({row.count})" for row in rows) if rows else ""
    golden = f"{expected.better} of {expected.changed} changed golden answers are better and {expected.worse} worse"
    return f"{sentence}{ways}; {golden}" if expected.changed else f"{sentence}{ways}"


def _list_kinds(expected: ExpectedChanges, live: AnswerComparison) -> Iterator[_Kind]:
    """The kinds of change and their weights, which depend on the golden set alone.

    Changes of answers of which the active model is sure tell most: an equally good or a better model changes the
    others above all, a new weakness does not keep to them. A direction that the golden set calls better is not tested
    alone, it counts in all changes. How often directions occur that the golden set lacks is estimated by the number of
    those that occurred once (I. J. Good, "The population frequencies of species and the estimation of population
    parameters", Biometrika 40, 1953).
    """
    counts = {row.direction: row.count for row in live.directions}
    named = {row.direction for row in expected.directions}
    rows = [row for row in expected.directions if not is_called_better(row.better, row.worse)]
    whole = (expected.questions, live.compared)
    yield _kind(ALL_CHANGES, _WEIGHT_OF_ALL, expected.changed, live.changed, whole)
    sure = (expected.sure_questions, live.sure_compared)
    yield _kind(SURE_CHANGES, _WEIGHT_OF_SURE, expected.sure_changed, live.sure_changed, sure)
    weight = _WEIGHT_OF_DIRECTIONS / (len(rows) + 1)
    for row in rows:
        yield _kind(row.direction, weight, row.count, counts.get(row.direction, 0), whole)
    new = sum(count for direction, count in counts.items() if direction not in named)
    yield _kind(NEW_DIRECTIONS, weight, expected.singles, new, whole)


def _kind(name: str, weight: float, expected_count: int, count: int, whole: tuple[int, int]) -> _Kind:
    questions, compared = whole
    return _Kind(name, weight, expected_count, questions, min(count, compared), compared)  # an address changes twice


def _test(kind: _Kind, scale: float, rules: CompareRules) -> ChangeTest:
    chance = rules.false_alarms * kind.weight
    bound = min(1.0, find_upper_bound(kind.expected_count, kind.questions, chance * _GOLDEN_PART) + rules.margin)
    # The answers to one request are about one picture: it counts as one observation, the share of its answers.
    return ChangeTest(
        kind.name,
        kind.expected_count,
        kind.questions,
        kind.count,
        kind.compared,
        bound,
        weigh_evidence(kind.count * scale, kind.compared * scale, bound),
        1.0 / (chance * (1.0 - _GOLDEN_PART)),
    )


# Statistics of shares: an exact probability, a bound from a fixed sample, and evidence for any time.


def at_least(successes: int, trials: int, chance: float) -> float:
    """Probability of at least `successes` successes in `trials` trials."""
    if successes <= 0:
        return 1.0
    if successes > trials or chance <= 0.0:
        return 0.0
    if chance >= 1.0:
        return 1.0
    # By logarithms: ten thousand questions have more ways than a float can count.
    logs = (
        lgamma(trials + 1)
        - lgamma(count + 1)
        - lgamma(trials - count + 1)
        + count * log(chance)
        + (trials - count) * log(1.0 - chance)
        for count in range(successes, trials + 1)
    )
    return min(1.0, sum(map(exp, logs)))


@lru_cache(maxsize=4096)
def find_upper_bound(seen: float, asked: int, chance: float) -> float:
    """The share that is exceeded with a probability of `chance`, after `seen` of `asked` questions had the property.

    The quantile of the posterior with Jeffreys' prior, Beta(seen + ½, asked - seen + ½): its coverage is close to the
    nominal one, where the exact interval of Clopper and Pearson is far too wide for small samples (L. D. Brown,
    T. T. Cai and A. DasGupta, "Interval estimation for a binomial proportion", Statistical Science 16, 2001).
    1 if nothing was asked, or all questions had it.
    """
    if asked <= 0 or seen >= asked:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2.0
        if beta_below(middle, seen + 0.5, asked - seen + 0.5) < 1.0 - chance:
            low = middle
        else:
            high = middle
    return high


def weigh_evidence(seen: float, asked: float, most: float) -> float:
    """Evidence that a share is above `most`, after `seen` of `asked` answers had the property: 1 is none.

    If the share of each answer, given those before it, is at most `most`, the probability that this value ever reaches
    x is at most 1 / x, however often one looks and whenever one stops (J. Ville, "Étude critique de la notion de
    collectif", 1939). It is the wealth of a bet at fair odds, averaged over alternatives: each likelihood ratio of a
    larger share against `most` is a supermartingale, and so is their mean (H. Robbins, "Statistical methods related to
    the law of the iterated logarithm", Annals of Mathematical Statistics 41, 1970; I. Waudby-Smith and A. Ramdas,
    "Estimating means of bounded random variables by betting", JRSS B 86, 2024). It depends on the counts alone, so the
    looks that were missed need no record. An observation may also be a number between 0 and 1, such as the share of a
    request's answers: `seen` is then the sum, and the bound holds since the exponential function is convex.
    """
    if asked <= 0 or most >= 1.0:
        return 1.0
    if most <= 0.0:
        return inf if seen else 1.0
    odds = most / (1.0 - most)
    rest = asked - seen
    logs = [seen * (log(ratio) - _log_mean(ratio, odds)) - rest * _log_mean(ratio, odds) for ratio in _ODDS_RATIOS]
    return _mean_of_logs(logs)


def _log_mean(ratio: float, odds: float) -> float:
    """Logarithm of (1 - most) / (1 - alternative), where the alternative has `ratio` times the odds."""
    return log1p(ratio * odds) - log1p(odds)


def _mean_of_logs(logs: Sequence[float]) -> float:
    largest = max(logs)
    if largest > 700.0:  # noqa: PLR2004  near the end of the floats
        return inf
    return sum(map(exp, logs)) / len(logs)


def beta_below(x: float, a: float, b: float) -> float:
    """Probability that a Beta(a, b) variable is below x: the regularized incomplete beta function.

    The continued fraction 8.17.22 of the Digital Library of Mathematical Functions, by the method of Lentz as modified
    by Thompson and Barnett (Journal of Computational Physics 64, 1986).
    """
    if x <= 0.0:
        return 0.0
    if x >= 1.0:
        return 1.0
    if x > (a + 1.0) / (a + b + 2.0):  # where the fraction of the complement converges
        return 1.0 - beta_below(1.0 - x, b, a)
    factor = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    value, c, d = 1.0, 1.0, 0.0
    for term in range(_MAX_TERMS):
        step = term // 2
        if term == 0:
            part = 1.0
        elif term % 2 == 0:
            part = step * (b - step) * x / ((a + 2 * step - 1) * (a + 2 * step))
        else:
            part = -(a + step) * (a + b + step) * x / ((a + 2 * step) * (a + 2 * step + 1))
        d = 1.0 / _away_from_zero(1.0 + part * d)
        c = _away_from_zero(1.0 + part / c)
        value *= c * d
        if term and abs(1.0 - c * d) < 1e-12:  # noqa: PLR2004
            break
    return min(1.0, factor * (value - 1.0))


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
