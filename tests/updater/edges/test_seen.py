"""What the server says of memory and devices, in the updater's words."""

from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from hotslot.control.v1 import control_pb2 as pb
from inference.server.model.pair import Role, SlotState, TrialOutcome
from updater.control.client import classify_error
from updater.control.snapshot import convert_server_state
from updater.core.effects import FailureKind, Shortage
from updater.core.facts import LEASE_EXPIRED, TRIAL_COMMITTED, YIELDED, SlotSnapshot
from updater.core.record import CpuFallback


class Refused(grpc.RpcError, grpc.Call):
    """A call that the server has refused with details."""

    def __init__(self, reason: str, metadata: dict[str, str]) -> None:
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="hotslot", metadata=metadata))
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
        self._status = status_pb2.Status(code=code.value[0], message="it does not fit", details=[detail])
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return str(self._status.message)

    def initial_metadata(self) -> tuple[tuple[str, bytes], ...]:
        return ()

    def trailing_metadata(self) -> Any:  # noqa: ANN401  the two bases call it differently
        return (("grpc-status-details-bin", self._status.SerializeToString()),)

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float:
        return 0.0

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: object) -> bool:
        return False


def test_a_failed_load_reports_its_memory_shortage() -> None:
    """Values that the server omits, or that are malformed, are unknown."""
    full = {"device": "cuda:0", "needed_bytes": "5000", "free_bytes": "0"}
    failed = classify_error(Refused("DOES_NOT_FIT", full))
    assert (failed.kind, failed.reason) == (FailureKind.PERMANENT, "DOES_NOT_FIT")
    assert failed.shortage == Shortage("cuda:0", 5000, 0)

    spoilt = {"device": "cuda:0", "needed_bytes": "-1", "free_bytes": "9" * 100}
    assert classify_error(Refused("OUT_OF_MEMORY", spoilt)).shortage == Shortage("cuda:0")
    assert classify_error(Refused("OUT_OF_MEMORY", {})).shortage is None


def test_a_fallback_and_the_end_of_a_trial_are_converted() -> None:
    """With the start time, which distinguishes one fallback from the next."""
    since = datetime(2026, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC)
    fallback = pb.CpuFallback(device="cuda:0", fallback_device="cpu", bundle_digest="b", reason="OUT_OF_MEMORY")
    fallback.since.FromDatetime(since)
    end = pb.TrialEnd(bundle_digest="b", outcome="ROLLED_BACK", reason="OUT_OF_MEMORY")
    response = pb.GetStatusResponse(models=[pb.ModelState(model="shapes", cpu_fallback=fallback, last_trial=end)])

    state = convert_server_state(response, last_ended_orderly=False)
    assert CpuFallback("cuda:0", "cpu", "b", since, "OUT_OF_MEMORY") == state.cpu_fallback
    assert state.last_trial is not None
    assert state.last_trial.reason == "OUT_OF_MEMORY"
    response.models[0].ClearField("cpu_fallback")
    assert convert_server_state(response, last_ended_orderly=False).cpu_fallback is None


def test_the_updater_knows_the_words_of_the_server() -> None:
    """A state, a role or an outcome that the server renames would turn off what the updater decides by it."""
    slots = [SlotSnapshot("", "", "", "", state, role) for state in SlotState for role in Role]

    assert {slot.state for slot in slots if slot.is_loaded} == {SlotState.LOADED}
    assert {slot.state for slot in slots if slot.is_retiring} == {SlotState.RETIRING}
    assert {slot.role for slot in slots if slot.is_previous} == {Role.PREVIOUS}
    outcomes = (TrialOutcome.COMMITTED, TrialOutcome.LEASE_EXPIRED, TrialOutcome.YIELDED)
    assert outcomes == (TRIAL_COMMITTED, LEASE_EXPIRED, YIELDED)
