"""Callers with their rights, and a queue that shares device time by rows: by priority, caller and flow. Pure.

Hierarchical start-time fair queueing. At each level, each node has a tag, rows served ÷ weight, and the waiting node
with the smallest tag is next; its tag is then the time of the parent's clock. A node that begins to wait with a lower
tag gets the time of the clock: there is no credit for not having waited. A node that was not known pays for its first
request in advance, so that a new connection for each request is no way past those that wait.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from common.records import record
from inference.server.request import Flow, Priority

T = TypeVar("T", bound=Hashable)

BURST_SECONDS = 1.0  # a quota may be used ahead by this much
MAX_EXACT_CHILDREN = 128  # of a node, that an estimate looks at one by one
_MAX_IDLE_NODES = 64  # beside those that wait, before those that owe nothing are removed


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

    def set_rate(self, rows_per_second: float, now: float) -> None:
        """Change the rate; rows that were used ahead stay used."""
        self._refill(now)
        self._rate = rows_per_second

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
    """One caller of this server, with its rights, which may be changed while its calls are open."""

    __slots__ = ("__weakref__", "name", "quota", "rules", "unary_source")

    def __init__(self, rules: CallerRules, quota: Quota | None = None) -> None:
        self.rules, self.name, self.quota = rules, rules.name, quota
        self.unary_source = Source(self, self._flow(Priority.INTERACTIVE, 0))  # of its unary calls

    def configure(self, rules: CallerRules, now: float) -> None:
        """Change its rights, for its open streams too; what it has used of its quota stays used."""
        if rules == self.rules:
            return
        self.rules, rate = rules, rules.rows_per_second
        if rate > 0 and self.quota is not None:
            self.quota.set_rate(rate, now)
        else:
            self.quota = Quota(rate, now) if rate > 0 else None
        self.unary_source = Source(self, self._flow(Priority.INTERACTIVE, 0))

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
        rules = self.rules
        return Flow(default if rules.priority is None else rules.priority, rules.name, rules.weight, stream)


@record
class Source:
    """Where a request comes from."""

    caller: Caller
    flow: Flow


UNNAMED = Caller(CallerRules("")).unary_source


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """The number of waiting requests and rows."""

    requests: int
    rows: int

    def __add__(self, other: "QueueDepth") -> "QueueDepth":
        return QueueDepth(self.requests + other.requests, self.rows + other.rows)


@dataclass(slots=True, eq=False)
class _Node(Generic[T]):
    """A priority, a caller or a flow."""

    weight: float
    parent: "_Node[T] | None" = None
    start: float = 0.0  # tag of its next service; valid while it waits
    finish: float = 0.0  # tag after its latest service
    rows: int = 0  # waiting, of all flows below
    count: int = 0  # requests waiting
    latest_rows: int = 0  # of the latest request
    max_lag: float = 0.0  # by which its tag may be behind the clock when it begins to wait
    clock: float = 0.0  # the highest tag with which a child was served
    waiting_weight: float = 0.0  # of the children that wait
    turn: int = 0  # number of its valid entry in the parent's heap; 0 if it does not wait
    children: dict[Hashable, "_Node[T]"] = field(default_factory=dict)
    heap: list[tuple[float, int, "_Node[T]"]] = field(default_factory=list)
    entries: deque["_Entry[T]"] = field(default_factory=deque)  # of a flow

    def next_start(self) -> float:
        """The tag with which it waits, or would begin to wait."""
        if self.count or self.parent is None:
            return self.start
        return max(self.parent.clock - self.max_lag, self.finish)


@dataclass(slots=True, eq=False)
class _Entry(Generic[T]):
    """A waiting request; `item` is None once it was removed."""

    item: T | None
    rows: int
    leaf: _Node[T]


class FairQueue(Generic[T]):
    """Waiting requests of any kind; each is in it at most once. Within a flow: first in, first out."""

    def __init__(self, interactive_share: float = 0.5) -> None:
        """Create an empty queue.

        Args:
            interactive_share: share of the rows that interactive requests are sure of while both priorities wait.
        """
        self._root: _Node[T] = _Node(1.0)
        for priority, share in ((Priority.INTERACTIVE, interactive_share), (Priority.BULK, 1 - interactive_share)):
            self._root.children[priority] = _Node(share, self._root)
        self.entries: dict[T, _Entry[T]] = {}  # by request; empty if nothing waits
        self._turns = itertools.count(1)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, item: T) -> bool:
        return item in self.entries

    @property
    def rows(self) -> int:
        """Rows of all waiting requests."""
        return self._root.rows

    def depth(self, priority: Priority) -> QueueDepth:
        """The number of requests and rows that wait with a priority; from any thread."""
        node = self._root.children[priority]
        return QueueDepth(node.count, node.rows)

    def set_ahead_rows(self, rows: int) -> None:
        """Set how many bulk rows are taken before they are computed: an interactive request may overtake them."""
        children = self._root.children
        children[Priority.INTERACTIVE].max_lag = rows / children[Priority.BULK].weight

    def put(self, item: T, rows: int, flow: Flow) -> None:
        """Append a request to its flow."""
        leaf = self._leaf(flow, rows)
        entry = self.entries[item] = _Entry(item, rows, leaf)
        leaf.entries.append(entry)
        node: _Node[T] | None = leaf
        while node is not None:
            parent = node.parent
            if node.count == 0 and parent is not None:
                node.start = max(parent.clock - node.max_lag, node.finish)
                parent.waiting_weight += node.weight
                node.turn = next(self._turns)
                heapq.heappush(parent.heap, (node.start, node.turn, node))
            node.rows += rows
            node.count += 1
            node.latest_rows = rows
            node = parent

    def peek(self) -> T | None:
        """The next request; it stays in the queue."""
        leaf = self._next_leaf()
        return None if leaf is None else leaf.entries[0].item

    def pop(self) -> T | None:
        """Remove and return the next request; its rows are charged to its flow, caller and priority."""
        leaf = self._next_leaf()
        if leaf is None:
            return None
        entry = leaf.entries.popleft()
        if entry.item is None:
            raise RuntimeError("a removed request was next")
        del self.entries[entry.item]
        node: _Node[T] | None = leaf
        while node is not None:
            node.rows -= entry.rows
            node.count -= 1
            parent = node.parent
            if parent is not None:
                parent.clock = max(parent.clock, node.start)
                node.start = node.finish = node.start + entry.rows / node.weight
                node.turn = 0
                if node.count:
                    self._push(node)
                else:
                    parent.waiting_weight -= node.weight
            node = parent
        return entry.item

    def remove(self, item: T) -> bool:
        """Remove a request, wherever it waits; nothing is charged. Returns whether it was waiting."""
        if (entry := self.entries.pop(item, None)) is None:
            return False
        entry.item = None
        for node in _path(entry.leaf):
            node.rows -= entry.rows
            node.count -= 1
            if node.count == 0 and node.parent is not None:
                node.turn = 0
                node.parent.waiting_weight -= node.weight
        leaf = entry.leaf
        if len(leaf.entries) > 2 * leaf.count:
            leaf.entries = deque(waiting for waiting in leaf.entries if waiting.item is not None)
        return True

    def take_all(self) -> list[T]:
        """Empty the queue; returns the requests in the order in which they were put."""
        items = list(self.entries)
        for item in items:
            self.remove(item)
        return items

    def serve(self, flow: Flow, rows: int) -> None:
        """Charge rows that did not wait here, as if they had been taken now."""
        self._charge(flow, rows, is_served=True)

    def charge(self, flow: Flow, rows: int) -> None:
        """Charge rows that were not known when the request was taken; negative if they were fewer."""
        self._charge(flow, rows, is_served=False)

    def _charge(self, flow: Flow, rows: int, *, is_served: bool) -> None:
        for node in _path(self._leaf(flow, 0)):
            if node.parent is None:
                continue
            start = node.next_start()
            if is_served:  # a clock that stood still would owe all of this to whoever comes later
                node.parent.clock = max(node.parent.clock, start)
            node.finish = start + rows / node.weight
            if node.count:
                node.start = node.finish
                self._push(node)

    def forget(self, flow: Flow) -> None:
        """Drop a flow that will not come again, unless a request of it waits; what it owes stays its caller's."""
        node = self._find(flow)
        if node is not None and not node.count and node.parent is not None:
            del node.parent.children[flow.stream]

    def has_waiting(self, flow: Flow) -> bool:
        """Whether a request of a flow waits."""
        node = self._find(flow)
        return node is not None and node.count > 0

    def goes_first(self, flow: Flow) -> bool:
        """Whether nothing that waits is served before a request of a flow; a flow that is not known owes nothing."""
        parent = self._root
        for key in (flow.priority, flow.caller, flow.stream):
            node = parent.children.get(key)
            if node is None:
                return True
            first = _first_waiting(parent) if parent.count else None
            if first is not None and first is not node and first.start < node.next_start():
                return False
            parent = node
        return True

    def rows_before(self, flow: Flow, rows: int) -> float:
        """Rows that would be served before a new request of `rows` rows, were it put now.

        Each other node that waits is expected to get one further request like its latest one: where the new request's
        flow is ahead of others, theirs go first even if they come later.
        """
        need = float(rows)
        node: _Node[T] | None = self._find(flow)
        if node is not None:
            need += node.rows
        priority = self._root.children[flow.priority]
        parents = (priority.children.get(flow.caller), priority, self._root)  # the caller may have no node
        for weight, parent in zip((1.0, flow.weight, priority.weight), parents, strict=True):
            if parent is not None:
                start = parent.clock + rows / weight if node is None else node.next_start()
                need += _rows_of_others(parent, node, start + need / weight)
            node = parent
        return need - rows

    def _leaf(self, flow: Flow, rows: int) -> _Node[T]:
        """The node of a flow; created if absent, for a first request of `rows` rows."""
        node = self._root.children[flow.priority]
        for key, weight in ((flow.caller, flow.weight), (flow.stream, 1.0)):
            child = node.children.get(key)
            if child is None:
                _remove_idle(node)
                child = node.children[key] = _Node(weight, node, finish=node.clock + rows / weight)
            elif child.weight != weight:  # the caller's rights have changed
                node.waiting_weight += weight - child.weight if child.count else 0.0
                child.weight = weight
            node = child
        return node

    def _find(self, flow: Flow) -> _Node[T] | None:
        caller = self._root.children[flow.priority].children.get(flow.caller)
        return None if caller is None else caller.children.get(flow.stream)

    def _push(self, node: _Node[T]) -> None:
        """Let a node wait with its present tag; an entry from before becomes invalid."""
        if node.parent is not None:
            node.turn = next(self._turns)
            heapq.heappush(node.parent.heap, (node.start, node.turn, node))

    def _next_leaf(self) -> _Node[T] | None:
        node = self._root
        while node.count:
            if not node.children:
                while node.entries[0].item is None:
                    node.entries.popleft()
                return node
            while node.heap[0][1] != node.heap[0][2].turn:  # as `_first_waiting`, without its call
                heapq.heappop(node.heap)
            node = node.heap[0][2]
        return None


