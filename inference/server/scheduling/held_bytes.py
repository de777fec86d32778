"""What the server holds for its callers in memory: which message is read next, and which upload is ended.

gRPC says how long a message is only when it is complete, and then it is in memory. So three things are added up:

* complete messages, each until nothing refers to its picture or its texts any more: waiting, computed, cancelled, not
  yet sent;
* calls and connections, at a fixed size each; a call until its caller has taken the answer;
* what else the process has grown by: incomplete messages, mostly. It is measured, not counted.

A message is read when the sum has room for the size of its connection's last one, or a guess. Until then the transport
holds its caller back. Uploads are ended if they are too slow, or when more is held than the limit. Loop thread only.
"""

import math
import weakref
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

from common.errors import DeadlineMissed, NotReady, Overloaded
from inference.server.scheduling.unread import MAX_ENDS, Calls, UnreadAnswers
from inference.server.scheduling.uploads import Connections, Memory, Traffic, TrafficReader, Upload, WatchCall, Watches

LOOKAHEAD_BYTES = 128 << 10  # that gRPC buffers of a message that is not being read
CALL_BYTES = 24 << 10  # of a call: gRPC's and Python's objects, measured
STRICT_BYTES = 128 << 20  # a limit up to which a first message is expected to have the largest size
MIN_FIRST_BYTES = 1 << 20  # is expected of a first message under any limit: more would let few begin at once
FIRST_FACTOR = 8  # a later message is expected to be like the last one, and at least this part of a first one
YOUNG_SECONDS = 0.25  # an upload's expected size counts for so long; what has arrived by then is measured
MAX_WAIT_SECONDS = 5.0  # for a turn to be read; then its caller is told to try elsewhere
RETRY_SECONDS = 0.5  # for callers: about the time in which a large message is read
CUT_SECONDS = 0.04  # until the memory of ended uploads is free again
CHECK_SECONDS = 0.5  # between two looks for what is slow or idle: they read the kernel's counters
SLOW_SECONDS = 3.0  # an upload that takes longer is ended for one that waits, or if nothing of it arrives so long
IDLE_BYTES = 4 << 20  # of growth that nothing explains are noise
IDLE_EFFECT = 0.9  # of what was measured before idle streams were ended; if more is left, they did not hold it
DRIFT_SHARE = 0.25  # of the limit: most growth that is taken for the process's own
SMALL_BYTES, MAX_SMALL = 4 << 10, 16  # is expected of a message that asks for a state; so many are read without a wait
CONNECTION_BYTES = 16 << 10  # of a connection without a call, measured
CONNECTIONS_SHARE = 0.125  # of the limit, for connections; beyond that those without a call are closed
ROUND_SECONDS = 5.0  # between two rounds of looks at connections, while little is measured
WATCH_SHARE = 0.1  # of the limit, for calls that stay open to be told of changes
CALLS_SHARE = 0.25  # of the limit, for all open calls while a message waits
MAX_CONNECTIONS = 4096  # that are remembered although they have nothing in progress


@dataclass(frozen=True, slots=True)
class HeldRules:
    """Limits."""

    max_bytes: int
    max_message_bytes: int
    upload_seconds: float  # for one message to arrive
    # Expected size of a connection's first message; little under a high limit, so that many are read at once. A burst
    # may exceed it by what the network brings before that is measured: a low limit has no room for this.
    first_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        first = max(MIN_FIRST_BYTES, (STRICT_BYTES / self.max_bytes) ** 2 * self.max_message_bytes)
        object.__setattr__(self, "first_bytes", int(min(self.max_message_bytes, first)))


@dataclass(slots=True)
class _Connection:
    """Messages, uploads and calls of a connection."""

    expected: int  # size of its next message
    complete_bytes: int = 0  # of all messages until now
    message_bytes: int = 0  # of those that are held
    reserved: int = 0
    uploads: int = 0
    calls: int = 0


