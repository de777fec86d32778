"""The engine behind LitServe: a picture as an uploaded file, batches as its documentation configures them."""

import sys
from collections.abc import Sequence
from typing import Any

import litserve
from fastapi import Request

from dev.bench.peer_programs.engine import Scores, batch_limits, open_engine


class Api(litserve.LitAPI):
    """One worker process, which holds the engine."""

    def setup(self, device: str) -> None:
        """Open the engine in the worker."""
        del device
        self.answer = open_engine()

    def decode_request(self, request: Request) -> tuple[bytes, str]:
        """A picture and its statement."""
        form: Any = request  # LitServe passes the form
        return form["image"].file.read(), form["statement"]

    def batch(self, inputs: Sequence[tuple[bytes, str]]) -> Sequence[tuple[bytes, str]]:
        """The engine takes a list."""
        return inputs

    def predict(self, x: tuple[bytes, str] | Sequence[tuple[bytes, str]]) -> Scores | Sequence[Scores]:
        """Compute a batch, or one request without batches."""
        return self.answer([x])[0] if isinstance(x, tuple) else self.answer(x)

    def unbatch(self, output: Sequence[Scores]) -> Sequence[Scores]:
        """The engine returns a list."""
        return output

    def encode_response(self, output: Scores) -> dict[str, Scores]:
        """As JSON."""
        return {"scores": output}


if __name__ == "__main__":
    rows, seconds = batch_limits()
    api = Api(max_batch_size=max(1, rows), batch_timeout=seconds)
    litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
