"""The Go load generator: plays groups of callers on a server; every call and every item of a stream is one outcome.

The server's contract is hotslot's, or another one of gRPC or HTTP. It computes far less than clients in Python do, so
that a server on the same two cores can be measured.
"""

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from dev.harness.process import ROOT
from dev.harness.stack import ENTAILMENT
from hotslot.entailment.v1 import entailment_pb2 as pb

LOADGEN = ROOT / ".tools" / "bin" / "loadgen"
PLACEHOLDER = b"#REQUEST-NUMBER#"  # in a picture: replaced by the request's number, so that each picture is another
NO_ITEM = "NO_ITEM"  # a result that belongs to no item of its stream
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Group:
    """Callers of one kind. A rate makes an open loop: calls begin whether or not earlier ones have ended."""

    name: str
    requests: Sequence[pb.PredictRequest | bytes]  # sent in turn; bytes need not be a request
    mode: str = "unary"  # or "stream"; with a method also "plain" (a stream without ids, window 1) or "http"
    clients: int = 1  # of a closed loop; number of streams
    window: int = 1  # items outstanding a stream
    rate: float = 0.0  # calls a second of the whole group
    arrivals: str = "poisson"  # or "uniform"
    deadline: float = 10.0  # seconds of a unary call; of a stream after its last item
    metadata: Mapping[str, str] = field(default_factory=dict)
    connections: Sequence[int] = ()  # that these callers use in turn; all if empty
    begin: float = 0.0  # seconds after the start of the load
    end: float = 0.0  # 0: the end of the load
    pause: float = 0.0  # seconds between two calls of a caller in a closed loop
    leave: bool = False  # whether streams are cancelled at the end, without outcomes for what is outstanding
    read_pause: float = 0.0  # seconds before each message of a stream is read
    cancel_share: float = 0.0  # of unary calls that the caller cancels …
    cancel_after: float = 0.0  # … at a random time up to this many seconds
    digest: bool = False  # whether outcomes carry the digest of the answer
    method: str = ""  # of another contract, or the path of a URL


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one call, or of one item of a stream."""

    group: str
    request: int  # index in the group's requests
    rows: int  # statements
    caller: int  # number in its group; of an open loop, of the call
    at: float  # when it was sent, seconds after the start of the load
    took: float  # seconds until its outcome
    code: str
    reason: str = ""
    retry: float = 0.0  # RetryInfo's delay, seconds
    pushback: str = ""  # grpc-retry-pushback-ms
    revision: str = ""
    digest: str = ""
    detail: str = ""
    number: int = 0  # of the request in the whole load, from 1

    @property
    def ended(self) -> float:
        """When the outcome came, seconds after the start of the load."""
        return self.at + self.took

    @property
    def is_answer(self) -> bool:
        """Whether it is an answer."""
        return self.code == "OK"


@dataclass(frozen=True, slots=True)
class Played:
    """A whole load."""

    began: float  # unix time of its start
    seconds: float
    outcomes: Sequence[Outcome]

    def of(self, *groups: str) -> list[Outcome]:
        """The outcomes of some groups."""
        return [one for one in self.outcomes if one.group in groups]


def numbered(content: bytes, number: int) -> bytes:
    """What the load generator sends in place of a content with the placeholder."""
    return content.replace(PLACEHOLDER, f"{number:0{len(PLACEHOLDER)}d}".encode())


class Loadgen:
    """A load that plays while the `with` lasts, or until it is over.

    Args:
        address: of the server, host:port.
        groups: the callers.
        seconds: how long they call.
        folder: an existing one, for its files.
        connections: that the groups share.
        seed: of the times of open loops.
        processors: on which it runs; all if empty.
    """

    def __init__(
        self,
        address: str,
        groups: Sequence[Group],
        seconds: float,
        folder: Path,
        connections: int = 1,
        seed: int = 1,
        processors: str = "",
    ) -> None:
        self.began = 0.0  # unix time
        self.outcomes: list[Outcome] = []
        self._groups, self._seconds = groups, seconds
        plan = {"address": address, "connections": connections, "seconds": seconds, "seed": seed}
        rows = [_plan_of(group, folder, number) for number, group in enumerate(groups)]
        path = folder / "plan.json"
        path.write_text(json.dumps({**plan, "groups": rows}), encoding="utf-8")
        pinned = ["taskset", "-c", processors] if processors else []
        self._process = subprocess.Popen([*pinned, str(LOADGEN), str(path)], stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, name="loadgen", daemon=True)
        self._reader.start()

    def wait(self) -> Played:
        """Wait for the last outcome.

        Raises:
            AssertionError: it has failed, or has not ended in time.
        """
        longest = max(group.deadline for group in self._groups)
        self._reader.join(self._seconds + longest + 60)
        if self._reader.is_alive():
            self.stop()
            raise AssertionError("a call did not end at its deadline")
        if self._process.wait(10):
            raise AssertionError(f"the load generator ended with {self._process.returncode}")
        return Played(self.began, self._seconds, self.outcomes)

    def take(self) -> list[Outcome]:
        """The outcomes since the last look, which are kept no longer."""
        count = len(self.outcomes)
        taken = self.outcomes[:count]
        del self.outcomes[:count]
        return taken

    def stop(self) -> None:
        """End it by force if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._reader.join(10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                row = json.loads(line)
                if "began" in row:
                    self.began = row["began"]
                else:
                    self.outcomes.append(self._outcome(row))

    def _outcome(self, row: Mapping[str, Any]) -> Outcome:
        group = self._groups[row["g"]]
        return Outcome(
            group.name,
            row["q"],
            rows_of(group.requests[row["q"]]),
            row["c"],
            row["at"],
            row["took"],
            _CODES.get(row["code"], NO_ITEM),
            row.get("reason", ""),
            row.get("retry", 0.0),
            row.get("pushback", ""),
            row.get("revision", ""),
            row.get("digest", ""),
            row.get("detail", ""),
            row["n"],
        )


def rows_of(request: pb.PredictRequest | bytes) -> int:
    """Statements of a request; 0 for bytes."""
    return 0 if isinstance(request, bytes) else len(request.statements)


def play(
    address: str,
    groups: Sequence[Group],
    seconds: float,
    folder: Path,
    connections: int = 1,
    seed: int = 1,
    processors: str = "",
) -> Played:
    """Play a load to its end; the arguments are those of `Loadgen`."""
    with playing(Loadgen(address, groups, seconds, folder, connections, seed, processors)) as load:
        return load.wait()


@contextmanager
def playing(load: Loadgen) -> Iterator[Loadgen]:
    """A load that has ended afterwards."""
    try:
        yield load
    finally:
        load.stop()


def _plan_of(group: Group, folder: Path, number: int) -> dict[str, Any]:
    paths = []
    for index, request in enumerate(group.requests):
        path = folder / f"request-{number}-{index}.bin"
        path.write_bytes(request if isinstance(request, bytes) else request.SerializeToString())
        paths.append(str(path))
    method = "StreamPredict" if group.mode == "stream" else "Predict"
    return {
        "method": group.method or f"/{ENTAILMENT}/{method}",
        "mode": group.mode,
        "clients": group.clients,
        "window": group.window,
        "rate": group.rate,
        "arrivals": group.arrivals,
        "deadline": group.deadline,
        "requests": paths,
        "metadata": dict(group.metadata),
        "connections": list(group.connections),
        "begin": group.begin,
        "end": group.end,
        "pause": group.pause,
        "leave": group.leave,
        "read_pause": group.read_pause,
        "cancel_share": group.cancel_share,
        "cancel_after": group.cancel_after,
        "digest": group.digest,
    }
