"""How full a resource may be: health, the alerts and the dashboard have the same limits."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """Used shares of a resource at which health is DEGRADED and FAILED."""

    name: str
    degraded: float
    failed: float


MEMORY = UsageLimits("memory", 0.80, 0.90)
GPU_MEMORY = UsageLimits("GPU memory", 0.85, 0.95)
DISK = UsageLimits("disk", 0.90, 0.98)
DESCRIPTORS = UsageLimits("file descriptors", 0.80, 0.95)


def judge_usage(limits: UsageLimits, used: int, total: int) -> tuple[int, str]:
    """The level of a used share (0 OK, 1 DEGRADED, 2 FAILED), with a sentence if it is not OK."""
    if total <= 0:
        return 0, ""
    share = used / total
    level = 2 if share >= limits.failed else 1 if share >= limits.degraded else 0
    return (
        level,
        f"{limits.name} {share:.0%} used, limits {limits.degraded:.0%} and {limits.failed:.0%}" if level else "",
    )
