"""What the server holds for its callers in memory: which message is read next, and which upload is ended.

gRPC says how long a message is only when it is complete, and then it is in memory. So three things are added up:

* complete messages, each until nothing refers to its picture or its texts any more: waiting, computed, cancelled, not
  yet sent;
* open calls, at a fixed size each;
* what else the process has grown by: incomplete messages, mostly. It is measured, not counted.

A message is read when the sum has room for it: for the size of its connection's last message, or a guess. Until then
the transport buffers a small part of it and holds its caller back. An upload is ended if it is too slow, and when more
is held than the limit. All decisions are pure; the time is an argument. Loop thread only.
"""

import math
import weakref
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from common.errors import DeadlineMissed, HotslotError, NotReady, Overloaded

LOOKAHEAD_BYTES = 128 << 10  # that gRPC buffers of a message that is not being read
CALL_BYTES = 24 << 10  # of an open call: gRPC's and Python's objects
STRICT_BYTES = 128 << 20  # a limit up to which a first message is expected to have the largest size
MIN_FIRST_BYTES = 1 << 20
FIRST_FACTOR = 8  # a later message is expected to be like the last one, and at least this part of a first one
YOUNG_SECONDS = 0.5  # an upload's expected size counts for so long; what has arrived later is measured
CALM_SHARE = 8  # part of the limit that is measured at most while nobody sends much
CALM_YOUNG_SECONDS = 0.06  # the same then, a little longer than between two measurements
MIN_WAITING = 256  # messages that may wait to be read, whatever the limit
MAX_CONNECTIONS = 4096  # that are remembered although they have nothing in progress
MAX_WAIT_SECONDS = 5.0
ALONE_SECONDS = 0.25  # between two messages that are read although nothing seems to be free
LARGE_BYTES = 1 << 20  # of a message whose pieces are worth giving back
GIVE_BACK_BYTES = 8 << 20
RETRY_SECONDS = 0.5
CUT_SECONDS = 0.04  # until the memory of ended uploads is free again
CUT_MARGIN = 1.2
PATIENCE_SECONDS = 0.25  # a message that waits for longer ends the oldest upload, if that is slow
SLOW_SECONDS = 2.0
STALL_SECONDS = 4.0  # without a byte from the connection, in the middle of a message
CHECK_SECONDS = 0.5  # between two checks for what is stalled or idle
IDLE_BYTES = 4 << 20  # that nothing explains, before stalled and idle streams are looked for
IDLE_BYTES_EACH = 16 << 10
IDLE_EFFECT = 0.9  # of what was measured before a round; if more is left, the streams did not hold it
FAT_SHARE = 32  # part of the limit that must be unexplained before buffers of idle connections are freed
DRIFT_SHARE = 0.25  # of the limit: most growth that is taken for the process's own


