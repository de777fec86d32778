"""AddressTaggingService: answers UNIMPLEMENTED, since this build has no engine for it."""

from typing import NoReturn

import grpc

from common.errors import NotBuilt
from hotslot.address.v1 import address_pb2
from inference.server.api.reading import Context

SERVICE = address_pb2.DESCRIPTOR.services_by_name["AddressTaggingService"].full_name


class AddressApi:
    """The handlers of AddressTaggingService."""

    def handlers(self) -> grpc.GenericRpcHandler:
        """What the server registers."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Predict": grpc.unary_unary_rpc_method_handler(
                    self.predict, None, address_pb2.PredictResponse.SerializeToString
                ),
                "StreamPredict": grpc.stream_stream_rpc_method_handler(
                    self.stream_predict, None, address_pb2.StreamPredictResponse.SerializeToString
                ),
            },
        )

    async def predict(self, _raw: bytes, _context: Context) -> NoReturn:
        """Refuse: there is no engine."""
        raise _not_built()

    async def stream_predict(self, _requests: object, _context: Context) -> NoReturn:
        """Refuse: there is no engine."""
        raise _not_built()


def _not_built() -> NotBuilt:
    return NotBuilt("this build has no engine for address tagging; it serves visual entailment")
