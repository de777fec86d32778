"""The server's control socket, as the updater sees it: every call has a deadline, every refusal a meaning."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from common.paths import CONTROL_SOCKET
from hotslot.control.v1 import control_pb2 as pb
from hotslot.control.v1.control_pb2_grpc import ControlServiceStub
from updater.control.prober import Cost
from updater.control.snapshot import server_state
from updater.core.effects import EffectFailure, FailureKind, Shortage
from updater.core.ports import EffectFailed, ServerState

MAX_MESSAGE_BYTES = 40 << 20  # 64 items of a probe
UNREACHABLE = "SERVER_UNREACHABLE"
_MAX_DIGITS = 18  # of a number of bytes
# Of the server's refusals, those that the same call will meet again: the bundle's fault, or ours.
_PERMANENT = frozenset(
    {
        "LOAD_FAILED",
        "LOAD_STALLED",
        "DOES_NOT_FIT",
        "OUT_OF_MEMORY",
        "BUNDLE_UNKNOWN",
        "BUNDLE_BROKEN",
        "BUNDLE_FOREIGN",
        "MODEL_UNKNOWN",
        "DEVICE_UNKNOWN",
        "DIGEST_MALFORMED",
        "LEASE_OUT_OF_RANGE",
        "TRANSACTION_MISSING",
    }
)
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A server that is started again is met again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class Stoppable(Protocol):
    """Breaks off what takes long."""

    def __call__(self) -> None:
        """Raise to stop."""
        ...


class ControlClient:
    """One model's slots. From that model's thread only."""

    def __init__(self, run_folder: Path, model: str, check_stop: Stoppable) -> None:
        """Connect when it is first needed; a server that is not there yet is no error.

        Args:
            run_folder: where the server's socket is.
            model: name of the model.
            check_stop: called while a load goes on; raises to stop waiting for it.
        """
        self._socket = run_folder / CONTROL_SOCKET
        self._channel = grpc.insecure_channel(f"unix:{self._socket.absolute()}", options=list(_OPTIONS))
        self._stub = ControlServiceStub(self._channel)
        self._model = model
        self._keep_on = check_stop
        self._life = ""  # of the server that answered last
        self._left_orderly = False  # whether that one was seen to leave in good order
        self._born_after_order = False  # whether the one before this life did

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def state(self, deadline_seconds: float) -> ServerState:
        """GetStatus, reduced."""
        try:
            response = self._stub.GetStatus(pb.GetStatusRequest(model=self._model), timeout=deadline_seconds)
        except grpc.RpcError as error:
            failed = failure_of(error)
            if failed.reason == UNREACHABLE and not self._socket.exists():
                self._left_orderly = True  # a server that is killed leaves its socket behind
            raise EffectFailed(failed) from error
        return self._note(response)

    def load(
        self, bundle_digest: str, device: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> str:
        """LoadSlot to its end; returns the load id."""
        request = pb.LoadSlotRequest(
            change=self._change(transaction_id, expected_generation), bundle_digest=bundle_digest, device=device
        )
        with _refusals():
            call = self._stub.LoadSlot(request, timeout=deadline_seconds)
            try:
                return self._follow(call)
            finally:
                call.cancel()  # the load goes on; only its story is over

    def activate(
        self,
        load_id: str,
        trial_lease_seconds: float,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
    ) -> ServerState:
        """ActivateSlot: begin a trial, extend its lease, or put the previous slot back (term 0)."""
        change = self._change(transaction_id, expected_generation)
        request = pb.ActivateSlotRequest(change=change, load_id=load_id, trial_lease=_duration(trial_lease_seconds))
        with _refusals():
            self._stub.ActivateSlot(request, timeout=deadline_seconds)
        return self.state(deadline_seconds)

    def commit(
        self, load_id: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> ServerState:
        """CommitSlot."""
        request = pb.CommitSlotRequest(change=self._change(transaction_id, expected_generation), load_id=load_id)
        with _refusals():
            self._stub.CommitSlot(request, timeout=deadline_seconds)
        return self.state(deadline_seconds)

    def retire(
        self, load_id: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> ServerState:
        """RetireSlot."""
        request = pb.RetireSlotRequest(change=self._change(transaction_id, expected_generation), load_id=load_id)
        with _refusals():
            self._stub.RetireSlot(request, timeout=deadline_seconds)
        return self.state(deadline_seconds)

    def probe(self, request: pb.ProbeSlotRequest, deadline_seconds: float) -> pb.ProbeSlotResponse:
        """ProbeSlot on this model.

        Raises:
            EffectFailed: the slot is gone, or the server.
        """
        request.model = self._model
        with _refusals():
            return self._stub.ProbeSlot(request, timeout=deadline_seconds)

    def cost(self, load_id: str, deadline_seconds: float) -> Cost:
        """What has been computed on a load's bundle and device so far; nothing if the load is gone."""
        with _refusals():
            response = self._stub.GetStatus(pb.GetStatusRequest(model=self._model), timeout=deadline_seconds)
        (model,) = response.models
        for slot in model.slots:
            for row in model.stats:
                if slot.load_id == load_id and (row.bundle_digest, row.device) == (slot.bundle_digest, slot.device):
                    return Cost(row.computed.ToTimedelta().total_seconds(), row.rows)
        return Cost(0.0, 0)

    def _follow(self, call: Iterator[pb.LoadSlotResponse]) -> str:
        load_id = ""
        for progress in call:
            self._keep_on()
            load_id = progress.load_id
            if progress.phase == pb.LOAD_PHASE_LOADED:
                return load_id
        raise EffectFailed.transient("LOAD_CUT_OFF", "the load's story ended early")

    def _note(self, response: pb.GetStatusResponse) -> ServerState:
        """Reduce a status, and remember how the server's last life ended."""
        life = response.server_started_at.ToJsonString()
        if life != self._life:
            self._born_after_order = bool(self._life) and self._left_orderly
            self._life, self._left_orderly = life, False
        if response.draining:
            self._left_orderly = True
        return server_state(response, last_ended_orderly=self._born_after_order)

    def _change(self, transaction_id: str, expected_generation: int) -> pb.Change:
        return pb.Change(model=self._model, transaction_id=transaction_id, expected_generation=expected_generation)


