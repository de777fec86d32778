"""The Open Inference Protocol, version 2, over the same models: `inference.GRPCInferenceService`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import grpc

from common.clock import Clock
from common.engine_files import Task
from common.errors import InputRefused, NotFound, NotReady
from common.process_metrics import installed_version
from hotslot.oip.v2 import open_inference_pb2 as pb
from inference.server.api.convert import MAX_ITEM_ID_CHARS, parse
from inference.server.api.interceptors import current_call, has_reached_deadline
from inference.server.api.predict import PredictApi, note_answer
from inference.server.api.reading import Context, MessageReader
from inference.server.api.tensors import TASK_TENSORS, TensorSpec, choose_outputs, fill_outputs, read_inputs
from inference.server.events import Emit
from inference.server.health import HealthRegistry
from inference.server.model.manager import ModelManager
from inference.server.model.models import Models
from inference.server.model.route import find_version
from inference.server.model.stats import IncomingItem
from inference.server.request import PendingRequest, Prediction
from inference.server.scheduling.admission import Drain, draining_error
from inference.server.scheduling.fair_queue import Source
from inference.server.scheduling.held_bytes import HeldBytes

SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
SERVER_NAME = "hotslot"


@dataclass(frozen=True, slots=True)
class WantedResponse:
    """The task, id, outputs and encoding of the response to a request."""

    task: Task
    id: str
    outputs: tuple[TensorSpec, ...]
    is_raw: bool


class OpenInferenceApi:
    """The handlers of the service. Requests of ModelInfer take the way of Predict."""

    def __init__(
        self,
        tasks: Mapping[Task, PredictApi],
        models: Models,
        health: HealthRegistry,
        held: HeldBytes,
        drain: Drain,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._tasks = tasks
        self._models = models
        self._health = health
        self._held = held
        self._clock = clock
        self._emit = emit
        self._drain = drain

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the server registers."""
        unary: Mapping[str, tuple[Any, Any]] = {
            "ServerLive": (self.server_live, pb.ServerLiveResponse),
            "ServerReady": (self.server_ready, pb.ServerReadyResponse),
            "ModelReady": (self.model_ready, pb.ModelReadyResponse),
            "ServerMetadata": (self.server_metadata, pb.ServerMetadataResponse),
            "ModelMetadata": (self.model_metadata, pb.ModelMetadataResponse),
        }
        methods: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(handle, None, response.SerializeToString)
            for name, (handle, response) in unary.items()
        }
        # As a stream of one message: gRPC reads it only when the handler asks for it.
        infer: Any = grpc.stream_unary_rpc_method_handler(
            self.model_infer, None, pb.ModelInferResponse.SerializeToString
        )
        return grpc.method_handlers_generic_handler(SERVICE, {**methods, "ModelInfer": infer})

    async def server_live(self, raw: bytes, _context: Context) -> pb.ServerLiveResponse:
        """That it answers."""
        parse(pb.ServerLiveRequest, raw)
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, raw: bytes, _context: Context) -> pb.ServerReadyResponse:
        """As the health of the whole server."""
        parse(pb.ServerReadyRequest, raw)
        return pb.ServerReadyResponse(ready=bool(self._health.is_serving("")))

    async def model_ready(self, raw: bytes, _context: Context) -> pb.ModelReadyResponse:
        """As the health of the model, if the named revision answers; a model that is not here is not ready."""
        request = parse(pb.ModelReadyRequest, raw)
        try:
            manager = self._find(request.name)
            slot = find_version(manager.pair, request.version)
        except (NotFound, NotReady):
            return pb.ModelReadyResponse(ready=False)
        is_ready = bool(self._health.is_serving(manager.options.model)) and (slot is None or slot.is_loaded)
        return pb.ModelReadyResponse(ready=is_ready)

    async def server_metadata(self, raw: bytes, _context: Context) -> pb.ServerMetadataResponse:
        """Name and version."""
        parse(pb.ServerMetadataRequest, raw)
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=installed_version())

    async def model_metadata(self, raw: bytes, _context: Context) -> pb.ModelMetadataResponse:
        """The tensors of the model's task."""
        request = parse(pb.ModelMetadataRequest, raw)
        manager = self._find(request.name)
        find_version(manager.pair, request.version)
        task = manager.options.task
        response = pb.ModelMetadataResponse(
            name=manager.options.model, versions=_list_versions(manager), platform=f"{SERVER_NAME}_{task.value}"
        )
        for spec in TASK_TENSORS[task].inputs:
            response.inputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        for spec in TASK_TENSORS[task].outputs:
            response.outputs.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return response

    async def model_infer(self, _messages: object, context: Context) -> pb.ModelInferResponse:
        """Answer one request.

        Raises:
            HotslotError: one of the errors in the proto.
        """
        with MessageReader(context, self._held, self._clock) as reader:
            with IncomingItem(self._emit, partial(has_reached_deadline, context)) as item:
                if self._drain.is_draining:
                    raise draining_error()
                source = current_call.get().caller.unary_source
                # No variable of this frame refers to the input: a cancelled task keeps its frames.
                wanted, pending = self._begin(item, await reader.read_only(), context.time_remaining(), source)
                reader.hold(pending)
            prediction = await self._tasks[wanted.task].wait(pending, context)
        note_answer({}, prediction)
        return _build_response(wanted, prediction)

    def _begin(
        self, item: IncomingItem, raw: bytes, left: float | None, source: Source
    ) -> tuple[WantedResponse, PendingRequest]:
        request = parse(pb.ModelInferRequest, raw)
        manager = self._find(request.model_name)
        if len(request.id) > MAX_ITEM_ID_CHARS:
            message = f"id has {len(request.id)} characters, limit {MAX_ITEM_ID_CHARS}"
            raise InputRefused(message, reason="ITEM_ID_TOO_LONG", field="id")
        task, model = manager.options.task, manager.options.model
        tensors = TASK_TENSORS[task]
        wanted = WantedResponse(
            task,
            request.id,
            choose_outputs(request, tensors.outputs),
            is_raw=len(request.raw_input_contents) > 0,
        )
        record = tensors.build_request(model, read_inputs(request, tensors.inputs))
        tags = current_call.get().tags
        if request.model_version:
            tags = replace(tags, version=request.model_version)
        return wanted, self._tasks[task].accept(item, record, left, source, tags)

    def _find(self, name: str) -> ModelManager:
        """The named model; without a name the only one.

        Raises:
            NotFound: there is none of this name.
            InputRefused: none was named, and there are several.
        """
        managers = self._models.all()
        if name:
            return self._models.get(name)
        if len(managers) != 1:
            names = ", ".join(manager.options.model for manager in managers)
            message = f"several models are served; name one of {names}"
            raise InputRefused(message, reason="MODEL_REQUIRED", field="model_name")
        return managers[0]


def _list_versions(manager: ModelManager) -> list[str]:
    """The revisions that are loaded, the one that answers first."""
    answering = manager.pair.answering_slot()
    loaded = [slot for slot in manager.pair if slot.is_loaded and slot.load is not None]
    loaded.sort(key=lambda slot: slot is not answering)
    return [slot.load.bundle.revision for slot in loaded if slot.load is not None]


def _build_response(wanted: WantedResponse, prediction: Prediction) -> pb.ModelInferResponse:
    served = prediction.served_by
    response = pb.ModelInferResponse(model_name=served.model, model_version=served.revision, id=wanted.id)
    for name in ("digest", "device", "slot", "node"):
        response.parameters[name].string_param = getattr(served, name)
    tensors = TASK_TENSORS[wanted.task].build_outputs(prediction)
    fill_outputs(response, tensors, wanted.outputs, is_raw=wanted.is_raw)
    return response
