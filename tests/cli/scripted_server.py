"""A scripted server: the generated servicers with fixed answers."""

import threading
from concurrent import futures
from typing import Any

import grpc
from google.rpc import status_pb2 as rpc_status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from common import errors
from hotslot.address.v1 import address_pb2, address_pb2_grpc
from hotslot.entailment.v1 import entailment_pb2, entailment_pb2_grpc
from hotslot.status.v1 import status_pb2, status_pb2_grpc

DIGEST = "sha256:" + "3f2a91bc" * 8
REFUSALS: dict[str, errors.HotslotError] = {
    "nobody": errors.NotFound("no model 'nobody' here", reason="MODEL_UNKNOWN", field="model"),
    "loading": errors.NotReady("the model is being loaded", retry_after_seconds=1.0),
    "blind": errors.InputRefused("no picture at all", reason="IMAGE_UNREADABLE", field="image.content"),
    "busy": errors.Overloaded("too much", retry_after_seconds=0.5),
    "anonymous": errors.Unauthenticated("who are you?"),
    "broken": errors.Failed("it broke", reason="ENGINE_FAILED"),
    "late": errors.DeadlineMissed("too late"),
}


class ScriptedServer:
    """The server, its address, and the requests that it has received."""

    def __init__(
        self,
        *,
        has_services: bool = True,
        addresses: tuple[str, ...] = ("127.0.0.1:0",),
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """Listen on a free port of this machine; with credentials over TLS."""
        self.requests: list[entailment_pb2.PredictRequest] = []
        self.tagged: list[address_pb2.PredictRequest] = []
        self.tags: list[dict[str, str]] = []  # version and routing key of each Predict, by their metadata keys
        self.authorizations: list[str] = []  # what each Predict and Check has shown
        self.models = status_pb2.ListModelsResponse(models=[model_with_trial()])
        self.server_status = healthy_status()
        self.released = threading.Event()
        self.meeting: threading.Barrier | None = None  # of tagging calls, which wait until so many are there
        self.overloads = 0  # so many tagging calls are refused
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        if has_services:
            entailment_pb2_grpc.add_EntailmentServiceServicer_to_server(_Entailment(self), self._server)
            address_pb2_grpc.add_AddressTaggingServiceServicer_to_server(_Tagging(self), self._server)
            status_pb2_grpc.add_StatusServiceServicer_to_server(_Status(self), self._server)
            health_pb2_grpc.add_HealthServicer_to_server(_Health(self), self._server)
        if credentials is None:
            ports = [self._server.add_insecure_port(address) for address in addresses]
        else:
            ports = [self._server.add_secure_port(address, credentials) for address in addresses]
        self.address = f"127.0.0.1:{ports[0]}"
        self._server.start()

    def stop(self) -> None:
        """Release waiting calls and stop."""
        self.released.set()
        self._server.stop(None).wait()


def _read_tags(context: Any) -> dict[str, str]:  # noqa: ANN401
    keys = ("x-model-version", "x-routing-key")
    return {key: value for key, value in context.invocation_metadata() if key in keys}


class _Entailment(entailment_pb2_grpc.EntailmentServiceServicer):
    def __init__(self, world: ScriptedServer) -> None:
        self._world = world

    def Predict(self, request: entailment_pb2.PredictRequest, context: Any) -> entailment_pb2.PredictResponse:  # noqa: N802, ANN401
        self._world.requests.append(request)
        self._world.tags.append(_read_tags(context))
        self._world.authorizations.append(str(dict(context.invocation_metadata()).get("authorization", "")))
        if request.model in REFUSALS:
            status = errors.to_status(REFUSALS[request.model])
            assert isinstance(status, rpc_status_pb2.Status)
            context.abort_with_status(rpc_status.to_status(status))
        if request.model == "slow":
            self._world.released.wait(10)
        response = entailment_pb2.PredictResponse(results=[_result(text) for text in request.statements])
        served = response.served_by
        served.model, served.revision, served.digest = "shapes", "v1.0.0", DIGEST
        served.device, served.slot, served.node = "cpu", "a", "here"
        response.timing.computed.FromMilliseconds(12)
        return response

    def StreamPredict(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802, ANN401
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no command streams")


class _Tagging(address_pb2_grpc.AddressTaggingServiceServicer):
    """Every address begins with a province of three characters; a city follows a blank."""

    def __init__(self, world: ScriptedServer) -> None:
        self._world = world

    def Predict(self, request: address_pb2.PredictRequest, context: Any) -> address_pb2.PredictResponse:  # noqa: N802, ANN401
        self._world.tagged.append(request)
        self._world.tags.append(_read_tags(context))
        if self._world.meeting is not None:
            self._world.meeting.wait(10)
        if self._world.overloads:
            self._world.overloads -= 1
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the queue is full")
        if request.model in REFUSALS:
            status = errors.to_status(REFUSALS[request.model])
            assert isinstance(status, rpc_status_pb2.Status)
            context.abort_with_status(rpc_status.to_status(status))
        response = address_pb2.PredictResponse()
        for text in request.addresses:
            result = response.results.add()
            result.spans.add(kind="prov", text=text[:3], start=0, end=3, start_byte=0, end_byte=9, probability=0.875)
            result.components["prov"] = text[:3]
            if text[4:]:
                city = {"kind": "city", "text": text[4:], "start": 4, "end": len(text)}
                result.spans.add(**city, start_byte=10, end_byte=len(text.encode()), probability=0.5)
                result.components["city"] = text[4:]
        served = response.served_by
        served.model, served.revision, served.digest = "addresses", "v1.0.0", DIGEST
        served.device, served.slot, served.node = "cpu", "a", "here"
        response.timing.computed.FromMilliseconds(12)
        return response

    def StreamPredict(self, request_iterator: Any, context: Any) -> Any:  # noqa: N802, ANN401
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "no command streams")


class _Status(status_pb2_grpc.StatusServiceServicer):
    def __init__(self, world: ScriptedServer) -> None:
        self._world = world

    def GetServerStatus(self, request: Any, context: Any) -> status_pb2.GetServerStatusResponse:  # noqa: N802, ANN401
        return self._world.server_status

    def ListModels(self, request: Any, context: Any) -> status_pb2.ListModelsResponse:  # noqa: N802, ANN401
        return self._world.models


class _Health(health_pb2_grpc.HealthServicer):
    def __init__(self, world: ScriptedServer) -> None:
        self._world = world

    def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802, ANN401
        self._world.authorizations.append(str(dict(context.invocation_metadata()).get("authorization", "")))
        if request.service == "slow":
            self._world.released.wait(10)
        if request.service == "header":
            shown = dict(context.invocation_metadata()).get("x-team")
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"x-team is {shown}")
        if request.service == "unknown":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        is_down = request.service == "down"
        status = health_pb2.HealthCheckResponse.NOT_SERVING if is_down else health_pb2.HealthCheckResponse.SERVING
        return health_pb2.HealthCheckResponse(status=status)