def failure_of(error: grpc.RpcError) -> EffectFailure:
    """What a failed call means for what comes next."""
    if not isinstance(error, grpc.Call):
        return EffectFailure(FailureKind.TRANSIENT, UNREACHABLE, "the server cannot be reached")
    reason, message, shortage = _told(error)
    if reason in _PERMANENT:
        return EffectFailure(FailureKind.PERMANENT, reason, message, shortage=shortage)
    if reason:
        return EffectFailure(FailureKind.TRANSIENT, reason, message)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return EffectFailure(FailureKind.TRANSIENT, "DEADLINE", "the server did not answer in time")
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return EffectFailure(FailureKind.TRANSIENT, UNREACHABLE, "the server cannot be reached")
    return EffectFailure(FailureKind.TRANSIENT, error.code().name, str(error.details() or "the server refused")[:500])


class _refusals:  # noqa: N801  reads as a word: with _refusals()
    """Turns a failed call into what it means."""

    def __enter__(self) -> None:
        """Nothing to do before."""

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Raise the meaning in its place."""
        if isinstance(error, grpc.RpcError):
            raise EffectFailed(failure_of(error)) from error


def _told(call: grpc.Call) -> tuple[str, str, Shortage | None]:
    """Reason, sentence and lack of memory that the server itself answered; empty if it was not the server."""
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # details that contradict the code
        return "", "", None
    if status is None:
        return "", "", None
    message = str(status.message)[:500]
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason), message, _shortage(dict(info.metadata))
    return "", message, None


def _shortage(metadata: Mapping[str, str]) -> Shortage | None:
    """What a load lacked, as far as the server knows."""
    device = metadata.get("device", "")
    if not device:
        return None
    return Shortage(device, _bytes(metadata, "needed_bytes", 0), _bytes(metadata, "free_bytes", -1))


def _bytes(metadata: Mapping[str, str], key: str, unknown: int) -> int:
    text = metadata.get(key, "")
    return int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else unknown


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
