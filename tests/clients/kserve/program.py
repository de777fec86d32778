"""A program as KServe's users write it: prints what KServe's own client says of a server, as JSON."""

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput

PICTURE = b"\x89PNG one"
STATEMENTS = ["there is a person", "人がいる"]
TEXTS = [text.encode() for text in STATEMENTS]


def raw(name: str, elements: list[bytes], shape: list[int] | None = None) -> Any:  # noqa: ANN401  untyped
    """An input of BYTES as KServe's documentation makes it, for `raw_input_contents`."""
    tensor = InferInput(name, shape or [len(elements)], "BYTES")
    tensor.set_data_from_numpy(np.array(elements, dtype=object).reshape(shape or [-1]), binary_data=True)
    return tensor


def typed(name: str, elements: list[Any]) -> Any:  # noqa: ANN401  untyped
    """An input of BYTES from a list, for `bytes_contents`."""
    return InferInput(name, [len(elements)], "BYTES", data=elements)


async def see(infer: Awaitable[Any]) -> Any:  # noqa: ANN401  untyped
    """The result, or the error's code and text."""
    try:
        response = await infer
    except grpc.RpcError as error:
        found: Any = error
        return [str(found.code()), found.details()]
    tensors = {output.name: output.as_numpy().tolist() for output in response.outputs}
    if "labels" in tensors:
        tensors["labels"] = [one.decode() for one in tensors["labels"]]
    return {"id": response.id, "model": response.model_name, "version": response.model_version, **tensors}


async def main(address: str, model: str) -> dict[str, Any]:
    """What the client says."""
    inputs = [raw("image", [PICTURE]), raw("statements", TEXTS)]
    unreadable = InferInput("image", [1], "BYTES")
    try:
        unreadable.set_data_from_numpy(np.array([PICTURE], dtype=object), binary_data=False)
        text_only = ""
    except Exception as error:  # noqa: BLE001  KServe's own
        text_only = type(error).__name__
    columns = [raw("image", [PICTURE], [1, 1]), raw("statements", TEXTS, [2, 1])]
    lists = [typed("image", [PICTURE]), typed("statements", STATEMENTS)]
    labels = [RequestedOutput("labels")]
    mixed = [raw("image", [PICTURE]), typed("statements", STATEMENTS)]
    async with InferenceGRPCClient(address) as client:

        async def infer(name: str, tensors: list[Any], **options: Any) -> Any:  # noqa: ANN401  untyped
            return await see(client.infer(InferRequest(name, tensors, **options)))

        return {
            "live": await client.is_server_live(),
            "ready": await client.is_server_ready(),
            "model_ready": await client.is_model_ready(model),
            "unknown_model_ready": await client.is_model_ready("nobody"),
            "raw": await infer(model, inputs, request_id="mine"),
            "typed": await infer(model, lists, request_id="mine"),
            "columns": await infer(model, columns, request_id="mine"),
            "only_labels": await infer(model, inputs, request_outputs=labels),
            "mixed": await infer(model, mixed),
            "text_only": text_only,
            "unknown_model": await infer("nobody", inputs),
            "unknown_version": await infer(model, inputs, model_version="r9"),
            "unknown_output": await infer(model, inputs, request_outputs=[RequestedOutput("nothing")]),
            "missing": await infer(model, inputs[:1]),
        }


if __name__ == "__main__":
    logging.disable()
    sys.stdout.write(json.dumps(asyncio.run(main(*sys.argv[1:]))))
