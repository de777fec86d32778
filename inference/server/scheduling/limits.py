"""Time limits of a runner's work, from measured cost, and whether a heartbeat shows that one is exceeded. Pure."""

from dataclasses import dataclass

from hotslot.runner.v1 import runner_pb2
from inference.call_cost import CallCost

WALL_FACTOR = 10  # a device call on a CPU may take so many times its limit: other processes need CPUs too
LOST_HEARTBEATS = 100  # in a row that report no item, while items have no outcome: the runner has lost them


@dataclass(frozen=True, slots=True)
class LimitRules:
    """How time limits are computed."""

    min_timeout_seconds: float  # lower bound of the limit of a device call
    factor: float  # times the expected time of the call
    prepare_timeout_seconds: float = 30.0  # of one item


def limit_seconds(cost: CallCost, rows: int, rules: LimitRules) -> float:
    """The time limit of a device call of `rows` rows, seconds: a runner that exceeds it is killed as stuck."""
    return max(rules.min_timeout_seconds, rules.factor * cost.expected(rows))


def find_hang(heartbeat: runner_pb2.Heartbeat, call_limit: float, prepare_limit: float, *, is_cpu: bool) -> str:
    """A sentence if the runner's device call or a preparation exceeds its limit; else empty.

    On a GPU a call is judged by wall-clock time. On a CPU by the CPU seconds of the device thread, because other
    processes and a quota of the container slow a healthy call down; a thread that sleeps in the call needs no CPU, so
    the time for which it sleeps has the same limit. Preparations do not count against the call.

    Args:
        heartbeat: the last one.
        call_limit: of the call that runs, seconds.
        prepare_limit: of one preparation, seconds.
        is_cpu: whether the call runs on a CPU.
    """
    if heartbeat.oldest_preparation_seconds >= prepare_limit:
        return f"a preparation takes {heartbeat.oldest_preparation_seconds:.2f} s, limit {prepare_limit:.2f} s"
    if not heartbeat.rows_on_step:
        return ""
    measures = [(heartbeat.seconds_on_step, call_limit, "")]
    if is_cpu:
        measures = [
            (heartbeat.cpu_seconds_on_step, call_limit, " of CPU time"),
            (heartbeat.seconds_asleep, call_limit, " of sleep"),
            (heartbeat.seconds_on_step, WALL_FACTOR * call_limit, ""),
        ]
    for seconds, limit, kind in measures:
        if seconds >= limit:
            return f"a device call of {heartbeat.rows_on_step} rows takes {seconds:.2f} s{kind}, limit {limit:.2f} s"
    return ""