@dataclass(frozen=True, slots=True)
class HeldRules:
    """Limits."""

    max_bytes: int
    max_message_bytes: int
    upload_seconds: float  # for one message to arrive

    @property
    def is_strict(self) -> bool:
        """Whether a burst that is not expected could exceed the limit by much before it is measured."""
        return self.max_bytes <= STRICT_BYTES

    @property
    def first_bytes(self) -> int:
        """Expected size of a connection's first message.

        A burst of large messages may exceed it by as much as the network brings before that is measured. A high limit
        has room for this, so that many small first messages are read at once; a low one has not.
        """
        share = (STRICT_BYTES / self.max_bytes) ** 2
        return int(min(self.max_message_bytes, max(MIN_FIRST_BYTES, share * self.max_message_bytes)))

    @property
    def max_waiting(self) -> int:
        """Messages that may wait to be read: what gRPC buffers of them is a quarter of the limit."""
        return max(MIN_WAITING, self.max_bytes // 4 // LOOKAHEAD_BYTES)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a connection has received."""

    received_bytes: int
    quiet_seconds: float  # since the last byte


class Connections(Protocol):
    """The server's connections, by gRPC's names of the peers."""

    def read_traffic(self, names: Collection[str]) -> Mapping[str, Traffic]:
        """The traffic of those that are known."""
        ...

    def close_idle(self, in_use: Collection[str]) -> None:
        """Close those that have no call and have received much: gRPC keeps large buffers for them."""
        ...


class Stream(Protocol):
    """The items of a stream."""

    @property
    def open_items(self) -> int:
        """Those that wait or are computed."""
        ...

    @property
    def unwritten_items(self) -> int:
        """Those whose outcome the caller has not taken; open ones too."""
        ...


class Upload:
    """A message that is to be read, or is being read.

    Args:
        connection: gRPC's name of the peer.
        stream: that it belongs to; None for a unary call.
    """

    __slots__ = ("connection", "expected", "is_reserved", "since", "stream")

    def __init__(self, connection: str, stream: Stream | None = None) -> None:
        self.connection = connection
        self.stream = stream
        self.since = 0.0  # when it was asked for; then, when its reading began
        self.expected = 0
        self.is_reserved = False  # whether its expected size counts

    @property
    def open_items(self) -> int:
        """Items of its stream that wait or are computed."""
        return 0 if self.stream is None else self.stream.open_items

    @property
    def is_idle_stream(self) -> bool:
        """Whether it belongs to a stream without items, so that it is allowed to take any time."""
        return self.stream is not None and not self.stream.unwritten_items

    def on_turn(self) -> None:
        """It may be read now, after it had to wait."""
        raise NotImplementedError

    def on_end(self, error: HotslotError) -> None:
        """It is not read any further."""
        raise NotImplementedError


class Memory(Protocol):
    """The memory of the process."""

    def read_growth(self) -> int:
        """Bytes in use beyond those of a server without calls."""
        ...

    def give_back(self) -> None:
        """Return free memory to the system."""
        ...


@dataclass(slots=True)
class _Connection:
    """What a connection has in progress."""

    expected: int  # size of its next message
    complete_bytes: int = 0  # of all messages until now
    message_bytes: int = 0  # of those that are held
    reserved: int = 0
    messages: int = 0
    uploads: int = 0
    calls: int = 0

    @property
    def is_in_use(self) -> bool:
        return bool(self.messages or self.uploads or self.calls)


@dataclass(slots=True)
class _Measured:
    """The growth that messages and calls do not explain."""

    bytes: int = 0
    drift: int = 0  # of it, what is the process's own
    steady_since: float = math.inf
    steady_bytes: int = 0
    before_round: float = math.inf  # what was measured when idle streams were last ended


class HeldBytes:
    """The messages, calls and uploads of all connections."""

    def __init__(self, rules: HeldRules, connections: Connections, memory: Memory) -> None:
        self.rules = rules
        self.message_bytes = 0
        self.calls = 0
        self._network = connections
        self._memory = memory
        self._large_bytes = 0  # of large messages since memory was last given back
        self._reserved = 0  # expected bytes of young uploads
        self._measured = _Measured()
        self._connections: dict[str, _Connection] = {}
        self._reading: dict[Upload, None] = {}  # in the order in which they began
        self._waiting: dict[Upload, None] = {}
        self._young: deque[tuple[float, Upload]] = deque()
        # By the id of the reference: its own hash and equality are those of all bytes of the picture.
        self._views: dict[int, tuple[weakref.ref[object], _Connection, int]] = {}
        self._gone: deque[weakref.ref[object]] = deque()  # filled by the garbage collector, on any thread
        self._next_cut = self._next_check = self._next_alone = -math.inf

    @property
    def measured_bytes(self) -> int:
        """Bytes of incomplete messages."""
        return self._measured.bytes - self._measured.drift

    @property
    def total(self) -> int:
        """All bytes held, or expected of young uploads; from any thread."""
        return self.message_bytes + CALL_BYTES * self.calls + self.measured_bytes + self._reserved

    @property
    def is_busy(self) -> bool:
        """Whether uploads could soon exceed the limit: to be measured more often."""
        return bool(self._reading) and self.total > self.rules.max_bytes // 2

    # Calls and messages.

    def open_call(self, connection: str) -> None:
        """Count a call; `close_call` must follow."""
        self.calls += 1
        self._connection(connection).calls += 1

    def close_call(self, connection: str) -> None:
        """Subtract a call."""
        self.calls -= 1
        self._connections[connection].calls -= 1

    def hold(self, connection: str, holder: object, size_bytes: int) -> None:
        """Count a message until nothing refers to its picture, or its texts, any more."""
        row = self._connection(connection)
        reference = weakref.ref(holder, self._gone.append)
        self._views[id(reference)] = reference, row, size_bytes
        row.messages += 1
        row.message_bytes += size_bytes
        self.message_bytes += size_bytes

    def _collect(self) -> None:
        while self._gone:
            _, row, size_bytes = self._views.pop(id(self._gone.popleft()))
            self.message_bytes -= size_bytes
            row.messages -= 1
            row.message_bytes -= size_bytes

    def _connection(self, name: str) -> _Connection:
        row = self._connections.get(name)
        if row is None:
            row = self._connections[name] = _Connection(self.rules.first_bytes)
        return row

    # Reading.

    def ask(self, upload: Upload, now: float) -> bool:
        """Ask to read a message; `finish` must follow.

        Returns:
            Whether it may be read now; if not, `on_turn` or `on_end` will be called.

        Raises:
            Overloaded: too many wait.
        """
        self._collect()
        self._expire_young(now)
        row = self._connection(upload.connection)
        upload.since, upload.expected = now, row.expected
        if not self._waiting and self._has_room(upload, row, now):
            self._begin(upload, row, now)
            return True
        if len(self._waiting) >= self.rules.max_waiting:
            raise self._full_error()
        row.uploads += 1
        self._waiting[upload] = None
        return False

    def finish(self, upload: Upload, size_bytes: int | None) -> None:
        """Stop reading, or waiting: the message is complete and has this size, or the upload has ended."""
        row = self._connections[upload.connection]
        self._waiting.pop(upload, None)
        self._reading.pop(upload, None)
        self._unreserve(upload)
        row.uploads -= 1
        if size_bytes is not None:
            row.complete_bytes += size_bytes
            row.expected = max(size_bytes, self.rules.first_bytes // FIRST_FACTOR)

    def count_arrived(self, size_bytes: int) -> None:
        """A message has arrived as one object: what gRPC held of it in pieces is free."""
        if size_bytes < LARGE_BYTES:
            return
        self._large_bytes += size_bytes
        if self._large_bytes >= GIVE_BACK_BYTES:
            self._large_bytes = 0
            self._memory.give_back()

    def _begin(self, upload: Upload, row: _Connection, now: float) -> None:
        row.uploads += 1
        row.reserved += upload.expected
        self._reserved += upload.expected
        upload.is_reserved = True
        upload.since = now
        self._reading[upload] = None
        self._young.append((now, upload))

    def _has_room(self, upload: Upload, row: _Connection, now: float) -> bool:
        """Whether a message may be read. One that is alone may, whatever its size and whatever is measured.

        Incomplete messages have half of the limit, because they grow until it is measured; one connection has half,
        unless it is the only one.
        """
        if not self.message_bytes and not self._reserved and now >= self._next_alone:
            self._next_alone = now + ALONE_SECONDS
            return True
        half, limit = self.rules.max_bytes // 2, self.rules.max_bytes
        if self.total + upload.expected > limit or self.measured_bytes + self._reserved + upload.expected > half:
            return False
        own = row.message_bytes + row.reserved
        return own >= self.message_bytes + self._reserved or own + upload.expected <= half

    def _unreserve(self, upload: Upload) -> None:
        if upload.is_reserved:
            upload.is_reserved = False
            self._reserved -= upload.expected
            self._connections[upload.connection].reserved -= upload.expected

    def _expire_young(self, now: float) -> None:
        is_calm = not self.rules.is_strict and self.measured_bytes <= self.rules.max_bytes // CALM_SHARE
        young_seconds = CALM_YOUNG_SECONDS if is_calm else YOUNG_SECONDS
        while self._young and (now - self._young[0][0] > young_seconds or not self._young[0][1].is_reserved):
            self._unreserve(self._young.popleft()[1])

    def _full_error(self) -> Overloaded:
        return Overloaded(
            f"requests hold {self.total} bytes, limit {self.rules.max_bytes}", retry_after_seconds=RETRY_SECONDS
        )

    # Ticks.

    def tick(self, now: float) -> None:
        """Measure; begin and end uploads."""
        self._collect()
        self._expire_young(now)
        self._measure(now, self._memory.read_growth() - self.message_bytes - CALL_BYTES * self.calls)
        self._end_late(now)
        if self._reading and now >= self._next_cut:
            self._end_over(now)
        if now >= self._next_check and self.measured_bytes > IDLE_BYTES:
            self._next_check = now + CHECK_SECONDS
            self._end_stalled(now)
            self._end_idle(now)
            if self.measured_bytes > self.rules.max_bytes // FAT_SHARE:
                self._network.close_idle({name for name, row in self._connections.items() if row.calls})
        self._begin_waiting(now)
        if len(self._connections) > MAX_CONNECTIONS:
            self._connections = {name: row for name, row in self._connections.items() if row.is_in_use}

    def _measure(self, now: float, unexplained: int) -> None:
        measured = self._measured
        measured.bytes = max(0, unexplained)
        if abs(unexplained - measured.steady_bytes) > IDLE_BYTES // 4:
            measured.steady_bytes, measured.steady_since = unexplained, now
        oldest = next(iter(self._reading), None)
        is_quiet = oldest is None or now - oldest.since < YOUNG_SECONDS
        if is_quiet and now - measured.steady_since >= YOUNG_SECONDS:
            self._set_drift(measured.bytes)
        measured.drift = min(measured.drift, measured.bytes)

    def _set_drift(self, growth: int) -> None:
        self._measured.drift = max(0, min(growth, int(DRIFT_SHARE * self.rules.max_bytes)))
        self._measured.before_round = math.inf

    def _end_late(self, now: float) -> None:
        """End the messages of unary calls that do not arrive in time, and waits that are too long.

        A stream waits on while complete messages hold most of the limit: these will be computed.
        """
        limit = self.rules.upload_seconds
        for upload in [one for one in self._reading if one.stream is None and now - one.since >= limit]:
            upload.on_end(_slow_error(f"the message was not complete within {limit:g} s"))
        is_clogged = self.message_bytes < self.rules.max_bytes // 2
        for upload in [one for one in self._waiting if now - one.since >= MAX_WAIT_SECONDS]:
            if upload.stream is None or (is_clogged and upload.is_idle_stream):
                upload.on_end(self._full_error())

    def _end_over(self, now: float) -> None:
        """End uploads while more is held than the limit, and a slow one while others have waited for long."""
        limit, measured = self.rules.max_bytes, self.measured_bytes
        over = max(self.total - self._reserved - limit, measured - 3 * limit // 4)
        if over > 0:
            victims = self._rank(self._reading)
            each = max(LOOKAHEAD_BYTES, measured / len(victims))
            victims = victims[: math.ceil(CUT_MARGIN * over / each)]
            if not self.message_bytes and len(victims) == len(self._reading):
                victims.pop()  # one that is alone may exceed the limit
            self._next_cut = now + CUT_SECONDS
        elif self._waits_for(now) >= PATIENCE_SECONDS and measured > limit // 4:
            victims = self._rank([one for one in self._reading if now - one.since >= SLOW_SECONDS])[:1]
            self._next_cut = now + PATIENCE_SECONDS
        else:
            return
        for upload in victims:
            upload.on_end(self._full_error())

    def _waits_for(self, now: float) -> float:
        first = next(iter(self._waiting), None)
        return 0.0 if first is None else now - first.since

    def _rank(self, uploads: Collection[Upload]) -> list[Upload]:
        """Uploads in the order in which they are ended.

        First those whose connections have received most that is no complete message, then of the connection with most
        uploads, then the oldest. Streams with unanswered items come last.
        """
        traffic = self._network.read_traffic({one.connection for one in uploads})

        def rank(upload: Upload) -> tuple[bool, bool, int, float]:
            is_amid = self._is_amid_message(upload, traffic.get(upload.connection))
            return bool(upload.open_items), not is_amid, -self._connections[upload.connection].uploads, upload.since

        return sorted(uploads, key=rank)

    def _is_amid_message(self, upload: Upload, seen: Traffic | None) -> bool:
        """Whether much of what a connection has received cannot belong to complete messages."""
        if seen is None:
            return False
        incomplete = seen.received_bytes - self._connections[upload.connection].complete_bytes
        return incomplete > max(LOOKAHEAD_BYTES // 2, seen.received_bytes // 2)

    def _end_stalled(self, now: float) -> None:
        """End uploads whose connection sends nothing any more in the middle of a message."""
        slow = [one for one in self._reading if now - one.since >= STALL_SECONDS and not one.open_items]
        traffic = self._network.read_traffic({one.connection for one in slow}) if slow else {}
        for upload in slow:
            seen = traffic.get(upload.connection)
            if seen is None or seen.quiet_seconds < STALL_SECONDS:
                continue
            if upload.stream is None or self._is_amid_message(upload, seen):
                upload.on_end(_slow_error(f"nothing of the message has arrived for {STALL_SECONDS:g} s"))

    def _end_idle(self, now: float) -> None:
        """End idle streams while memory grew by what nothing else explains: they may be in the middle of a message."""
        measured, limit = self._measured, self.rules.upload_seconds
        unexplained = self.measured_bytes - self._reserved
        idle = [one for one in self._reading if one.is_idle_stream and now - one.since >= limit]
        if not idle or unexplained < max(IDLE_BYTES, IDLE_BYTES_EACH * len(idle)):
            return
        if measured.bytes > IDLE_EFFECT * measured.before_round:  # the last round has freed nothing
            self._set_drift(measured.bytes - self._reserved)
            return
        measured.before_round = measured.bytes
        for upload in self._rank(idle)[: max(8, len(idle) // 2)]:
            upload.on_end(
                NotReady("an idle stream was ended to free memory", reason="STREAM_IDLE", retry_after_seconds=0.0)
            )

    def _begin_waiting(self, now: float) -> None:
        """Begin what waits, those of connections that hold little first, then in the order of time."""
        for upload in sorted(self._waiting, key=lambda one: self._connections[one.connection].message_bytes):
            row = self._connections[upload.connection]
            if self._has_room(upload, row, now):
                del self._waiting[upload]
                row.uploads -= 1
                self._begin(upload, row, now)
                upload.on_turn()


def _slow_error(text: str) -> DeadlineMissed:
    return DeadlineMissed(text, reason="UPLOAD_TOO_SLOW")
