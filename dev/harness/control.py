"""A client of the server's control socket, and the options of all channels here."""

import contextlib
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
from google.protobuf import duration_pb2

from common.address import unix_target
from dev.harness.answers import Question
from dev.harness.service_config import read_service_config
from dev.harness.waiting import eventually
from hotslot.control.v1 import control_pb2 as pb
from hotslot.control.v1.control_pb2_grpc import ControlServiceStub

# Each channel is a connection of its own; no retries that would hide a lost call.
CHANNEL_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0)]
# For clients whose server is killed and started again.
RECONNECT_OPTIONS = [
    *CHANNEL_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # also the limit of one connection attempt
    ("grpc.max_reconnect_backoff_ms", 500),
]
# For clients that send again what a restart has cost them: by the shipped service config, and waiting for a server.
RETRY_OPTIONS = [
    *(option for option in RECONNECT_OPTIONS if option[0] != "grpc.enable_retries"),
    ("grpc.enable_retries", 1),
    ("grpc.service_config", json.dumps(read_service_config(is_waiting=True))),
]
LIMIT_SECONDS = 60.0

_numbers = itertools.count(1)


class ControlClient:
    """Calls the control service about one model."""

    def __init__(self, socket_path: str, model: str = "shapes") -> None:
        self.channel = grpc.insecure_channel(unix_target(Path(socket_path)), options=RECONNECT_OPTIONS)
        self.stub = ControlServiceStub(self.channel)
        self.model = model

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()

    def change(self, generation: int = 0) -> pb.Change:
        """The header of a changing call; generation 0 matches any."""
        return pb.Change(model=self.model, transaction_id=f"test-{next(_numbers)}", expected_generation=generation)

    def status(self) -> pb.ModelState:
        """The model's state."""
        (state,) = self.stub.GetStatus(pb.GetStatusRequest(model=self.model), timeout=LIMIT_SECONDS).models
        return state

    def wait_ready(self, limit: float = 120.0) -> pb.ModelState:
        """Wait until the model is ready; a server that does not answer yet is asked again."""

        def ready() -> pb.ModelState | None:
            with contextlib.suppress(grpc.RpcError):
                state = self.status()
                return state if state.ready else None
            return None

        state = eventually(ready, limit, "the model is ready", 0.02)
        assert state is not None
        return state

    def slot(self, name: str) -> pb.SlotStatus:
        """One slot."""
        return next(slot for slot in self.status().slots if slot.slot == name)

    def active(self) -> pb.SlotStatus:
        """The slot that answers."""
        return next(slot for slot in self.status().slots if slot.role in ("ACTIVE", "TRIAL"))

    def other(self) -> pb.SlotStatus:
        """The slot beside the one that answers."""
        return next(slot for slot in self.status().slots if slot.role not in ("ACTIVE", "TRIAL"))

    def active_pid(self) -> int:
        """Process id of the runner that answers; 0 if there is none."""
        state = self.status()
        return next((slot.pid for slot in state.slots if slot.load_id and slot.load_id == state.active_load_id), 0)

    def wait_replaced(self, pid: int, limit: float = LIMIT_SECONDS) -> None:
        """Wait until another runner process answers and the model is ready."""
        eventually(lambda: self.active_pid() not in (pid, 0), limit, f"another process than {pid} answers")
        self.wait_ready(limit)

    def load(self, digest: str, device: str = "", generation: int = 0) -> list[pb.LoadSlotResponse]:
        """Load a bundle and wait for the end.

        Returns:
            All messages of the call; the last one is LOADED.
        """
        return list(self.begin_load(digest, device, generation))

    def begin_load(self, digest: str, device: str = "", generation: int = 0) -> Iterator[pb.LoadSlotResponse]:
        """Begin to load; the returned call yields the progress."""
        request = pb.LoadSlotRequest(change=self.change(generation), bundle_digest=digest, device=device)
        return self.stub.LoadSlot(request, timeout=LIMIT_SECONDS)

    def candidate(self, digest: str) -> str:
        """Load a bundle; returns its load id."""
        return self.load(digest)[-1].load_id

    def activate(self, load_id: str, trial_lease_seconds: float = 600.0, generation: int = 0) -> pb.ModelState:
        """Begin or extend a trial, or go back."""
        lease = duration_pb2.Duration()
        lease.FromNanoseconds(int(trial_lease_seconds * 1e9))
        request = pb.ActivateSlotRequest(change=self.change(generation), load_id=load_id, trial_lease=lease)
        return self.stub.ActivateSlot(request, timeout=LIMIT_SECONDS).state

    def commit(self, load_id: str, generation: int = 0) -> pb.ModelState:
        """Commit a trial."""
        request = pb.CommitSlotRequest(change=self.change(generation), load_id=load_id)
        return self.stub.CommitSlot(request, timeout=LIMIT_SECONDS).state

    def retire(self, load_id: str, generation: int = 0) -> pb.ModelState:
        """Empty the slot of a load."""
        request = pb.RetireSlotRequest(change=self.change(generation), load_id=load_id)
        return self.stub.RetireSlot(request, timeout=LIMIT_SECONDS).state

    def probe(self, questions: Sequence[Question], load_id: str = "") -> list[pb.ProbeOutcome]:
        """Send questions to one slot."""
        items = pb.EntailmentItems(requests=[asked.request() for asked in questions])
        request = pb.ProbeSlotRequest(model=self.model, load_id=load_id, entailment=items)
        return list(self.stub.ProbeSlot(request, timeout=LIMIT_SECONDS).outcomes)

    def trial(self, digest: str, trial_lease_seconds: float = 600.0) -> str:
        """Load a bundle and begin its trial; returns its load id."""
        load_id = self.candidate(digest)
        self.activate(load_id, trial_lease_seconds)
        return load_id

    def swap(self, digest: str) -> float:
        """Load a bundle, activate and commit it, and retire the one before; returns the seconds of the load."""
        before, began = self.status().active_load_id, time.monotonic()
        load_id = self.candidate(digest)
        seconds = time.monotonic() - began
        self.activate(load_id)
        self.commit(load_id)
        self.retire(before)
        return seconds

    def stats(self, digest: str) -> pb.RevisionStats:
        """The counters of a bundle; zeros if there are none."""
        rows = [row for row in self.status().stats if row.bundle_digest == digest]
        return rows[0] if rows else pb.RevisionStats(bundle_digest=digest)