def healthy_status() -> status_pb2.GetServerStatusResponse:
    """A server with little free memory and a healthy model."""
    status = status_pb2.GetServerStatusResponse(node="here", version="9.8.7")
    status.process.level = status_pb2.HEALTH_LEVEL_OK
    status.process.started_at.FromJsonString("2026-01-02T03:04:05Z")
    status.process.loop_lag.FromMilliseconds(3)
    status.resources.level = status_pb2.HEALTH_LEVEL_DEGRADED
    status.resources.memory_used_bytes, status.resources.memory_total_bytes = 7 << 30, 8 << 30
    status.resources.warnings.append("memory is at 88 %")
    capability = status.capabilities.add(model="shapes", level=status_pb2.HEALTH_LEVEL_OK, ready=True, waiting=2)
    capability.last_inference_at.FromJsonString("2026-01-02T03:04:06Z")
    return status


def model_with_trial() -> status_pb2.Model:
    """A model whose slot b is on trial, with a long revision name."""
    model = status_pb2.Model(name="shapes", task="visual-entailment", active_slot="b")
    model.slots.add(
        name="a",
        state=status_pb2.SLOT_STATE_LOADED,
        role=status_pb2.SLOT_ROLE_PREVIOUS,
        revision="v1.0.0",
        digest=DIGEST,
        device="cpu",
        precision="float32",
        pid=123,
        resident_bytes=540 << 20,
        restarts=2,
        last_failure="killed by signal 9",
    )
    model.slots.add(
        name="b",
        state=status_pb2.SLOT_STATE_LOADED,
        role=status_pb2.SLOT_ROLE_TRIAL,
        revision="mgeo-base-v1-20230815",
        digest="sha256:" + "0" * 64,
        device="cuda:0",
        precision="float32",
        pid=124,
        notes=["answers are scored, not searched"],
    )
    model.trial.slot = "b"
    model.trial.term_left.FromSeconds(48)
    model.trial.percent = 25
    model.committed.revision, model.committed.digest, model.committed.origin = "v1.0.0", DIGEST, "import"
    return model


def _result(statement: str) -> entailment_pb2.StatementResult:
    """The label is the first word of the statement."""
    word = statement.split(maxsplit=1)[0]
    scores = {name: 0.9 if name == word else 0.05 for name in ("yes", "no", "maybe")}
    return entailment_pb2.StatementResult(
        label=entailment_pb2.Label.Value(f"LABEL_{word.upper()}"), scores=entailment_pb2.LabelScores(**scores)
    )
