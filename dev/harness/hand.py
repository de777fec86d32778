"""The updater's hand in a test: the control socket in the words of the domain."""

import itertools
from collections.abc import Iterator, Sequence

import grpc
from google.protobuf import duration_pb2

from dev.harness.answers import Question
from dev.harness.channels import RECONNECT_OPTIONS
from hotslot.control.v1 import control_pb2 as pb
from hotslot.control.v1.control_pb2_grpc import ControlServiceStub

LIMIT_SECONDS = 60.0

_numbers = itertools.count(1)


class Hand:
    """What can be asked over the control socket, about one model."""

    def __init__(self, socket_path: str, model: str = "shapes") -> None:
        self.channel = grpc.insecure_channel(f"unix:{socket_path}", options=RECONNECT_OPTIONS)
        self.stub = ControlServiceStub(self.channel)
        self.model = model

    def close(self) -> None:
        """Let go of the socket."""
        self.channel.close()

    def change(self, generation: int = 0) -> pb.Change:
        """Who asks, believing what; 0 believes anything."""
        return pb.Change(model=self.model, transaction_id=f"test-{next(_numbers)}", expected_generation=generation)

    def status(self) -> pb.ModelState:
        """The model as the server tells it."""
        (state,) = self.stub.GetStatus(pb.GetStatusRequest(model=self.model), timeout=LIMIT_SECONDS).models
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

    def load(self, digest: str, device: str = "", generation: int = 0) -> list[pb.LoadSlotResponse]:
        """Load a bundle, to its end.

        Returns:
            What was said on the way; the last message is LOADED.
        """
        return list(self.begin_load(digest, device, generation))

    def begin_load(self, digest: str, device: str = "", generation: int = 0) -> Iterator[pb.LoadSlotResponse]:
        """Begin to load; the call tells how it goes."""
        request = pb.LoadSlotRequest(change=self.change(generation), bundle_digest=digest, device=device)
        return self.stub.LoadSlot(request, timeout=LIMIT_SECONDS)

    def candidate(self, digest: str) -> str:
        """Load a bundle; returns its load id."""
        return self.load(digest)[-1].load_id

    def activate(self, load_id: str, trial_lease_seconds: float = 600.0, generation: int = 0) -> pb.ModelState:
        """Begin or extend a trial, or go back."""
        term = duration_pb2.Duration()
        term.FromNanoseconds(int(trial_lease_seconds * 1e9))
        request = pb.ActivateSlotRequest(change=self.change(generation), load_id=load_id, trial_lease=term)
        return self.stub.ActivateSlot(request, timeout=LIMIT_SECONDS).state

    def commit(self, load_id: str, generation: int = 0) -> pb.ModelState:
        """End a trial for good."""
        request = pb.CommitSlotRequest(change=self.change(generation), load_id=load_id)
        return self.stub.CommitSlot(request, timeout=LIMIT_SECONDS).state

    def retire(self, load_id: str, generation: int = 0) -> pb.ModelState:
        """Empty the slot of a load."""
        request = pb.RetireSlotRequest(change=self.change(generation), load_id=load_id)
        return self.stub.RetireSlot(request, timeout=LIMIT_SECONDS).state

    def probe(self, questions: Sequence[Question], load_id: str = "") -> list[pb.ProbeOutcome]:
        """Ask one slot."""
        items = pb.EntailmentItems(requests=[asked.request() for asked in questions])
        request = pb.ProbeSlotRequest(model=self.model, load_id=load_id, entailment=items)
        return list(self.stub.ProbeSlot(request, timeout=LIMIT_SECONDS).outcomes)

    def trial(self, digest: str, trial_lease_seconds: float = 600.0) -> str:
        """Load a bundle and let it answer on trial; returns its load id."""
        load_id = self.candidate(digest)
        self.activate(load_id, trial_lease_seconds)
        return load_id

    def stats(self, digest: str) -> pb.RevisionStats:
        """What was counted of a bundle; zeros if nothing was."""
        rows = [row for row in self.status().stats if row.bundle_digest == digest]
        return rows[0] if rows else pb.RevisionStats(bundle_digest=digest)
