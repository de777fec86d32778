"""Client of the server's control socket. Every call has a deadline, and every error is classified for the updater."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from common import reasons
from common.address import unix_target
from common.paths import CONTROL_SOCKET
from hotslot.control.v1 import control_pb2 as pb
from hotslot.control.v1.control_pb2_grpc import ControlServiceStub
from updater.control.prober import ComputeCost
from updater.control.snapshot import convert_server_state
from updater.core.effects import EffectFailure, FailureKind, ShadowCopies, Shortage
from updater.core.facts import ServerState
from updater.core.ports import EffectFailed

MAX_MESSAGE_BYTES = 40 << 20  # 64 items of a probe
UNREACHABLE = "SERVER_UNREACHABLE"
_MAX_DIGITS = 18  # of a number of bytes
# Reasons for which the same call fails again: the bundle or this build is at fault.
_PERMANENT = frozenset(
    {
        "LOAD_FAILED",
        "LOAD_STALLED",
        *reasons.SHORTAGES,
        "BUNDLE_UNKNOWN",
        "BUNDLE_BROKEN",
        "BUNDLE_FOREIGN",
        "MODEL_UNKNOWN",
        "DEVICE_UNKNOWN",
        "DIGEST_MALFORMED",
        "LEASE_OUT_OF_RANGE",
        "MODE_MISSING",
        "PERCENT_OUT_OF_RANGE",
        "SHADOW_OUT_OF_RANGE",
        "TRANSACTION_MISSING",
    }
)
_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Reconnect to a restarted server within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class ControlClient:
    """The port `Control` for one model. From that model's thread only."""

    def __init__(self, run_folder: Path, model: str, check_stop: Callable[[], None]) -> None:
        """Connect at the first call; the server need not run yet.

        Args:
            run_folder: contains the server's socket.
            model: name of the model.
            check_stop: called while a load is in progress; raises to stop waiting for it.
        """
        self._socket = run_folder / CONTROL_SOCKET
        self._channel = grpc.insecure_channel(unix_target(self._socket), options=list(_OPTIONS))
        self._stub = ControlServiceStub(self._channel)
        self._model = model
        self._check_stop = check_stop
        self._incarnation = ""  # of the server that answered last
        self._drains = False  # whether that server has begun an orderly stop
        self._last_ended_orderly = False  # whether the server before it had

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def state(self, deadline_seconds: float) -> ServerState:
        """GetStatus, converted."""
        try:
            response = self._stub.GetStatus(pb.GetStatusRequest(model=self._model), timeout=deadline_seconds)
        except grpc.RpcError as error:
            failed = classify_error(error)
            if failed.reason == UNREACHABLE and not self._socket.exists():
                self._drains = True  # a killed server leaves its socket file behind
            raise EffectFailed(failed) from error
        return self._convert(response)

    def load(
        self, bundle_digest: str, device: str, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> str:
        """Call LoadSlot and wait for the end of the load; returns the load id."""
        request = pb.LoadSlotRequest(
            change=self._change(transaction_id, expected_generation), bundle_digest=bundle_digest, device=device
        )
        with _classified_errors():
            call = self._stub.LoadSlot(request, timeout=deadline_seconds)
            try:
                return self._wait_loaded(call)
            finally:
                call.cancel()  # ends the progress stream, not the load

    def activate(
        self,
        load_id: str,
        trial_lease_seconds: float,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
        *,
        percent: float | None = None,
        copies: ShadowCopies | None = None,
    ) -> None:
        """Call ActivateSlot: start a trial, extend its lease, or (lease 0) reactivate the previous slot."""
        change, shadow = self._change(transaction_id, expected_generation), _to_shadow(copies)
        request = pb.ActivateSlotRequest(
            change=change,
            load_id=load_id,
            trial_lease=_to_duration(trial_lease_seconds),
            shadow=shadow,
            percent=percent,
        )
        with _classified_errors():
            self._stub.ActivateSlot(request, timeout=deadline_seconds)

    def copy_requests(
        self,
        load_id: str,
        copies: ShadowCopies,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
    ) -> None:
        """Call SetTraffic: a candidate answers copies of requests."""
        change, mode = self._change(transaction_id, expected_generation), pb.TRAFFIC_MODE_SHADOW
        request = pb.SetTrafficRequest(change=change, load_id=load_id, mode=mode, shadow=_to_shadow(copies))
        with _classified_errors():
            self._stub.SetTraffic(request, timeout=deadline_seconds)

    def set_percent(
        self, load_id: str, percent: float, transaction_id: str, expected_generation: int, deadline_seconds: float
    ) -> None:
        """Call SetTraffic: the trial gets another percentage of the requests."""
        change, mode = self._change(transaction_id, expected_generation), pb.TRAFFIC_MODE_CANARY
        request = pb.SetTrafficRequest(change=change, load_id=load_id, mode=mode, percent=percent)
        with _classified_errors():
            self._stub.SetTraffic(request, timeout=deadline_seconds)

    def commit(self, load_id: str, transaction_id: str, expected_generation: int, deadline_seconds: float) -> None:
        """Call CommitSlot."""
        request = pb.CommitSlotRequest(change=self._change(transaction_id, expected_generation), load_id=load_id)
        with _classified_errors():
            self._stub.CommitSlot(request, timeout=deadline_seconds)

    def retire(
        self,
        load_id: str,
        transaction_id: str,
        expected_generation: int,
        deadline_seconds: float,
        *,
        gap_lease_seconds: float | None = None,
    ) -> None:
        """Call RetireSlot."""
        change = self._change(transaction_id, expected_generation)
        request = pb.RetireSlotRequest(change=change, load_id=load_id)
        if gap_lease_seconds is not None:
            request.gap_lease.CopyFrom(_to_duration(gap_lease_seconds))
        with _classified_errors():
            self._stub.RetireSlot(request, timeout=deadline_seconds)

    def probe(self, request: pb.ProbeSlotRequest, deadline_seconds: float) -> pb.ProbeSlotResponse:
        """Call ProbeSlot for this model.

        Raises:
            EffectFailed: the slot was emptied, or the server cannot be reached.
        """
        request.model = self._model
        with _classified_errors():
            return self._stub.ProbeSlot(request, timeout=deadline_seconds)

    def measure_cost(self, load_id: str, deadline_seconds: float) -> ComputeCost:
        """Rows and device seconds of a load's bundle so far; zero if the load is gone."""
        with _classified_errors():
            response = self._stub.GetStatus(pb.GetStatusRequest(model=self._model), timeout=deadline_seconds)
        (model,) = response.models
        for slot in model.slots:
            for row in model.stats:
                if slot.load_id == load_id and (row.bundle_digest, row.device) == (slot.bundle_digest, slot.device):
                    return ComputeCost(row.computed.ToTimedelta().total_seconds(), row.rows)
        return ComputeCost(0.0, 0)

    def _wait_loaded(self, call: Iterator[pb.LoadSlotResponse]) -> str:
        load_id = ""
        for progress in call:
            self._check_stop()
            load_id = progress.load_id
            if progress.phase == pb.LOAD_PHASE_LOADED:
                return load_id
        raise EffectFailed.transient("LOAD_CUT_OFF", "the progress stream ended before the load did")

    def _convert(self, response: pb.GetStatusResponse) -> ServerState:
        """Convert a status, and track whether the previous server process stopped in good order."""
        incarnation = response.server_started_at.ToJsonString()
        if incarnation != self._incarnation:
            self._last_ended_orderly = bool(self._incarnation) and self._drains
            self._incarnation, self._drains = incarnation, False
        if response.draining:
            self._drains = True
        return convert_server_state(response, last_ended_orderly=self._last_ended_orderly)

    def _change(self, transaction_id: str, expected_generation: int) -> pb.Change:
        return pb.Change(model=self._model, transaction_id=transaction_id, expected_generation=expected_generation)


def classify_error(error: grpc.RpcError) -> EffectFailure:
    """The outcome of a failed call."""
    if not isinstance(error, grpc.Call):
        return EffectFailure(FailureKind.TRANSIENT, UNREACHABLE, "the server cannot be reached")
    reason, message, shortage = _read_status(error)
    if reason in _PERMANENT:
        return EffectFailure(FailureKind.PERMANENT, reason, message, shortage=shortage)
    if reason:
        return EffectFailure(FailureKind.TRANSIENT, reason, message)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return EffectFailure(FailureKind.TRANSIENT, "DEADLINE", "the server did not answer in time")
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return EffectFailure(FailureKind.TRANSIENT, UNREACHABLE, "the server cannot be reached")
    return EffectFailure(
        FailureKind.TRANSIENT, error.code().name, str(error.details() or "the server refused the call")[:500]
    )


@contextlib.contextmanager
def _classified_errors() -> Iterator[None]:
    """Raise EffectFailed in place of RpcError."""
    try:
        yield
    except grpc.RpcError as error:
        raise EffectFailed(classify_error(error)) from error


def _read_status(call: grpc.Call) -> tuple[str, str, Shortage | None]:
    """Reason, message and memory shortage from the server's status; empty if the error was not sent by the server."""
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # the details contradict the code
        return "", "", None
    if status is None:
        return "", "", None
    message = str(status.message)[:500]
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason), message, _read_shortage(dict(info.metadata))
    return "", message, None


def _read_shortage(metadata: Mapping[str, str]) -> Shortage | None:
    """The memory that a load lacked, as far as the server reports it."""
    device = metadata.get("device", "")
    if not device:
        return None
    return Shortage(device, _read_bytes(metadata, "needed_bytes", 0), _read_bytes(metadata, "free_bytes", -1))


def _read_bytes(metadata: Mapping[str, str], key: str, unknown: int) -> int:
    text = metadata.get(key, "")
    return int(text) if text.isdecimal() and len(text) <= _MAX_DIGITS else unknown


def _to_shadow(copies: ShadowCopies | None) -> pb.ShadowPolicy | None:
    if copies is None:
        return None
    policy = pb.ShadowPolicy(share=copies.share, busy_share=copies.busy_share)
    if copies.max_seconds:
        policy.max_duration.CopyFrom(_to_duration(copies.max_seconds))
    return policy


def _to_duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(int(seconds * 1e9))
    return duration
