"""How important this process is to the system: less while nobody waits for it, as inherited once it serves."""

import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CANDIDATE_NICENESS = 10  # added to the inherited one
MAX_NICENESS = 19
MAX_OOM_SCORE_ADJ = 1000
CAP_SYS_NICE = 23
_PROC = Path("/proc/self")


@dataclass(frozen=True, slots=True)
class Standing:
    """What was inherited, and what is added to it while nobody waits for this process."""

    niceness: int
    oom_score_adj: int
    added_oom_score: int
    may_be_nice: bool  # whether a raised niceness could be lowered again

    def apply(self, *, is_serving: bool) -> list[str]:
        """Take the standing of a serving or of a waiting process.

        Returns:
            What the system did not allow, in words; it costs priority, nothing else.
        """
        refused = []
        raised = 0 if is_serving else self.added_oom_score
        try:
            _write_oom_score(min(MAX_OOM_SCORE_ADJ, self.oom_score_adj + raised))
        except OSError as error:
            refused.append(f"oom_score_adj: {error.strerror}")
        if self.may_be_nice:
            wanted = self.niceness if is_serving else min(MAX_NICENESS, self.niceness + CANDIDATE_NICENESS)
            try:
                _renice(wanted)
            except OSError as error:
                refused.append(f"niceness: {error.strerror}")
        return refused


def inherited(added_oom_score: int) -> Standing:
    """Read what this process was given."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        score = int((_PROC / "oom_score_adj").read_text(encoding="ascii"))
    except (OSError, ValueError):
        score = 0
    may = may_lower(niceness, resource.getrlimit(resource.RLIMIT_NICE)[0], _capabilities())
    return Standing(niceness, score, added_oom_score, may)


def may_lower(niceness: int, nice_limit: int, capabilities: int) -> bool:
    """Pure: whether a process that raised its niceness could come back to this one.

    Args:
        niceness: to come back to.
        nice_limit: soft RLIMIT_NICE; 20 minus the lowest niceness allowed, -1 for no limit.
        capabilities: effective set, as a bit mask.
    """
    if capabilities >> CAP_SYS_NICE & 1 or nice_limit == resource.RLIM_INFINITY:
        return True
    return 20 - nice_limit <= niceness


def _renice(wanted: int) -> None:
    # On Linux niceness belongs to the thread. A thread born during a pass inherits from its maker,
    # who may not have had its turn: hence again until a pass finds nothing to do.
    for _ in range(3):
        late = [thread for thread in _threads() if _niceness(thread) not in (wanted, None)]
        if not late:
            return
        for thread in late:
            try:
                os.setpriority(os.PRIO_PROCESS, thread, wanted)
            except ProcessLookupError:
                continue  # it has just ended


def _threads() -> Iterator[int]:
    return (int(entry.name) for entry in (_PROC / "task").iterdir())


def _niceness(thread: int) -> int | None:
    try:
        return os.getpriority(os.PRIO_PROCESS, thread)
    except ProcessLookupError:
        return None


def _capabilities() -> int:
    try:
        lines = (_PROC / "status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)


def _write_oom_score(score: int) -> None:
    (_PROC / "oom_score_adj").write_text(f"{score}\n", encoding="ascii")
