"""The Retry-After header, in both of its forms. Pure."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_MAX_CHARS = 64
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")


def parse_retry_after(value: str, now: datetime, max_seconds: float) -> float:
    """Seconds that the other side asks to wait, at most `max_seconds`; 0 if it names none, or a time that has passed.

    Args:
        value: of the header: a number of seconds, or an HTTP date; anything else counts as 0.
        now: by the wall clock, with its time zone; what a date is compared with.
        max_seconds: upper bound of the result.
    """
    text = value.strip()
    if len(text) > _MAX_CHARS:
        return 0.0
    if _SECONDS.fullmatch(text):
        return min(float(text), max_seconds)
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0.0
    seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
    return min(max(0.0, seconds), max_seconds)