def _rows_of_others(parent: _Node[T], node: _Node[T] | None, end: float) -> float:
    """Rows that a node's siblings are served until its tag is `end`; of many siblings an upper bound."""
    if len(parent.children) <= MAX_EXACT_CHILDREN:
        return sum(
            min(sibling.rows + sibling.latest_rows, max(0.0, end - sibling.start) * sibling.weight)
            for sibling in parent.children.values()
            if sibling is not node and sibling.count
        )
    own_rows, own_weight = (node.rows, node.weight) if node is not None and node.count else (0, 0.0)
    waiting = parent.rows - own_rows + parent.latest_rows * len(parent.heap)
    return min(waiting, max(0.0, end - parent.clock) * max(0.0, parent.waiting_weight - own_weight))


def _first_waiting(parent: _Node[T]) -> _Node[T]:
    """The child that is served next; one must wait."""
    while parent.heap[0][1] != parent.heap[0][2].turn:
        heapq.heappop(parent.heap)
    return parent.heap[0][2]


def _path(node: "_Node[T] | None") -> Iterator[_Node[T]]:
    """A node and those above it."""
    while node is not None:
        yield node
        node = node.parent


def _remove_idle(node: _Node[T]) -> None:
    """Remove children that wait for nothing and owe nothing, once there are many."""
    if len(node.children) < _MAX_IDLE_NODES or len(node.children) < 2 * len(node.heap):
        return
    for key in [key for key, child in node.children.items() if not child.count and child.finish <= node.clock]:
        del node.children[key]