class HeldBytes:
    """The messages, calls and uploads of all connections."""

    def __init__(self, rules: HeldRules, connections: Connections, memory: Memory, calls: Calls) -> None:
        self.rules, self.message_bytes, self.calls = rules, 0, 0
        self._network, self._memory = connections, memory
        self._traffic, self.unread = TrafficReader(connections), UnreadAnswers(calls, connections)
        self._reserved = 0  # expected bytes of young uploads
        self._growth = self._steady_growth = 0  # that messages and calls do not explain; since when it is steady
        self._drift = 0  # of it, what is taken for the process's own
        self._growth_before = self._steady_since = math.inf  # the former when idle streams were last ended
        self._watches = Watches()
        self._connections: dict[str, _Connection] = {}
        self._reading: dict[Upload, None] = {}  # in the order in which they began
        self._waiting: dict[Upload, None] = {}
        self._young: deque[tuple[float, Upload]] = deque()
        # By the id of the reference: its own hash and equality are those of all bytes of the picture.
        self._views: dict[int, tuple[weakref.ref[object], _Connection, int]] = {}
        self._gone: deque[weakref.ref[object]] = deque()  # filled by the garbage collector, on any thread
        self._slow: deque[Upload] = deque()  # that are to be looked at
        self._next_cut = self._next_check = self._next_look = self._last_round = -math.inf

    @property
    def measured_bytes(self) -> int:
        """Bytes of incomplete messages."""
        return self._growth - self._drift

    @property
    def total(self) -> int:
        """All bytes held, or expected of young uploads; from any thread."""
        return self._explained_bytes + self.measured_bytes + self._reserved

    @property
    def is_short(self) -> bool:
        """Whether complete messages hold more than half of the limit."""
        return self.message_bytes > self.rules.max_bytes // 2

    @property
    def is_busy(self) -> bool:
        """Whether uploads could soon exceed the limit: to be measured more often."""
        return bool(self._reading) and self.total > self.rules.max_bytes // 2

    def open_call(self, connection: str) -> None:
        """Count a call; `close_call` must follow."""
        self.calls += 1
        (self._connections.get(connection) or self._add_connection(connection)).calls += 1

    def close_call(self, connection: str) -> None:
        """Subtract a call."""
        self.calls -= 1
        self._connections[connection].calls -= 1
        if connection in self.unread.ended:
            self.unread.ended[connection] += 1

    def open_watch(self, watch: WatchCall) -> None:
        """Count an open call as a watch; `close_watch` must follow. It may be ended for others, or one for it."""
        ended = self._watches.add(watch, max(1, int(WATCH_SHARE * self.rules.max_bytes) // CALL_BYTES))
        if ended is not None:
            text = "too many watches are open: one was ended for another"
            ended.on_end(NotReady(text, reason="STREAM_IDLE", retry_after_seconds=RETRY_SECONDS))

    def close_watch(self, watch: WatchCall) -> None:
        """Count it no more."""
        self._watches.remove(watch)

    def hold(self, connection: str, holder: object, size_bytes: int) -> None:
        """Count a message until nothing refers to its picture, or its texts, any more."""
        row = self._connections.get(connection) or self._add_connection(connection)
        reference = weakref.ref(holder, self._gone.append)
        self._views[id(reference)] = reference, row, size_bytes
        row.message_bytes += size_bytes
        self.message_bytes += size_bytes

    def _collect(self) -> None:
        while self._gone:
            _, row, size_bytes = self._views.pop(id(self._gone.popleft()))
            self.message_bytes -= size_bytes
            row.message_bytes -= size_bytes

    def _add_connection(self, name: str) -> _Connection:
        row = self._connections[name] = _Connection(self.rules.first_bytes)
        return row

    def ask(self, upload: Upload, now: float) -> bool:
        """Ask to read a message; `finish` must follow.

        Returns:
            Whether it may be read now; if not, `on_turn` or `on_end` will be called.

        Raises:
            Overloaded: too many wait.
        """
        self._collect()
        if self._young:
            self._expire_young(now)
        row = self._connections.get(upload.connection) or self._add_connection(upload.connection)
        upload.is_small = upload.is_small and sum(one.is_small for one in self._reading) < MAX_SMALL
        upload.since, upload.expected = now, SMALL_BYTES if upload.is_small else row.expected
        is_room = upload.is_small or (not self._waiting and self._has_room(upload, row))
        if not is_room and 4 * LOOKAHEAD_BYTES * len(self._waiting) >= self.rules.max_bytes:
            raise self._full_error()  # what gRPC buffers of those that wait is a quarter of the limit
        row.uploads += 1
        if is_room:
            self._begin(upload, row, now)
        else:
            self._waiting[upload] = None
        return is_room

    def finish(self, upload: Upload, size_bytes: int | None) -> None:
        """Stop reading, or waiting: the message is complete and has this size, or the upload has ended."""
        row = self._connections[upload.connection]
        self._waiting.pop(upload, None)
        self._reading.pop(upload, None)
        self._unreserve(upload)
        if self._young and self._young[0][1] is upload:
            self._young.popleft()
        row.uploads -= 1
        if size_bytes is not None:
            self._memory.count_freed(size_bytes)
            row.complete_bytes += size_bytes
        if size_bytes is not None and not upload.is_small:
            row.expected = max(size_bytes, self.rules.first_bytes // FIRST_FACTOR)

    def _begin(self, upload: Upload, row: _Connection, now: float) -> None:
        row.reserved += upload.expected
        self._reserved += upload.expected
        upload.is_reserved, upload.since = True, now
        self._reading[upload] = None
        self._young.append((now, upload))

    def _has_room(self, upload: Upload, row: _Connection) -> bool:
        """Whether a message may be read. One that is alone may, whatever its size and whatever is measured.

        Incomplete messages have half of the limit, because they grow until it is measured; one connection has half,
        unless it is the only one.
        """
        if not self.message_bytes and not self._reserved:
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
        while self._young and (now - self._young[0][0] > YOUNG_SECONDS or not self._young[0][1].is_reserved):
            self._unreserve(self._young.popleft()[1])

    def _full_error(self) -> Overloaded:
        text = f"requests hold {self.total} bytes, limit {self.rules.max_bytes}"
        return Overloaded(text, retry_after_seconds=RETRY_SECONDS)

    def tick(self, now: float) -> None:
        """Measure; begin and end uploads."""
        self._collect()
        self._expire_young(now)
        self._measure(now)
        self._end_late(now)
        if self._reading and now >= self._next_cut:
            self._end_over(now)
        if now >= self._next_check and self.measured_bytes > IDLE_BYTES:
            self._next_check = now + CHECK_SECONDS
            self._end_slow(now)
            self._end_idle(now)
        if self._slow and now >= self._next_look:
            self._next_look = now + CUT_SECONDS
            self._end_quiet()
        self._look_at_connections(now)
        self.unread.tick(now, self.calls, self.rules.max_bytes // CALL_BYTES)
        self._end_empty(now)
        self._begin_waiting(now)
        if len(self._connections) > MAX_CONNECTIONS:
            rows = self._connections.items()
            self._connections = {name: row for name, row in rows if row.message_bytes or row.uploads or row.calls}
            self._traffic.keep(self._connections)

    def _look_at_connections(self, now: float) -> None:
        """Continue a round of looks, or begin one; idle connections are closed, and all are counted."""
        is_needed = self.measured_bytes > IDLE_BYTES
        if not self._network.is_looking:
            if now < self._last_round + (CHECK_SECONDS if is_needed else ROUND_SECONDS):
                return
            self._last_round = now
        most = int(CONNECTIONS_SHARE * self.rules.max_bytes) // CONNECTION_BYTES
        in_use = {name for name, row in self._connections.items() if row.calls}
        self._network.look(in_use, most=most, closes_large=is_needed)

    @property
    def _explained_bytes(self) -> int:
        """Bytes of messages, calls and connections."""
        return self.message_bytes + CALL_BYTES * self.unread.add_to(self.calls) + CONNECTION_BYTES * self._network.count

    def _measure(self, now: float) -> None:
        """Read the growth. What is steady while nobody is in the middle of a message is the process's own."""
        growth = self._growth = max(0, self._memory.read_growth() - self._explained_bytes)
        if abs(growth - self._steady_growth) > IDLE_BYTES // 4:
            self._steady_growth, self._steady_since = growth, now
        oldest = next(iter(self._reading), None)
        is_quiet = oldest is None or now - oldest.since < CHECK_SECONDS
        if is_quiet and now - self._steady_since >= CHECK_SECONDS:
            self._set_drift(growth)
        self._drift = min(self._drift, growth)

    def _set_drift(self, growth: int) -> None:
        self._drift = max(0, min(growth, int(DRIFT_SHARE * self.rules.max_bytes)))
        self._growth_before = math.inf

    def _end_late(self, now: float) -> None:
        """End the messages of unary calls that do not arrive in time, and waits that are too long.

        A stream waits on while complete messages hold most of the limit: these will be computed.
        """
        limit = self.rules.upload_seconds
        for upload in [one for one in self._reading if one.stream is None and now - one.since >= limit]:
            upload.on_end(DeadlineMissed(f"the message was not complete within {limit:g} s", reason="UPLOAD_TOO_SLOW"))
        is_held_by_uploads = self.message_bytes < self.rules.max_bytes // 2
        for upload in [one for one in self._waiting if now - one.since >= MAX_WAIT_SECONDS]:
            if upload.stream is None or (is_held_by_uploads and upload.is_idle_stream):
                upload.on_end(self._full_error())

    def _end_over(self, now: float) -> None:
        """End uploads while more is held than the limit, or incomplete messages hold most of it."""
        limit, measured = self.rules.max_bytes, self.measured_bytes
        over = max(self.total - self._reserved - limit, measured - 3 * limit // 4)
        if over <= 0:
            return
        victims = self._rank([one for one in self._reading if not self._is_spared(one, now)])
        victims = victims[: math.ceil(over / max(LOOKAHEAD_BYTES, measured / max(1, len(victims))))]
        if not self.message_bytes and victims and len(victims) == len(self._reading):
            victims.pop()  # one that is alone may exceed the limit
        self._next_cut = now + CUT_SECONDS
        for upload in victims:
            upload.on_end(self._full_error())

    def _is_spared(self, upload: Upload, now: float) -> bool:
        """Whether it asks for a state, and is neither late nor large: others hold the memory."""
        if not upload.is_small or now - upload.since >= CHECK_SECONDS:
            return False
        return not self._is_amid_message(upload, self._network.read_traffic([upload.connection]).get(upload.connection))

    def _rank(self, uploads: Collection[Upload]) -> list[Upload]:
        """Uploads in the order in which they are ended.

        First those whose connections have received most that is no complete message, then of the connection with most
        uploads, then the oldest. Streams with unanswered items come last. Of many connections only some are read now.
        """
        self._traffic.read({one.connection for one in uploads})
        traffic = self._traffic.last

        def rank(upload: Upload) -> tuple[bool, bool, int, float]:
            is_amid = self._is_amid_message(upload, traffic.get(upload.connection))
            return upload.is_unanswered, not is_amid, -self._connections[upload.connection].uploads, upload.since

        return sorted(uploads, key=rank)

    def _is_amid_message(self, upload: Upload, seen: Traffic | None) -> bool:
        """Whether much of what a connection has received cannot belong to complete messages."""
        received = 0 if seen is None else seen.received_bytes
        incomplete = received - self._connections[upload.connection].complete_bytes
        return incomplete > max(LOOKAHEAD_BYTES // 2, received // 2)

    def _end_slow(self, now: float) -> None:
        """End the worst of the slow uploads while another one waits; look at all of them, some in each tick."""
        slow = [one for one in self._reading if now - one.since >= SLOW_SECONDS and not one.is_unanswered]
        if not self._slow:
            self._slow.extend(slow)
        is_needed = any(now - one.since >= CHECK_SECONDS for one in self._waiting)
        if slow and is_needed and self.measured_bytes > self.rules.max_bytes // 4:
            self._rank(slow)[0].on_end(self._full_error())

    def _end_quiet(self) -> None:
        """End those of some slow uploads of which nothing arrives any more, unless little is held by now."""
        part = [self._slow.popleft() for _ in range(min(self._traffic.most, len(self._slow)))]
        part = [one for one in part if one in self._reading and not one.is_unanswered]
        if self.measured_bytes <= IDLE_BYTES:
            return
        traffic = self._traffic.read({one.connection for one in part})
        for upload in part:
            seen = traffic.get(upload.connection)
            is_amid = upload.stream is None or self._is_amid_message(upload, seen)
            if is_amid and seen is not None and seen.quiet_seconds >= SLOW_SECONDS:
                text = f"nothing of the message has arrived for {SLOW_SECONDS:g} s"
                upload.on_end(DeadlineMissed(text, reason="UPLOAD_TOO_SLOW"))

    def _end_idle(self, now: float) -> None:
        """End idle streams while memory grew by what nothing else explains: they may be in the middle of a message."""
        unexplained, since = self.measured_bytes - self._reserved, now - self.rules.upload_seconds
        idle = [one for one in self._reading if one.is_idle_stream and one.since <= since]
        if not idle or unexplained < max(IDLE_BYTES, CALL_BYTES // 2 * len(idle)):
            return
        if self._growth > IDLE_EFFECT * self._growth_before:  # the last round has freed nothing
            self._set_drift(self._growth - self._reserved)
            return
        self._growth_before = self._growth
        for upload in self._rank(idle)[: max(8, len(idle) // 2)]:
            text = "an idle stream was ended to free memory"
            upload.on_end(NotReady(text, reason="STREAM_IDLE", retry_after_seconds=0.0))

    def _end_empty(self, now: float) -> None:
        """End calls without a message, while one waits and calls hold much: those of the connection with most first."""
        over = CALL_BYTES * self.calls - int(CALLS_SHARE * self.rules.max_bytes)
        if over <= 0 or not self._waiting:
            return
        since, slow_since = now - CHECK_SECONDS, now - SLOW_SECONDS
        empty = [one for one in self._reading if one.since <= (slow_since if one.stream is None else since)]
        empty = [one for one in empty if one.stream is None or one.is_idle_stream]
        empty.sort(key=lambda one: (-self._connections[one.connection].calls, one.since))
        for upload in empty[: min(MAX_ENDS, math.ceil(over / CALL_BYTES))]:
            text = "a call without a message was ended to free memory"
            upload.on_end(NotReady(text, reason="STREAM_IDLE", retry_after_seconds=RETRY_SECONDS))

    def _begin_waiting(self, now: float) -> None:
        """Begin what waits, those of connections that hold little first, then in the order of time."""
        for upload in sorted(self._waiting, key=lambda one: self._connections[one.connection].message_bytes):
            row = self._connections[upload.connection]
            if self._has_room(upload, row):
                del self._waiting[upload]
                self._begin(upload, row, now)
                upload.on_turn()
