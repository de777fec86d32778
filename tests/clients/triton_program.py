"""A program as Triton's users write it: prints what NVIDIA's client says of a server, as JSON."""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton

PICTURE = b"\x89PNG one"
STATEMENTS = ["there is a person", "人がいる"]


def bytes_input(name: str, elements: list[bytes], shape: list[int] | None = None) -> Any:  # noqa: ANN401  untyped
    """An input of BYTES."""
    tensor = triton.InferInput(name, shape or [len(elements)], "BYTES")
    tensor.set_data_from_numpy(np.array(elements, dtype=object).reshape(shape or [len(elements)]))
    return tensor


def ask(client: Any, model: str, inputs: list[Any], **options: Any) -> Any:  # noqa: ANN401  untyped
    """The result, or the error's code and text."""
    try:
        return client.infer(model, inputs, **options)
    except triton.InferenceServerException as error:
        return [error.status(), error.message()]


def main(address: str, model: str) -> dict[str, Any]:
    """What the client says."""
    client = triton.InferenceServerClient(address)
    texts = [text.encode() for text in STATEMENTS]
    inputs = [bytes_input("image", [PICTURE]), bytes_input("statements", texts)]
    result = ask(client, model, inputs, request_id="mine")
    columns = [bytes_input("image", [PICTURE], [1, 1]), bytes_input("statements", texts, [2, 1])]
    labels = ask(client, model, columns, outputs=[triton.InferRequestedOutput("labels")])
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "other_version_ready": client.is_model_ready(model, "r9"),
        "unknown_model_ready": client.is_model_ready("nobody"),
        "server": client.get_server_metadata(as_json=True)["name"],
        "metadata": client.get_model_metadata(model, as_json=True),
        "scores": result.as_numpy("scores").tolist(),
        "labels": [one.decode() for one in result.as_numpy("labels")],
        "id": result.get_response().id,
        "version": result.get_response().model_version,
        "only_labels": [one.decode() for one in labels.as_numpy("labels")],
        "without_scores": labels.as_numpy("scores") is None,
        "unknown_model": ask(client, "nobody", inputs),
        "unknown_version": ask(client, model, inputs, model_version="r9"),
        "missing": ask(client, model, inputs[:1]),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])))
