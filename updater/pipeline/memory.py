"""What is told when something does not fit in a device's memory: the numbers, in a sentence. Pure."""

from updater.results import Failed, Shortage

REASONS = frozenset({"DOES_NOT_FIT", "OUT_OF_MEMORY"})  # of a load: planned, and met
_GIB = 1 << 30


def sentence(revision: str, fault: Failed) -> str:
    """Why a load did not fit, for people.

    Args:
        revision: that was loaded.
        fault: with one of `REASONS`.
    """
    shortage = fault.shortage or Shortage("")
    where = f" on {shortage.device}" if shortage.device else " in memory"
    if fault.reason == "DOES_NOT_FIT":
        return f"{revision} does not fit beside what serves{where}" + _numbers(shortage)
    return f"{revision} ran out of memory{where} beside what serves" + _numbers(shortage)


def _numbers(shortage: Shortage) -> str:
    if not shortage.needed_bytes:
        return ""
    free = f", {shortage.free_bytes / _GIB:.2f} GiB are free" if shortage.free_bytes >= 0 else ""
    return f": it needs {shortage.needed_bytes / _GIB:.2f} GiB{free}"
