"""Client of hotslot: is this statement true for this picture, and which parts has this address?

`Client` and `AsyncClient` are the two ways to call it.
"""

from hotslot_client._connection import service_config
from hotslot_client._window import StreamRules
from hotslot_client.aio import AsyncClient
from hotslot_client.client import Client
from hotslot_client.errors import (
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    HotslotError,
    InvalidRequest,
    NotFound,
    Overloaded,
    ServerFailed,
    Unauthenticated,
    Unavailable,
)
from hotslot_client.types import (
    AddressItem,
    AddressResult,
    EntailmentItem,
    Label,
    Outcome,
    Prediction,
    ServedBy,
    Span,
    StatementResult,
    Tagging,
    Timing,
    Tls,
)

__version__ = "0.2.0"
__all__ = [
    "AddressItem",
    "AddressResult",
    "AsyncClient",
    "Cancelled",
    "Client",
    "ClientClosed",
    "DeadlineExceeded",
    "EntailmentItem",
    "HotslotError",
    "InvalidRequest",
    "Label",
    "NotFound",
    "Outcome",
    "Overloaded",
    "Prediction",
    "ServedBy",
    "ServerFailed",
    "Span",
    "StatementResult",
    "StreamRules",
    "Tagging",
    "Timing",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "service_config",
]
