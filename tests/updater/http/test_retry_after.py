"""The Retry-After header in its two forms."""

from datetime import UTC, datetime

import pytest

from updater.http.client import parse_retry_after

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOUR = 3600.0


def parse(value: str) -> float:
    """Read a header at NOW, bounded by an hour."""
    return parse_retry_after(value, NOW, HOUR)


@pytest.mark.parametrize(
    ("value", "seconds"), [("0", 0.0), ("17", 17.0), (" 17 ", 17.0), ("1.5", 1.5), ("3601", HOUR), ("9" * 64, HOUR)]
)
def test_seconds_are_limited_by_the_bound(value: str, seconds: float) -> None:
    """With or without a fraction, which some servers send."""
    assert parse(value) == seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("Fri, 02 Jan 2026 03:04:35 GMT", 30.0),
        ("Fri, 02 Jan 2026 04:04:35 +0100", 30.0),
        ("Fri, 02 Jan 2026 03:04:35 -0000", 30.0),
        ("Friday, 02-Jan-26 03:04:35 GMT", 30.0),  # obsolete forms that RFC 9110 asks to be read
        ("Fri Jan  2 03:04:35 2026", 30.0),
        ("Fri, 02 Jan 2026 03:04:05 GMT", 0.0),
        ("Thu, 01 Jan 2026 03:04:35 GMT", 0.0),
        ("Sat, 03 Jan 2026 03:04:35 GMT", HOUR),
        ("Fri, 31 Dec 9999 23:59:59 GMT", HOUR),
    ],
)
def test_a_date_is_relative_to_now_and_limited_by_the_bound(value: str, seconds: float) -> None:
    """A date in the past gives 0."""
    assert parse(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        "+1",
        "1e3",
        "soon",
        "nan",
        "inf",
        "5, 10",
        "\u0663",
        "1" * 65,
        "Fri, 02 Jan 2026",
        "Fri, 99 Jan 2026 03:04:35 GMT",
        "Fri, 02 Jan 99999999999 03:04:35 GMT",
        "Fri, 02 Jan 2026 03:04:35 +99999999999999999999",
        "Fri, 02 Jan 2026 \x00 GMT",
        "2026-01-02T03:04:35Z",
    ],
)
def test_an_invalid_value_gives_zero(value: str) -> None:
    """It does not raise."""
    assert parse(value) == 0.0
