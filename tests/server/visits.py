"""The files of the server that one Predict visits.

The call is real: bytes go into the interceptor and the handler of EntailmentService, and the answer comes out. Only the
transport and the runner process are replaced.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hotslot.entailment.v1 import entailment_pb2
from inference.server.api.entailment import ENTAILMENT
from inference.server.api.interceptors import Callers, CallInterceptor
from inference.server.api.predict import PredictApi, PredictRules
from inference.server.api.stream import StreamRules
from inference.server.api.task import InputLimits
from inference.server.model.models import Models
from inference.server.scheduling.held_bytes import HeldBytes, HeldRules
from tests.call_trace import Visits
from tests.server.simulated_connections import SimCalls, SimConnections, SimMemory
from tests.server.simulator import World

METHOD = "/hotslot.entailment.v1.EntailmentService/Predict"


async def list_server_files(state: Path) -> list[str]:
    """The files that one Predict visits."""
    world = await World(state).serving()
    models = Models([world.manager])
    rules = PredictRules(InputLimits(1 << 20, 1000), StreamRules(64), 60.0)
    held = HeldBytes(HeldRules(1 << 30, 1 << 25, 12.0), SimConnections(), SimMemory(), SimCalls())
    api = PredictApi(ENTAILMENT, models, rules, world.clock, world.events.append, world.drain, held)
    interceptor = CallInterceptor(world.clock, world.events.append, lambda *_: None, Callers((), "", 0.0))
    request = entailment_pb2.PredictRequest(statements=ENTAILMENT.self_test.statements)
    request.image.content = bytes(ENTAILMENT.self_test.image)
    details: Any = SimpleNamespace(method=METHOD, invocation_metadata=())

    async def read() -> bytes:
        return request.SerializeToString()

    context: Any = SimpleNamespace(
        time_remaining=lambda: 30.0,
        invocation_metadata=lambda: (),
        set_trailing_metadata=lambda _: None,
        code=lambda: None,
        peer=lambda: "",
        read=read,
    )
    service, _, method = METHOD.strip("/").partition("/")
    found: Any = api.handlers().service(details)
    handler: Any = interceptor.wrap(found, service, method)
    visits = Visits("inference/server")
    with visits.recording():
        response = await handler.stream_unary(None, context)
    if not response.results:
        raise RuntimeError("the request was not answered")
    return visits.files
