"""hotslot's contract on grpc.aio and nothing else: no admission, no queue, no process, no log, no metrics."""

import argparse
import asyncio
from collections.abc import AsyncIterator

import grpc

from hotslot.entailment.v1 import entailment_pb2 as pb
from hotslot.entailment.v1 import entailment_pb2_grpc as stubs

MAX_BYTES = 16 << 20


class Bare(stubs.EntailmentServiceServicer):
    """Answers as soon as the request is parsed."""

    async def Predict(  # noqa: N802  gRPC's name
        self, request: pb.PredictRequest, _context: grpc.aio.ServicerContext[pb.PredictRequest, pb.PredictResponse]
    ) -> pb.PredictResponse:
        """One request."""
        return _answer(request)

    async def StreamPredict(  # noqa: N802  gRPC's name
        self,
        messages: AsyncIterator[pb.StreamPredictRequest],
        _context: grpc.aio.ServicerContext[pb.StreamPredictRequest, pb.StreamPredictResponse],
    ) -> AsyncIterator[pb.StreamPredictResponse]:
        """Each item as it comes."""
        async for message in messages:
            results = [pb.StreamResult(item_id=item.item_id, response=_answer(item.request)) for item in message.items]
            yield pb.StreamPredictResponse(results=results)


def _answer(request: pb.PredictRequest) -> pb.PredictResponse:
    scores = [pb.StatementResult(label=pb.LABEL_YES) for _ in request.statements]
    return pb.PredictResponse(results=scores)


async def serve(port: int) -> None:
    """Serve until the process ends."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_BYTES)])
    stubs.add_EntailmentServiceServicer_to_server(Bare(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    asyncio.run(serve(parser.parse_args().port))
