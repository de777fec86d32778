"""Statistics of shares: an exact probability, a bound from a fixed sample, and evidence for any time. Pure."""

from collections.abc import Sequence
from functools import lru_cache
from math import exp, inf, lgamma, log, log1p

_MAX_TERMS = 500  # of the continued fraction; it needs about sqrt(questions)
_TINY = 1e-300
_BISECTIONS = 50
# Alternatives that the evidence is averaged over: odds from 1.15 to 90 times those of the bound, evenly by logarithm.
_ODDS_RATIOS = tuple(exp(0.15 * step) for step in range(1, 31))


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
