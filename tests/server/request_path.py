"""Lists the files of the server that one Predict visits: `python -m dev.scripts.visited` runs it as a program.

The call is real: bytes go into the interceptor and the handler of EntailmentService, and the answer comes out. Only the
transport and the runner process are replaced.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import grpc

from hotslot.entailment.v1 import entailment_pb2
from inference.server.api.convert import InputLimits
from inference.server.api.entailment import EntailmentApi, PredictRules
from inference.server.api.interceptors import CallInterceptor
from inference.server.api.stream import StreamRules
from inference.server.compose import SELF_TEST
from inference.server.model.models import Models
from tests.server.simulator import World

ROOT = Path(__file__).resolve().parents[2]
ROOM = str(ROOT / "inference" / "server")
METHOD = "/hotslot.entailment.v1.EntailmentService/Predict"


class Visits:
    """Records the files of the server's functions in the order of their first call."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def trace(self, frame: FrameType, event: str, _argument: object) -> None:
        """A tracing function for `sys.settrace` that sees calls only."""
        path = frame.f_code.co_filename
        if event == "call" and path.startswith(ROOM):
            name = str(Path(path).relative_to(ROOT))
            if name not in self.files:
                self.files.append(name)


async def list_visited(state: Path) -> list[str]:
    """The files that one Predict visits."""
    world = await World(state).serving()
    models = Models([world.manager])
    rules = PredictRules(InputLimits(1 << 20, 1000), StreamRules(64), 60.0)
    api = EntailmentApi(models, rules, world.clock, world.events.append, world.drain)
    interceptor = CallInterceptor(world.clock, world.events.append, lambda *_: None)
    request = entailment_pb2.PredictRequest(statements=SELF_TEST.statements)
    request.image.content = SELF_TEST.image
    details: Any = SimpleNamespace(method=METHOD, invocation_metadata=())
    context: Any = SimpleNamespace(
        time_remaining=lambda: 30.0,
        invocation_metadata=lambda: (),
        set_trailing_metadata=lambda _: None,
        code=lambda: None,
        peer=lambda: "",
    )

    async def find_handler(found: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401  as in gRPC
        return api.handlers().service(found)

    visits = Visits()
    sys.settrace(visits.trace)
    try:
        handler: Any = await interceptor.intercept_service(find_handler, details)
        if handler is None:
            raise RuntimeError("Predict has no handler")
        response = await handler.unary_unary(request.SerializeToString(), context)
    finally:
        sys.settrace(None)
    if not response.results:
        raise RuntimeError("the request was not answered")
    return visits.files


def main() -> int:
    """Write the files, and how many they are."""
    with tempfile.TemporaryDirectory() as folder:
        files = asyncio.run(list_visited(Path(folder)))
    sys.stdout.write("".join(f"{number:3} {name}\n" for number, name in enumerate(files, 1)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
