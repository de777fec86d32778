"""Who calls, and with what rights: the caller's name, priority, weight and quota. Pure; time is an argument."""

from collections.abc import Iterable, Mapping

from common.records import record
from inference.server.request import Flow, Priority

MAX_NAME_CHARS = 128
BURST_SECONDS = 1.0  # a quota may be used ahead by this much


@record
class CallerRules:
    """One configured caller."""

    name: str
    priority: Priority | None = None  # None: unary calls are interactive, stream items are bulk
    weight: float = 1.0  # share of device time, relative to other callers of the same priority
    rows_per_second: float = 0.0  # quota; 0 for none


class Quota:
    """Rows a second that a caller may use. A request may exceed what is left; the next then waits longer."""

    def __init__(self, rows_per_second: float, now: float) -> None:
        self._rate = rows_per_second
        self._rows = rows_per_second * BURST_SECONDS
        self._at = now

    def wait_seconds(self, now: float) -> float:
        """Seconds until the next request is within the quota; 0 if it is now."""
        self._refill(now)
        return 0.0 if self._rows > 0 else -self._rows / self._rate + 1e-3

    def use(self, rows: int, now: float) -> None:
        """Count an admitted request."""
        self._refill(now)
        self._rows -= rows

    def _refill(self, now: float) -> None:
        self._rows = min(self._rate * BURST_SECONDS, self._rows + self._rate * max(0.0, now - self._at))
        self._at = now


class Caller:
    """One caller of this server, for the time of a call."""

    __slots__ = ("_rules", "name", "quota")

    def __init__(self, rules: CallerRules, quota: Quota | None = None) -> None:
        self._rules = rules
        self.name = rules.name
        self.quota = quota

    def unary_flow(self) -> Flow:
        """The flow of its unary calls."""
        return self._flow(Priority.INTERACTIVE, 0)

    def stream_flow(self, number: int) -> Flow:
        """The flow of one of its streams; `number` is at least 1 and not used by another open stream."""
        return self._flow(Priority.BULK, number)

    def quota_wait(self, now: float) -> float:
        """Seconds until its next request is within its quota; 0 without one."""
        return 0.0 if self.quota is None else self.quota.wait_seconds(now)

    def use_quota(self, rows: int, now: float) -> None:
        """Count an admitted request against its quota."""
        if self.quota is not None:
            self.quota.use(rows, now)

    def _flow(self, default: Priority, stream: int) -> Flow:
        rules = self._rules
        return Flow(default if rules.priority is None else rules.priority, rules.name, rules.weight, stream)


class Callers:
    """Finds the caller of a call: by its token, else the configured metadata key, its certificate, its connection."""

    def __init__(self, rules: Iterable[CallerRules], metadata_key: str, now: float) -> None:
        self.configure(rules, metadata_key, now)

    def configure(self, rules: Iterable[CallerRules], metadata_key: str, now: float) -> None:
        """Replace the rights of all callers, for calls that begin from now on."""
        self._key = metadata_key.lower()
        self._configured: Mapping[str, Caller] = {
            row.name: Caller(row, Quota(row.rows_per_second, now) if row.rows_per_second > 0 else None) for row in rules
        }

    def find(
        self, metadata: Iterable[tuple[str, str | bytes]], peer: str, token_name: str = "", certificate_name: str = ""
    ) -> Caller:
        """The caller of a call.

        Args:
            metadata: of the call.
            peer: address of its connection, as gRPC writes it.
            token_name: to whom its token was given; empty without one.
            certificate_name: of the client's certificate; empty without one.
        """
        name: str | bytes = token_name
        if not name and self._key:
            name = next((value for key, value in metadata if key == self._key), "")
        if isinstance(name, bytes):
            name = name.decode("utf-8", "replace")
        name = (name or certificate_name)[:MAX_NAME_CHARS] or peer
        return self._configured.get(name) or Caller(CallerRules(name))


@record
class Source:
    """Where a request comes from."""

    caller: Caller
    flow: Flow

    @property
    def is_stream(self) -> bool:
        """Whether it is an item of a stream, which is held back instead of refused."""
        return self.flow.stream > 0


def unary_source(caller: Caller) -> Source:
    """The source of a caller's unary calls."""
    return Source(caller, caller.unary_flow())


UNNAMED = unary_source(Caller(CallerRules("")))
